"""What is recommended: of what fits into the quota and is no later, what costs least."""

import re

import pytest

from runbell.planner import Trace, Workload
from runbell.planner.advice import ROOM, Costs, break_even, recommend
from runbell.planner.roster import ADVISED, BACKSTOP, FORESIGHT, LONG_POLL, SDK, WEBHOOK
from runbell.planner.workload import MINUTES_A_MONTH

TRACE = Trace.of([1.0, 2.0, 3.0], exact=True)
USUAL = {
    SDK: (9.0, 0.65, 1.2), "fixed 3 s": (4.2, 1.64, 3.0), ADVISED: (5.7, 1.1, 2.0),
    FORESIGHT: (4.5, 1.1, 2.0), LONG_POLL: (1.01, 0.07, 0.08), WEBHOOK: (0.001, 0.68, 0.08),
    BACKSTOP: (0.033, 0.1, 0.08),
}  # fmt: skip
MEAN = 8.7


def advice(runs, ways=None, **options):
    load = Workload(TRACE, runs, **options)
    rows = {}
    for name, (calls, delay, p95) in (USUAL | (ways or {})).items():
        share = load.rpm and runs * calls * load.peak / (MINUTES_A_MONTH * load.rpm)
        fixed = load.webhook_monthly if "webhook" in name else 0.0
        rows[name] = Costs(calls, share, fixed + runs * calls * load.price_per_call, delay, p95)
    return recommend(load, rows, MEAN)


BILLED = {"price_per_call": 0.00015}
LATE_EVENTS = {BACKSTOP: (1.0, 23.0, 30.0)}
LONG_RUNS = {FORESIGHT: (4.4, 1.3, 2.5), BACKSTOP: (3.0, 0.23, 0.08), SDK: (262.0, 0.65, 1.2)}


@pytest.mark.parametrize(
    ("best", "says", "runs", "options", "ways"),
    [
        (FORESIGHT, "from 1,280,000 runs a month on", 100_000, {}, {}),
        (BACKSTOP, "with fewer than 1,280,000 runs a month", 1_500_000, {}, {}),
        # The server holds.
        (LONG_POLL, "from 5,700,000 runs a month on", 100_000, {"holds": True}, {}),
        (LONG_POLL, "from 5,700,000", 5_000_000, {"holds": True}, {}),
        (BACKSTOP, "fewer than 5,700,000", 6_000_000, {"holds": True}, {}),
        (BACKSTOP, "fewer than 5,700,000", 10_000_000, {"holds": True}, {}),
        (LONG_POLL, "costs $15.15", 100_000, {"holds": True, **BILLED}, {}),
        (BACKSTOP, "cost $84.50", 10_000_000, {"holds": True, "rpm": None, **BILLED}, {}),
        # Calls are billed.
        (FORESIGHT, "from 52,200 runs a month on (0.526", 40_000, BILLED, {}),
        (BACKSTOP, "polling with Foresight costs $67.50", 100_000, BILLED, {}),
        # The endpoint is free, or beyond price.
        (BACKSTOP, "polling costs no less, takes more calls", 100_000, {"webhook_monthly": 0}, {}),
        (BACKSTOP, "cost $0.49", 100_000, {"webhook_monthly": 0, **BILLED}, {}),
        (BACKSTOP, "$1,000,000,000 a month", 1_500_000, {"webhook_monthly": 1e9}, {}),
        (FORESIGHT, "an endpoint costs $1,000,000,000", 9, {"webhook_monthly": 1e9}, {}),
        # Events do not arrive: what is cheap and late is not taken for as good.
        (FORESIGHT, "1.1 s late", 100_000, {"webhook_loss": 1, **BILLED}, LATE_EVENTS),
        (BACKSTOP, "23 s late", 2_000_000, {"webhook_loss": 1}, LATE_EVENTS),
        # The backstop itself does not fit.
        (BACKSTOP, "Nothing fits into your quota of 500", 4_000_000, {}, LONG_RUNS),
        (BACKSTOP, "get a quota of 10,400", 40_000_000, {}, LONG_RUNS),
        # What is no worse in any way is taken.
        ("fixed 3 s", "no later", 100_000, {}, {"fixed 3 s": (4.4, 1.0, 2.0)}),
        (FORESIGHT, "Poll", 100_000, {}, {ADVISED: (1.0, 0.1, 0.1)}),
        (ADVISED, "no later", 9, {"holds": True}, {ADVISED: (1.0, 0.05, 0.1)}),
    ],
)  # fmt: skip
def test_corners(best, says, runs, options, ways):
    found = advice(runs, ways, **options)
    assert (found.name, says in found.sentence) == (best, True), found.sentence
    # For people: no exponents, no shares in the millions, no threshold of nothing.
    assert not re.search(r"\de[-+]\d|\d{5,} %|fewer than 0|\$0 a call", found.sentence)
    assert found.sentence.endswith(".")
    assert "at peak" in found.sentence or "rpm" in options


@pytest.mark.parametrize("options", [{}, {"holds": True}, BILLED, {"holds": True, **BILLED}])
def test_nothing_is_recommended_that_another_beats_or_that_does_not_fit(options):
    for exponent in range(36):
        runs = 10 ** (1 + exponent / 5)
        name, _ = advice(runs, **options)
        calls, delay, _ = USUAL[name]
        share = runs * calls * 3 / (MINUTES_A_MONTH * 500)
        least = min(each[0] for each in USUAL.values() if each[0] > 0.01)
        assert share <= ROOM or calls == least
        there = [USUAL[other] for other in (SDK, "fixed 3 s", FORESIGHT)]
        assert not any(c < calls and d < delay for c, d, _ in there)


def test_the_table_and_the_sentence_name_the_same_volumes():
    load = Workload(TRACE, 100, **BILLED)
    even = break_even(load, USUAL[FORESIGHT][0], USUAL[BACKSTOP][0], MEAN)
    said = advice(100, **BILLED).sentence
    assert f"from {float(f'{even.runs_by_money:.3g}'):,.0f} runs" in said
    free = break_even(Workload(TRACE, 100), USUAL[FORESIGHT][0], USUAL[BACKSTOP][0], MEAN)
    assert f"from {float(f'{free.runs_by_quota:.3g}'):,.0f} runs" in advice(100).sentence


def test_a_price_at_which_it_turns_is_written_for_people():
    said = advice(10_000_000, rpm=None, **BILLED).sentence
    assert "at less than $0.00000078 a call polling with Foresight would be better" in said
