"""The count of each key: whose limit it is, what is said about it, and what memory it takes."""

from __future__ import annotations

import pytest

from runbell.clock import VirtualClock
from runbell.errors import RequestRefused
from runbell.service.limits import Limits, duration_text
from runbell.service.operations.access import Caller


def caller(name: str = "key_1", rpm: int | None = None) -> Caller:
    return Caller("proj_1", name, "sk-rb***yz", rpm)


def headers(limits: Limits, who: Caller) -> dict[str, str]:
    return {name.decode(): value.decode() for name, value in limits.count(who)}


def refusal(limits: Limits, who: Caller) -> RequestRefused:
    with pytest.raises(RequestRefused) as caught:
        limits.count(who)
    return caught.value


def test_no_limit_says_and_keeps_nothing() -> None:
    limits = Limits(VirtualClock(), 0)
    assert [limits.count(caller()) for _ in range(1_000)] == [[]] * 1_000
    assert limits.counted == 0


def test_the_headers_count_down() -> None:
    limits = Limits(VirtualClock(), 3)
    seen = [headers(limits, caller()) for _ in range(3)]
    assert seen == [
        {
            "x-ratelimit-limit-requests": "3",
            "x-ratelimit-remaining-requests": left,
            "x-ratelimit-reset-requests": reset,
        }
        for left, reset in (("2", "20s"), ("1", "40s"), ("0", "1m0s"))
    ]


def test_a_refusal_has_openais_sentence_and_headers() -> None:
    clock = VirtualClock()
    limits = Limits(clock, 60)
    for _ in range(60):
        limits.count(caller())
    clock.advance(0.25)
    refused = refusal(limits, caller())
    assert (refused.status, refused.type, refused.code) == (429, "requests", "rate_limit_exceeded")
    assert refused.message == (
        "Rate limit reached for API key sk-rb***yz on requests per min (RPM): "
        "Limit 60, Used 60, Requested 1. Please try again in 750ms."
    )
    assert refused.headers == {
        "retry-after": "1",
        "retry-after-ms": "750",
        "x-ratelimit-limit-requests": "60",
        "x-ratelimit-remaining-requests": "0",
        "x-ratelimit-reset-requests": "59.75s",
    }
    clock.advance(0.75)
    limits.count(caller())


def test_a_whole_second_is_said_as_one() -> None:
    limits = Limits(VirtualClock(), 60)
    for _ in range(60):
        limits.count(caller())
    refused = refusal(limits, caller())
    assert refused.message.endswith(" Please try again in 1s.")
    assert (refused.headers["retry-after"], refused.headers["retry-after-ms"]) == ("1", "1000")


def test_a_refused_request_is_not_counted() -> None:
    """Whoever hammers is let in as soon as whoever waits."""
    clock = VirtualClock()
    limits = Limits(clock, 1)
    limits.count(caller())
    for _ in range(59):
        clock.advance(1)
        refusal(limits, caller())
    clock.advance(1)
    limits.count(caller())


def test_a_keys_own_limit_goes_before_the_services() -> None:
    limits = Limits(VirtualClock(), 2)
    for _ in range(5):
        limits.count(caller("more", rpm=5))
    refusal(limits, caller("more", rpm=5))
    limits.count(caller("less", rpm=1))
    refusal(limits, caller("less", rpm=1))
    assert [limits.count(caller("unlimited", rpm=0)) for _ in range(10)] == [[]] * 10


def test_a_key_can_have_a_limit_where_the_service_has_none() -> None:
    limits = Limits(VirtualClock(), 0)
    limits.count(caller(rpm=1))
    refusal(limits, caller(rpm=1))


def test_each_key_has_its_own_count() -> None:
    """Also within one project."""
    limits = Limits(VirtualClock(), 1)
    limits.count(caller("one"))
    limits.count(caller("two"))
    refusal(limits, caller("one"))


def test_keys_that_rest_are_forgotten_and_those_that_do_not_are_not() -> None:
    """A minute fills every bucket; a full one is not kept."""
    clock = VirtualClock()
    limits = Limits(clock, 60)
    for number in range(5_000):
        limits.count(caller(f"key_{number}"))
    for _ in range(60):
        limits.count(caller("busy"))
    assert limits.counted == 5_001
    clock.advance(59)
    for _ in range(59):
        limits.count(caller("busy"))
    clock.advance(1)
    limits.count(caller("other"))
    assert limits.counted == 2
    limits.count(caller("busy"))
    refusal(limits, caller("busy"))


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (0.0001, "1ms"),
        (0.12, "120ms"),
        (0.1201, "121ms"),
        (0.9991, "1s"),
        (1, "1s"),
        (1.0000000001, "1s"),
        (8.64, "8.64s"),
        (59.999, "59.999s"),
        (60, "1m0s"),
        (86.4, "1m26.4s"),
        (360, "6m0s"),
    ],
)
def test_durations_are_written_as_openai_writes_them(seconds: float, text: str) -> None:
    assert duration_text(seconds) == text
