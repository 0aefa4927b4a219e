"""Who may come in: what is no proper webhook is refused in so many words, and leaves nothing."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from openai import OpenAI
from standardwebhooks.webhooks import Webhook
from svix.webhooks import Webhook as SvixWebhook

from runbell.errors import ConfigurationError, InvalidSecret
from runbell.receiver import Receiver
from runbell.webhooks import Secret, sign
from tests.receiver.house import SECRET, House, body_of, call, housed, on_a_receiver

OTHER = Secret.generate()
BODY = body_of("response.completed")
KEPT = "SELECT id, body FROM inbox_events UNION ALL SELECT id, body FROM inbox_others"


async def refused(
    house: House, status: int, reason: str, headers: Any, body: Any = BODY, **how: Any
) -> None:
    """The request is answered so, counted so, and leaves no row."""
    before = await house.count("rejected_total", reason=reason)
    rows = house.rows(KEPT)
    answer = await call(house.app, body, headers, **how)
    assert (answer.status, answer.reason) == (status, reason), answer
    assert await house.count("rejected_total", reason=reason) == before + 1
    assert house.rows(KEPT) == rows


@on_a_receiver()
async def test_a_signature_that_is_not_ours_is_a_401(house: House) -> None:
    """Forged, cut short, made with another secret, made for another body, or not even ASCII."""
    good = house.headers("wh_1", BODY)
    bad = {
        "forged": "v1," + base64.b64encode(b"x" * 32).decode(),
        "cut": good["webhook-signature"][:-4],
        "no version": good["webhook-signature"].removeprefix("v1,"),
        "another version": "v2" + good["webhook-signature"].removeprefix("v1"),
        "other secret": sign([OTHER], "wh_1", int(good["webhook-timestamp"]), BODY),
        "other body": sign([SECRET], "wh_1", int(good["webhook-timestamp"]), BODY + b" "),
        "other id": sign([SECRET], "wh_2", int(good["webhook-timestamp"]), BODY),
        "garbage": "garbage",
        "not ascii": "v1,é€",
    }
    for signature in bad.values():
        headers = {**good, "webhook-signature": signature}
        raw = [(name, value.encode()) for name, value in headers.items()]
        await refused(house, 401, "no_match", raw)


@on_a_receiver()
async def test_a_header_that_is_missing_empty_or_there_twice_is_a_400(house: House) -> None:
    """Whichever of the three it is; two that are equal are two."""
    good = house.headers("wh_1", BODY)
    for name in ("webhook-id", "webhook-timestamp", "webhook-signature"):
        without = [(key, value) for key, value in good.items() if key != name]
        await refused(house, 400, "missing_header", without)
        await refused(house, 400, "missing_header", [*without, (name, "")])
        await refused(house, 400, "missing_header", [*without, (name, "  ")])
        await refused(house, 400, "duplicate_header", [*good.items(), (name.upper(), good[name])])


@on_a_receiver()
async def test_a_stamp_may_be_300_seconds_off_and_no_more(house: House) -> None:
    """Either way; and it has to be a whole number that somebody can have meant."""
    for skew in (-300, 300):
        headers = house.headers(f"wh_{skew}", BODY, skew=skew)
        assert (await call(house.app, BODY, headers.items())).status == 200
    await refused(house, 401, "too_old", house.headers("wh_1", BODY, skew=-301).items())
    await refused(house, 401, "too_new", house.headers("wh_1", BODY, skew=301).items())
    for stamp in ("nan", "1.5", "9" * 5_000, "-5", "1e9", "\uff10\uff11", "0x10"):
        headers = {**house.headers("wh_1", BODY), "webhook-timestamp": stamp}
        raw = [(name, value.encode()) for name, value in headers.items()]
        await refused(house, 400, "malformed_header", raw)


@on_a_receiver()
async def test_bad_entries_beside_a_good_signature_do_no_harm(house: House) -> None:
    """In front of it and behind it, also a thousand; more than any sender has is a 400."""
    good = house.headers("wh_1", BODY)
    signature = good["webhook-signature"]
    many = " ".join(["v1,AAAA"] * 1_000)
    for number, text in enumerate(
        (f"garbage {signature}", f"v1, v1,é {signature} v9,x", f"{many} {signature}")
    ):
        headers = house.headers(f"wh_{number}", BODY)
        headers["webhook-signature"] = text.replace(signature, headers["webhook-signature"])
        raw = [(name, value.encode()) for name, value in headers.items()]
        assert (await call(house.app, BODY, raw)).status == 200
    good["webhook-signature"] = " ".join([many] * 100)
    await refused(house, 400, "malformed_header", good.items())


def test_while_a_secret_is_changed_both_are_good_and_then_the_old_is_not(tmp_path: Path) -> None:
    """The old one ends at its moment, without a restart."""

    async def story() -> None:
        async with housed(tmp_path / "inbox.db") as first:
            until = datetime.fromtimestamp(first.clock.now_ms() / 1000, UTC) + timedelta(hours=1)
        secrets = [SECRET, (OTHER.text, until)]
        async with (
            housed(tmp_path / "inbox.db", secrets=secrets) as house,
            house.receiver.running(),
        ):
            assert (await house.push("wh_1", BODY)).status == 200
            assert (await house.push("wh_2", BODY, secret=OTHER)).status == 200
            house.clock.advance(3_601)
            late = house.headers("wh_3", BODY, secret=OTHER)
            await refused(house, 401, "no_match", late.items())
            assert (await house.push("wh_4", BODY)).status == 200

    asyncio.run(story())


def test_a_receiver_without_a_usable_secret_does_not_start() -> None:
    """An open door is no default, an empty variable is no secret, and none is shown."""
    for secrets in ([], [""], ["  "]):
        with pytest.raises(ConfigurationError):
            Receiver(secrets=secrets)
    with pytest.raises(ConfigurationError, match="has ended"):
        Receiver(secrets=[(SECRET, datetime(2020, 1, 1, tzinfo=UTC))])
    with pytest.raises(ConfigurationError, match="list"):
        Receiver(secrets="whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    with pytest.raises(InvalidSecret) as caught:
        Receiver(secrets=["whsec_hunter2"])
    assert "hunter2" not in str(caught.value)


def test_a_public_key_verifies_v1a(tmp_path: Path) -> None:
    """Where a public key is given, an ed25519 signature lets in; one of another key does not."""
    ours, theirs = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
    public = ours.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)

    async def story() -> None:
        key = "whpk_" + base64.b64encode(public).decode()
        async with housed(tmp_path / "inbox.db", secrets=[key]) as house, house.receiver.running():
            stamp = str(house.clock.now_ms() // 1000)
            for private, status in ((ours, 200), (theirs, 401)):
                signed = private.sign(f"wh_{status}.{stamp}.".encode() + BODY)
                headers = {
                    "content-type": "application/json",
                    "webhook-id": f"wh_{status}",
                    "webhook-timestamp": stamp,
                    "webhook-signature": "v1a," + base64.b64encode(signed).decode(),
                }
                assert (await call(house.app, BODY, headers.items())).status == status

    asyncio.run(story())


@on_a_receiver()
async def test_what_the_published_libraries_sign_and_verify_is_let_in(house: House) -> None:
    """`standardwebhooks`, `svix` and `openai` agree with this door about good webhooks."""
    at = datetime.fromtimestamp(house.clock.now_ms() // 1000, UTC)
    text = BODY.decode()
    for name, library in (("std", Webhook), ("svix", SvixWebhook)):
        signature = library(SECRET.text).sign(f"wh_{name}", at, text)
        headers = house.headers(f"wh_{name}", BODY) | {"webhook-signature": signature}
        assert (await call(house.app, BODY, headers.items())).status == 200
    ours = house.headers("wh_3", BODY)
    OpenAI(api_key="none").webhooks.verify_signature(
        text, ours, secret=SECRET.text, tolerance=2**40
    )
    assert (await call(house.app, BODY, ours.items())).status == 200


@on_a_receiver()
async def test_only_json_that_is_posted_uncompressed_comes_in(house: House) -> None:
    """GET is a 405 that says what is allowed; other types and codings are a 415."""
    good = house.headers("wh_1", BODY)
    plain = {name: value for name, value in good.items() if name != "content-type"}
    for method in ("GET", "PUT", "HEAD", "DELETE"):
        await refused(house, 405, "method", good.items(), method=method)
    assert (await call(house.app, method="GET")).headers["allow"] == "POST"
    for kind in ("text/plain", "application/jsonx", "", "application/x-www-form-urlencoded"):
        await refused(house, 415, "content_type", [*plain.items(), ("content-type", kind)])
    await refused(house, 415, "content_type", plain.items())
    two = [("content-type", "application/json")] * 2
    await refused(house, 415, "content_type", [*plain.items(), *two])
    for coding in ("gzip", "br", "gzip, identity"):
        await refused(house, 415, "content_encoding", [*good.items(), ("content-encoding", coding)])
    fine = [*plain.items(), ("content-type", "Application/JSON; charset=utf-8")]
    assert (await call(house.app, BODY, [*fine, ("content-encoding", "identity")])).status == 200


@on_a_receiver(max_body=1_000)
async def test_no_more_of_a_body_is_held_than_is_allowed(house: House) -> None:
    """What is announced as too large is not read at all; what is not announced is not read on."""
    good = [*house.headers("wh_1", BODY).items()]
    await refused(house, 413, "too_large", [*good, ("content-length", "1001")], body=[])
    taken = []

    def pieces() -> Any:
        for number in range(100):
            taken.append(number)
            yield b" " * 100

    house_app, more = house.app, pieces()

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": next(more), "more_body": True}

    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    raw = [(name.encode(), value.encode()) for name, value in good]
    scope = {"type": "http", "method": "POST", "path": "/", "headers": raw}
    await house_app(scope, receive, send)
    assert sent[0]["status"] == 413
    assert (b"connection", b"close") in sent[0]["headers"]
    assert len(taken) == 11
    assert house.receiver._door._reading.held == house.receiver._door._storing.held == 0


@on_a_receiver()
async def test_a_length_that_lies_is_refused(house: House) -> None:
    """Where the server lets it through: a body that is shorter or longer is not the one."""
    good = [*house.headers("wh_1", BODY).items()]
    for length in (str(len(BODY) - 1), str(len(BODY) + 1), "-1", "1e3", "9" * 30, "", "5, 5"):
        await refused(house, 400, "malformed_length", [*good, ("content-length", length)])
    exact = [*good, ("content-length", str(len(BODY)))]
    assert (await call(house.app, [BODY[:5], BODY[5:]], exact)).status == 200


@on_a_receiver(body_timeout=0.02)
async def test_a_body_that_does_not_come_is_a_408(house: House) -> None:
    """Its place is free again; a sender that leaves in the middle is nobody's error."""
    headers = [*house.headers("wh_1", BODY).items()]
    messages = [{"type": "http.request", "body": BODY[:9], "more_body": True}]
    sent: list[Any] = []

    async def receive() -> Any:
        return messages.pop() if messages else await asyncio.Event().wait()

    async def send(message: Any) -> None:
        sent.append(message)

    raw = [(name.encode(), value.encode()) for name, value in headers]
    scope = {"type": "http", "method": "POST", "path": "/", "headers": raw}
    await house.app(scope, receive, send)
    assert sent[0]["status"] == 408
    left = await call(house.app, [BODY[:9]], headers, leaves=True)
    assert left.status == 0
    assert await house.count("rejected_total", reason="cut_off") == 1
    assert house.receiver._door._reading.held == house.receiver._door._storing.held == 0
    assert house.rows() == []


