"""`runbell wait`: see one run to its end, in a terminal or a script."""

from __future__ import annotations

import json
import queue
import sys
import threading
import time
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from runbell.cli.client import ApiKey, BaseUrl, connect, locate, sentence
from runbell.errors import ConfigurationError

if TYPE_CHECKING:
    from runbell.client.providers import RunRef
    from runbell.client.records import Record
    from runbell.pacing import Policy

__all__ = ["ANOTHER_ENDING", "NOT_ALLOWED", "TIMEOUT", "WANTS_OUTPUTS", "parse_policy", "wait"]

ANOTHER_ENDING = 1
WANTS_OUTPUTS = 3
NOT_ALLOWED = 4
TIMEOUT = 124
"""As of the command `timeout`."""

REPAINT_SECONDS = 0.2


def wait(
    thread: Annotated[str, typer.Argument(metavar="THREAD", help="The id of the thread.")],
    run: Annotated[str, typer.Argument(metavar="RUN", help="The id of the run.")],
    timeout: Annotated[
        float | None,
        typer.Option(
            min=0.001,
            metavar="SECONDS",
            help="Give up after this; the run goes on. Default: a little after it expires.",
            show_default=False,
        ),
    ] = None,
    policy: Annotated[
        str | None,
        typer.Option(
            metavar="POLICY",
            help="When to look: backoff, fixed, sqrt or jittered, with settings: "
            "backoff:start=0.5,factor=1.5,cap=5. Default: as the server advises, else Foresight.",
            show_default=False,
        ),
    ] = None,
    json_: Annotated[
        bool, typer.Option("--json", help="Print one JSON object at the end, and nothing else.")
    ] = False,
    base_url: BaseUrl = None,
    api_key: ApiKey = None,
) -> None:
    """Wait until RUN of THREAD has ended.

    Exit code: 0 completed, 1 another ending, 2 usage, 3 it wants tool outputs, 4 not allowed or not
    found, 124 timeout. Ctrl-C stops waiting; the run goes on.
    """
    chosen = None if policy is None else parse_policy(policy)
    try:
        locate(base_url, api_key)
    except ConfigurationError as error:
        raise typer.BadParameter(str(error)) from error
    live = sys.stdout.isatty() and not json_
    view = _View(live, silent=json_)
    with connect(base_url, api_key) as client:
        import runbell

        client.beta.threads.runs  # noqa: B018 - its import takes a second that is not the run's
        # A held request shows nothing but the end: a terminal is there to see what happens.
        with runbell.Waiter(client, policy=chosen, hooks=[view.put], hold=not live) as waiter:
            ref = runbell.RunRef(thread, run)
            outcome = _outcome(_Work(lambda: waiter.wait(ref, timeout=timeout), view), ref)
    view.close()
    if json_:
        typer.echo(json.dumps(_summary(outcome, view), ensure_ascii=False))
    elif outcome.words:
        typer.echo(f"runbell: {outcome.words}", err=True)
    raise typer.Exit(outcome.code)


class _Outcome(NamedTuple):
    """How the wait ended: the run as it was last seen, the exit code, and a sentence."""

    run: Any
    code: int
    words: str = ""


def _outcome(work: _Work, ref: RunRef) -> _Outcome:
    from openai import APIStatusError

    import runbell

    try:
        return _Outcome(runbell.raise_for_status(work.result()), 0)
    except runbell.WaitTimeout as error:
        return _Outcome(error.run, TIMEOUT, _with_notes(str(error), error))
    except runbell.ActionRequired as error:
        return _Outcome(error.run, WANTS_OUTPUTS, str(error))
    except runbell.RunError as error:
        return _Outcome(error.run, ANOTHER_ENDING, str(error))
    except APIStatusError as error:
        if error.status_code not in (401, 403, 404):
            raise
        return _Outcome(ref, NOT_ALLOWED, _with_notes(sentence(error), error))


def _with_notes(words: str, error: BaseException) -> str:
    return "\n  ".join([words, *getattr(error, "__notes__", ())])


def parse_policy(text: str) -> Policy:
    """The policy that `name:setting=number,…` names.

    Raises:
        typer.BadParameter: there is no such policy or setting.
    """
    from runbell.pacing import Backoff, Fixed, Jittered, SqrtElapsed

    kinds: dict[str, Any] = {
        "backoff": Backoff,
        "fixed": Fixed,
        "jittered": Jittered,
        "sqrt": SqrtElapsed,
    }
    name, _, rest = text.partition(":")
    if name not in kinds:
        raise typer.BadParameter(f"there are {', '.join(kinds)}", param_hint="--policy")
    try:
        pairs = [each.split("=", 1) for each in rest.split(",") if each]
        settings = {key.strip(): float(value) for key, value in pairs}
        policy: Policy = kinds[name](**settings)
    except (TypeError, ValueError) as error:
        raise typer.BadParameter(f"{text}: {error}", param_hint="--policy") from error
    return policy


class _Work:
    """The wait, in a thread, while this one paints."""

    def __init__(self, wait: Any, view: _View) -> None:
        self._view = view
        self._outcome: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()
        self._wait = wait
        threading.Thread(target=self._work, daemon=True).start()

    def result(self) -> Any:
        while True:
            try:
                value, error = self._outcome.get(timeout=REPAINT_SECONDS)
            except queue.Empty:
                self._view.paint()
                continue
            if error is not None:
                raise error
            return value

    def _work(self) -> None:
        try:
            self._outcome.put((self._wait(), None))
        except BaseException as error:  # noqa: BLE001 - it is raised where it is waited for
            self._outcome.put((None, error))


class _View:
    """What is shown of a wait: a line that is painted again and again, or lines."""

    def __init__(self, live: bool, silent: bool) -> None:
        self._live = live
        self._silent = silent
        self._began = time.time()
        self._status = "asking"
        self._started_at: float | None = None
        self._next_at: float | None = None
        self.calls = 0

    @property
    def waited(self) -> float:
        return time.time() - self._began

    def put(self, record: Record) -> None:
        """Take a record in."""
        from runbell.client.records import Planned, Polled, Retried

        if isinstance(record, Planned):
            self._next_at = None if record.delay is None else time.time() + record.delay
        elif isinstance(record, Polled):
            self.calls += 1
            self._status = record.status
            self._started_at = getattr(record.run, "started_at", None)
            if record.status != record.previous and not self._live and not self._silent:
                typer.echo(f"{record.status} after {record.elapsed:.1f} s")
        elif isinstance(record, Retried):
            self.calls += 1
            self._status = f"{self._status.partition(' (')[0]} ({type(record.error).__name__})"
        self.paint()

    def paint(self) -> None:
        """Show the line as it is now."""
        if not self._live:
            return
        now = time.time()
        elapsed = now - (self._started_at or self._began)
        line = f"{self._status} · {elapsed:.1f} s · {self.calls} calls"
        if self._next_at is not None and self._next_at > now:
            line += f" · next poll in {self._next_at - now:.1f} s"
        sys.stdout.write(f"\r\x1b[K{line}")
        sys.stdout.flush()

    def close(self) -> None:
        """Leave the last line standing."""
        if self._live:
            self._next_at = None
            self.paint()
            typer.echo()


def _summary(outcome: _Outcome, view: _View) -> dict[str, Any]:
    run = outcome.run
    whole = run.to_dict() if hasattr(run, "to_dict") else None
    return {
        "id": run.id,
        "thread_id": run.thread_id,
        "status": getattr(run, "status", None),
        "exit_code": outcome.code,
        "error": outcome.words or None,
        "calls": view.calls,
        "waited": round(view.waited, 3),
        "run": whole,
    }
