"""The language of `echo`: each line that drives it, and what happens to every other one."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runbell.clock import VirtualClock
from runbell.errors import ModelError
from runbell.runs import Usage
from runbell.service.backends import Finished, ModelRequest, TextDelta, ToolCallDelta
from runbell.service.backends.echo import MAX_PIECES, Echo
from runbell.storage.records import (
    FunctionDefinition,
    FunctionTool,
    ImageUrl,
    ImageUrlPart,
    Message,
    NamedFunction,
    NamedToolChoice,
    RunConfig,
    RunStep,
    TextPart,
    TextValue,
    ToolChoice,
    ToolStepCall,
)


@dataclass
class Heard:
    """One turn of echo, put together; `seconds` is how long it took."""

    text: str = ""
    calls: list[tuple[str, str]] = field(default_factory=list)
    reason: str = ""
    usage: Usage | None = None
    pieces: int = 0
    seconds: float = 0.0


def message(text: str, role: str = "user") -> Message:
    return Message("proj", "thread", "msg", 0, role, (TextPart(TextValue(text)),))  # type: ignore[arg-type]


def request(
    *said: str | Message,
    tools: Sequence[str] = ("f", "g-2"),
    tool_choice: ToolChoice = "auto",
    parallel: bool = True,
    answered: Sequence[Sequence[tuple[str, str | None]]] = (),
    prompt_limit: int | None = None,
    limit: int | None = None,
    instructions: str = "",
) -> ModelRequest:
    """A turn; `answered` are the earlier turns' calls, each a name and its output."""
    config = RunConfig(
        model="echo",
        instructions=instructions,
        tools=tuple(FunctionTool(FunctionDefinition(name)) for name in tools),
        tool_choice=tool_choice,
        parallel_tool_calls=parallel,
    )
    steps = tuple(
        RunStep(
            *("proj", "thread", "run", "asst", "step"),
            created_at_ms=0,
            status="completed",
            tool_calls=tuple(ToolStepCall(f"call_{n}", n, "{}", output) for n, output in calls),
        )
        for calls in answered
    )
    messages = tuple(each if isinstance(each, Message) else message(each) for each in said)
    return ModelRequest(config, messages, steps, prompt_limit, limit)


def echo(asked: ModelRequest) -> Heard:
    """What echo says, in a time that passes by itself."""

    async def listen() -> Heard:
        clock = VirtualClock()
        heard = Heard()

        async def collect() -> None:
            async for piece in Echo(clock).answer(asked):
                heard.pieces += 1
                match piece:
                    case TextDelta(text):
                        heard.text += text
                    case ToolCallDelta(index, name, arguments):
                        assert index == len(heard.calls)
                        heard.calls.append((name, arguments))
                    case Finished(reason, usage):
                        heard.reason, heard.usage = reason, usage

        listening = asyncio.create_task(collect())
        while not listening.done():
            await asyncio.sleep(0)
            if (wake := clock.next_wake()) is not None:
                clock.advance(wake)
        heard.seconds = clock.monotonic()
        await listening
        return heard

    return asyncio.run(listen())


words = st.text("ab \n\t,.é🔔", max_size=400)


@settings(deadline=None, derandomize=True, max_examples=150)
@given(text=words)
def test_it_answers_with_the_last_user_message_word_for_word(text: str) -> None:
    """Whatever the white space; in a bounded number of pieces, with tokens counted as words."""
    heard = echo(request(message("before"), text, message("from the assistant", "assistant")))
    assert heard.text == text
    assert heard.reason == "stop"
    spoken = max(len(text.split()), bool(text))
    assert heard.usage == Usage(1 + len(text.split()) + 3, spoken)
    assert heard.pieces <= MAX_PIECES + 1


def test_a_long_answer_comes_in_pieces() -> None:
    """As a streaming model's does, and not in as many as it has words."""
    heard = echo(request("word " * 1_000))
    assert heard.text == "word " * 1_000
    assert 2 < heard.pieces <= MAX_PIECES + 1
    assert heard.usage == Usage(1_000, 1_000)


def test_without_a_user_message_it_has_nothing_to_say() -> None:
    """A run on an empty thread completes."""
    heard = echo(request(message("only the assistant spoke", "assistant")))
    assert (heard.text, heard.reason) == ("", "stop")


