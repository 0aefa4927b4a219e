"""Function calls as servers really stream them: each comes out once, whole, with a usable id."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from runbell.errors import ModelError
from runbell.service.backends import ToolCallDelta
from runbell.service.backends.upstream import calls as reading
from runbell.service.backends.upstream.calls import CallReader
from tests.upstream.model_server import STOP, chunk, finish, stream, text, tool
from tests.upstream.talk import Said, calls_step, function, request, talking

TOOLS = (function("f"), function("g"))

CALLED = finish("tool_calls")


def answer_to(*events: Any, **asked: Any) -> Said:
    async def story() -> Said:
        async with talking() as talk, asyncio.timeout(100):
            talk.server.will(stream(*events))
            return await talk.said(request(tools=TOOLS, **asked))

    return asyncio.run(story())


A = ("a", "f", '{"x":1}')
B = ("b", "g", '{"y":2}')
C = ("b", "f", '{"x":2}')

BOTH = [
    pytest.param(
        [
            tool({"index": 0, "id": "a", "type": "function", "name": "f", "arguments": ""}),
            tool({"index": 0, "arguments": '{"x"'}),
            tool({"index": 0, "arguments": ":1}"}),
            tool({"index": 1, "id": "b", "type": "function", "name": "g", "arguments": ""}),
            tool({"index": 1, "arguments": '{"y":2}'}),
        ],
        [A, B],
        id="as OpenAI streams them",
    ),
    pytest.param(
        [
            tool(
                {"index": 0, "id": "a", "name": "f", "arguments": '{"x'},
                {"index": 1, "id": "b", "name": "g", "arguments": '{"y'},
            ),
            tool({"index": 1, "arguments": '":2}'}, {"index": 0, "arguments": '":1}'}),
        ],
        [A, B],
        id="woven into each other",
    ),
    pytest.param(
        [
            tool({"id": "a", "name": "f", "arguments": '{"x":1}'}),
            tool({"id": "b", "name": "g", "arguments": '{"y":2}'}),
        ],
        [A, B],
        id="whole, without an index (Gemini)",
    ),
    pytest.param(
        [
            tool(
                {"index": 0, "id": "a", "name": "f", "arguments": '{"x":1}'},
                {"index": 0, "id": "b", "name": "f", "arguments": '{"x":2}'},
            )
        ],
        [A, C],
        id="whole, all of index 0 (Ollama)",
    ),
    pytest.param(
        [
            tool({"index": 0, "id": "a", "name": "f", "arguments": '{"x":1}'}),
            tool({"index": 0, "id": "b", "name": "g", "arguments": ""}),
            tool({"index": 0, "arguments": '{"y":2}'}),
        ],
        [A, B],
        id="in parts, all of index 0",
    ),
    pytest.param(
        [
            tool({"id": "a", "name": "f", "arguments": ""}),
            tool({"id": "a", "arguments": '{"x":'}),
            tool({"id": "b", "name": "g", "arguments": ""}),
            tool({"id": "b", "arguments": '{"y":'}),
            tool({"id": "a", "arguments": "1}"}),
            tool({"id": "b", "arguments": "2}"}),
        ],
        [A, B],
        id="told apart by id alone",
    ),
    pytest.param(
        [
            tool({"index": 0, "id": "a", "name": "f", "arguments": '{"x"'}),
            tool({"index": 0, "id": "a", "name": "f", "arguments": ":1}"}),
            tool({"index": 1, "id": "b", "name": "g", "arguments": '{"y":2}'}),
            tool({"index": 1, "id": "b", "name": "g", "arguments": ""}),
        ],
        [A, B],
        id="name and id with every part",
    ),
    pytest.param(
        [
            tool({"index": 0, "id": "a", "name": "f", "arguments": '{"x"'}),
            tool({"index": 0, "id": "r2", "arguments": ":1}"}),
            tool({"index": 1, "id": "b", "name": "g", "arguments": '{"y"'}),
            tool({"index": 1, "id": "r4", "name": "g", "arguments": ":2}"}),
        ],
        [A, B],
        id="a new id with every part",
    ),
    pytest.param(
        [
            tool({"index": 0, "id": "a", "name": "f", "arguments": '{"x":1}'}),
            tool({"index": 0, "id": "a", "name": "f", "arguments": '{"x":1}'}),
            tool({"index": 1, "id": "b", "name": "g", "arguments": {"y": "\ud83d\ude42 \ud83d"}}),
        ],
        [A, ("b", "g", '{"y": "🙂 \ufffd"}')],
        id="the whole call once more, and arguments as an object",
    ),
    pytest.param(
        [
            tool({"index": 0, "id": "a"}),
            tool({"index": 0, "name": "f"}),
            tool({"index": 0, "arguments": '{"x":1}'}),
            tool({"index": 5, "id": "b", "name": "g", "arguments": '{"y":2}'}),
        ],
        [A, B],
        id="one thing at a time, and numbers that are left out",
    ),
    pytest.param(
        [
            tool({"id": "a", "name": "f"}),
            tool({"index": 0, "arguments": '{"x":1}'}),
            tool({"id": "b", "name": "g"}),
            tool({"index": 1, "arguments": '{"y":2}'}),
        ],
        [A, B],
        id="an index from the second part on",
    ),
]


@pytest.mark.parametrize(("events", "calls"), BOTH)
def test_two_calls_come_out_whole(events: list[Any], calls: list[Any]) -> None:
    for last in (CALLED, STOP, finish("function_call")):
        answer = answer_to(*events, last)
        assert (answer.identified, answer.reason) == (calls, "stop")


@pytest.mark.parametrize(
    "events",
    [
        [tool({"name": "f", "arguments": '{"x":1}'}), tool({"name": "f", "arguments": '{"x":2}'})],
        [tool({"id": "", "name": "f", "arguments": '{"x":1}'},
              {"id": "", "name": "f", "arguments": '{"x":2}'})],
        [tool({"index": 0, "id": None, "name": "f", "arguments": '{"x":1}'},
              {"index": 0, "id": None, "name": "f", "arguments": '{"x":2}'})],
        [tool({"index": 0, "id": " ", "name": "f", "arguments": '{"x":1}'},
              {"index": 1, "id": " ", "name": "f", "arguments": '{"x":2}'})],
    ],
)  # fmt: skip
def test_calls_without_ids_get_ids_of_ours(events: list[Any]) -> None:
    """None in the piece: the executor makes one."""
    assert answer_to(*events, CALLED).identified == [
        (None, "f", '{"x":1}'),
        (None, "f", '{"x":2}'),
    ]


@pytest.mark.parametrize("index", [{}, {"index": 0}])
def test_an_id_that_two_calls_share_is_kept_by_the_first(index: dict[str, int]) -> None:
    first = tool({"index": 0, "id": "a", "name": "f", "arguments": '{"x":1}'})
    second = tool({**index, "id": "a", "name": "g", "arguments": '{"y":2}'})
    assert answer_to(first, second, CALLED).identified == [A, (None, "g", '{"y":2}')]


def test_an_id_of_an_earlier_turn_is_not_used_again() -> None:
    """A server that counts its calls begins anew with every turn; programs key them by id."""
    asked = {"steps": (calls_step(("call_0", "f", "{}", "out")),)}
    answer = answer_to(tool({"id": "call_0", "name": "f", "arguments": "{}"}), CALLED, **asked)
    assert answer.identified == [(None, "f", "{}")]


@pytest.mark.parametrize(
    ("key", "kept"), [("k" * 16_384, True), ("k" * 16_385, False), ("\ud83d", False)]
)
def test_an_id_that_cannot_be_kept_is_replaced(key: str, kept: bool) -> None:
    """Some servers put a model's state into it, so it may be long."""
    answer = answer_to(tool({"id": key, "name": "f", "arguments": "{}"}), CALLED)
    assert answer.identified == [(key if kept else None, "f", "{}")]