@on_a_receiver(max_bodies=100_000)
async def test_bodies_that_come_at_the_same_time_are_bounded_together(house: House) -> None:
    """A large one that does not fit beside the others is asked to come again."""
    door = house.receiver._door
    large = body_of("response.completed", text="x" * 80_000)
    headers = house.headers("wh_1", large)
    door._reading.held = 90_000
    await refused(house, 503, "busy", headers.items(), large)
    assert door._reading.held == 90_000
    # A proper event fits, whoever fills the room with large bodies: that takes no secret.
    assert (await house.push("wh_2", BODY)).status == 200
    door._reading.held = 0
    door._storing.held = 90_000
    await refused(house, 503, "busy", headers.items(), large)
    door._storing.held = 0
    assert (await call(house.app, large, headers.items())).status == 200
    assert door._reading.held == door._storing.held == 0


@on_a_receiver(max_bodies=100_000)
async def test_who_announces_much_and_sends_nothing_keeps_nobody_out(house: House) -> None:
    """A hundred connections that are silent cost nothing but themselves."""
    head = [(b"content-type", b"application/json"), (b"content-length", b"1048576")]
    scope = {"type": "http", "method": "POST", "path": "/hooks", "headers": head}

    async def silent() -> None:
        await house.app(dict(scope), asyncio.Event().wait, None)

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(silent()) for _ in range(100)]
        await asyncio.sleep(0)
        assert (await house.push("wh_1", BODY)).status == 200
        for task in tasks:
            task.cancel()


