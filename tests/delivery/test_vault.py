"""Secrets at rest: only the right key opens them, and only for what they belong to."""

from __future__ import annotations

import base64
import os
import secrets
import stat
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runbell.errors import CannotDecrypt, ConfigurationError
from runbell.service.settings import Settings
from runbell.service.vault import Vault, load_or_make_keys

KEY = bytes(range(32))
VAULT = Vault(KEY)


@settings(deadline=None, derandomize=True)
@given(secret=st.binary(), about=st.text(st.characters(exclude_categories=["Cs"])))
def test_what_is_sealed_is_opened(secret: bytes, about: str) -> None:
    sealed = VAULT.seal(secret, about)
    assert VAULT.open(sealed, about) == secret
    assert Vault(KEY).open(sealed, about) == secret


def test_nothing_of_a_secret_is_seen() -> None:
    sealed = [VAULT.seal(b"whsec_" + b"A" * 32, "we_1") for _ in range(100)]
    assert len(set(sealed)) == 100, "the same secret twice looks different"
    assert not any(b"AAAA" in each for each in sealed)
    assert KEY not in repr(VAULT).encode()
    assert repr(VAULT) == f"Vault(key_id='{VAULT.key_id}')"


def test_a_secret_is_not_opened_for_another_row() -> None:
    with pytest.raises(CannotDecrypt, match="was stored for another"):
        VAULT.open(VAULT.seal(b"s", "we_1"), "we_2")


def test_another_key_is_named_by_its_id() -> None:
    other = Vault(secrets.token_bytes(32))
    with pytest.raises(CannotDecrypt) as refused:
        other.open(VAULT.seal(b"s", "we_1"), "we_1")
    assert VAULT.key_id in str(refused.value)
    assert other.key_id in str(refused.value)
    assert "RUNBELL_ENCRYPTION_KEY" in str(refused.value)


@settings(deadline=None, derandomize=True)
@given(at=st.integers(0, 10_000), bit=st.integers(0, 7))
def test_every_bit_counts(at: int, bit: int) -> None:
    sealed = bytearray(VAULT.seal(b"secret", "we_1"))
    sealed[at % len(sealed)] ^= 1 << bit
    with pytest.raises(CannotDecrypt):
        VAULT.open(bytes(sealed), "we_1")


@settings(deadline=None, derandomize=True)
@given(sealed=st.binary(max_size=60))
def test_junk_is_not_opened(sealed: bytes) -> None:
    for junk in (sealed, VAULT.seal(b"", "")[:5] + sealed):
        with pytest.raises(CannotDecrypt):
            VAULT.open(junk, "we_1")


def test_a_key_has_32_bytes() -> None:
    with pytest.raises(ConfigurationError, match="has 31 bytes"):
        Vault(bytes(31))


def test_older_keys_only_decrypt() -> None:
    """What they encrypted can be had, and be encrypted anew, once."""
    both = Vault(bytes(32), KEY)
    sealed = VAULT.seal(b"s", "we_1")
    assert both.open(sealed, "we_1") == b"s"
    renewed = both.renew(sealed, "we_1")
    assert Vault(bytes(32)).open(renewed, "we_1") == b"s"
    assert both.renew(renewed, "we_1") == renewed
    with pytest.raises(CannotDecrypt):
        both.renew(sealed, "we_2")
    with pytest.raises(ConfigurationError, match="has 5 bytes"):
        Vault(KEY, b"short")


# Where the key comes from.


def load(folder: Path, *, given: str | None = None, file: str | None = None) -> bytes:
    (key,) = load_or_make_keys(given=given, key_file=file, beside=folder / "runbell.db")
    return key


def test_the_first_start_makes_a_key_and_the_second_finds_it(tmp_path: Path) -> None:
    key = load(tmp_path)
    assert len(key) == 32
    assert load(tmp_path) == key
    assert [path.name for path in tmp_path.iterdir()] == ["runbell.key"]
    assert stat.S_IMODE((tmp_path / "runbell.key").stat().st_mode) == 0o600
    assert load(tmp_path, file=str(tmp_path / "mine.key")) != key


