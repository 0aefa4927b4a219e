"""What a model server is asked: the thread, the run's own turns, and only what somebody has set."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import pytest

from runbell.errors import ModelError
from runbell.runs import Usage
from runbell.service.backends import ModelRequest
from runbell.storage.records import (
    ImageFile,
    ImageFilePart,
    ImageUrl,
    ImageUrlPart,
    JsonObjectFormat,
    JsonSchemaFormat,
    NamedFunction,
    NamedToolChoice,
    RefusalPart,
    TextFormat,
    TextPart,
    TextValue,
    TruncationStrategy,
)
from tests.upstream.model_server import STOP, ModelServer, refuse, stream, text, tool, usage
from tests.upstream.talk import (
    Talk,
    calls_step,
    function,
    message,
    message_step,
    on_a_server,
    request,
    talking,
)


def sent(asked: ModelRequest, **settings: Any) -> Any:
    """The body that the server gets."""

    async def story() -> Any:
        async with talking(**settings) as talk, asyncio.timeout(100):
            await talk.said(asked)
            return talk.server.asked.json

    return asyncio.run(story())


def messages_for(*messages: Any, **asked: Any) -> Any:
    return sent(request(*messages, **asked))["messages"]


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


def assistant(content: Any, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **more}


# Messages.


def test_nothing_is_sent_that_nobody_has_set() -> None:
    """The server's own defaults hold for the rest."""
    assert sent(request("Hi")) == {
        "model": "m",
        "messages": [user("Hi")],
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def test_the_request_is_json_for_the_path_below_the_base_url() -> None:
    async def story() -> None:
        async with talking(key="sk-of-the-server") as talk:
            await talk.said()
            asked = talk.server.asked
            assert (asked.method, asked.path) == ("POST", "/v1/chat/completions")
            assert asked.headers["content-type"] == "application/json"
            assert asked.headers["authorization"] == "Bearer sk-of-the-server"
            assert asked.headers["accept-encoding"] == "identity"
            assert asked.headers["user-agent"].startswith("runbell/")

    asyncio.run(story())


@on_a_server()
async def test_without_a_key_none_is_sent(talk: Talk) -> None:
    await talk.said()
    assert "authorization" not in talk.server.asked.headers


@pytest.mark.parametrize(("bypass", "proxied"), [("", True), ("*", False), ("models.test", False)])
def test_the_environments_proxy_is_used(
    bypass: str, proxied: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As other programs use it: for the hosts that are not excepted."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)

    async def story() -> None:
        async with ModelServer() as proxy, asyncio.timeout(100):
            monkeypatch.setenv("HTTP_PROXY", f"http://user:pass@127.0.0.1:{proxy.port}")
            monkeypatch.setenv("NO_PROXY", bypass)
            async with talking(url="http://models.test/v1", key="sk-1") as talk:
                asked = request(expires_at_ms=talk.clock.now_ms())
                if not proxied:
                    with pytest.raises(ModelError, match="cannot be reached"):
                        await talk.said(asked)
                    return
                assert (await talk.said(asked)).text == "ok"
            assert proxy.asked.path == "http://models.test/v1/chat/completions"
            assert proxy.asked.headers["authorization"] == "Bearer sk-1"
            assert proxy.asked.headers["proxy-authorization"].startswith("Basic ")

    asyncio.run(story())


def test_instructions_are_the_system_message() -> None:
    assert messages_for("Hi", instructions="Be brief.") == [
        {"role": "system", "content": "Be brief."},
        user("Hi"),
    ]


def test_the_thread_in_its_order() -> None:
    """Parts of text are one text; an answer that was empty is left out."""
    parts = (TextPart(TextValue("one")), TextPart(TextValue("two")))
    assert messages_for(
        "a", message("b", "assistant"), message("", "assistant"), message(parts), message("")
    ) == [user("a"), assistant("b"), user("one\ntwo"), user("")]


def test_a_refusal_is_what_the_assistant_said() -> None:
    said = messages_for("a", message((RefusalPart("I won't."),), "assistant"))
    assert said == [user("a"), assistant("I won't.")]


def test_images_are_parts() -> None:
    """The detail only where somebody chose one."""
    parts = (
        TextPart(TextValue("Which?")),
        ImageUrlPart(ImageUrl("https://example.com/1.png")),
        ImageUrlPart(ImageUrl("data:image/png;base64,AAAA", "low")),
    )
    assert messages_for(message(parts)) == [
        user(
            [
                {"type": "text", "text": "Which?"},
                {"type": "image_url", "image_url": {"url": "https://example.com/1.png"}},
                {
                    "type": "image_url",
                    "image_url": {"url": "data:image/png;base64,AAAA", "detail": "low"},
                },
            ]
        )
    ]


def test_an_image_file_is_refused() -> None:
    with pytest.raises(ModelError) as caught:
        messages_for(message((ImageFilePart(ImageFile("file_1")),)))
    assert caught.value.code == "invalid_prompt"


def called(key: str, name: str, arguments: str) -> dict[str, Any]:
    return {"id": key, "type": "function", "function": {"name": name, "arguments": arguments}}


def output(key: str, content: str) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": key, "content": content}


def test_earlier_turns_follow_the_thread() -> None:
    """Each call with its output; what was said beside calls stands with them, and only there."""
    first, second = message("Let me see.", "assistant"), message("Once more.", "assistant")
    steps = (
        message_step(first),
        calls_step(("c1", "f", '{"x":1}', "one"), ("c2", "g", "{}", "")),
        calls_step(("c3", "f", "{}", "three")),
        message_step(second),
        calls_step(("c4", "f", "{}", "four")),
    )
    assert messages_for("a", first, second, steps=steps, tools=(function("f"), function("g"))) == [
        user("a"),
        assistant(
            "Let me see.", tool_calls=[called("c1", "f", '{"x":1}'), called("c2", "g", "{}")]
        ),
        output("c1", "one"),
        output("c2", ""),
        assistant(None, tool_calls=[called("c3", "f", "{}")]),
        output("c3", "three"),
        assistant("Once more.", tool_calls=[called("c4", "f", "{}")]),
        output("c4", "four"),
    ]


def test_what_was_said_is_left_out_where_the_thread_no_longer_has_it() -> None:
    """Its message was deleted, or is beyond the messages that a turn is given."""
    gone = message("Let me see.", "assistant")
    said = messages_for("a", steps=(message_step(gone), calls_step(("c1", "f", "{}", "one"))))
    assert said == [
        user("a"),
        assistant(None, tool_calls=[called("c1", "f", "{}")]),
        output("c1", "one"),
    ]


# Functions.


def test_functions_as_they_were_defined() -> None:
    """Parameters are not left out, which some servers insist on."""
    schema = {"type": "object", "properties": {"x": {"type": "integer"}}}
    tools = (function("f", description="Does f.", parameters=schema, strict=True), function("g-2"))
    body = sent(request(tools=tools))
    assert [each["function"] for each in body["tools"]] == [
        {"name": "f", "description": "Does f.", "parameters": schema, "strict": True},
        {"name": "g-2", "parameters": {"type": "object", "properties": {}}},
    ]
    assert {each["type"] for each in body["tools"]} == {"function"}
    assert not {"tool_choice", "parallel_tool_calls"} & set(body)


NAMED = NamedToolChoice("function", NamedFunction("f"))


@pytest.mark.parametrize(
    ("choice", "word"),
    [
        ("required", "required"),
        (NAMED, {"type": "function", "function": {"name": "f"}}),
        (NamedToolChoice("function"), "required"),
    ],
)
def test_a_choice_is_forced_once(choice: Any, word: Any) -> None:
    """In the first turn; forced in the next ones too, the model could never answer."""
    tools = (function("f"),)
    assert sent(request(tools=tools, tool_choice=choice))["tool_choice"] == word
    steps = (calls_step(("c1", "f", "{}", "one")),)
    body = sent(request(tools=tools, tool_choice=choice, steps=steps))
    assert "tool_choice" not in body
    assert body["tools"]


def test_without_a_choice_of_functions_none_are_sent() -> None:
    """Servers that do not know `none` would call one nevertheless."""
    body = sent(request(tools=(function("f"),), tool_choice="none"))
    assert not {"tools", "tool_choice"} & set(body)


def test_one_call_at_a_time() -> None:
    body = sent(request(tools=(function("f"),), parallel_tool_calls=False))
    assert body["parallel_tool_calls"] is False
    assert "parallel_tool_calls" not in sent(request(parallel_tool_calls=False))


# Everything else.


@pytest.mark.parametrize(
    "chosen",
    [{"temperature": 0.0}, {"top_p": 0.5, "temperature": 2.0}, {"reasoning_effort": "none"}],
)
def test_what_was_set_is_sent(chosen: dict[str, Any]) -> None:
    body = sent(request(**chosen))
    assert {name: body[name] for name in chosen} == chosen


SCHEMA = {"name": "answer", "strict": True, "schema": {"type": "object"}}


@pytest.mark.parametrize(
    ("chosen", "word"),
    [
        ("auto", None),
        (TextFormat(), None),
        (JsonObjectFormat(), {"type": "json_object"}),
        (JsonSchemaFormat(SCHEMA), {"type": "json_schema", "json_schema": SCHEMA}),
    ],
)
def test_the_format_of_the_answer(chosen: Any, word: Any) -> None:
    assert sent(request(response_format=chosen)).get("response_format") == word


@pytest.mark.parametrize(
    ("models", "asked", "name"),
    [
        ((("gpt-4o", "llama3.1"),), "gpt-4o", "llama3.1"),
        ((("*", "llama3.1"),), "gpt-4o", "llama3.1"),
        ((("a", "b"), ("*", "llama3.1")), "a", "b"),
        ((("*", "*"),), "gpt-4o", "gpt-4o"),
        ((), "gpt-4o", "gpt-4o"),
    ],
)
def test_the_model_is_called_by_its_name_there(models: Any, asked: str, name: str) -> None:
    assert sent(request(model=asked), models=models)["model"] == name


# Words that not every server knows.


def unknown(word: str) -> Any:
    """OpenAI's sentence."""
    message = f"Unsupported parameter: '{word}' is not supported with this model."
    return refuse(
        400, {"error": {"message": message, "param": word, "code": "unsupported_parameter"}}
    )


@on_a_server()
async def test_a_limit_is_said_in_the_word_that_the_server_knows(talk: Talk) -> None:
    """`max_tokens` first: who does not know it says so. The word that worked is remembered."""
    asked = request(max_completion_tokens=300)
    talk.server.will(unknown("max_tokens"))
    assert (await talk.said(asked)).text == "ok"
    await talk.said(asked)
    sent = [exchange.json for exchange in talk.server.chats]
    assert [body.get("max_tokens") for body in sent] == [300, None, None]
    assert [body.get("max_completion_tokens") for body in sent] == [None, 300, 300]


@on_a_server()
async def test_the_word_is_remembered_for_one_model(talk: Talk) -> None:
    talk.server.will(unknown("max_tokens"))
    await talk.said(request(max_completion_tokens=300))
    await talk.said(request(max_completion_tokens=300, model="other"))
    assert "max_tokens" in talk.server.asked.json
    await talk.said(request(max_completion_tokens=300))
    assert "max_completion_tokens" in talk.server.asked.json


@on_a_server()
async def test_a_word_that_did_not_help_is_not_remembered(talk: Talk) -> None:
    asked = request(max_completion_tokens=300)
    talk.server.will(unknown("max_tokens"), unknown("max_completion_tokens"))
    with pytest.raises(ModelError) as caught:
        await talk.said(asked)
    assert caught.value.code == "invalid_prompt"
    await talk.said(asked)
    assert "max_tokens" in talk.server.asked.json


@on_a_server()
async def test_words_that_only_help_are_left_out_where_they_are_unknown(talk: Talk) -> None:
    """The count of tokens is estimated then, and the number of calls kept here."""
    forbidden = {"detail": [{"loc": ["body", "stream_options"], "msg": "Extra inputs"}]}
    talk.server.will(
        refuse(422, forbidden),
        unknown("parallel_tool_calls"),
        stream(tool({"id": "a", "name": "f"}, {"id": "b", "name": "f"}), STOP),
    )
    answer = await talk.said(request(tools=(function("f"),), parallel_tool_calls=False))
    assert len(answer.calls) == 1
    assert not {"stream_options", "parallel_tool_calls"} & set(talk.server.asked.json)
    assert len(talk.server.chats) == 3


@on_a_server()
async def test_what_somebody_has_set_is_never_left_out(talk: Talk) -> None:
    """A server that cannot do it refuses the run, and says so."""
    talk.server.will(unknown("reasoning_effort"))
    with pytest.raises(ModelError, match="'reasoning_effort' is not supported"):
        await talk.said(request(reasoning_effort="high"))
    assert len(talk.server.chats) == 1


# A prompt that is too large.


def long(letter: str) -> str:
    """About 100 tokens: 300 bytes, of which the careful guess takes three for one."""
    return letter * 300


def first_letters(body: Any) -> str:
    return "".join((m["content"] or "-")[0] for m in body["messages"])


@pytest.mark.parametrize(
    ("limit", "kept"),
    [(1_000, "sabcd"), (420, "scd"), (350, "scd"), (200, "sd"), (110, "sd")],
)
def test_the_oldest_messages_are_dropped_to_keep_the_runs_limit(limit: int, kept: str) -> None:
    """From a user's message on; the instructions and the last one stay."""
    thread = [long("a"), message(long("b"), "assistant"), long("c"), long("d")]
    body = sent(request(*thread, instructions="s", max_prompt_tokens=limit))
    assert first_letters(body) == kept


@pytest.mark.parametrize("strategy", ["auto", "last_messages"])
def test_what_cannot_fit_is_not_sent(strategy: Any) -> None:
    """Six bytes a token is the least that is believed."""

    async def story() -> None:
        async with talking() as talk:
            chosen = TruncationStrategy(strategy, 5 if strategy == "last_messages" else None)
            asked = request("x" * 6_000, max_prompt_tokens=999, truncation_strategy=chosen)
            answer = await talk.said(asked)
            assert (answer.reason, answer.usage) == ("max_prompt_tokens", Usage())
            assert not talk.server.exchanges

    asyncio.run(story())


def test_last_messages_are_sent_as_they_were_chosen() -> None:
    """Nothing more is dropped; the server counts."""
    chosen = TruncationStrategy("last_messages", 2)
    body = sent(request(long("a"), long("b"), max_prompt_tokens=120, truncation_strategy=chosen))
    assert first_letters(body) == "ab"


def test_the_runs_own_turns_are_never_dropped() -> None:
    steps = (calls_step(("c1", "f", "{}", long("o"))),)
    body = sent(request(long("a"), long("b"), steps=steps, max_prompt_tokens=300))
    assert first_letters(body) == "b-o"


def test_functions_and_images_count_too() -> None:
    schema = {"type": "object", "description": "x" * 300}
    tools = (function("f", parameters=schema),)
    assert first_letters(sent(request(long("a"), long("b"), max_prompt_tokens=320))) == "ab"
    body = sent(request(long("a"), long("b"), max_prompt_tokens=320, tools=tools))
    assert first_letters(body) == "b"
    image = ImageUrlPart(ImageUrl("data:image/png;base64," + "A" * 100_000))
    body = sent(request(message((image,)), long("b"), max_prompt_tokens=1_200))
    assert len(body["messages"]) == 2
    body = sent(request(message((image,)), long("b"), max_prompt_tokens=1_000))
    assert first_letters(body) == "b"


@on_a_server()
async def test_nothing_is_left_of_the_runs_tokens(talk: Talk) -> None:
    """Earlier turns have used them: there is nothing to ask for."""
    answer = await talk.said(request(max_completion_tokens=0))
    assert (answer.reason, answer.usage) == ("max_completion_tokens", Usage())
    assert not talk.server.exchanges


CONTEXT = [
    (400, {"error": {"message": "too long", "code": "context_length_exceeded"}}),
    (400, {"message": "This model's maximum context length is 4096 tokens.", "code": 400}),
    (400, {"error": {"message": "no", "type": "exceed_context_size_error"}}),
    (413, {"error": "the prompt is too long"}),
    (500, {"error": {"message": "the request exceeds the available context size"}}),
]


@pytest.mark.parametrize(("status", "body"), CONTEXT)
def test_a_thread_that_does_not_fit_into_the_model_is_halved(status: int, body: Any) -> None:
    """With the strategy `auto`: until it fits or one message is left, and at once."""

    async def story() -> None:
        async with talking() as talk, asyncio.timeout(100):
            talk.server.will(*[refuse(status, body)] * 2)
            await talk.said(request(*[long(letter) for letter in "abcdefgh"]))
            sent = [first_letters(exchange.json) for exchange in talk.server.chats]
            assert sent == ["abcdefgh", "efgh", "gh"]

    asyncio.run(story())


@pytest.mark.parametrize("status", [400, 500])
def test_what_does_not_fit_at_all_is_an_invalid_prompt(status: int) -> None:
    """Whatever the status: another try would not fit either."""

    async def story() -> None:
        async with talking() as talk, asyncio.timeout(100):
            talk.server.otherwise = refuse(status, CONTEXT[0][1])
            with pytest.raises(ModelError) as caught:
                await talk.said(request("a", "b"))
            assert caught.value.code == "invalid_prompt"
            expected = f"The prompt does not fit into the model ({status}): too long"
            assert caught.value.message == expected
            assert [first_letters(each.json) for each in talk.server.chats] == ["ab", "b"]

    asyncio.run(story())


@on_a_server()
async def test_messages_that_were_chosen_are_not_dropped(talk: Talk) -> None:
    talk.server.otherwise = refuse(*CONTEXT[0])
    chosen = TruncationStrategy("last_messages", 2)
    with pytest.raises(ModelError):
        await talk.said(request("a", "b", truncation_strategy=chosen))
    assert len(talk.server.chats) == 1


@on_a_server()
async def test_a_limit_that_does_not_fit_is_no_unknown_word(talk: Talk) -> None:
    """The sentence names the limit, but it is about the model's context."""
    message = "'max_tokens' is too large: 9000. This model's maximum context length is 4096 tokens."
    talk.server.otherwise = refuse(400, {"error": {"message": message}})
    with pytest.raises(ModelError, match="does not fit into the model"):
        await talk.said(request("a", max_completion_tokens=9_000))
    assert len(talk.server.chats) == 1


def test_a_long_thread_is_cut_in_no_time() -> None:
    """The most messages that a turn is given, long ones."""
    thread = [message("x" * 10_000, id=f"msg_{n}") for n in range(1_000)]

    async def story() -> None:
        async with talking() as talk:
            begun = time.process_time()
            asked = request(*thread, max_prompt_tokens=10_000)
            talk.server.will(stream(text("a"), STOP, usage(9_000, 1)))
            assert (await talk.said(asked)).reason == "stop"
            assert time.process_time() - begun < 2
            assert len(talk.server.asked.json["messages"]) == 2
            assert len(json.dumps(talk.server.asked.json)) < 30_000

    asyncio.run(story())