STRANGE = {
    "not UTF-8": b"\xff\xfe{}",
    "not UTF-8 inside": b'{"type":"a","data":"\xff"}',
    "not UTF-8 elsewhere": b'{"type":"a","more":"\xff"}',
    "deep elsewhere": b'{"type":"a","more":' + b"[" * 200_000 + b"]" * 200_000 + b"}",
    "digits elsewhere": b'{"type":"a","more":%b}' % (b"9" * 900_000),
    "empty": b"",
    "no JSON": b"<html>",
    "an array": b"[]",
    "a string": b'"a"',
    "no type": b'{"data":{}}',
    "a type that is no text": b'{"type":1}',
    "an empty type": b'{"type":""}',
    "a long type": b'{"type":"%b"}' % (b"a" * 300),
    "a control character": b'{"type":"a\\u0000"}',
    "half a surrogate": b'{"type":"\\ud800"}',
    "deep": b'{"type":"a","data":' + b"[" * 200_000,
    "deep and whole": b'{"type":"a","data":' + b"[" * 200_000 + b"]" * 200_000 + b"}",
    "a million digits": b'{"type":"a","data":{"id":%b}}' % (b"9" * 1_000_000),
    "NaN": b'{"type":"a","data":{"x":NaN}}',
    "infinite": b'{"type":"a","data":{"x":1e999999}}',
}


