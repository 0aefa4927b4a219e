"""Where durations come from: a CSV, a distribution, a service's database, a waiter's journal."""

from __future__ import annotations

import csv
import io
import math
import re
import sys
from array import array
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from runbell.client.journal import read_history
from runbell.errors import InvalidSetting, MissingExtra
from runbell.planner.traces import OTHERS, SECONDS_A_MONTH, Trace, Unit
from runbell.storage.urls import EMBEDDED, embedded_folder, sqlite_file, without_password

__all__ = ["Progress", "from_csv", "from_database", "from_journal", "parse"]

Progress = Callable[[float], None]
"""Is told which share of the work is done, from 0 to 1."""

SECONDS = ("duration_s", "duration", "seconds", "duration_seconds", "s")
MILLISECONDS = ("duration_ms", "ms", "milliseconds", "duration_milliseconds")
KINDS = ("key", "kind")

ROWS_A_STEP = 50_000
"""Rows between two words about the progress."""

GATHERED, KEPT = 10_000, 1_000
"""Kinds that are told apart while reading. Where there are more, all but the commonest so far are
taken together."""

DISTRIBUTION = "lognormal:median=6,p95=25"

URL = r"[A-Za-z][A-Za-z0-9+.-]+:/|(sqlite|postgres(ql)?|postgresql-embedded):"
"""What is meant as a URL, also where it is written wrong. A drive has a single letter."""

POSTGRESQL = r"postgres(ql)?://.|postgresql-embedded:///."

NO_TEXT = (
    "can't be read: it is no text in UTF-8. Save it as UTF-8 (in a spreadsheet: as CSV, UTF-8)"
)

HINT = (
    "Columns are separated by commas (not by ; or tabs), decimals by a point (1.5, not 1,5), and "
    "numbers have no unit (1.5, not 1.5s)."
)


def parse(text: str, unit: Unit | None = None, progress: Progress = lambda share: None) -> Trace:
    """What `--durations` says: `lognormal:median=6,p95=25`, the name of a CSV, or `-` for one that
    comes by standard input.

    Raises:
        InvalidSetting: it makes no sense.
    """
    if not text.strip():
        raise InvalidSetting(f"--durations is empty: name a CSV, or write {DISTRIBUTION}")
    if text == "-":
        return _from_csv("standard input", "standard input", sys.stdin.buffer, unit, lambda: None)
    family, separator, parameters = text.partition(":")
    if family.strip() != "lognormal" or not separator:
        if _names_a_distribution(text):
            raise InvalidSetting(
                f"--durations {text!r} is no file and no distribution that is known: the one that "
                f"is known is {DISTRIBUTION}, in seconds"
            )
        return from_csv(Path(text), unit, progress)
    pairs = [pair.partition("=")[::2] for pair in parameters.split(",")]
    values = {name.strip(): value for name, value in pairs if _is_float(value)}
    if len(pairs) != 2 or values.keys() != {"median", "p95"}:
        if re.search(r"\d,\d", parameters):
            raise InvalidSetting(
                f"--durations {text!r} is no distribution: decimals have a point, as in "
                "lognormal:median=6.5,p95=25, in seconds"
            )
        raise InvalidSetting(
            f"--durations {text!r} is no distribution: write {DISTRIBUTION}, in seconds"
        )
    return Trace.lognormal(float(values["median"]), float(values["p95"]), unit=unit)


def _names_a_distribution(text: str) -> bool:
    """As in `LogNormal:…` or `weibull:…`, where there is no such file."""
    meant = re.match(r"\s*[A-Za-z_]\w+\s*:", text) is not None or "median=" in text
    return meant and not Path(text).exists()


class _Gathered(defaultdict[str, "array[float]"]):
    """Durations by kind, of which there may be as many as rows."""

    def __init__(self) -> None:
        super().__init__(lambda: array("d"))

    def __missing__(self, kind: str) -> array[float]:
        if len(self) >= GATHERED:
            self._together()
        return super().__missing__(kind)

    def _together(self) -> None:
        order = sorted((kind for kind in self if kind != OTHERS), key=lambda kind: len(self[kind]))
        rest = self.setdefault(OTHERS, array("d"))
        for kind in order[: len(order) - KEPT]:
            rest.extend(self.pop(kind))

    def found(self) -> dict[str, np.ndarray[tuple[int], np.dtype[np.float64]]]:
        return {kind: np.frombuffer(values, dtype=np.float64) for kind, values in self.items()}

    @property
    def remarks(self) -> tuple[str, ...]:
        if OTHERS not in self:
            return ()
        return (f"There are more than {GATHERED:,} kinds: rare ones are taken together.",)