@pytest.mark.parametrize(
    "arguments", [{}, {"arguments": ""}, {"arguments": None}, {"arguments": " \n"}]
)
def test_a_call_without_arguments_has_an_empty_object(arguments: dict[str, Any]) -> None:
    """Programs parse them; a function without parameters is called in all these ways."""
    answer = answer_to(tool({"index": 0, "id": "a", "name": "f", **arguments}), CALLED)
    assert [json.loads(call[1]) for call in answer.calls] == [{}]


def test_two_functions_without_arguments_and_ids_are_two_calls() -> None:
    answer = answer_to(tool({"index": 0, "name": "f"}), tool({"index": 0, "name": "g"}), CALLED)
    assert answer.calls == [("f", "{}"), ("g", "{}")]


def test_arguments_that_are_no_json_are_the_models_own() -> None:
    answer = answer_to(tool({"id": "a", "name": "f", "arguments": "{oops"}), CALLED)
    assert answer.calls == [("f", "{oops")]


def test_an_argument_with_half_a_pair_can_be_stored() -> None:
    parts = [tool({"index": 0, "id": "a", "name": "f", "arguments": '{"x":"\ud83d'}),
             tool({"index": 0, "arguments": '\ude42\ud83d"}'})]  # fmt: skip
    assert answer_to(*parts, CALLED).calls == [("f", '{"x":"🙂\ufffd"}')]