def test_texts_of_one_message_are_lines_and_images_are_passed_over() -> None:
    """Parts of a message are read one after the other."""
    parts = (
        TextPart(TextValue("one")),
        ImageUrlPart(ImageUrl("https://a.example/1.png")),
        TextPart(TextValue("two")),
    )
    heard = echo(request(Message("proj", "thread", "msg", 0, "user", parts)))
    assert heard.text == "one\ntwo"


def test_instructions_count_as_tokens_of_the_prompt() -> None:
    """They are told to a model, so they are counted."""
    assert echo(request("two words", instructions="be very brief")).usage == Usage(5, 2)


# Calls.


@pytest.mark.parametrize(
    ("line", "call"),
    [
        ('call f {"a": 1}', ("f", '{"a": 1}')),
        ("call g-2 {}", ("g-2", "{}")),
        ("call f", ("f", "{}")),
        ('  call   f   {"a": [1, 2]}  ', ("f", '{"a": [1, 2]}')),
        ("call f not json at all", ("f", "not json at all")),
    ],
)
def test_a_line_calls_a_function(line: str, call: tuple[str, str]) -> None:
    """Arguments are passed on as they stand: a model's are text, too."""
    heard = echo(request(f"Please:\n{line}\nThanks"))
    assert heard.calls == [call]
    assert heard.text == ""
    assert heard.usage is not None
    assert heard.usage.completion_tokens == len(call[1].split())


@pytest.mark.parametrize(
    "line", ["call h {}", "calls f {}", "please call f {}", "call", "CALL f {}", "callf {}"]
)
def test_what_calls_no_function_of_the_run_is_text(line: str) -> None:
    """An unknown function, or a line that only looks like a call, is echoed."""
    heard = echo(request(line))
    assert (heard.calls, heard.text) == ([], line)


def test_several_lines_are_parallel_calls_and_the_outputs_are_the_answer() -> None:
    """In the order of the calls, one a line; the same function may be called twice."""
    text = 'call f {"n": 1}\ncall g-2 {}\ncall f {"n": 2}'
    heard = echo(request(text))
    assert heard.calls == [("f", '{"n": 1}'), ("g-2", "{}"), ("f", '{"n": 2}')]
    after = echo(request(text, answered=[[("f", "one"), ("g-2", None), ("f", "two")]]))
    assert (after.calls, after.text, after.reason) == ([], "one\n\ntwo", "stop")
    assert after.usage == Usage(len(text.split()) + 2, 2)


def test_without_parallel_calls_it_makes_one_call_a_turn() -> None:
    """Each turn the next one, until all have their outputs."""
    text = "call f 1\ncall g-2 2\ncall f 3"
    answered: list[list[tuple[str, str | None]]] = []
    for expected in (("f", "1"), ("g-2", "2"), ("f", "3")):
        assert echo(request(text, parallel=False, answered=answered)).calls == [expected]
        answered.append([(expected[0], f"out {expected[1]}")])
    done = echo(request(text, parallel=False, answered=answered))
    assert (done.calls, done.text) == ([], "out 1\nout 2\nout 3")


NAMED = NamedToolChoice("function", NamedFunction("g-2"))


@pytest.mark.parametrize(
    ("choice", "text", "calls"),
    [
        ("none", "call f {}", []),
        ("auto", "nothing to do", []),
        ("required", "nothing to do", [("f", "{}")]),
        ("required", "call g-2 {}", [("g-2", "{}")]),
        (NAMED, "nothing to do", [("g-2", "{}")]),
    ],
)
def test_it_obeys_the_tool_choice(
    choice: ToolChoice, text: str, calls: list[tuple[str, str]]
) -> None:
    """`none` makes no call, `required` and a named function make one where no line does."""
    heard = echo(request(text, tool_choice=choice))
    assert heard.calls == calls
    assert heard.text == ("" if calls else text)


def test_a_required_call_is_made_once() -> None:
    """After its output comes the answer, not the same call again."""
    heard = echo(request("go", tool_choice="required", answered=[[("f", "done")]]))
    assert (heard.calls, heard.text) == ([], "done")


