"""What is written down: records of requests and of runs, as text or as JSON, one a line.

No record holds a key, a query string, or anything that somebody said to a model. A path is logged
as its route, an id only where it looks like one of ours, and an exception's message only where its
kind never quotes a value.
"""

from __future__ import annotations

import logging
import re
import sqlite3
import sys
import time
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TextIO

import msgspec

from runbell.errors import ConfigurationError, StorageError, TransitionNotAllowed
from runbell.runs import Run, event_type
from runbell.service.metrics import UNMATCHED

__all__ = [
    "CLIENT_LEFT",
    "Exchange",
    "answered",
    "attempted",
    "configure",
    "endpoint_disabled",
    "having",
    "moved",
]

CLIENT_LEFT = 499
"""The status of a request whose client left before the answer, as nginx has it."""

PROBES = frozenset({"/healthz", "/readyz", "/metrics"})
"""Asked every few seconds by machines: not worth a line each."""

_requests = logging.getLogger("runbell.requests")
_runs = logging.getLogger("runbell.runs")
_deliveries = logging.getLogger("runbell.deliveries")

_ID = re.compile(r"[a-z]{2,16}_[0-9A-Za-z]{1,64}")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")

_QUOTES_NOTHING = (
    ConfigurationError,
    StorageError,
    TransitionNotAllowed,
    sqlite3.Error,
    OSError,
    TypeError,
    AttributeError,
    NameError,
    ImportError,
    IndexError,
)
"""Exceptions whose messages speak of names, types and files, never of what was in a request."""


@dataclass(slots=True)
class Exchange:
    """What is told of one request; filled in on its way through the app.

    Attributes:
        route: the template of the path, which is all that is told of it.
        project: the id of the project whose key let the request in.
        path: the parameters of the path.
        made: what was answered, for the ids of what was created.
    """

    request_id: str
    method: str
    route: str = UNMATCHED
    project: str | None = None
    path: Mapping[str, str] = field(default_factory=dict)
    made: Any = None


def answered(
    exchange: Exchange, status: int, seconds: float, streamed: float | None = None
) -> None:
    """Log one request.

    Args:
        seconds: until the answer was ready, or began to stream.
        streamed: for how many seconds it streamed then; None for other answers.
    """
    level = _level(exchange.route, status)
    if not _requests.isEnabledFor(level):
        return
    fields: dict[str, Any] = {
        "method": exchange.method,
        "route": exchange.route,
        "status": status,
        "ms": round(seconds * 1000, 2),
        "request_id": exchange.request_id,
    }
    if streamed is not None:
        fields["streamed_ms"] = round(streamed * 1000)
    if exchange.project is not None:
        fields["project_id"] = exchange.project
    run_id, thread_id = exchange.path.get("run_id"), exchange.path.get("thread_id")
    kind = getattr(exchange.made, "object", None)
    if kind == "thread.run":
        run_id, thread_id = exchange.made.id, exchange.made.thread_id
    elif kind == "thread":
        thread_id = exchange.made.id
    else:
        # A stream, or a part of a run.
        run_id = getattr(exchange.made, "run_id", None) or run_id
        thread_id = getattr(exchange.made, "thread_id", None) or thread_id
    # Taken from a path, they are what a client chose to write.
    if thread_id is not None and _ID.fullmatch(thread_id):
        fields["thread_id"] = thread_id
    if run_id is not None and _ID.fullmatch(run_id):
        fields["run_id"] = run_id
    _emit(_requests, level, "answered", fields)


def _level(route: str, status: int) -> int:
    if route in PROBES:
        return logging.DEBUG
    return logging.WARNING if status >= 500 else logging.INFO


def moved(run: Run) -> None:
    """Log a run's change of status: its end for everybody, the rest for who looks closely."""
    ended = run.status.is_terminal
    level = logging.INFO if ended else logging.DEBUG
    if not _runs.isEnabledFor(level):
        return
    fields: dict[str, Any] = {
        "type": event_type(run),
        "sequence": run.sequence,
        "run_id": run.id,
        "thread_id": run.thread_id,
        "project_id": run.project_id,
    }
    if ended:
        fields["ms"] = run.updated_at_ms - run.created_at_ms
    if run.last_error is not None:
        # Its message can quote the model or the conversation.
        fields["error_code"] = run.last_error.code
    _emit(_runs, level, "moved", fields)


