"""Other asynchronous work of OpenAI's API: background responses, batches, fine-tuning jobs, and
vector stores' file batches."""

from __future__ import annotations

from typing import Any

from runbell.client.view import Stage, View, stamp
from runbell.errors import BadAnswer
from runbell.pacing import Advised, Backoff, Policy

__all__ = ["Batches", "FileBatches", "FineTuningJobs", "Responses"]


ENDS = ("completed_at", "finished_at", "failed_at", "cancelled_at")
"""Stamps of an end, as one kind or another calls it."""


class _Job:
    """What these have in common: an object with an id, a status, and a name of its kind."""

    kind = ""
    pending: frozenset[str] = frozenset()
    good = "completed"

    def owns(self, item: object) -> bool:
        return getattr(item, "object", None) == self.kind

    def view(self, item: Any) -> View:
        status = getattr(item, "status", None)
        if not isinstance(status, str):
            raise BadAnswer(f"this is no {self.kind}: {str(item)[:100]!r}")
        stage: Stage = "ended"
        if status in self.pending:
            stage = "pending"
        elif status == self.good:
            stage = "completed"
        code, message = self.reason(item)
        return View(
            id=item.id,
            status=status,
            stage=stage,
            created_at=stamp(item, "created_at"),
            started_at=stamp(item, "in_progress_at"),
            expires_at=stamp(item, "expires_at"),
            ended_at=stamp(item, *ENDS),
            code=code,
            message=message,
        )

    def kind_of(self, item: Any) -> tuple[str, str]:
        """What jobs that take about as long have in common."""
        return self.kind, str(getattr(item, "model", None) or getattr(item, "endpoint", None) or "")

    def reason(self, item: Any) -> tuple[str | None, str | None]:
        """Why it ended: a code and a sentence, where there are any."""
        error = getattr(item, "error", None)
        return getattr(error, "code", None), getattr(error, "message", None)


class Responses(_Job):
    """`responses.create(background=True)`."""

    kind = "response"
    pending = frozenset({"queued", "in_progress"})

    def reason(self, item: Any) -> tuple[str | None, str | None]:
        if details := getattr(item, "incomplete_details", None):
            return details.reason, None
        return super().reason(item)

    def retrieve(self, client: Any, item: Any, **options: Any) -> Any:
        return client.responses.with_raw_response.retrieve(item.id, **options)

    def cancel(self, client: Any, item: Any, **options: Any) -> Any:
        return client.responses.cancel(item.id, **options)


class Batches(_Job):
    """`batches.create(…)`: up to a day."""

    kind = "batch"
    pending = frozenset({"validating", "in_progress", "finalizing", "cancelling"})

    def reason(self, item: Any) -> tuple[str | None, str | None]:
        errors = getattr(getattr(item, "errors", None), "data", None) or []
        return (errors[0].code, errors[0].message) if errors else (None, None)

    def retrieve(self, client: Any, item: Any, **options: Any) -> Any:
        return client.batches.with_raw_response.retrieve(item.id, **options)

    def cancel(self, client: Any, item: Any, **options: Any) -> Any:
        return client.batches.cancel(item.id, **options)

    def policy(self) -> Policy:
        return Advised(Backoff(start=5, factor=1.5, cap=60))


class FineTuningJobs(_Job):
    """`fine_tuning.jobs.create(…)`: minutes to hours. A paused job is waited for."""

    kind = "fine_tuning.job"
    pending = frozenset({"validating_files", "queued", "running", "paused"})
    good = "succeeded"

    def retrieve(self, client: Any, item: Any, **options: Any) -> Any:
        return client.fine_tuning.jobs.with_raw_response.retrieve(item.id, **options)

    def cancel(self, client: Any, item: Any, **options: Any) -> Any:
        return client.fine_tuning.jobs.cancel(item.id, **options)

    def policy(self) -> Policy:
        return Advised(Backoff(start=5, factor=1.5, cap=60))


class FileBatches(_Job):
    """`vector_stores.file_batches.create(…)`. `failed` counts are the caller's to look at."""

    kind = "vector_store.files_batch"
    pending = frozenset({"in_progress"})

    def owns(self, item: object) -> bool:
        # OpenAI's document names the kind one way, and its service has been seen to say another.
        names = (self.kind, "vector_store.file_batch")
        return getattr(item, "object", None) in names

    def retrieve(self, client: Any, item: Any, **options: Any) -> Any:
        batches = client.vector_stores.file_batches.with_raw_response
        return batches.retrieve(item.id, vector_store_id=item.vector_store_id, **options)

    def cancel(self, client: Any, item: Any, **options: Any) -> Any:
        return client.vector_stores.file_batches.cancel(
            item.id, vector_store_id=item.vector_store_id, **options
        )
