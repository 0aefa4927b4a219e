"""An event's bytes: never too large, a run as it stood, stamps in seconds and milliseconds."""

from __future__ import annotations

import dataclasses
import json

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from runbell.runs import EVENT_TYPES, Run, RunStatus, ToolCall, event_of, event_type
from runbell.runs import lifecycle as lc
from runbell.runs.run import LastError, Usage
from tests.lifecycle.values import new_run

MAX_BYTES = 20_000
LARGE = ("required_action", "metadata")
STAMPS = [f.name for f in dataclasses.fields(Run) if f.name.endswith("_at_ms")]
WORST = "\x01"
"""A control character: one character of text, six bytes of JSON."""

stamps = st.none() | st.integers(0, 2**45)
long_texts = st.builds(
    lambda text, times: text * times,
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8),
    st.integers(1, 4_000),
)
texts = st.one_of(st.text(max_size=60), long_texts)
metadata = st.dictionaries(
    texts.map(lambda text: text[:64]), texts.map(lambda text: text[:512]), max_size=16
)
tool_calls = st.lists(
    st.builds(ToolCall, st.just("call_1"), texts.map(lambda text: text[:64]), texts), max_size=4
).map(tuple)
reasons = st.none() | texts.map(lambda text: text[:1_000])


@st.composite
def runs(draw: st.DrawFn) -> Run:
    """Any run that `lifecycle` could have made, and many that it could not."""
    return new_run(
        status=draw(st.sampled_from(RunStatus)),
        sequence=draw(st.integers(1, 10**6)),
        created_at_ms=draw(st.integers(0, 2**45)),
        updated_at_ms=draw(st.integers(0, 2**45)),
        **{
            name: draw(stamps)
            for name in STAMPS
            if name not in ("created_at_ms", "expires_at_ms", "updated_at_ms")
        },
        tool_calls=draw(tool_calls),
        last_error=draw(
            st.none() | st.builds(LastError, st.just("server_error"), reasons.map(str))
        ),
        incomplete_reason=draw(st.none() | st.just("max_completion_tokens")),
        status_reason=draw(reasons),
        usage=draw(st.builds(Usage, st.integers(0, 2**31), st.integers(0, 2**31))),
        metadata=draw(metadata),
    )


WORST_RUN = new_run(
    status=RunStatus.FAILED,
    assistant_id="asst_" + "x" * 64,
    sequence=10**9,
    **dict.fromkeys(STAMPS, 2**45),
    last_error=LastError("rate_limit_exceeded", WORST * 1_000),
    status_reason=WORST * 1_000,
    usage=Usage(2**62, 2**62),
    metadata={f"{key:02d}" + WORST * 62: WORST * 512 for key in range(16)},
    tool_calls=(ToolCall("call_1", "f", WORST * 4_000_000),),
)


@settings(deadline=None, derandomize=True, max_examples=200)
@given(run=runs())
@example(run=WORST_RUN)
def test_an_event_is_never_over_20_kb(run: Run) -> None:
    """Whatever a model, a client or an error puts into a run; what is left out is said."""
    event = event_of(run, "evt_1")
    data = json.loads(event.body)["data"]
    assert len(event.body) <= MAX_BYTES
    left_out = [part for part in LARGE if part not in data]
    assert data.get("truncated", False) == bool(left_out)
    assert data.get("truncated") is not False, "the field is there only to say so"
    if "required_action" in data:
        assert (data["required_action"] is not None) == bool(run.tool_calls)
    if "metadata" in data:
        assert data["metadata"] == run.metadata


@settings(deadline=None, derandomize=True, max_examples=100)
@given(run=runs())
def test_nothing_is_left_out_that_would_have_fitted(run: Run) -> None:
    """An event is truncated only where the whole one is over 20 kB."""
    data = json.loads(event_of(run, "evt_1").body)["data"]
    if not data.pop("truncated", False):
        return
    whole = dataclasses.replace(run, metadata={}, tool_calls=())
    empty = json.loads(event_of(whole, "evt_1").body)
    calls = [
        {"id": c.id, "type": "function", "function": {"name": c.name, "arguments": c.arguments}}
        for c in run.tool_calls
    ]
    empty["data"] |= {
        "metadata": run.metadata,
        "required_action": calls
        and {"type": "submit_tool_outputs", "submit_tool_outputs": {"tool_calls": calls}},
    }
    encoded = json.dumps(empty, ensure_ascii=False, separators=(",", ":")).encode()
    assert len(encoded) > MAX_BYTES


@settings(deadline=None, derandomize=True, max_examples=100)
@given(run=runs())
def test_stamps_are_given_in_seconds_and_in_milliseconds(run: Run) -> None:
    """Every stamp of a run is there twice, null where it was not reached; seconds are cut."""
    event = event_of(run, "evt_1")
    body = json.loads(event.body)
    for stamp in STAMPS:
        at_ms = getattr(run, stamp)
        assert body["data"][stamp] == at_ms
        assert body["data"][stamp.removesuffix("_ms")] == (None if at_ms is None else at_ms // 1000)
    assert event.created_at_ms == run.updated_at_ms
    assert body["created_at"] == run.updated_at_ms // 1000


@settings(deadline=None, derandomize=True, max_examples=100)
@given(run=runs())
def test_an_event_says_what_the_run_was(run: Run) -> None:
    """Its columns and its bytes are of one run, and usage is shown only when the run has ended."""
    event = event_of(run, "evt_1")
    body = json.loads(event.body)
    data = body["data"]
    assert (body["object"], data["object"]) == ("event", "thread.run")
    assert (body["id"], event.id) == ("evt_1", "evt_1")
    assert body["type"] == event.type == event_type(run)
    assert (data["id"], event.run_id) == (run.id, run.id)
    assert (data["sequence"], event.sequence) == (run.sequence, run.sequence)
    assert (data["status"], data["status_reason"]) == (run.status, run.status_reason)
    assert event.project_id == run.project_id
    assert "project_id" not in data
    assert (data["usage"] is not None) == run.status.is_terminal
    if data["usage"] is not None:
        assert (
            data["usage"]["total_tokens"] == run.usage.prompt_tokens + run.usage.completion_tokens
        )


def test_the_creation_is_an_event_of_its_own_kind() -> None:
    """Sequence 1 is `thread.run.created` with status `queued`; queueing again is `queued`."""
    run = new_run()
    assert event_type(run) == "thread.run.created"
    started = lc.apply(run, lc.started(), now_ms=1_000_000)
    asked = lc.apply(
        started, lc.requires_action((ToolCall("c", "f", "{}"),), Usage()), now_ms=1_000_000
    )
    again = lc.apply(asked, lc.resumed(), now_ms=1_000_000)
    assert [event_type(each) for each in (started, asked, again)] == [
        "thread.run.in_progress",
        "thread.run.requires_action",
        "thread.run.queued",
    ]


@pytest.mark.parametrize("status", RunStatus)
def test_every_status_has_its_type(status: RunStatus) -> None:
    """What an event can be called is all in `EVENT_TYPES`, which filters are checked against."""
    assert event_type(new_run(status=status, sequence=2)) == f"thread.run.{status}"
    assert f"thread.run.{status}" in EVENT_TYPES
    assert len(EVENT_TYPES) == len(set(EVENT_TYPES)) == len(RunStatus) + 1


def test_an_event_is_one_line_of_utf_8() -> None:
    """Readable as it is, in any script, and safe to send as one line of a stream."""
    run = new_run(metadata={"city": "Zürich\n東京 🔔"})
    body = event_of(run, "evt_1").body
    assert b"\n" not in body
    assert "Zürich\\n東京 🔔" in body.decode()