def test_the_call_of_old_servers() -> None:
    """`function_call`, in parts."""
    parts = [chunk({"function_call": {"name": "f", "arguments": '{"x"'}}),
             chunk({"function_call": {"arguments": ":1}"}})]  # fmt: skip
    assert answer_to(*parts, finish("function_call")).identified == [(None, "f", '{"x":1}')]


def test_text_beside_calls() -> None:
    answer = answer_to(text("Let me see."), tool({"id": "a", "name": "f"}), CALLED)
    assert (answer.text, answer.calls) == ("Let me see.", [("f", "{}")])


def test_the_name_comes_first_and_the_rest_as_it_is_streamed() -> None:
    """Who follows the stream learns the function with the first part of its call."""
    answer = answer_to(
        tool({"index": 0, "id": "a"}),
        tool({"index": 0, "arguments": '{"x"'}),
        tool({"index": 0, "name": "f"}),
        tool({"index": 0, "arguments": ":1}"}),
        CALLED,
    )
    assert answer.pieces[:-1] == (
        ToolCallDelta(0, "f", '{"x"', "a"),
        ToolCallDelta(0, arguments=":1}"),
    )


def test_one_call_at_a_time_where_the_run_wants_it() -> None:
    """Also from a server that takes no notice of `parallel_tool_calls`."""
    events = [tool({"index": 0, "id": "a", "name": "f", "arguments": '{"x"'}),
              tool({"index": 1, "id": "b", "name": "g", "arguments": '{"y":2}'}),
              tool({"index": 0, "arguments": ":1}"})]  # fmt: skip
    assert answer_to(*events, CALLED, parallel_tool_calls=False).identified == [A]


@pytest.mark.parametrize("junk", ["x", 7, ["x"], [None], [7], {"a": 1}])
def test_what_is_no_call_is_passed_over(junk: Any) -> None:
    assert answer_to(chunk({"content": "a", "tool_calls": junk}), STOP).text == "a"


def test_a_call_of_no_function_fails_the_run() -> None:
    with pytest.raises(ModelError, match="without the name of a function"):
        answer_to(tool({"index": 0, "id": "a", "arguments": "{}"}), CALLED)