@on_a_receiver()
async def test_what_is_signed_and_no_event_is_a_dead_letter(house: House) -> None:
    """It is answered 200, since sending it again would change nothing; it is kept with a reason,
    counted, handled by nobody, and shown by nobody's log."""
    for name, body in STRANGE.items():
        event_id = name.replace(" ", "_")
        assert (await house.push(event_id, body)).status == 200, name
    assert {state for _, state in house.rows()} == {"dead"}
    assert len(house.rows()) == len(STRANGE)
    assert await house.count("unreadable_total") == len(STRANGE)
    kept = dict(house.rows("SELECT id, body FROM inbox_events"))
    assert kept["NaN"] == STRANGE["NaN"]
    assert all(why for (why,) in house.rows("SELECT error FROM inbox_events"))
    await house.pass_time(5)
    assert house.handled == []


@on_a_receiver()
async def test_odd_events_are_events(house: House) -> None:
    """Keys that are there twice, types that nobody knows, data of another kind, letters of any
    language: all of it reaches a handler of `*`, as it came."""
    odd = [
        b'{"type":"first","type":"second"}',
        b'{"type":"brand.new","data":null}',
        b'{"type":"brand.new","data":[1,2]}',
        '{"type":"grüße.世界","data":{"id":7,"sequence":"x"}}'.encode(),
        b'{"type":"thread.run.completed","data":{"id":"run_1","sequence":-1}}',
        b'{"type":"thread.run.completed","data":{"id":"run_1","sequence":99999999999999999999}}',
        b'{"type":"thread.run.completed"}',
    ]
    for number, body in enumerate(odd):
        assert (await house.push(f"wh_{number}", body)).status == 200
    await house.until(lambda: len(house.handled) == len(odd))
    assert sorted(house.ids) == [f"wh_{number}" for number in range(len(odd))]
    assert house.handled[0] == ("wh_0", "second")


