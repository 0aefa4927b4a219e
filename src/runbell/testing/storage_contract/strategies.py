"""Any record that can be stored, for properties."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from runbell.runs import LastError, Run, RunStatus, ToolCall, Usage
from runbell.storage import records as r
from runbell.testing.storage_contract.stories import PROJECT

__all__ = ["assistants", "messages", "run_configs", "runs", "steps", "threads", "tool_outputs"]

# NUL is text in JSON, and SQLite keeps it in a column too; other databases refuse it there.
texts = st.text(max_size=40)
columns = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=40)
moments = st.integers(0, 2**53)
counts = st.integers(0, 2**53)
metadata = st.dictionaries(texts, texts, max_size=4)
json_values: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
documents = st.dictionaries(texts, json_values, max_size=3)


def maybe(strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """That, or None."""
    return st.none() | strategy


def tuples(strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[tuple[Any, ...]]:
    """Up to three of these."""
    return st.lists(strategy, max_size=3).map(tuple)


functions = st.builds(
    r.FunctionDefinition, texts, maybe(texts), maybe(documents), maybe(st.booleans())
)
unit = st.floats(0, 1)
tools = st.one_of(
    st.builds(r.FunctionTool, functions),
    st.just(r.CodeInterpreterTool()),
    st.builds(
        r.FileSearchTool,
        maybe(
            st.builds(
                r.FileSearchOverrides,
                maybe(st.integers(1, 50)),
                maybe(st.builds(r.FileSearchRanking, unit, maybe(st.just("auto")))),
            )
        ),
    ),
)
tool_choices = st.one_of(
    st.sampled_from(["none", "auto", "required"]),
    st.builds(r.NamedToolChoice, st.just("function"), st.builds(r.NamedFunction, texts)),
    st.builds(r.NamedToolChoice, st.just("file_search")),
)
response_formats = st.one_of(
    st.just("auto"),
    st.just(r.TextFormat()),
    st.just(r.JsonObjectFormat()),
    st.builds(r.JsonSchemaFormat, documents),
)
efforts = maybe(st.sampled_from(["none", "minimal", "low", "medium", "high", "xhigh", "max"]))
details = st.sampled_from(["auto", "low", "high"])
parts = st.one_of(
    st.builds(r.TextPart, st.builds(r.TextValue, texts, tuples(documents))),
    st.builds(r.ImageUrlPart, st.builds(r.ImageUrl, texts, details)),
    st.builds(r.ImageFilePart, st.builds(r.ImageFile, texts, details)),
    st.builds(r.RefusalPart, texts),
)

assistants = st.builds(
    r.Assistant,
    st.just(PROJECT),
    columns,
    moments,
    st.builds(
        r.AssistantConfig,
        model=texts,
        name=maybe(texts),
        description=maybe(texts),
        instructions=maybe(texts),
        tools=tuples(tools),
        tool_resources=documents,
        metadata=metadata,
        temperature=maybe(st.floats(0, 2)),
        top_p=maybe(unit),
        response_format=response_formats,
        reasoning_effort=efforts,
    ),
)
threads = st.builds(r.Thread, st.just(PROJECT), columns, moments, documents, metadata)
messages = st.builds(
    r.Message,
    project_id=st.just(PROJECT),
    thread_id=columns,
    id=columns,
    created_at_ms=moments,
    role=st.sampled_from(["user", "assistant"]),
    content=tuples(parts),
    status=st.sampled_from(["in_progress", "incomplete", "completed"]),
    incomplete_reason=maybe(columns),
    completed_at_ms=maybe(moments),
    incomplete_at_ms=maybe(moments),
    assistant_id=maybe(columns),
    run_id=maybe(columns),
    metadata=metadata,
)
run_configs = st.builds(
    r.RunConfig,
    model=texts,
    instructions=texts,
    tools=tuples(tools),
    temperature=maybe(st.floats(0, 2)),
    top_p=maybe(unit),
    max_prompt_tokens=maybe(counts),
    max_completion_tokens=maybe(counts),
    truncation_strategy=st.builds(
        r.TruncationStrategy,
        st.sampled_from(["auto", "last_messages"]),
        maybe(st.integers(1, 2**31 - 1)),
    ),
    tool_choice=tool_choices,
    parallel_tool_calls=st.booleans(),
    response_format=response_formats,
    reasoning_effort=efforts,
)
tool_outputs = tuples(st.builds(r.ToolStepCall, texts, texts, texts, maybe(texts)))
steps = st.builds(
    r.RunStep,
    project_id=st.just(PROJECT),
    thread_id=columns,
    run_id=columns,
    assistant_id=columns,
    id=columns,
    created_at_ms=moments,
    status=st.sampled_from(["in_progress", "cancelled", "failed", "completed", "expired"]),
    message_id=maybe(columns),
    tool_calls=tool_outputs,
    error_code=maybe(columns),
    error_message=maybe(columns),
    ended_at_ms=maybe(moments),
    usage=maybe(st.builds(r.StepUsage, counts, counts, counts)),
    metadata=metadata,
)


def runs(**fixed: Any) -> st.SearchStrategy[Run]:
    """Any run in any state; `fixed` are fields that it is to have."""
    fields: dict[str, st.SearchStrategy[Any]] = {
        "id": columns,
        "project_id": st.just(PROJECT),
        "thread_id": columns,
        "assistant_id": columns,
        "status": st.sampled_from(RunStatus),
        "created_at_ms": moments,
        "expires_at_ms": moments,
        "updated_at_ms": moments,
        "sequence": st.integers(1, 2**31 - 1),
        "attempt": st.integers(0, 2**31 - 1),
        "takeovers": st.integers(0, 2**31 - 1),
        "waits_turn": st.booleans(),
        "started_at_ms": maybe(moments),
        "cancelling_at_ms": maybe(moments),
        "cancelled_at_ms": maybe(moments),
        "failed_at_ms": maybe(moments),
        "completed_at_ms": maybe(moments),
        "incomplete_at_ms": maybe(moments),
        "expired_at_ms": maybe(moments),
        "tool_calls": tuples(st.builds(ToolCall, texts, texts, texts)),
        "last_error": maybe(st.builds(LastError, st.just("server_error"), columns)),
        "incomplete_reason": maybe(columns),
        "status_reason": maybe(columns),
        "usage": st.builds(Usage, counts, counts),
        "metadata": metadata,
    }
    return st.builds(Run, **fields | {name: st.just(value) for name, value in fixed.items()})
