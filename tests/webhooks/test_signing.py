"""Signatures: what the published libraries accept, and what must never be accepted."""

from __future__ import annotations

import base64
import hmac
import json
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import openai
import pytest
import standardwebhooks
import svix
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from runbell.errors import (
    InvalidSignature,
    MalformedWebhook,
    RunbellError,
    SignatureMismatch,
    StaleTimestamp,
)
from runbell.webhooks import PublicKey, Secret, headers_for, sign, verify

SECRET = Secret.parse("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
OTHER = Secret.parse("whsec_RdvaYFYUXuIFuEbvZHwMfYFhUf7aMYjYcmM24+Aj40c=")
ID = "evt_123"
NOW = 1_800_000_000
BODY = b'{"type": "thread.run.completed"}'


def headers(**changed: Any) -> dict[str, Any]:
    """Good headers, but for these: `signature="…"`; None takes one away."""
    made: dict[str, Any] = dict(headers_for([SECRET], ID, NOW, BODY))
    made |= {f"webhook-{name}": value for name, value in changed.items()}
    return {name: value for name, value in made.items() if value is not None}


def check(found: Any, body: bytes = BODY, now: int = NOW, keys: Any = (SECRET,)) -> Any:
    return verify(keys, found, body, now_ms=now * 1000)


# The published libraries are judges of good input.


def by_standardwebhooks(secret: str, body: bytes, found: dict[str, str]) -> Any:
    return standardwebhooks.Webhook(secret).verify(body, found)


def by_svix(secret: str, body: bytes, found: dict[str, str]) -> Any:
    svix.Webhook(secret).verify(body, found)
    return json.loads(body)


CLIENT = openai.OpenAI(api_key="-")


def by_openai(secret: str, body: bytes, found: dict[str, str]) -> Any:
    CLIENT.webhooks.verify_signature(body, found, secret=secret)
    return json.loads(body)


@pytest.mark.parametrize("judge", [by_standardwebhooks, by_svix, by_openai])
@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    key=st.binary(min_size=24, max_size=64),
    id_=st.from_regex(r"evt_[A-Za-z0-9_-]{1,60}", fullmatch=True),
    event=st.dictionaries(st.text(), st.text() | st.integers() | st.none()),
)
def test_the_published_libraries_verify_what_we_sign(
    judge: Callable[..., Any], key: bytes, id_: str, event: dict[str, Any]
) -> None:
    body = json.dumps(event, ensure_ascii=False).encode("utf-8", "surrogatepass")
    try:
        body.decode()
    except UnicodeDecodeError:
        return  # half a surrogate pair: no event has it
    secret, now = Secret(key), int(time.time())
    found = headers_for([Secret.generate(), secret], id_, now, body)
    assert judge(secret.text, body, found) == event
    assert verify([secret], found, body, now_ms=now * 1000).id == id_


@settings(max_examples=40, deadline=None, derandomize=True)
@given(key=st.binary(min_size=24, max_size=64), data=st.text())
def test_we_verify_what_the_published_library_signs(key: bytes, data: str) -> None:
    secret = Secret(key)
    moment = datetime.fromtimestamp(NOW, UTC)
    try:
        signature = standardwebhooks.Webhook(secret.text).sign(ID, moment, data)
    except UnicodeEncodeError:
        return
    found = headers(signature=signature)
    assert check(found, data.encode(), keys=[secret]).timestamp == NOW


# What is refused, and how.


@pytest.mark.parametrize("name", ["id", "timestamp", "signature"])
@pytest.mark.parametrize("value", [None, "", "  ", []])
def test_a_missing_or_empty_header_is_malformed(name: str, value: Any) -> None:
    with pytest.raises(MalformedWebhook) as refused:
        check(headers(**{name: value}))
    assert (refused.value.status, refused.value.reason) == (400, "missing_header")


@pytest.mark.parametrize("name", ["webhook-id", "webhook-timestamp", "webhook-signature"])
def test_a_header_that_is_there_twice_is_malformed(name: str) -> None:
    pairs = [*headers().items(), (name.title(), headers()[name])]
    with pytest.raises(MalformedWebhook) as refused:
        check(pairs)
    assert refused.value.reason == "duplicate_header"
    with pytest.raises(MalformedWebhook):
        check(headers() | {name: [headers()[name]] * 2})


@pytest.mark.parametrize(
    "stamp",
    [
        "nan",
        "inf",
        "1.5",
        "1e9",
        "-5",
        "+5",
        "0x10",
        "1_000",
        "9" * 16,
        "9" * 5_000,
        "\uff11\uff18",
        b"\xb9\xb2",
        "soon",
    ],
)
def test_a_timestamp_that_is_no_number_of_seconds_is_malformed(stamp: str | bytes) -> None:
    with pytest.raises(MalformedWebhook) as refused:
        check(headers(timestamp=stamp))
    assert (refused.value.status, refused.value.reason) == (400, "malformed_header")


