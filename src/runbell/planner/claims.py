"""Claims about polling and webhooks that travel, each computed.

python -m runbell.planner.claims    # the table of docs/polling-or-webhooks.md
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from runbell.pacing import Fixed
from runbell.planner.advice import ROOM
from runbell.planner.planning import Plan, plan
from runbell.planner.playing import Outcome, polled
from runbell.planner.roster import BACKSTOP, FORESIGHT, SDK
from runbell.planner.traces import Floats, Trace
from runbell.planner.words import about, number, percent
from runbell.planner.workload import Workload

__all__ = ["Claim", "claims", "markdown"]

PRICE = 0.00015
"""Dollars a call, as in the claims."""

RUNS = 100_000
SETTING_UP = 800.0
"""Dollars: a day of somebody's work, for an endpoint that verifies, stores and answers."""


class Claim(NamedTuple):
    """One of them.

    Attributes:
        says: the claim.
        computed: what comes out, with the formula.
        judged: what is right and wrong about it.
    """

    says: str
    computed: str
    judged: str


def claims(latency: float = 0.15) -> list[Claim]:
    """The claims, for log-normal durations with median 6 s and p95 25 s.

    Args:
        latency: seconds from a request to its answer.
    """
    trace = Trace.lognormal(6, 25)
    draws = trace.sample().draws
    found = plan(Workload(trace, RUNS, price_per_call=PRICE, latency=latency))
    fast, two, three = (_fixed(draws, interval, latency) for interval in (0.1, 2.0, 3.0))
    return [
        _ten_a_second(latency),
        _saved(fast, two, three),
        _sweet_spot(found, draws, latency),
        _fifty(found, latency),
        _ten_million(found),
        _ten_thousand(found),
        _pays_back(found),
        _endpoint(found),
    ]


def markdown(found: list[Claim]) -> list[str]:
    """The rows of the table in the documentation."""
    return [f"| {each.says} | {each.computed} | {each.judged} |" for each in found]


def _fixed(draws: Mapping[str, Floats], interval: float, latency: float) -> Outcome:
    return polled(draws, dict.fromkeys(draws, Fixed(interval)), latency)


def _ten_a_second(latency: float) -> Claim:
    rate = 1 / (0.1 + latency)
    return Claim(
        "Polling every 100 ms is 10 calls a second",
        f"1 / (interval + latency) = 1 / (0.1 + {latency:g}) = {rate:.1f} a second",
        "Wrong by the latency: a client waits for the answer before it pauses. 10 a second takes "
        "requests that overlap, or none that take time.",
    )


def _saved(fast: Outcome, two: Outcome, three: Outcome) -> Claim:
    saved = [percent(1 - each.calls / fast.calls) for each in (two, three)]
    return Claim(
        "Polling every 2 to 3 s instead of 100 ms saves 80 % of the calls",
        f"{fast.calls:.1f} calls a run become {two.calls:.1f} and {three.calls:.1f}: "
        f"{saved[0]} and {saved[1]}",
        f"Right, and half of the story: the mean delay goes from {fast.mean:.2f} to "
        f"{two.mean:.2f} and {three.mean:.2f} s.",
    )


def _sweet_spot(found: Plan, draws: Mapping[str, Floats], latency: float) -> Claim:
    price = found.load.delay_price
    tried = [0.25 * step for step in range(1, 25)]
    worths = {}
    for interval in tried:
        outcome = _fixed(draws, interval, latency)
        worths[interval] = outcome.mean + price * outcome.calls
    best = min(worths, key=worths.__getitem__)
    foresight, fixed = found.row(FORESIGHT), found.row("fixed 2 s")
    return Claim(
        "2 to 3 s is the interval to poll at",
        f"The least delay + {price:g} s a call is at {best:g} s for these runs; about "
        "√(2 · price of a call · mean duration)",
        "Right for runs of about this length and no others: it depends on how long runs take and "
        f"what a call is worth. No interval is best: Foresight takes {foresight.calls:.1f} calls "
        f"for {foresight.delay.mean:.1f} s, where 2 s takes {fixed.calls:.1f} for "
        f"{fixed.delay.mean:.1f} s.",
    )


