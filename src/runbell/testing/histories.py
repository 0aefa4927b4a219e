"""What a feed of events has to be, whoever made it: whole histories of runs, each by the table."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from typing import Any

from runbell.runs import TRANSITIONS, RunStatus

__all__ = ["check_histories"]


def check_histories(
    events: Iterable[Any], *, ended: bool = False
) -> dict[str, list[dict[str, Any]]]:
    """Hold a feed against the contract of events.

    Args:
        events: the whole feed in its order, decoded.
        ended: every run has to have ended.

    Returns:
        The events of each run, in order.

    Raises:
        AssertionError: an event is doubled or missing, or is not what the table of transitions
            lets follow; a run goes on after its end; a stamp runs backwards.
    """
    histories: dict[str, list[dict[str, Any]]] = {}
    seen: set[str] = set()
    for event in events:
        assert event["id"] not in seen, f"twice in the feed: {event}"
        seen.add(event["id"])
        histories.setdefault(event["data"]["id"], []).append(event)
    for run_id, history in histories.items():
        _check(run_id, history)
        if ended:
            assert RunStatus(history[-1]["data"]["status"]).is_terminal, _told(run_id, history)
    return histories


def _check(run_id: str, history: list[dict[str, Any]]) -> None:
    told = _told(run_id, history)
    numbers = [event["data"]["sequence"] for event in history]
    assert numbers == list(range(1, len(history) + 1)), f"gaps, doubles or disorder: {told}"
    first = history[0]
    assert (first["type"], first["data"]["status"]) == ("thread.run.created", "queued"), told
    for before, after in pairwise(history):
        source, target = (RunStatus(event["data"]["status"]) for event in (before, after))
        assert target in TRANSITIONS[source], f"{source} → {target}: {told}"
        assert after["type"] == f"thread.run.{target}", told
        assert after["data"]["updated_at_ms"] >= before["data"]["updated_at_ms"], told
    for event in history:
        terminal = RunStatus(event["data"]["status"]).is_terminal
        assert (event["data"]["status_reason"] is not None) == terminal, f"no reason: {told}"
        assert (event["data"]["usage"] is not None) == terminal, f"usage: {told}"


def _told(run_id: str, history: list[dict[str, Any]]) -> str:
    return f"{run_id}: " + ", ".join(
        f"{event['data']['sequence']} {event['type']}" for event in history
    )
