"""`python -m bench.polling [--quick]`: print tables of policies, traces and fleets, in Markdown."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence

import numpy as np

from bench.polling import fleets
from bench.polling.costs import cost
from bench.polling.optimum import Frontier, frontier, table
from bench.polling.ratios import cold, taught, trained
from bench.polling.rules import LATENCY, RULES, Outcome, first_try, learned, outcome, ruled
from bench.polling.truth import Draws, held_out, pooled, traced
from runbell.pacing.foresight import Foresight
from runbell.pacing.schedule import best_checks

TRACES = ("llmperf", "mix")
PRICE = 0.25
COLUMNS = ("policy", "calls", "mean s", "p50", "p95", "p99")
SDK, TUTORIAL = "fixed 1 s (openai SDK)", "tutorial (0.5 s x 1.5, cap 5 s)"
MIX = {"retrieval": 0.303, "chat": 0.547, "tools": 0.15}


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench.polling", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer repeats, a shorter fleet")
    quick = parser.parse_args().quick
    repeats = 1 if quick else 3
    for name in TRACES:
        kinds = traced(name)
        best = {key: frontier(draws) for key, draws in kinds.items()}
        _policies(name, kinds)
        _ratios(name, kinds, best, repeats)
        _tail(name, kinds)
    kinds = held_out()
    _ratios("held out", kinds, {key: frontier(draws) for key, draws in kinds.items()}, repeats)
    _fleet(600 if quick else 3000)
    _cost()


def _print(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    print(f"\n### {title}\n\n| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for row in rows:
        cells = (f"{cell:.2f}" if isinstance(cell, float) else str(cell) for cell in row)
        print(f"| {' | '.join(cells)} |", flush=True)


def _row(name: str, outcomes: list[Outcome]) -> list[object]:
    """Every kind counts the same."""
    delays = np.concatenate([each.delays for each in outcomes])
    calls = float(np.mean([each.calls for each in outcomes]))
    whole = Outcome(calls, delays)
    tail = (whole.percentile(share) for share in (50, 95, 99))
    return [name, calls, whole.mean, *tail, whole.mean + PRICE * calls]


def _policies(name: str, kinds: dict[str, Draws]) -> None:
    rows = [
        _row(rule, [ruled(policy, draws, waits) for draws in kinds.values()])
        for rule, (policy, waits) in RULES.items()
    ]
    fresh = Foresight(PRICE, LATENCY)
    rows.append(_row("Foresight, cold", [learned(fresh, "new", each) for each in kinds.values()]))
    rows.append(_row("a waiter's first try", [first_try(fresh, each) for each in kinds.values()]))
    for runs in (20, 200):
        known = taught(kinds, runs, PRICE)
        results = [learned(known, key, draws) for key, draws in kinds.items()]
        rows.append(_row(f"Foresight, {runs} runs", results))
    rows.append(_row("optimum", [_optimal(draws) for draws in kinds.values()]))
    title = f"{name}: a call is worth {PRICE} s, an answer takes {LATENCY} s"
    _print(title, (*COLUMNS, "mean + price x calls"), rows)


def _optimal(draws: Draws) -> Outcome:
    times, ended, _ = table(draws)
    following = best_checks(list(times), list(1 - ended), PRICE, LATENCY, LATENCY / 2)
    place, checks = 0, []
    while place < len(times) - 1:
        place = following[place]
        checks.append(times[place])
    return outcome(np.array(checks), draws)


def _ratios(name: str, kinds: dict[str, Draws], best: dict[str, Frontier], repeats: int) -> None:
    after = {runs: trained(kinds, best, runs, repeats) for runs in (5, 20, 200)}
    rows: list[list[object]] = [[key, *(after[runs][key] for runs in after)] for key in kinds]
    means = [float(np.nanmean(list(ratios.values()))) for ratios in after.values()]
    rows.append(["**mean**", *means])
    title = f"{name}: calls relative to the optimum at equal mean delay"
    _print(title, ("kind", *(f"after {runs} runs" for runs in after)), rows)
    everything = pooled(kinds)
    limit = frontier(everything)
    offs = (1.0, 30.0, 1 / 30)
    colds = [[f"{off:.3g}", cold(everything, limit, off)] for off in offs]
    _print(f"{name}: cold", ("prior's median, times", "ratio to the pooled optimum"), colds)


def _tail(name: str, kinds: dict[str, Draws]) -> None:
    """The 95th percentile at as many calls as polling every second takes."""
    rows = [
        _row(
            "fixed 1 s",
            [ruled(*RULES[SDK][:1], each) for each in kinds.values()],
        )
    ]
    low, high = 1e-4, 10.0
    row: list[object] = []
    for _ in range(8):
        price = (low * high) ** 0.5
        known = taught(kinds, 200, price)
        row = _row(
            "Foresight, 200 runs", [learned(known, key, each) for key, each in kinds.items()]
        )
        low, high = (price, high) if float(str(row[1])) > float(str(rows[0][1])) else (low, price)
    _print(f"{name}: at equal calls", (*COLUMNS, "mean + price x calls"), [*rows, row])


def _fleet(seconds: float) -> None:
    fleet = fleets.Fleet(traced("mix"), MIX, seconds=seconds)
    limit = fleets.bound(fleet)
    figures = {
        "closed: openai SDK, 2 retries": fleets.free(fleet, SDK),
        "closed: openai SDK, no end of retries": fleets.free(fleet, SDK, retries=10**9),
        "closed: tutorial, no end of retries": fleets.free(fleet, TUTORIAL, retries=10**9),
        "closed: paced by worth": fleets.paced(fleet, closed=True),
        "open: paced round robin": fleets.paced(fleet, worth=False),
        "open: paced by worth": fleets.paced(fleet),
    }
    rows = [
        [name, each.calls, f"{each.refused:.0%}", f"{each.gave_up:.0%}", each.mean,
         f"{each.mean / limit:.2f}", each.p50, each.p95, each.p99, each.longest]
        for name, each in figures.items()
    ]  # fmt: skip
    title = f"mix, 100 runs at once, 500 calls a minute; Lagrange's bound is {limit:.2f} s"
    shown = ("calls", "429s", "gave up", "mean s", "/ bound", "p50", "p95", "p99", "longest")
    _print(title, ("fleet", *shown), rows)


def _cost() -> None:
    """What a decision costs a processor, with all that is worked out for it: as waiters use it."""
    rows = []
    for kinds in (1, 20):
        for bounds in (False, True):
            costs = (f"{cost(kinds, runs, bounds) * 1e6:.0f}" for runs in (1500, 15_000))
            rows.append([kinds, "bounds" if bounds else "moments", *costs])
    columns = ("kinds", "known are", "us a decision, 1,500 runs", "15,000 runs")
    _print("what a decision costs, all that is worked out included", columns, rows)


if __name__ == "__main__":
    main()