def from_csv(
    path: Path, unit: Unit | None = None, progress: Progress = lambda share: None
) -> Trace:
    """The durations in a CSV: a column of them, and perhaps one of kinds.

    The columns are found by their names, `duration_s` and `key`; without names the last one is
    the duration, and one before it the kind. The order of the rows says nothing.

    Args:
        unit: of the durations; None for what the column's name says, else seconds.

    Raises:
        InvalidSetting: there is no such file, or a row is no duration, or these are not seconds.
    """
    try:
        with path.open("rb") as file:
            tell = _told(path, file, progress)
            trace = _from_csv(str(path), path.name, file, unit, tell)
    except (OSError, ValueError) as error:
        raise InvalidSetting(f"--durations {path} can't be read: {error}") from error
    progress(1.0)
    return trace


def _from_csv(
    name: str, source: str, file: BinaryIO, unit: Unit | None, tell: Callable[[], None]
) -> Trace:
    """See `from_csv`; `name` and `source`: what the file is called in errors, and in the plan."""
    kinds = _Gathered()
    # A BOM is what spreadsheets put in front.
    text = io.TextIOWrapper(file, encoding="utf-8-sig", newline="")
    try:
        rows = csv.reader(text)
        first = next(rows, [])
        if any("\0" in cell for cell in first):
            raise InvalidSetting(f"--durations {name} {NO_TEXT}")
        columns = _columns(name, first, unit)
        if not columns.named and first:
            kinds[columns.kind_of(first)].append(_seconds(name, 1, first, columns))
        for kind, seconds in _read(name, rows, columns, tell):
            kinds[kind].append(seconds)
    except UnicodeDecodeError as error:
        raise InvalidSetting(f"--durations {name} {NO_TEXT}") from error
    except (OSError, csv.Error) as error:
        raise InvalidSetting(f"--durations {name} can't be read: {error}") from error
    finally:
        text.detach()  # whoever has opened the file closes it
    scale = 0.001 if unit == "ms" else 1.0
    found = kinds.found()
    if scale != 1.0:
        found = {kind: values * scale for kind, values in found.items()}
    return Trace(found, source, sure=unit is not None, remarks=kinds.remarks)


class _Columns(NamedTuple):
    """Where in a row what stands."""

    duration: int
    kind: int | None
    named: bool
    width: int

    def kind_of(self, row: list[str]) -> str:
        return "runs" if self.kind is None else row[self.kind]


def _columns(name: str, first: list[str], unit: Unit | None) -> _Columns:
    names = [cell.strip().lower() for cell in first]
    if not first or _is_number(first[-1]):
        if len(first) > 2 or (len(first) == 2 and _is_number(first[0])):
            raise InvalidSetting(
                f"{name}, line 1: {len(first)} columns without names, of which the first is "
                f"{first[0]!r}: put a heading above them, key,duration_s. {HINT}"
            )
        return _Columns(len(first) - 1, 0 if len(first) > 1 else None, False, len(first))
    in_ms = next((each for each in names if each in MILLISECONDS), None)
    if in_ms and unit is None:
        raise InvalidSetting(
            f"{name}: the column {in_ms} holds milliseconds, by its name: say --unit ms"
        )
    known = [place for place, each in enumerate(names) if each in (*SECONDS, *MILLISECONDS)]
    if len(names) == 1 and not known and re.search(r"[;\t|]", first[0]):
        raise InvalidSetting(f"{name}: the heading {first[0]!r} is one column. {HINT}")
    if not known and len(names) > 1:
        raise InvalidSetting(
            f"{name}: none of the columns {', '.join(names)} holds durations by its name: "
            "call it duration_s"
        )
    kind = next((place for place, each in enumerate(names) if each in KINDS), None)
    return _Columns(known[0] if known else 0, kind, True, len(names))


def _read(
    name: str, rows: Iterator[list[str]], columns: _Columns, tell: Callable[[], None]
) -> Iterator[tuple[str, float]]:
    duration, kind, count = columns.duration, columns.kind, columns.width
    left = ROWS_A_STEP
    for line, row in enumerate(rows, 2):
        if not row:
            continue
        if len(row) > count:
            raise InvalidSetting(
                f"{name}, line {line}: {len(row)} columns, and the first line has {count}. {HINT}"
            )
        try:  # written out: a call less for each of a million rows
            seconds = float(row[duration])
            key = "runs" if kind is None else row[kind]
        except (ValueError, IndexError):
            seconds, key = _seconds(name, line, row, columns), columns.kind_of(row)
        if not seconds >= 0:
            seconds = _seconds(name, line, row, columns)
        yield key, seconds
        left -= 1
        if not left:
            left = ROWS_A_STEP
            tell()


