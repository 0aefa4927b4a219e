"""Where durations come from: a CSV, a distribution, a service's database, a waiter's journal."""

from __future__ import annotations

import csv
import re
import sqlite3
from array import array
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Literal, NamedTuple
from urllib.parse import quote

import numpy as np

from runbell.errors import ConfigurationError, InvalidSetting
from runbell.planner.traces import SECONDS_A_MONTH, Trace

__all__ = ["Progress", "Unit", "from_csv", "from_database", "from_journal", "parse"]

Unit = Literal["s", "ms"]
Progress = Callable[[float], None]
"""Is told which share of the work is done, from 0 to 1."""

SECONDS = ("duration_s", "duration", "seconds", "duration_seconds", "s")
MILLISECONDS = ("duration_ms", "ms", "milliseconds", "duration_milliseconds")
KINDS = ("key", "kind")

ROWS_A_STEP = 50_000
"""Rows between two words about the progress."""


def parse(text: str, unit: Unit | None = None, progress: Progress = lambda share: None) -> Trace:
    """What `--durations` says: `lognormal:median=6,p95=25`, or the name of a CSV.

    Raises:
        InvalidSetting: it makes no sense.
    """
    if not text.startswith("lognormal:"):
        return from_csv(Path(text), unit, progress)
    words = re.fullmatch(r"lognormal:\s*median=([^,]+),\s*p95=([^,]+)", text)
    try:
        values = [float(word) for word in words.groups()] if words else []
    except ValueError:
        values = []
    if len(values) != 2:
        raise InvalidSetting(
            f"--durations {text!r} is no distribution: write lognormal:median=6,p95=25, in seconds"
        )
    scale = 0.001 if unit == "ms" else 1.0
    trace = Trace.lognormal(values[0] * scale, values[1] * scale)
    if unit is None:
        trace.require_seconds()
    return trace


def from_csv(
    path: Path, unit: Unit | None = None, progress: Progress = lambda share: None
) -> Trace:
    """The durations in a CSV: a column of them, and perhaps one of kinds.

    The columns are found by their names, `duration_s` and `key`; without names the last one is
    the duration, and one before it the kind.

    Args:
        unit: of the durations; None for what the column's name says, else seconds.

    Raises:
        InvalidSetting: there is no such file, or a row is no duration, or these are not seconds.
    """
    kinds: defaultdict[str, array[float]] = defaultdict(lambda: array("d"))
    try:
        # A BOM is what spreadsheets put in front.
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = csv.reader(file)
            first = next(rows, [])
            columns = _columns(path, first, unit)
            if not columns.named and first:
                kinds[columns.kind_of(first)].append(_seconds(path, 1, first, columns))
            for kind, seconds in _read(path, rows, columns, _told(path, file, progress)):
                kinds[kind].append(seconds)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InvalidSetting(f"--durations {path} can't be read: {error}") from error
    found = {kind: np.frombuffer(values, dtype=np.float64) for kind, values in kinds.items()}
    scale = 0.001 if unit == "ms" else 1.0
    if scale != 1.0:
        found = {kind: values * scale for kind, values in found.items()}
    trace = Trace(found, str(path.name))
    if unit is None:
        trace.require_seconds()
    progress(1.0)
    return trace


class _Columns(NamedTuple):
    """Where in a row what stands."""

    duration: int
    kind: int | None
    named: bool

    def kind_of(self, row: list[str]) -> str:
        return "runs" if self.kind is None else row[self.kind]


def _columns(path: Path, first: list[str], unit: Unit | None) -> _Columns:
    names = [cell.strip().lower() for cell in first]
    if not first or _is_number(first[-1]):
        return _Columns(len(first) - 1, 0 if len(first) > 1 else None, False)
    in_ms = next((name for name in names if name in MILLISECONDS), None)
    if in_ms and unit is None:
        raise InvalidSetting(
            f"{path}: the column {in_ms} holds milliseconds, by its name: say --unit ms"
        )
    known = [place for place, name in enumerate(names) if name in (*SECONDS, *MILLISECONDS)]
    if not known and len(names) > 1:
        raise InvalidSetting(
            f"{path}: none of the columns {', '.join(names)} holds durations by its name: "
            "call it duration_s"
        )
    kind = next((place for place, name in enumerate(names) if name in KINDS), None)
    return _Columns(known[0] if known else 0, kind, True)


def _read(
    path: Path, rows: Iterator[list[str]], columns: _Columns, tell: Callable[[], None]
) -> Iterator[tuple[str, float]]:
    duration, kind = columns.duration, columns.kind
    left = ROWS_A_STEP
    for line, row in enumerate(rows, 2):
        if not row:
            continue
        try:  # written out: a call less for each of a million rows
            seconds = float(row[duration])
            name = "runs" if kind is None else row[kind]
        except (ValueError, IndexError):
            seconds, name = _seconds(path, line, row, columns), columns.kind_of(row)
        if not seconds >= 0:
            seconds = _seconds(path, line, row, columns)
        yield name, seconds
        left -= 1
        if not left:
            left = ROWS_A_STEP
            tell()