def test_calls_that_a_limit_has_cut_are_not_made_whole() -> None:
    """The run is incomplete, and its calls are not asked for."""
    answer = answer_to(tool({"index": 0, "id": "a", "name": "f"}), finish("length"))
    assert (answer.identified, answer.reason) == ([("a", "f", "")], "max_completion_tokens")


def test_a_long_call_in_tiny_parts_takes_no_square_time() -> None:
    """100,000 parts: a second or so, where joining them each time would take minutes."""
    parts = ['{"x":"', *["y" * 20] * 100_000, '"}']
    call = {"index": 0, "id": "a", "name": "f"}
    chunks = (json.dumps(tool({**call, "arguments": part})) for part in parts)
    events = "".join(f"data: {each}\n\n" for each in chunks)
    ((_, arguments),) = answer_to(events.encode(), CALLED).calls
    assert len(json.loads(arguments)["x"]) == 2_000_000


# How much work it is.


def read_in_parts(*parts: str, name: str | None = None) -> tuple[CallReader, list[ToolCallDelta]]:
    """One call whose arguments come like this; where a name is given, with that in each part."""
    reader = CallReader()
    said = [*reader.add({"index": 0, "id": "a", "function": {"name": name or "f"}})]
    more = {"id": "a"} if name else {}
    for part in parts:
        function = {"name": name, "arguments": part} if name else {"arguments": part}
        said += reader.add({"index": 0, **more, "function": function})
    return reader, [*said, *reader.end()]


@pytest.mark.parametrize("name", [None, "f"])
@pytest.mark.parametrize(
    "parts",
    [
        pytest.param(['{"rows":[', *['{"id":1,"s":"}"}', ","] * 2_000, "{}]}"], id="many objects"),
        pytest.param(['{"x":1}', *[" "] * 2_000], id="blanks behind the end"),
        pytest.param(["{oops}", *["}"] * 2_000], id="no JSON, that ends again and again"),
        pytest.param(['{"x":"', *['}\\"}'] * 2_000], id="brackets and quotes in a text"),
    ],
)
def test_long_arguments_are_looked_at_once(
    parts: list[str], name: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many parts end as a whole call would: work grows with the text, not its square."""
    parsed: list[int] = []
    joined: list[int] = []
    is_json, arguments = reading._is_json, reading._Call.arguments

    def counted(text: str) -> bool:
        parsed.append(len(text))
        return is_json(text)

    def noted(call: Any) -> str:
        joined.append(call.length)
        return arguments.fget(call)  # type: ignore[attr-defined,no-any-return]

    monkeypatch.setattr(reading, "_is_json", counted)
    monkeypatch.setattr(reading._Call, "arguments", property(noted))
    reader, said = read_in_parts(*parts, name=name)
    size = sum(map(len, parts))
    assert "".join(piece.arguments for piece in said) == "".join(parts)
    assert len(reader) == 1
    assert sum(parsed) <= size
    assert sum(joined) <= 4 * size


@pytest.mark.parametrize(
    ("parts", "complete"),
    [
        (['{"a":', '"}"', "}"], True),
        (['{"a":"\\', '"}', '"}'], True),
        (['{"a":"\\', "\\", '"', "}"], True),
        ([" {", "}", "\n"], True),
        (['{"a":[{}', "]}"], True),
        (['{"a":"}'], False),
        (['{"a":1}', "x"], False),
        (["x{}"], False),
        (["{oops}"], False),
        (["{]}"], False),
        (["[{}"], False),
        (['"}'], False),
        (["{" + '"a":{' * 50_000 + "}" * 50_001], False),
    ],
)
def test_when_arguments_are_whole(parts: list[str], complete: bool) -> None:
    """Then another part with the same name is another call; one character at a time or in parts."""
    for pieces in (parts, list("".join(parts)) if len(parts[0]) < 99 else parts):
        reader, _ = read_in_parts(*pieces)
        list(reader.add({"index": 0, "id": "b", "function": {"name": "f", "arguments": "{}"}}))
        assert len(reader) == 1 + complete