def _seconds(name: str, line: int, row: list[str], columns: _Columns) -> float:
    """The duration in a row.

    Raises:
        InvalidSetting: there is none.
    """
    places = max(columns.duration, columns.kind or 0)
    if len(row) <= places:
        raise InvalidSetting(
            f"{name}, line {line}: {len(row)} columns, {places + 1} are needed. {HINT}"
        )
    text = row[columns.duration].strip()
    if not _is_number(text):
        raise InvalidSetting(f"{name}, line {line}: {text!r} is no number of seconds. {HINT}")
    if not float(text) >= 0:
        raise InvalidSetting(f"{name}, line {line}: {text} is no duration: it is below 0")
    return float(text)


def _is_number(text: str) -> bool:
    return _is_float(text) and not math.isnan(float(text))


def _is_float(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _told(path: Path, file: BinaryIO, progress: Progress) -> Callable[[], None]:
    size = max(path.stat().st_size, 1) if path.is_file() else 0

    def tell() -> None:
        if size:
            progress(min(file.tell() / size, 1.0))

    return tell


def from_database(where: str | Path, progress: Progress = lambda share: None) -> Trace:
    """The history of a run service: every run that ended by itself, by its assistant
    and its model. It is only read, and may be in use.

    Args:
        where: a file, or a URL: `sqlite:///…`, `postgresql://…`, `postgresql-embedded`.

    Raises:
        MissingExtra: the packages of the service, or of PostgreSQL, are not installed.
        ConfigurationError: this is no database of a run service.
        StorageUnavailable: it can't be reached.
        InvalidSetting: no run has ended in it; or it can't be read for this.
    """
    option = "--from-database"
    try:
        from runbell.storage import history, reading
        from runbell.storage.migrate import SERVICE
    except ModuleNotFoundError as error:
        raise MissingExtra(option, "serve") from error
    place = _place(option, where, databases=True)
    if isinstance(place, Path):
        _require_file(option, place)
    kinds = _Gathered()
    found = reading.look_back(
        place, lambda tx: history.read(tx, kinds, progress), replace(SERVICE, option=option)
    )
    return Trace(
        kinds.found(),
        f"{_name(place)}, {found.ended:,} runs",
        left_out=found.left_out,
        runs_per_month=_a_month(found.ended + found.left_out, found.first_ms, found.last_ms),
        sure=True,
        remarks=kinds.remarks,
    )


def from_journal(where: str | Path) -> Trace:
    """What a waiter has written down: how long the runs took that it waited for, by their kind.

    The time that a run's tools took is not in it: nobody asks for the run meanwhile.

    Args:
        where: a file, or `sqlite:///…`.

    Raises:
        ConfigurationError: this is no journal, or it can't be read.
        InvalidSetting: no durations are in it.
    """
    path = _place("--from-journal", where, databases=False)
    assert isinstance(path, Path)
    _require_file("--from-journal", path)
    found = read_history(path)
    known = sum(map(len, found.kinds.values()))
    return Trace(
        {kind: np.array(values) for kind, values in found.kinds.items()},
        f"{path.name}, {known:,} runs",
        left_out=found.left_out,
        runs_per_month=_a_month(found.runs, found.first_ms, found.last_ms),
        sure=True,
    )


def _place(option: str, where: str | Path, *, databases: bool) -> Path | str:
    """The file that is named, or the URL of a PostgreSQL database.

    Raises:
        InvalidSetting: it is neither.
    """
    if isinstance(where, Path):
        return where
    if where == EMBEDDED and databases:
        return where
    if re.match(URL, where) is None:
        return Path(where)
    try:
        file = sqlite_file(where)
    except ValueError as error:
        raise InvalidSetting(f"{option} {where}: {error}") from None
    if file is not None:
        return file
    if databases and re.match(POSTGRESQL, where) is not None:
        return where
    more = f", postgresql://USER@HOST/DATABASE or {EMBEDDED}" if databases else ""
    raise InvalidSetting(
        f"{option} {without_password(where)} can't be read: name a file, as runbell.db, "
        f"sqlite:///runbell.db or sqlite:////var/lib/runbell.db{more}"
    )


def _name(place: Path | str) -> str:
    """What a database is called where its history is shown."""
    if isinstance(place, Path):
        return place.name
    if place.startswith(EMBEDDED):
        return embedded_folder(place).name
    address = without_password(place).partition("?")[0]
    return address.rpartition("/")[2] or address


def _require_file(option: str, path: Path) -> None:
    if path.is_dir():
        raise InvalidSetting(f"{option} {path} is a directory: name the file in it")
    if not path.is_file():
        raise InvalidSetting(f"{option} {path}: there is no such file")


def _a_month(runs: int, first_ms: float, last_ms: float) -> float | None:
    """How many runs that is a month; None where the history is shorter than a day."""
    seconds = (last_ms - first_ms) / 1000
    return runs * SECONDS_A_MONTH / seconds if seconds >= 86_400 else None
