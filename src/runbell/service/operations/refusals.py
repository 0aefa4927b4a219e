"""The sentences for what can't be done; programs match several of them to the letter."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from runbell.errors import RequestRefused, UnknownCursor
from runbell.runs import RunStatus
from runbell.service.wire.refusals import clipped

__all__ = [
    "MODEL_NOT_FOUND",
    "cannot_cancel",
    "choice_without_tools",
    "id_taken",
    "model_not_found",
    "model_not_served",
    "no_message_now",
    "no_outputs_wanted",
    "not_found",
    "thread_busy",
    "too_many_waiting",
    "tool_unknown",
    "tool_unsupported",
    "unknown_cursor",
    "unreachable",
    "wrong_outputs",
]

MODEL_NOT_FOUND = "model_not_found"
"""The code of a refusal that may be out of date: a server can have the model since a moment."""

MAX_LISTED = 20
"""Models that a message names; some servers have hundreds."""


def not_found(kind: str, key: str) -> RequestRefused:
    """There is no such thing, or it is another project's: the same answer for both."""
    return RequestRefused(404, f"No {kind} found with id '{clipped(key)}'.")


def unknown_cursor(kind: str, error: UnknownCursor) -> RequestRefused:
    refused = not_found(kind, error.cursor)
    if kind != "event":
        return refused
    # Alone of all rows, events go by their age.
    advice = " It may have been removed by its age: begin without 'after'."
    return RequestRefused(404, f"{refused}{advice}")


def id_taken(key: str) -> RequestRefused:
    # Without the header the stock SDK tries every 409 again.
    return RequestRefused(
        409,
        f"An assistant with id '{key}' exists already: modify it, or choose another id.",
        param="id",
        code="id_taken",
        headers={"x-should-retry": "false"},
    )


def thread_busy(thread_id: str, run_id: str) -> RequestRefused:
    return RequestRefused(400, f"Thread {thread_id} already has an active run {run_id}.")


def no_message_now(thread_id: str, run_id: str) -> RequestRefused:
    return RequestRefused(400, f"Can't add messages to {thread_id} while a run {run_id} is active.")


def cannot_cancel(status: RunStatus) -> RequestRefused:
    return RequestRefused(400, f"Cannot cancel run with status '{status}'.")


def no_outputs_wanted(status: RunStatus) -> RequestRefused:
    return RequestRefused(400, f'Runs in status "{status}" do not accept tool outputs.')


def wrong_outputs(expected: Iterable[str], got: Sequence[str]) -> RequestRefused:
    return RequestRefused(
        400,
        f"Expected tool outputs for call_ids {list(expected)}, got {_shown(got)}",
        param="tool_outputs",
    )


def _shown(ids: Sequence[str]) -> list[str]:
    """Ids from a request, as an answer may repeat them."""
    shown = [clipped(each) for each in ids[:_MAX_SHOWN]]
    return shown if len(ids) <= _MAX_SHOWN else [*shown, f"and {len(ids) - _MAX_SHOWN} more"]


_MAX_SHOWN = 128


def too_many_waiting(thread_id: str, limit: int) -> RequestRefused:
    return RequestRefused(
        400,
        f"Thread {thread_id} has {limit} runs waiting for their turn already.",
        param="on_active_run",
    )


def too_many_endpoints(limit: int) -> RequestRefused:
    return RequestRefused(
        400, f"The project has {limit} webhook endpoints already: delete one that is not needed."
    )


def choice_without_tools() -> RequestRefused:
    return RequestRefused(
        400,
        "The tool_choice is 'required', and the run has no tools to choose from.",
        param="tool_choice",
        code="invalid_value",
    )


def model_not_served(model: str, served: Sequence[str], undecided: int) -> RequestRefused:
    """
    Args:
        undecided: model servers of which nobody knows yet which models they have.
    """
    match undecided:
        case 0:
            hint = ""
        case 1:
            hint = (
                "One model server has not said yet which models it has (the log says why); "
                "it may serve this one. "
            )
        case _:
            hint = (
                f"{undecided} model servers have not said yet which models they have (the log "
                "says why); one of them may serve this one. "
            )
    return RequestRefused(
        400,
        f"The model '{clipped(model)}' is not served here. {hint}"
        f"Served: {_listed(served)}. Name one of them as the run's or the assistant's model, or "
        f"add a model server: runbell serve --upstream URL --model-map '{clipped(model)}=MODEL'.",
        param="model",
        code=MODEL_NOT_FOUND,
    )


def model_not_found(model: str, served: Sequence[str]) -> RequestRefused:
    return RequestRefused(
        404,
        f"The model '{clipped(model)}' does not exist here. Served: {_listed(served)}.",
        param="model",
        code=MODEL_NOT_FOUND,
    )


def _listed(served: Sequence[str]) -> str:
    more = len(served) - MAX_LISTED
    rest = f" and {more} more, which GET /v1/models lists" if more > 0 else ""
    return ", ".join(served[:MAX_LISTED]) + rest


def tool_unsupported(kind: str) -> RequestRefused:
    return RequestRefused(
        400,
        f"The tool '{kind}' is not supported. Pass the run's own 'tools' without it, or remove it "
        "from the assistant.",
        param="tools",
        code="unsupported_tool",
    )


def tool_unknown(name: str) -> RequestRefused:
    return RequestRefused(
        400,
        f"The tool_choice names '{clipped(name)}', which is not among the run's tools.",
        param="tool_choice",
        code="invalid_value",
    )


def unreachable(reason: str) -> RequestRefused:
    # 424 (RFC 4918), since the stock SDK tries a 5xx again, and with it the whole test.
    return RequestRefused(
        424,
        f"The endpoint could not be reached. {reason}",
        code="webhook_endpoint_unreachable",
    )
