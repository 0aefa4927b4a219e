"""Secrets: written in one way, and shown to nobody."""

from __future__ import annotations

import base64
import copy
import logging
import pickle
import sys
import traceback

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runbell.errors import ConfigurationError, InvalidSecret, MissingExtra
from runbell.webhooks import PublicKey, Secret

TEXT = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


@settings(deadline=None, derandomize=True)
@given(key=st.binary(min_size=24, max_size=64))
def test_a_secret_is_read_as_it_was_written(key: bytes) -> None:
    secret = Secret(key)
    assert Secret.parse(secret.text) == secret
    assert secret.text.startswith("whsec_")
    assert secret.text.endswith(secret.hint)
    assert len(secret.hint) == 4


def test_generated_secrets_differ() -> None:
    made = {Secret.generate().text for _ in range(100)}
    assert len(made) == 100
    assert all(len(Secret.parse(text).key) == 32 for text in made)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "begins with whsec_"),
        ("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "begins with whsec_"),
        ("WHSEC_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "begins with whsec_"),
        (f"{TEXT}\n", "spaces or line ends"),
        (f" {TEXT}", "spaces or line ends"),
        ("whsec_", "holds 0 bytes"),
        (f"whsec_{base64.b64encode(bytes(23)).decode()}", "holds 23 bytes: it has to be 24 to 64"),
        (f"whsec_{base64.b64encode(bytes(65)).decode()}", "holds 65 bytes"),
        (f"whsec_{base64.b64encode(bytes(25)).decode().rstrip('=')}", "not padded base64"),
        ("whsec_" + "-_" * 16, "not padded base64"),
        (TEXT[:20] + " " + TEXT[20:], "not padded base64"),
        (TEXT + "é", "not padded base64"),
        (TEXT * 40, "longer than any"),
    ],
)
def test_what_is_no_secret_is_refused_without_being_shown(text: str, complaint: str) -> None:
    with pytest.raises(InvalidSecret, match=complaint) as refused:
        Secret.parse(text)
    assert isinstance(refused.value, ConfigurationError)
    shown = "".join(traceback.format_exception(refused.value))
    assert "MfKQ9r8G" not in shown


def test_a_secret_is_shown_nowhere(caplog: pytest.LogCaptureFixture) -> None:
    secret = Secret.parse(TEXT)
    logging.getLogger("test").warning("%s %r %s", secret, secret, [secret])
    for shown in (repr(secret), str(secret), f"{secret}", repr({"a": secret}), caplog.text):
        assert "MfKQ9r8G" not in shown
        assert repr(secret.key) not in shown
        assert "Secret(…LaSw)" in shown
    with pytest.raises(AttributeError):
        secret.key = b""  # type: ignore[misc]


def test_a_secret_is_a_value() -> None:
    secret = Secret.parse(TEXT)
    assert {secret, Secret.parse(TEXT)} == {secret}
    assert copy.deepcopy(secret) == pickle.loads(pickle.dumps(secret)) == secret


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (TEXT, "begins with whpk_"),
        ("whpk_AAAA", "holds 3 bytes"),
        ("whpk_A", "not padded base64"),
    ],
)
def test_what_is_no_public_key_is_refused(text: str, complaint: str) -> None:
    with pytest.raises(InvalidSecret, match=complaint):
        PublicKey(text)


def test_without_cryptography_a_public_key_says_what_is_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in [name for name in sys.modules if name.startswith("cryptography")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "cryptography", None)
    with pytest.raises(MissingExtra, match="pip install"):
        PublicKey("whpk_" + base64.b64encode(bytes(32)).decode())