@pytest.mark.parametrize("skew", [-3_600, 3_600])
def test_a_clock_that_is_an_hour_off_is_loud(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, skew: int
) -> None:
    """Every webhook is refused then: an error in the log says by how much and what to do, once a
    minute, and the number to watch has it."""

    async def story() -> None:
        async with housed(tmp_path / "inbox.db") as house, house.receiver.running():
            for number in range(5):
                body = body_of("response.completed", f"resp_{number}")
                assert (await house.push(f"wh_{number}", body, skew=skew)).status == 401
            assert await house.count("clock_skew_seconds") == skew
            errors = [r for r in caplog.records if r.levelno == logging.ERROR]
            assert len(errors) == 1
            assert "3600 s" in errors[0].getMessage()
            assert "clock" in errors[0].getMessage()
            house.clock.advance(61)
            await house.push("wh_9", BODY, skew=skew)
            assert len([r for r in caplog.records if r.levelno == logging.ERROR]) == 2

    asyncio.run(story())


@on_a_receiver()
async def test_before_it_runs_and_after_it_stopped_nobody_comes_in(house: House) -> None:
    """A sender is asked to come again: it is a 503, not a 404 and never a 200."""
    idle = Receiver(secrets=[SECRET], inbox=f"sqlite:///{house.path}", clock=house.clock)
    answer = await call(idle.asgi(), BODY, house.headers("wh_1", BODY).items())
    assert (answer.status, answer.reason) == (503, "not_running")
    assert int(answer.headers["retry-after"]) > 0


HEADER_NAMES = st.sampled_from(
    ["webhook-id", "Webhook-Timestamp", "webhook-signature", "content-type", "content-length"]
)


def test_no_request_whatever_it_is_brings_it_down(tmp_path: Path) -> None:
    """Any headers and any body end in a proper answer; what is not signed leaves no row, and what
    is signed is there afterwards, byte for byte."""

    async def story() -> None:
        async with housed(tmp_path / "inbox.db") as house, house.receiver.running():
            house.hasten()
            await fuzz(house)

    async def fuzz(house: House) -> None:
        loop = asyncio.get_running_loop()

        def run(coroutine: Any) -> Any:
            return asyncio.run_coroutine_threadsafe(coroutine, loop).result(30)

        @settings(
            max_examples=120,
            deadline=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
        )
        @given(
            st.lists(st.tuples(HEADER_NAMES | st.text("abc-"), st.binary(max_size=40)), max_size=6),
            st.binary(max_size=200),
        )
        def junk(headers: list[Any], body: bytes) -> None:
            answer = run(call(house.app, body, [("content-type", "application/json"), *headers]))
            assert answer.status in (400, 401, 415, 413), answer
            assert json.loads(answer.body)["error"]["code"]

        json_values = st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(st.sampled_from(["id", "sequence", "type", "status"]), inner)
            ),
            max_leaves=5,
        )

        @settings(
            max_examples=120,
            deadline=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
        )
        @given(
            st.binary(max_size=200)
            | st.fixed_dictionaries(
                {"type": st.sampled_from(["thread.run.completed", "a"]) | st.text(max_size=5)},
                optional={"data": json_values},
            ).map(lambda event: json.dumps(event).encode()),
            st.integers(0, 2**63),
        )
        def signed(body: bytes, number: int) -> None:
            event_id = f"wh_{number}_{sha256(body).hexdigest()}"
            assert run(house.push(event_id, body)).status == 200
            found = house.rows(f"SELECT body FROM inbox_events WHERE id = '{event_id}'")
            assert found == [(body,)]

        await asyncio.to_thread(junk)
        assert house.rows() == []
        await asyncio.to_thread(signed)

    asyncio.run(story())