def _seconds(path: Path, line: int, row: list[str], columns: _Columns) -> float:
    """The duration in a row.

    Raises:
        InvalidSetting: there is none.
    """
    places = max(columns.duration, columns.kind or 0)
    if len(row) <= places:
        raise InvalidSetting(f"{path}, line {line}: {len(row)} columns, {places + 1} are needed")
    text = row[columns.duration].strip()
    if not _is_number(text):
        raise InvalidSetting(f"{path}, line {line}: {text!r} is no number of seconds")
    if not float(text) >= 0:
        raise InvalidSetting(f"{path}, line {line}: {text} is no duration: it is below 0")
    return float(text)


def _is_number(text: str) -> bool:
    try:
        return float(text) == float(text)
    except ValueError:
        return False


def _told(path: Path, file: object, progress: Progress) -> Callable[[], None]:
    size = max(path.stat().st_size, 1) if path.is_file() else 0
    binary = getattr(file, "buffer", None)

    def tell() -> None:
        if size and binary is not None:
            progress(min(binary.tell() / size, 1.0))

    return tell


def from_database(path: Path, progress: Progress = lambda share: None) -> Trace:
    """The history of a run service: every run that ended by itself, by assistant.

    Raises:
        MissingExtra: the packages of the service are not installed.
        ConfigurationError: this is no database of a run service.
        InvalidSetting: no run has ended in it.
    """
    from runbell.errors import MissingExtra

    try:
        from runbell.storage import history
        from runbell.storage.migrate import require_current
        from runbell.storage.sqlite import read_only
    except ModuleNotFoundError as error:
        raise MissingExtra("--from-database", "serve") from error
    if not path.is_file():
        raise InvalidSetting(f"--from-database {path}: there is no such file")
    require_current(path)
    kinds: defaultdict[str, array[float]] = defaultdict(lambda: array("d"))
    found = read_only(path, lambda tx: history.read(tx, kinds, progress))
    return Trace(
        {kind: np.frombuffer(values) for kind, values in kinds.items()},
        f"{path.name}, {found.ended:,} runs",
        left_out=found.left_out,
        runs_per_month=_a_month(found.ended + found.left_out, found.first_ms, found.last_ms),
    )


JOURNAL = "select key, queue_seconds, run_seconds, ended, at_ms from durations order by at_ms"
"""The table `durations` of a waiter's journal: a row for each stretch of a run, from its creation
or from the submission of outputs to the next thing that the waiter had to know. `key` is the kind
of run, `queue_seconds` and `run_seconds` are how long it waited for its start (null where nobody
knows) and how long it took from there on, `ended` is 0 where it would have taken longer, and
`at_ms` is when its end was seen, in milliseconds since the epoch."""

KEPT = 200
"""Of a kind that has as many rows, earlier ones may have been removed."""


def from_journal(path: Path) -> Trace:
    """What a waiter has written down: how long the runs took that it waited for, by their kind.

    Raises:
        ConfigurationError: this is no journal, or it can't be read.
        InvalidSetting: no durations are in it.
    """
    if not path.is_file():
        raise InvalidSetting(f"--from-journal {path}: there is no such file")
    try:
        # Not `mode=ro`: that cannot open a database in WAL mode which nobody has open.
        with closing(sqlite3.connect(f"file:{quote(str(path))}?mode=rw", uri=True)) as database:
            database.execute("pragma query_only = on")
            tables = {name for (name,) in database.execute("select name from sqlite_master")}
            if "durations" not in tables:
                raise InvalidSetting(
                    f"--from-journal {path}: no durations were written down in it"
                    + ("" if "tool_calls" in tables else "; is it the journal of a waiter?")
                )
            rows = database.execute(JOURNAL).fetchall()
    except sqlite3.Error as error:
        raise ConfigurationError(f"--from-journal {path} can't be read: {error}") from error
    kinds: defaultdict[str, array[float]] = defaultdict(lambda: array("d"))
    stamps: defaultdict[str, list[float]] = defaultdict(list)
    for key, queued, seconds, ended, at_ms in rows:
        stamps[key].append(at_ms)
        if ended:
            kinds[str(key)].append((queued or 0.0) + seconds)
    known = sum(map(len, kinds.values()))
    return Trace(
        {kind: np.frombuffer(values) for kind, values in kinds.items()},
        f"{path.name}, {known:,} runs",
        left_out=len(rows) - known,
        runs_per_month=_of_all_kinds(list(stamps.values())),
    )


def _of_all_kinds(stamps: Sequence[Sequence[float]]) -> float | None:
    """How many runs a journal tells of a month, given when those of each kind were seen."""
    first = min((each[0] for each in stamps), default=0.0)
    last = max((each[-1] for each in stamps), default=0.0)
    found = [_a_month(len(each), each[0] if len(each) >= KEPT else first, last) for each in stamps]
    known = [each for each in found if each is not None]
    return sum(known) if known and len(known) == len(found) else None


def _a_month(runs: int, first_ms: float, last_ms: float) -> float | None:
    """How many runs that is a month; None where the history is shorter than a day."""
    seconds = (last_ms - first_ms) / 1000
    return runs * SECONDS_A_MONTH / seconds if seconds >= 86_400 else None
