"""`python -m bench [--quick]`: measure, print one JSON document, and say on stderr how it goes.

The exit code says that everything was measured; whether a target was met stands in the document,
since a busy machine misses targets too.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from collections.abc import Iterator

from bench import memory, receiving, runs, waits
from bench.figures import Figure, machine
from bench.server import served


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench", description="Measure the served process.")
    parser.add_argument("--quick", action="store_true", help="small numbers, in half a minute")
    quick = parser.parse_args().quick

    # Ended from outside, as on Ctrl-C, it still ends the service.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    began = time.monotonic()
    before = machine()
    figures = []
    for figure in _measure(quick):
        figures.append(figure)
        verdict = {None: "", True: " (met)", False: " (MISSED)"}[figure.met]
        print(f"{figure.name}: {figure.value}{verdict}", file=sys.stderr)
    document = {
        "quick": quick,
        "seconds": round(time.monotonic() - began, 1),
        "machine": {**before, "load_average_after": machine()["load_average"]},
        "figures": [figure.document() for figure in figures],
        "all_met": all(figure.met is not False for figure in figures),
    }
    print(json.dumps(document, indent=2))


def _measure(quick: bool) -> Iterator[Figure]:
    with served() as server:
        sizes = runs.Sizes(400, 2_000, 60) if quick else runs.Sizes(2_000, 10_000, 500)
        yield from runs.measure(server, sizes)
    with served() as server:
        few, many = (500, 3_000) if quick else (10_000, 100_000)
        yield from memory.measure(server, few, many)
    yield from receiving.measure(
        receiving.Sizes(4_000, 3.0, 20) if quick else receiving.Sizes(20_000, 20.0, 100)
    )
    yield from waits.measure(waits.Sizes(300, 50) if quick else waits.Sizes(5_000, 500))


if __name__ == "__main__":
    main()