def test_the_mode_does_not_depend_on_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        load(tmp_path)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "runbell.key").stat().st_mode) == 0o600


def test_without_a_file_of_the_database_it_is_in_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (key,) = load_or_make_keys(given=None, key_file=None, beside=None)
    assert base64.b64decode((tmp_path / "runbell.key").read_text()) == key


def test_the_environment_comes_first(tmp_path: Path) -> None:
    given = base64.b64encode(KEY).decode()
    assert load(tmp_path, given=given, file="/no/such/file") == KEY
    assert list(tmp_path.iterdir()) == []


def test_several_keys_stand_behind_each_other(tmp_path: Path) -> None:
    """In the variable and in the file; the first is the one that encrypts."""
    keys = (bytes(32), KEY)
    words = [base64.b64encode(key).decode() for key in keys]
    assert load_or_make_keys(given=" ".join(words), key_file=None, beside=None) == keys
    (tmp_path / "key").write_text("\n".join([*words, ""]))
    (tmp_path / "key").chmod(0o600)
    assert load_or_make_keys(given=None, key_file=f"{tmp_path}/key", beside=None) == keys


def test_many_who_start_at_once_have_one_key(tmp_path: Path) -> None:
    found: list[bytes] = []
    ready = threading.Barrier(8)

    def start() -> None:
        ready.wait()
        found.append(load(tmp_path))

    threads = [threading.Thread(target=start) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert len(set(found)) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["runbell.key"]


@pytest.mark.parametrize("mode", [0o604, 0o644, 0o602, 0o666])
def test_a_file_that_everybody_can_read_is_refused(tmp_path: Path, mode: int) -> None:
    load(tmp_path)
    (tmp_path / "runbell.key").chmod(mode)
    with pytest.raises(ConfigurationError, match="chmod 600"):
        load(tmp_path)
    (tmp_path / "runbell.key").chmod(0o440)
    assert load(tmp_path)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "holds 0 bytes"),
        (b"\xff\xfe", "not base64"),
        (base64.b64encode(bytes(31)), "holds 31 bytes"),
        (base64.b64encode(bytes(33)), "holds 33 bytes"),
        (b"-----BEGIN PRIVATE KEY-----", "not base64"),
    ],
)
def test_a_file_that_holds_no_key_is_refused(
    tmp_path: Path, content: bytes, complaint: str
) -> None:
    path = tmp_path / "runbell.key"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(ConfigurationError, match=complaint) as refused:
        load(tmp_path)
    assert str(path) in str(refused.value)
    assert path.read_bytes() == content, "it is never overwritten"


def test_a_variable_that_holds_no_key_is_not_shown(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="RUNBELL_ENCRYPTION_KEY is not base64") as refused:
        load(tmp_path, given="hunter2!")
    assert "hunter2" not in str(refused.value)
    assert refused.value.__cause__ is None


def test_a_key_that_cannot_be_kept_or_read_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="cannot make a key in"):
        load(tmp_path / "no" / "such" / "folder")
    (tmp_path / "runbell.key").mkdir()
    with pytest.raises(ConfigurationError, match="cannot read the key in"):
        load(tmp_path)


def test_no_key_is_made_where_secrets_need_the_old_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="put it back"):
        load_or_make_keys(given=None, key_file=None, beside=tmp_path / "runbell.db", create=False)
    assert list(tmp_path.iterdir()) == []


def test_the_settings_name_it_and_never_show_it() -> None:
    text = base64.b64encode(KEY).decode()
    loaded = Settings.load(
        environ={"RUNBELL_ENCRYPTION_KEY": f"{text}\n", "RUNBELL_KEY_FILE": "/run/secrets/key"}
    )
    assert (loaded.encryption_key, loaded.key_file) == (text, "/run/secrets/key")
    assert text not in repr(loaded)