def attempted(
    endpoint_id: str,
    event_id: str,
    run_id: str,
    *,
    outcome: str,
    number: int,
    status: int | None,
    milliseconds: int,
    given_up: bool,
) -> None:
    """Log one attempt of a delivery: what went well for who looks closely, the rest for everybody.

    Neither the URL nor what the endpoint answered: both may hold secrets.
    """
    level = logging.DEBUG if outcome == "succeeded" else logging.INFO
    if given_up:
        level = logging.WARNING
    if not _deliveries.isEnabledFor(level):
        return
    fields: dict[str, Any] = {
        "outcome": outcome,
        "attempt": number,
        "ms": milliseconds,
        "webhook_endpoint_id": endpoint_id,
        "event_id": event_id,
        "run_id": run_id,
    }
    if status is not None:
        fields["status"] = status
    _emit(_deliveries, level, "given up" if given_up else "attempted", fields)


def endpoint_disabled(endpoint_id: str, reason: str) -> None:
    """Log that nothing is sent to an endpoint any more; `reason` is a sentence of ours."""
    fields = {"webhook_endpoint_id": endpoint_id, "reason": reason}
    _emit(_deliveries, logging.WARNING, "disabled", fields)


def having(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The `extra` of a record that any logger makes: its fields, without those that are None."""
    return {"fields": {name: value for name, value in fields.items() if value is not None}}


def _emit(logger: logging.Logger, level: int, message: str, fields: dict[str, Any]) -> None:
    # Made here: `logger.info` would first walk the stack for the line that it was called from,
    # which costs half of the whole and says the same every time.
    record = logging.LogRecord(logger.name, level, "", 0, message, None, None)
    record.fields = fields
    logger.handle(record)


def configure(level: str, style: str, stream: TextIO = sys.stderr) -> None:
    """Have everything that this process logs written to `stream`.

    Args:
        level: debug, info, warning or error.
        style: `text` or `json`.
    """
    # Nothing here says which thread, process or task: looking it up costs a third of a record.
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    handler = logging.StreamHandler(stream)
    handler.setFormatter(_Json() if style == "json" else _Text())
    if stream.isatty() and style == "text" and level == "info":
        handler.addFilter(_not_only_read)
    logging.basicConfig(level=level.upper(), handlers=[handler])
    # What libraries tell of their own workings is not news of this service.
    for library in ("alembic", "uvicorn"):
        logging.getLogger(library).setLevel(logging.WARNING)


def _not_only_read(record: logging.LogRecord) -> bool:
    """False for a read that went well: a client that polls would push all else off a terminal."""
    fields: dict[str, Any] = getattr(record, "fields", {})
    return not (fields.get("method") == "GET" and fields.get("status", 500) < 400)


class _Formatter(logging.Formatter):
    """What both styles have in common: the time, and what may be said of an exception."""

    def __init__(self) -> None:
        super().__init__()
        self._second = -1
        self._prefix = ""

    def stamp(self, record: logging.LogRecord) -> str:
        """The record's time: UTC, milliseconds."""
        second = int(record.created)
        if second != self._second:
            self._second = second
            self._prefix = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
        return f"{self._prefix}.{int((record.created - second) * 1000):03d}Z"

    def formatException(self, ei: Any) -> str:  # noqa: N802 - logging's name
        return "\n".join(_told(ei[1], set()))


def _told(error: BaseException, seen: set[int]) -> Iterator[str]:
    """An exception and what was behind it, as Python tells them, but for unsafe messages."""
    seen.add(id(error))
    behind = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    if behind is not None and id(behind) not in seen:
        yield from _told(behind, seen)
        yield "which led to:"
    yield "Traceback (most recent call last):"
    yield "".join(traceback.format_tb(error.__traceback__)).rstrip("\n")
    safe = isinstance(error, _QUOTES_NOTHING)
    message = str(error) if safe else "(its message is left out: it could quote content)"
    yield f"{type(error).__module__}.{type(error).__qualname__}: {message}"
    if isinstance(error, BaseExceptionGroup):
        for number, inner in enumerate(error.exceptions, 1):
            yield f"number {number} of its group:"
            yield from _told(inner, seen)


class _Text(_Formatter):
    """For people: `time LEVEL logger: message name=value …`, a traceback on lines of its own."""

    def format(self, record: logging.LogRecord) -> str:
        line = f"{self.stamp(record)} {record.levelname} {record.name}: {record.getMessage()}"
        fields: dict[str, Any] | None = getattr(record, "fields", None)
        if fields:
            line += "".join(f" {name}={value}" for name, value in fields.items())
        if not line.isprintable():
            # One record is one line, whatever it was given.
            line = _CONTROL.sub(" ", line)
        if record.exc_info:
            line += f"\n{self.formatException(record.exc_info)}"
        return line


class _Json(_Formatter):
    """For machines: one object a line, an exception in it as a string."""

    def format(self, record: logging.LogRecord) -> str:
        entry: dict[str, Any] = {
            "time": self.stamp(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        fields: dict[str, Any] | None = getattr(record, "fields", None)
        if fields:
            entry |= fields
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return _encode(entry).decode()


_encode = msgspec.json.Encoder(enc_hook=str).encode
