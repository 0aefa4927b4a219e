"""`python -m bench [--quick]`: measure, print one JSON document, and say on stderr how it goes.

The exit code says that everything was measured; whether the targets were met stands in the document
(`all_met`), on purpose: a busy machine misses targets too, and then says nothing about the program.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from collections.abc import Iterator

from bench import hearing, memory, postgresql, receiving, runs, waiting, waits, webhooks
from bench.figures import Figure, machine
from bench.server import served

BUSY_LOAD = 0.5
"""Load average of the minute before, from which somebody else's work is in the figures."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench", description="Measure the served process.")
    parser.add_argument("--quick", action="store_true", help="small numbers, in a minute or two")
    parser.add_argument(
        "--only", choices=("postgresql",), help="this part alone; without it, everything"
    )
    asked = parser.parse_args()
    quick: bool = asked.quick

    # Ended from outside, as on Ctrl-C, it still ends the service.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    began = time.monotonic()
    before = machine()
    figures = []
    for figure in _postgresql(quick) if asked.only else _measure(quick):
        figures.append(figure)
        print(figure.line(), file=sys.stderr)
    after = machine()["load_average"]
    # The measurement itself keeps about one core busy by its end; before it, nobody should.
    busy = before["load_average"][0] > BUSY_LOAD
    if busy:
        print("the machine was busy before: judge nothing by CPU or delay", file=sys.stderr)
    document = {
        "quick": quick,
        "seconds": round(time.monotonic() - began, 1),
        "machine": {**before, "load_average_after": after, "was_busy": busy},
        "figures": [figure.document() for figure in figures],
        "all_met": all(figure.met is not False for figure in figures),
    }
    print(json.dumps(document, indent=2))


def _measure(quick: bool) -> Iterator[Figure]:
    with served() as server:
        sizes = runs.Sizes(400, 2_000, 300) if quick else runs.Sizes(2_000, 10_000, 500)
        yield from runs.measure(server, sizes)
    with served() as server:
        few, many = (500, 3_000) if quick else (10_000, 100_000)
        yield from memory.measure(server, few, many)
    received = receiving.Sizes(4_000, 3.0, 20) if quick else receiving.Sizes(20_000, 20.0, 100)
    yield from receiving.measure(received)
    yield from receiving.measure_postgresql(received)
    yield from hearing.measure(hearing.Sizes(150 if quick else 1_500))
    yield from waiting.measure(
        waiting.Sizes(10_000, 60, 3.0) if quick else waiting.Sizes(100_000, 200, 10.0)
    )
    yield from waits.measure(waits.Sizes(300, 300) if quick else waits.Sizes(5_000, 500))
    quickly = webhooks.Sizes(timed=200, burst=20, waiting=3_000, watched=3, rounds=2)
    yield from webhooks.measure(
        quickly
        if quick
        else webhooks.Sizes(timed=2_000, burst=100, waiting=100_000, watched=10, rounds=4)
    )
    yield from _postgresql(quick)


def _postgresql(quick: bool) -> Iterator[Figure]:
    yield from postgresql.measure(
        postgresql.Sizes(runs=300, idle=60, changes=60, deferred=100_000, watched=35.0, rounds=1)
        if quick
        else postgresql.Sizes(
            runs=2_000, idle=300, changes=500, deferred=100_000, watched=90.0, rounds=3
        )
    )


if __name__ == "__main__":
    main()
