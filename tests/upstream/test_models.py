"""Which models are served: those of maps, those that servers list, and who comes first."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any

import pytest

from runbell.clock import VirtualClock
from runbell.errors import ModelError
from runbell.service.backends import Backends, RemoteBackend
from runbell.service.backends.echo import Echo
from runbell.service.backends.upstream import Upstream
from runbell.service.operations.refusals import model_not_served
from runbell.service.upstreams import UpstreamSettings
from tests.upstream.model_server import ModelServer, Pause, document, refuse, silent
from tests.upstream.talk import Said, request, rest, soon


class House:
    """Some model servers, and all backends of a service."""

    def __init__(self, servers: list[ModelServer], maps: list[Any]) -> None:
        self.servers = servers
        self.clock = VirtualClock()
        self.upstreams = [
            Upstream(UpstreamSettings(server.url, models=models), self.clock)
            for server, models in zip(servers, maps, strict=True)
        ]
        self.backends = Backends([Echo(self.clock), *self.upstreams], self.clock)

    def who(self, model: str) -> Any:
        """The number of the server that has a model; None for nobody, "echo" for echo."""
        backend = self.backends.find(model)
        if backend is None or isinstance(backend, Echo):
            return backend and "echo"
        assert isinstance(backend, Upstream)
        return self.upstreams.index(backend)

    def looks(self, server: int = 0) -> int:
        return sum(each.path == "/v1/models" for each in self.servers[server].exchanges)

    async def said(self, model: str) -> Said:
        async with aclosing(await self.backends.answer(request(model=model))) as pieces:
            return Said(tuple([piece async for piece in pieces]))


@asynccontextmanager
async def house(*maps: Any) -> AsyncIterator[House]:
    """One server a map; an empty one for a server that lists its models."""
    servers = [ModelServer() for _ in maps]
    async with asyncio.timeout(100):
        for server in servers:
            await server.__aenter__()
        made = House(servers, list(maps))
        try:
            yield made
        finally:
            await made.backends.close()
            for server in servers:
                await server.__aexit__()


def story(*maps: Any) -> Any:
    """Make a test of an async function that is given a house with these maps."""

    def decorate(test: Any) -> Any:
        async def told() -> None:
            async with house(*maps) as made:
                await test(made)

        def run() -> None:
            asyncio.run(told())

        run.__doc__, run.__name__, run.__module__ = test.__doc__, test.__name__, test.__module__
        return run

    return decorate


def test_an_upstream_is_a_remote_backend() -> None:
    upstream = Upstream(UpstreamSettings("http://127.0.0.1:1"), VirtualClock())
    assert isinstance(upstream, RemoteBackend)
    assert not isinstance(Echo(VirtualClock()), RemoteBackend)


# What is served.


@story(())
async def test_a_server_without_a_map_serves_what_it_lists(made: House) -> None:
    made.servers[0].models = ("a", "b:latest", "org/c")
    await made.backends.refresh()
    assert made.backends.models() == ("a", "b:latest", "echo", "org/c")
    assert [made.who(name) for name in ("a", "org/c", "echo", "x")] == [0, 0, "echo", None]


@story((("gpt-4o", "llama3.1"), ("gpt-4", "llama3.1")))
async def test_a_server_with_a_map_serves_exactly_that(made: House) -> None:
    """It is not even asked what it has."""
    assert made.backends.models() == ("echo", "gpt-4", "gpt-4o")
    assert made.who("llama3.1") is None
    assert not made.backends.undecided
    await made.backends.refresh()
    assert not made.servers[0].exchanges


@story((("*", "llama3.1"),), ())
async def test_who_takes_every_name_comes_last(made: House) -> None:
    """Also behind a server that is named after it; the model that answers is listed."""
    made.servers[1].models = ("b", "llama3.1")
    await made.backends.refresh()
    assert [made.who(name) for name in ("b", "llama3.1", "echo", "x")] == [1, 1, "echo", 0]
    assert made.backends.models() == ("b", "echo", "llama3.1")
    made.servers[1].models = ("b",)
    made.clock.advance(5)
    await made.backends.refresh()
    assert made.who("llama3.1") == 0
    assert made.backends.models() == ("b", "echo", "llama3.1")


@story((("*", "*"),))
async def test_every_name_as_it_is(made: House) -> None:
    """The server knows it; what it has is not known here, so nothing is listed."""
    assert (made.who("x"), made.backends.models()) == (0, ("echo",))
    await made.said("x")
    assert made.servers[0].asked.json["model"] == "x"


@story((("*", "a"),), (("*", "b"),))
async def test_of_two_who_take_every_name_the_first_does(made: House) -> None:
    assert made.who("x") == 0
    assert made.backends.models() == ("a", "echo")


@story((), (("a", "z"), ("echo", "z")), ())
async def test_of_two_who_have_a_name_the_first_serves_it(made: House) -> None:
    """`echo` is built in, and first of all."""
    made.servers[0].models, made.servers[2].models = ("a", "echo"), ("a", "c")
    await made.backends.refresh()
    assert [made.who(name) for name in ("a", "c", "echo")] == [0, 2, "echo"]
    assert made.backends.models() == ("a", "c", "echo")


@pytest.mark.parametrize(
    ("body", "names"),
    [
        ({"object": "list", "data": [{"id": "a"}, {"id": "a"}]}, {"a"}),
        ([{"id": "a"}, {"id": "b"}], {"a", "b"}),
        ({"data": [{"id": ""}, {"id": None}, {}, "x", {"id": "a" * 257}, {"id": "\ud83d"}]}, set()),
        ({"data": []}, set()),
        ({"models": [{"name": "x"}], "data": [{"id": "a"}]}, {"a"}),
    ],
)
def test_lists_in_other_shapes(body: Any, names: set[str]) -> None:
    """What cannot be asked for is not served."""

    async def told() -> None:
        async with house(()) as made:
            made.servers[0].models = document(body)
            await made.backends.refresh()
            assert set(made.backends.models()) == {"echo"} | names
            assert not made.backends.undecided

    asyncio.run(told())


@pytest.mark.parametrize("reply", [refuse(404, b"404 page not found"), document({"error": "?"})])
def test_a_base_url_without_a_version_is_doubted(
    reply: Any, caplog: pytest.LogCaptureFixture
) -> None:
    async def told() -> str:
        async with ModelServer() as server:
            server.models = reply
            for url in (server.url, server.url.removesuffix("/v1")):
                upstream = Upstream(UpstreamSettings(url), VirtualClock())
                await upstream.look_up()
                await upstream.close()
            return server.url

    url = asyncio.run(told())
    right, wrong = caplog.messages
    assert "/v1:" not in right
    assert wrong.endswith(f". A base URL mostly ends in /v1: try {url}.")
    assert caplog.records[1].fields["upstream"] == url[7:-3]


@story((), ())
async def test_servers_that_have_not_said_what_they_have_are_counted(made: House) -> None:
    said = []
    for _ in range(3):
        undecided = made.backends.undecided
        said.append(model_not_served("x", made.backends.models(), undecided).message)
        made.servers[0].models, made.servers[1].models = ("a",), refuse(503, {})
        if len(said) == 2:
            made.servers[1].models = ("b",)
        made.clock.advance(5)
        await made.backends.refresh()
    two, one, none = (each.partition("is not served here. ")[2] for each in said)
    assert two.startswith(
        "2 model servers have not said yet which models they have (the log says why); "
        "one of them may serve this one. Served: echo. "
    )
    assert one.startswith(
        "One model server has not said yet which models it has (the log says why); "
        "it may serve this one. Served: a, echo. "
    )
    assert none.startswith("Served: a, b, echo. ")


# Servers that are away.

NO_LIST = [
    refuse(404, {"error": "no such path"}),
    refuse(401, {"error": "who are you?"}),
    refuse(503, {}),
    document({"object": "list"}),
    document("x"),
    refuse(200, b"{oops"),
    refuse(200, b"<html></html>", content_type="text/html"),
    refuse(200, b"[" * 99_999),
]


@pytest.mark.parametrize("reply", NO_LIST)
def test_a_server_that_lists_nothing_may_have_anything(
    reply: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """It serves nothing, and the log says why."""

    async def told() -> None:
        async with house(()) as made:
            made.servers[0].models = reply
            await made.backends.refresh()
            assert made.backends.models() == ("echo",)
            assert made.backends.undecided

    asyncio.run(told())
    assert "does not list its models" in caplog.text


@story(())
async def test_a_server_that_went_away_keeps_what_it_had(made: House) -> None:
    await made.backends.refresh()
    made.servers[0].models = refuse(503, {})
    made.clock.advance(5)
    await made.backends.refresh()
    assert made.who("m") == 0
    assert not made.backends.undecided


@story(())
async def test_a_server_is_asked_at_most_every_few_seconds(made: House) -> None:
    """However many want to know, and whatever it answered."""
    for reply in (("m",), refuse(503, {}), ("n",)):
        made.servers[0].models = reply
        looks = made.looks()
        await asyncio.gather(*(made.backends.refresh() for _ in range(20)))
        await made.backends.refresh()
        made.clock.advance(4.9)
        await made.backends.refresh()
        assert made.looks() == looks + 1
        made.clock.advance(0.1)
    assert made.who("n") == 0


@story(())
async def test_a_list_that_does_not_come_is_not_waited_for(made: House) -> None:
    made.servers[0].models = silent
    asking = asyncio.ensure_future(made.backends.refresh())
    await soon(lambda: made.looks() == 1)
    made.clock.advance(5)
    assert await asking
    assert made.backends.undecided
    await soon(lambda: made.servers[0].exchanges[0].left)


@story(())
async def test_who_gives_up_asking_does_not_stop_the_others(made: House) -> None:
    pause = Pause()

    async def late(exchange: Any) -> None:
        await pause.wait()
        await document([{"id": "m"}])(exchange)

    made.servers[0].models = late
    first, second = (asyncio.ensure_future(made.backends.refresh()) for _ in range(2))
    await soon(lambda: pause.reached)
    first.cancel()
    await asyncio.wait([first])
    pause.go()
    assert await second
    assert made.who("m") == 0


def test_nobody_to_ask() -> None:
    assert not asyncio.run(Backends([Echo(VirtualClock())]).refresh())


@story((), ())
async def test_the_list_does_not_wait_for_a_server(made: House) -> None:
    """What is known is the answer, and what a server says behind that is in the next one."""
    await made.backends.refresh()
    made.servers[0].models, made.servers[1].models = silent, ("m", "new")
    made.clock.advance(5)
    assert await made.backends.known() == ("echo", "m")
    await soon(lambda: made.backends.models() == ("echo", "m", "new"))
    assert await made.backends.known() == ("echo", "m", "new")
    assert made.clock.monotonic() == 5


@story((), ())
async def test_the_first_list_waits_a_moment(made: House) -> None:
    """At the start nothing can be known; who answers at once is in it."""
    pause = Pause()

    async def late(exchange: Any) -> None:
        await pause.wait()
        await document([{"id": "late"}])(exchange)

    made.servers[0].models = late
    made.backends.start()
    listing = asyncio.ensure_future(made.backends.known())
    await soon(lambda: pause.reached and made.who("m") == 1)
    assert not listing.done()
    made.clock.advance(1)
    assert await listing == ("echo", "m")
    pause.go()
    await soon(lambda: made.who("late") == 0)


@story(())
async def test_a_request_does_not_wait_long_for_a_server(made: House) -> None:
    made.servers[0].models = silent
    asking = asyncio.ensure_future(made.backends.refresh())
    await soon(lambda: made.looks() == 1)
    made.clock.advance(2)
    assert await asking
    assert made.backends.undecided


@pytest.mark.parametrize("trouble", [refuse(503, {}), silent])
def test_a_server_that_is_away_for_long_serves_nothing(trouble: Any) -> None:
    """As one that was not there yet: its runs wait for it, and new ones are refused."""

    async def told() -> None:
        async with house(()) as made:
            made.backends.start()
            await soon(lambda: made.who("m") == 0)
            made.servers[0].models = trouble
            begun = made.clock.monotonic()
            while made.who("m") == 0:
                assert made.clock.monotonic() - begun < 120
                await soon(lambda: made.clock.next_wake() is not None)
                made.clock.advance(made.clock.next_wake() or 0)
                await rest()
            assert made.clock.monotonic() - begun >= 60
            assert made.backends.models() == ("echo",)
            assert made.backends.undecided
            assert not made.backends.lane("m").takes(0)
            made.servers[0].models = ("m",)
            made.clock.advance(5)
            await rest()
            made.clock.advance(5)
            await soon(lambda: made.who("m") == 0)
            assert made.backends.lane("m").takes(0)

    asyncio.run(told())


@story(())
async def test_a_server_that_failed_once_is_not_away(made: House) -> None:
    """It counts from the first failure in a row."""
    await made.backends.refresh()
    for reply in (refuse(503, {}), ("m",), refuse(503, {})):
        made.servers[0].models = reply
        made.clock.advance(50)
        await made.backends.refresh()
    assert made.who("m") == 0


# Lanes.


@story((), (("gpt-4o", "m"), ("*", "m")))
async def test_each_server_has_a_lane_of_its_own(made: House) -> None:
    """And so have runs whose server is not known yet, and those that nobody answers."""
    unknown = made.backends.lane("m")
    assert unknown is made.upstreams[1], "of whoever takes every name, until it is asked about"
    made.backends.start()
    assert not made.backends.lane("m").takes(0), "while the start goes on, nobody can tell"
    assert made.backends.lane("gpt-4o") is made.upstreams[1]
    await soon(lambda: made.backends.lane("m") is made.upstreams[0])
    await soon(lambda: made.backends.lane("x") is made.upstreams[1])
    assert made.backends.lane("echo").takes(1_000_000)


@story(())
async def test_runs_that_nobody_answers_are_let_in_to_fail(made: House) -> None:
    moves: list[None] = []
    made.backends.subscribe(lambda: None, lambda: moves.append(None))
    assert not made.backends.lane("x").takes(0)
    await made.backends.refresh()
    assert made.backends.lane("x").takes(0)
    assert len(moves) == 1
    made.clock.advance(5)
    await made.backends.refresh()
    assert len(moves) == 1, "nothing has changed"


# Runs that come back before their server does.


@story(())
async def test_a_run_waits_for_a_server_that_may_have_its_model(made: House) -> None:
    """After a restart, for example: what was accepted is not given up for a server that is late."""
    made.servers[0].models = refuse(503, {})
    made.backends.start()
    turn = asyncio.ensure_future(made.said("m"))
    for looks in (1, 2):
        await soon(lambda looks=looks: made.looks() == looks)
        await soon(lambda: made.clock.next_wake() is not None)
        await rest()
        assert not turn.done()
        if looks == 2:
            made.servers[0].models = ("m",)
        made.clock.advance(5)
    assert (await turn).text == "ok"


@story((), (("*", "w"),))
async def test_a_run_that_comes_early_is_not_given_to_who_takes_every_name(made: House) -> None:
    """Not before the others have said what they have."""
    made.backends.start()
    await made.said("m")
    assert (len(made.servers[0].chats), len(made.servers[1].chats)) == (1, 0)


@story(())
async def test_a_run_whose_model_is_gone_fails(made: House) -> None:
    made.backends.start()
    with pytest.raises(ModelError, match="'x' is not served any more"):
        await made.said("x")


@story(())
async def test_models_are_news_once(made: House) -> None:
    """A line in the log when they change, not whenever somebody asks."""
    records: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: records.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("runbell.models")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        for models in (("a",), ("a",), tuple(f"m{n}" for n in range(100))):
            made.servers[0].models = models
            await made.backends.refresh()
            made.clock.advance(5)
    finally:
        logger.removeHandler(handler)
        logger.setLevel(logging.NOTSET)
    assert len(records) == 2
    assert records[1].count("m") < 60, "not all of them"