def test_where_there_is_no_function_none_can_be_required() -> None:
    """It answers, rather than to call what is not there."""
    assert echo(request("go", tools=(), tool_choice="required")).text == "go"


# Lines that drive other statuses.


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("sleep 2", 2.0), ("sleep 0.25\nand\nsleep .5", 0.75), ("sleep -1", 0), ("sleep long", 0)],
)
def test_it_takes_the_time_that_a_line_asks_for(text: str, seconds: float) -> None:
    """And then echoes the message, these lines included; a line that is no number is text."""
    heard = echo(request(text))
    assert heard.text == text
    assert heard.seconds == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("line", "code", "said"),
    [
        ("fail rate_limit_exceeded Try later.", "rate_limit_exceeded", "Try later."),
        ("fail invalid_prompt No.", "invalid_prompt", "No."),
        ("fail server_error  two  spaces ", "server_error", "two  spaces"),
        ("fail whatever happened", "server_error", "happened"),
        ("fail server_error", "server_error", "The message asked echo to fail."),
    ],
)
def test_it_fails_with_the_code_and_the_message_of_a_line(line: str, code: str, said: str) -> None:
    """A code that `last_error` cannot have becomes `server_error`."""
    with pytest.raises(ModelError) as caught:
        echo(request(f"first\n{line}"))
    assert (caught.value.code, caught.value.message) == (code, said)


def test_fail_alone_is_text() -> None:
    """Without a code there is nothing to fail with."""
    assert echo(request("fail")).text == "fail"


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("one two\nincomplete\nthree", "one two"),
        ("incomplete", ""),
        ("one\n  incomplete  ", "one"),
    ],
)
def test_it_stops_where_a_line_says_incomplete(text: str, kept: str) -> None:
    """As if the token limit were reached there."""
    heard = echo(request(text))
    assert (heard.text, heard.reason) == (kept, "max_completion_tokens")
    assert heard.usage is not None
    assert heard.usage.completion_tokens == len(kept.split())


def test_incomplete_within_a_line_is_text() -> None:
    """Only a line of its own drives it."""
    heard = echo(request("an incomplete thought"))
    assert (heard.text, heard.reason) == ("an incomplete thought", "stop")


def test_lines_in_front_of_the_calls_act_before_them_and_the_others_after_the_outputs() -> None:
    """So a test can place a delay or a failure on either side of `requires_action`."""
    text = "sleep 1\ncall f {}\nsleep 4\nincomplete"
    first = echo(request(text))
    assert (first.calls, first.seconds, first.reason) == ([("f", "{}")], 1.0, "stop")
    second = echo(request(text, answered=[[("f", "out")]]))
    assert (second.text, second.seconds) == ("out", 4.0)
    assert second.reason == "max_completion_tokens"
    with pytest.raises(ModelError, match="after"):
        echo(request("call f {}\nfail server_error after", answered=[[("f", "out")]]))
    assert echo(request("call f {}\nfail server_error after")).calls == [("f", "{}")]


# Limits.


@settings(deadline=None, derandomize=True, max_examples=80)
@given(text=words, limit=st.integers(0, 40))
def test_the_completion_limit_cuts_between_words(text: str, limit: int) -> None:
    """What is said is a beginning of the text; the limit is never passed, and said when it cuts."""
    heard = echo(request(text, limit=limit))
    count = len(text.split())
    assert text.startswith(heard.text)
    assert heard.usage is not None
    assert heard.usage.completion_tokens <= limit
    if text.strip():
        assert len(heard.text.split()) == min(count, limit)
        assert heard.reason == ("max_completion_tokens" if count > limit else "stop")


@pytest.mark.parametrize(("limit", "reason"), [(3, "max_prompt_tokens"), (4, "stop")])
def test_a_prompt_over_the_limit_is_not_answered(limit: int, reason: str) -> None:
    """The whole conversation counts: what was said before, and the outputs of calls."""
    asked = request("call f {}", answered=[[("f", "1")]], prompt_limit=limit)
    heard = echo(asked)
    assert heard.reason == reason
    assert heard.text == ("" if reason != "stop" else "1")
    if reason != "stop":
        assert heard.usage == Usage()