@pytest.mark.parametrize("id_", ["a.b", "a b", "a\nb", "é", "x" * 257, "\udc80"])
def test_an_id_that_is_none_is_malformed(id_: str) -> None:
    with pytest.raises(MalformedWebhook):
        check(headers(id=id_))
    with pytest.raises(ValueError):
        sign([SECRET], id_, NOW, BODY)


def test_where_the_id_ends_cannot_be_moved() -> None:
    """`a`, `1`, `2.x` and `a.1`, `2`, `x` are the same signed bytes: an id has no full stop."""
    body = b"%d.{}" % NOW
    signature = sign([SECRET], "a", 7, body)
    with pytest.raises(MalformedWebhook):
        check({**headers(signature=signature), "webhook-id": "a.7"}, b"{}")


@pytest.mark.parametrize(
    "signature",
    [
        "garbage",
        "v1",
        "v1,",
        "v1,A",
        "v1, ",
        "v2,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
        "v1,ü",
        "v1,\udc80",
        "ключ",
        ",,,",
        sign([OTHER], ID, NOW, BODY),
        sign([SECRET], ID, NOW + 1, BODY),
        sign([SECRET], "evt_124", NOW, BODY),
        sign([SECRET], ID, NOW, BODY + b" "),
        sign([SECRET], ID, NOW, BODY)[:-1],
        sign([SECRET], ID, NOW, BODY) + "=",
        sign([SECRET], ID, NOW, BODY).lower(),
        sign([SECRET], ID, NOW, BODY).replace("v1,", "V1,"),
        sign([SECRET], ID, NOW, BODY).replace("v1,", "v1a,"),
        sign([SECRET], ID, NOW, BODY).replace("v1,", ""),
        b"v1,\xff\xfe",
    ],
)
def test_a_signature_that_is_not_ours_is_a_mismatch(signature: Any) -> None:
    with pytest.raises(SignatureMismatch) as refused:
        check(headers(signature=signature))
    assert (refused.value.status, refused.value.reason) == (401, "no_match")


def test_bytes_that_are_nearly_the_bytes_are_a_mismatch() -> None:
    for body in (BODY[:-1], BODY + b"\n", BODY.replace(b" ", b""), b""):
        with pytest.raises(SignatureMismatch):
            check(headers(), body)


@pytest.mark.parametrize(
    ("off", "reason"),
    [(300, None), (-300, None), (301, "too_old"), (-301, "too_new"), (10**9, "too_old")],
)
def test_the_age_that_is_allowed_is_300_seconds(off: int, reason: str | None) -> None:
    if reason is None:
        assert check(headers(), now=NOW + off).timestamp == NOW
        return
    with pytest.raises(StaleTimestamp) as refused:
        check(headers(), now=NOW + off)
    assert (refused.value.status, refused.value.reason) == (401, reason)
    assert refused.value.skew == -off


def test_the_tolerance_can_be_chosen() -> None:
    assert verify([SECRET], headers(), BODY, now_ms=(NOW + 3600) * 1000, tolerance=3600)
    with pytest.raises(StaleTimestamp):
        verify([SECRET], headers(), BODY, now_ms=(NOW + 2) * 1000, tolerance=1)


def test_a_far_timestamp_that_nobody_signed_says_nothing_of_the_clock() -> None:
    with pytest.raises(SignatureMismatch):
        check(headers(timestamp="9" * 15))


# What is accepted.


@pytest.mark.parametrize(
    "before",
    [
        "garbage",
        "v1",
        "v1,",
        "v1,ü",
        "v1,%%%",
        "v2,abc",
        "v1a,AAAA",
        " ",
        "v1,\udc80",
        ",",
        "v1,a==",
    ],
)
def test_a_malformed_entry_before_a_good_one_is_passed_over(before: str) -> None:
    assert check(headers(signature=f"{before} {sign([SECRET], ID, NOW, BODY)}")).id == ID


def test_while_a_secret_is_changed_both_are_good() -> None:
    both = headers_for([SECRET, OTHER], ID, NOW, BODY)
    assert both["webhook-signature"].count("v1,") == 2
    for keys in ([SECRET], [OTHER], [Secret.generate(), OTHER]):
        assert check(both, keys=keys).id == ID
    assert check(headers(), keys=[OTHER, SECRET]).id == ID
    with pytest.raises(SignatureMismatch):
        check(headers(), keys=[OTHER])
    with pytest.raises(SignatureMismatch):
        check(headers(), keys=[])


@pytest.mark.parametrize(
    "given",
    [
        {name.title(): value for name, value in headers().items()},
        {name.upper(): [value] for name, value in headers().items()},
        [(name.encode(), value.encode()) for name, value in headers().items()],
        [(b"x-other", b"\xff"), *((k.title().encode(), v) for k, v in headers().items())],
        {name: f"\t{value} " for name, value in headers().items()},
        headers() | {"x-none": None, "x-number": 7},
    ],
)
def test_headers_may_come_in_any_shape_that_servers_hand_on(given: Any) -> None:
    assert check(given).id == ID


