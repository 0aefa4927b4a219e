"""Runs as values, for what is pure."""

from __future__ import annotations

import dataclasses

from runbell.runs import Run, RunStatus

__all__ = ["new_run"]


def new_run(**fields: object) -> Run:
    """A run that was just created, but for these fields."""
    base = Run(
        id="run_1",
        project_id="proj_1",
        thread_id="thread_1",
        assistant_id="asst_1",
        status=RunStatus.QUEUED,
        created_at_ms=1_000_000,
        expires_at_ms=1_600_000,
        updated_at_ms=1_000_000,
    )
    return dataclasses.replace(base, **fields)  # type: ignore[arg-type]