def _fifty(found: Plan, latency: float) -> Claim:
    rpm = found.load.rpm or 0.0
    at = [rpm * (interval + latency) / 60 for interval in (1.0, 2.0, 3.0)]
    even = found.row(SDK).break_even
    assert even is not None
    assert even.concurrent_by_quota is not None
    whole = number(even.concurrent_by_quota / ROOM)
    return Claim(
        "About 50 concurrent runs is the break-even",
        f"N = RPM · (interval + latency) / 60: with {rpm:g} calls a minute {number(at[0])}, "
        f"{number(at[1])} and {number(at[2])} runs at 1, 2 and 3 s; "
        f"{whole} where looks at the beginning and the end of runs "
        "count too",
        f"A number without its formula: 50 is right for {about(50 * 60 / (1 + latency))} calls a "
        f"minute at 1 s, or for {rpm:g} at {50 * 60 / rpm - latency:.1f} s. By money it is another "
        "one, and without a price a call there is none.",
    )


def _ten_million(found: Plan) -> Claim:
    return Claim(
        f"10 million calls at ${PRICE} are $1.50",
        f"10,000,000 x ${PRICE} = ${10_000_000 * PRICE:,.0f}",
        "Wrong by a factor of 1,000. And status calls are rarely billed at all: OpenAI's are not. "
        "Quota is what they cost.",
    )


def _ten_thousand(found: Plan) -> Claim:
    calls = 10_000 / PRICE
    runs = calls / found.row(SDK).calls
    peak = runs * found.row(SDK).calls * found.load.peak / 43_200
    return Claim(
        "Polling costs $10,000 a month",
        f"$10,000 / ${PRICE} = {calls / 1e6:.1f} M calls, which is {runs / 1e6:.1f} M runs a month "
        "with the SDK",
        f"Only if calls are billed; at no price it is $0. A quota ends it long before: this is "
        f"{about(peak)} calls a minute at a peak of {found.load.peak:g} times the mean.",
    )


def _pays_back(found: Plan) -> Claim:
    polling, webhook = found.row(SDK), found.row(BACKSTOP)
    months = SETTING_UP / (polling.dollars - webhook.dollars)
    saved = PRICE * (polling.calls - webhook.calls)
    volume = about((SETTING_UP + found.load.webhook_monthly) / saved)
    return Claim(
        "Webhooks pay after one month",
        f"Months = cost of setting up / (polling - webhook, a month) = ${SETTING_UP:g} / "
        f"(${polling.dollars:,.2f} - ${webhook.dollars:,.2f}) = {months:.1f}, at {RUNS:,} runs a "
        f"month with the SDK and ${PRICE} a call",
        "It depends on the volume: one month takes (cost of setting up + endpoint) / ($ a call x "
        f"(calls a run - the backstop's)) = {volume} "
        "runs a month. Where calls are not billed they never pay in money: what they buy is quota "
        "and time.",
    )


def _endpoint(found: Plan) -> Claim:
    calls = found.row(FORESIGHT).calls
    low, high = (about(dollars / (PRICE * calls)) for dollars in (20, 50))
    return Claim(
        "A webhook endpoint costs $20 to 50 a month",
        f"At {RUNS:,} runs a month ${20 / RUNS:.4f} to {50 / RUNS:.4f} a run; as much as "
        f"Foresight's calls for {low} to {high} runs at ${PRICE} each",
        "Right for a small server or functions behind HTTPS; nothing where a public service runs "
        "anyway. The work of verifying, storing and watching is not in it.",
    )


if __name__ == "__main__":
    print("\n".join(markdown(claims())))  # noqa: T201 - its output