@pytest.mark.parametrize("body", [b"", b"\xff\xfe", b"[]", b"\0" * 100_000])
def test_the_body_may_be_anything(body: bytes) -> None:
    assert check(headers_for([SECRET], ID, NOW, body), body).id == ID


# How much work it is.


def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    digests: list[int] = []
    digest = hmac.digest

    def count(*args: Any) -> bytes:
        digests.append(1)
        return digest(*args)

    monkeypatch.setattr(hmac, "digest", count)
    return digests


def test_a_thousand_entries_cost_one_hmac_a_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    forged = sign([OTHER], ID, NOW, BODY)
    good = sign([SECRET], ID, NOW, BODY)
    digests = counted(monkeypatch)
    assert check(headers(signature=" ".join([forged] * 999 + [good]))).id == ID
    with pytest.raises(SignatureMismatch):
        check(headers(signature=" ".join([forged] * 1_000)))
    del digests[:4]  # those of `headers` itself
    assert len(digests) <= 4


def test_a_list_without_end_is_not_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    signature = " ".join(["v1,x"] * 1_000_000)
    made = headers(signature=signature)
    digests = counted(monkeypatch)
    with pytest.raises(MalformedWebhook):
        check(made)
    assert digests == []


def test_comparing_is_left_to_what_takes_the_same_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every entry is compared with every secret's signature, also behind the one that matches."""
    compared = []
    compare = hmac.compare_digest

    def count(a: bytes, b: bytes) -> bool:
        compared.append((a, b))
        return compare(a, b)

    monkeypatch.setattr(hmac, "compare_digest", count)
    good = sign([SECRET], ID, NOW, BODY)
    check(headers(signature=f"{good} v1,x v1,y"), keys=[SECRET, OTHER])
    assert len(compared) == 6


# ed25519.


def asymmetric() -> tuple[PublicKey, Callable[..., str]]:
    private = Ed25519PrivateKey.generate()
    public = PublicKey("whpk_" + base64.b64encode(private.public_key().public_bytes_raw()).decode())

    def signed(id_: str = ID, stamp: int = NOW, body: bytes = BODY) -> str:
        content = b"%b.%d.%b" % (id_.encode(), stamp, body)
        return "v1a," + base64.b64encode(private.sign(content)).decode()

    return public, signed


def test_an_ed25519_signature_is_verified_with_a_public_key() -> None:
    public, signed = asymmetric()
    assert check(headers(signature=signed()), keys=[public]).id == ID
    assert check(headers(signature=f"v1a,%% v1a,AAAA v1,x {signed()}"), keys=[SECRET, public])
    stranger, _ = asymmetric()
    for keys, signature in [
        ([stranger], signed()),
        ([SECRET], signed()),
        ([public], signed(body=b"{}")),
        ([public], signed(stamp=NOW - 1)),
        ([public], signed()[:-4]),
        ([public], signed().replace("v1a,", "v1,")),
        ([public], sign([SECRET], ID, NOW, BODY)),
    ]:
        with pytest.raises(SignatureMismatch):
            check(headers(signature=signature), keys=keys)


def test_few_ed25519_signatures_are_tried() -> None:
    public, signed = asymmetric()
    stranger, forged = asymmetric()
    with pytest.raises(SignatureMismatch):
        check(headers(signature=" ".join([forged()] * 400 + [signed()])), keys=[public])
    assert check(headers(signature=" ".join([forged()] * 7 + [signed()])), keys=[public, stranger])


# Junk.

VALUES = st.text(st.characters(exclude_categories=())) | st.binary() | st.none() | st.integers()
GOOD = headers()
TEXTS = st.sampled_from([*GOOD.values(), *GOOD]) | VALUES
PAIRS = st.lists(st.tuples(TEXTS, TEXTS | st.lists(TEXTS, max_size=3)), max_size=8)


@settings(deadline=None, derandomize=True)
@given(pairs=PAIRS, body=st.binary(), now=st.integers(0, 10**16))
def test_junk_is_refused_with_our_own_errors(pairs: Any, body: bytes, now: int) -> None:
    with pytest.raises(InvalidSignature) as refused:
        verify([SECRET], pairs, body, now_ms=now)
    assert isinstance(refused.value, RunbellError)
    assert refused.value.status in (400, 401)


@settings(deadline=None, derandomize=True)
@given(
    name=st.sampled_from(["id", "timestamp", "signature"]),
    value=VALUES | st.lists(VALUES),
    body=st.just(BODY) | st.binary(),
)
def test_one_bad_header_among_good_ones_is_refused(name: str, value: Any, body: bytes) -> None:
    made = headers(**{name: value})
    if made == GOOD and body == BODY:
        return
    with pytest.raises(InvalidSignature):
        check(made, body)


@settings(deadline=None, derandomize=True)
@given(at=st.integers(0), bit=st.integers(0, 7))
def test_every_bit_of_the_body_counts(at: int, bit: int) -> None:
    body = bytearray(BODY)
    body[at % len(body)] ^= 1 << bit
    with pytest.raises(SignatureMismatch):
        check(headers(), bytes(body))
