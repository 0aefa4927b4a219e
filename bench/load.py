"""The load client: one job, a line of JSON on stdin; its answer is JSON on stdout.

A process of its own, so that its CPU is nobody else's; and aiohttp, so that it is never what is
slow. A job talks to loopback only, and does a number of things that it was told; then it ends.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar
from urllib.parse import urlsplit

import aiohttp

T = TypeVar("T")
R = TypeVar("R")

TERMINAL = ("completed", "failed", "incomplete", "cancelled", "expired")
QUESTION = {"role": "user", "content": "What is 2+2?"}
REREAD_SECONDS = 0.02
RUN_SECONDS = 60.0
"""How long a run may take until the job gives up."""


class Held:
    """A request whose answer is not finished; `begun` is done when some of it has come."""

    def __init__(self, request: Any) -> None:
        self.begun = asyncio.get_running_loop().create_future()
        self.task = asyncio.create_task(self._read(request))

    async def _read(self, request: Any) -> None:
        async with request as response:
            async for _ in response.content.iter_any():
                if not self.begun.done():
                    self.begun.set_result(None)


class Raw(asyncio.Protocol):
    """One answer as it comes in, with the time of each piece: nothing stands before the clock."""

    def __init__(self) -> None:
        self._pieces: list[tuple[int, bytes]] = []
        self._news = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._pieces.append((time.monotonic_ns(), data))
        self._news.set()

    async def received(self, part: bytes) -> int:
        """When there was a piece with this in it."""
        async with asyncio.timeout(RUN_SECONDS):
            while True:
                for at_ns, data in self._pieces:
                    if part in data:
                        return at_ns
                self._news.clear()
                await self._news.wait()

    @property
    def answered(self) -> bool:
        """Something came, or the connection has ended."""
        return bool(self._pieces) or self._transport.is_closing()

    def forget(self) -> None:
        self._pieces.clear()

    def close(self) -> None:
        self._transport.close()


class Client:
    """Keep-alive connections to the service."""

    def __init__(self, session: aiohttp.ClientSession, base_url: str) -> None:
        self._session = session
        self._base_url = base_url

    def hold(self, method: str, path: str, **options: Any) -> Held:
        """Begin a request that is answered late, or for a long time."""
        return Held(self._session.request(method, self._base_url + path, timeout=None, **options))

    async def raw(self, path: str, header: str) -> Raw:
        """Send a GET on a connection of its own."""
        url = urlsplit(self._base_url + path)
        assert url.hostname, self._base_url
        loop = asyncio.get_running_loop()
        transport, raw = await loop.create_connection(Raw, url.hostname, url.port or 80)
        key = self._session.headers["Authorization"]
        lines = (f"GET {url.path} HTTP/1.1", "Host: bench", f"Authorization: {key}", header)
        transport.write("\r\n".join([*lines, "", ""]).encode())
        return raw

    async def post(self, path: str, body: Any) -> Any:
        async with self._session.post(self._base_url + path, json=body) as response:
            return await _success(response)

    async def get(self, path: str, **headers: str) -> Any:
        async with self._session.get(self._base_url + path, headers=headers) as response:
            return await _success(response)

    async def assistant(self) -> str:
        return str((await self.post("/assistants", {"model": "echo"}))["id"])

    async def thread(self) -> str:
        return str((await self.post("/threads", {"messages": [QUESTION]}))["id"])

    async def create_run(self, thread: str, assistant: str) -> str:
        """Create a run; the path under which it can be read."""
        runs = f"/threads/{thread}/runs"
        run = await self.post(runs, {"assistant_id": assistant})
        return f"{runs}/{run['id']}"

    async def read_until_completed(self, path: str, pause: float) -> int:
        """Read a run until it is completed; how many reads that took."""
        deadline = time.monotonic() + RUN_SECONDS
        reads = 1
        while (status := (await self.get(path))["status"]) not in TERMINAL:
            if time.monotonic() > deadline:
                raise RuntimeError(f"{path} is still {status} after {RUN_SECONDS} s")
            await asyncio.sleep(pause)
            reads += 1
        if status != "completed":
            raise RuntimeError(f"{path} is {status}, not completed")
        return reads


async def _success(response: aiohttp.ClientResponse) -> Any:
    body = await response.read()
    if response.status != 200:
        raise RuntimeError(f"{response.method} {response.url.path}: {response.status} {body!r}")
    return json.loads(body)


async def _spread(
    items: Sequence[T], work: Callable[[T], Awaitable[R]], clients: int
) -> tuple[R, ...]:
    """Do the work for every item with so many clients at a time; results in the items' order."""
    results: dict[int, R] = {}
    remaining = iter(enumerate(items))

    async def client() -> None:
        for index, item in remaining:
            results[index] = await work(item)

    async with asyncio.TaskGroup() as group:
        for _ in range(clients):
            group.create_task(client())
    return tuple(results[index] for index in range(len(items)))


async def prepare_threads(client: Client, count: int, clients: int) -> Any:
    """Make threads with one message each, and an assistant."""

    async def prepare(_: int) -> str:
        return await client.thread()

    return {
        "assistant": await client.assistant(),
        "threads": await _spread(range(count), prepare, clients),
    }


async def create_and_read(
    client: Client, assistant: str, threads: Sequence[str], clients: int
) -> Any:
    """Create a run on each thread; when the last ones have ended, read every run once."""
    began = time.monotonic()

    async def create(thread: str) -> str:
        return await client.create_run(thread, assistant)

    async def read(path: str) -> int:
        return await client.read_until_completed(path, REREAD_SECONDS)

    paths = await _spread(threads, create, clients)
    # Runs end about in the order of their creation: after these, a read finds its run completed.
    last = paths[-clients:]
    for path in last:
        await client.get(path, Prefer=f"wait={RUN_SECONDS:.0f}")
    reads = len(last) + sum(await _spread(paths, read, clients))
    return {"seconds": time.monotonic() - began, "reads": reads, "paths": paths}


async def read_runs(client: Client, paths: Sequence[str], count: int, clients: int) -> Any:
    """Read finished runs, one after the other and over again."""
    await _spread([paths[n % len(paths)] for n in range(count)], client.get, clients)


async def fill(client: Client, count: int, clients: int) -> Any:
    """Make finished runs, each on a thread of its own."""
    assistant = await client.assistant()
    body = {"assistant_id": assistant, "thread": {"messages": [QUESTION]}}

    async def create(_: int) -> str:
        run = await client.post("/threads/runs", body)
        return f"/threads/{run['thread_id']}/runs/{run['id']}"

    paths = await _spread(range(count), create, clients)
    for path in paths[-clients:]:
        await client.read_until_completed(path, REREAD_SECONDS)


async def one_at_a_time(
    client: Client, assistant: str, threads: Sequence[str], pause: float
) -> Any:
    """Create runs on an idle service, and touch none until all have ended; their ids."""
    paths = []
    for thread in threads:
        paths.append(await client.create_run(thread, assistant))
        await asyncio.sleep(pause)
    for path in paths:
        await client.read_until_completed(path, REREAD_SECONDS)
    return [path.rpartition("/")[2] for path in paths]


async def watched(client: Client, assistant: str, threads: Sequence[str], pause: float) -> Any:
    """Create runs on an idle service, and read each without a pause until it is completed.

    The answer has, for each run, the milliseconds until it was created, those until the answer
    that says `completed` had been read, and how many reads there were.
    """
    creates, delays, reads = [], [], []
    for thread in threads:
        began = time.perf_counter()
        path = await client.create_run(thread, assistant)
        creates.append((time.perf_counter() - began) * 1000)
        reads.append(await client.read_until_completed(path, 0))
        delays.append((time.perf_counter() - began) * 1000)
        await asyncio.sleep(pause)
    return {"creates_ms": creates, "delays_ms": delays, "reads": reads}


async def completed_events(client: Client) -> Any:
    """Of every completed run in the feed: milliseconds from its creation to its completion."""
    delays = {}
    page = await client.get("/events?types=thread.run.completed&limit=100")
    while page["data"]:
        for event in page["data"]:
            run = event["data"]
            delays[run["id"]] = run["completed_at_ms"] - run["created_at_ms"]
        after = page["last_id"]
        page = await client.get(f"/events?types=thread.run.completed&limit=100&after={after}")
    return delays


async def register(client: Client, urls: Sequence[str]) -> Any:
    """Webhook endpoints that want everything; their ids."""
    wanted = {"name": "bench", "event_types": ["thread.run.*"]}
    made = [await client.post("/webhook_endpoints", {**wanted, "url": url}) for url in urls]
    return [endpoint["id"] for endpoint in made]


async def enable(client: Client, endpoint: str, enabled: bool) -> Any:
    """Enable or disable a webhook endpoint."""
    await client.post(f"/webhook_endpoints/{endpoint}", {"enabled": enabled})


async def create_at_rate(
    client: Client, assistant: str, threads: Sequence[str], per_second: float
) -> Any:
    """Create a run on each thread, so many a second; their ids, when the last one has ended."""
    began = time.monotonic()
    creating: list[asyncio.Task[str]] = []
    for number, thread in enumerate(threads):
        await asyncio.sleep(max(0.0, began + number / per_second - time.monotonic()))
        creating.append(asyncio.create_task(client.create_run(thread, assistant)))
        # A burst is not a flood: the service's queue of connections is finite.
        if len(creating) % 32 == 0 and per_second > 1_000:
            await asyncio.gather(*creating[-32:])
    paths = await asyncio.gather(*creating)
    await client.read_until_completed(paths[-1], REREAD_SECONDS)
    return [path.rpartition("/")[2] for path in paths]


async def stamps_of_events(client: Client, runs: Sequence[str]) -> Any:
    """When each event of these runs happened, by its id: nanoseconds of the system's monotonic
    clock, at the beginning of its millisecond."""
    behind = time.time_ns() - time.monotonic_ns()
    wanted = set(runs)
    stamps: dict[str, int] = {}
    page = await client.get("/events?limit=100")
    while page["data"]:
        for event in page["data"]:
            if event["data"]["id"] in wanted:
                stamps[event["id"]] = event["data"]["updated_at_ms"] * 1_000_000 - behind
        page = await client.get(f"/events?limit=100&after={page['last_id']}")
    return stamps


async def enqueue(client: Client, threads: int, runs: int, clients: int) -> Any:
    """Runs that stay queued: on each of so many threads, so many behind one that sleeps."""
    assistant = await client.assistant()

    async def prepare(_: int) -> list[str]:
        sleeping = {"messages": [{"role": "user", "content": "sleep 3000"}]}
        body = {"assistant_id": assistant, "expires_after": 3600}
        first = await client.post("/threads/runs", {**body, "thread": sleeping})
        path = f"/threads/{first['thread_id']}/runs"
        body["on_active_run"] = "enqueue"
        return [f"{path}/{(await client.post(path, body))['id']}" for _ in range(runs)]

    return {"assistant": assistant, "paths": await _spread(range(threads), prepare, clients)}


async def hold(
    client: Client, assistant: str, waits: Sequence[str], streams: Sequence[str], followers: int
) -> None:
    """Wait for runs at the server, stream further runs on these threads, and follow the feed.

    Holds all of that until stdin ends; none of it may have ended by then.
    """
    body = {"assistant_id": assistant, "on_active_run": "enqueue", "stream": True}
    waiting = [await client.raw(path, "Prefer: wait=60") for path in waits]
    held = [client.hold("POST", f"/threads/{thread}/runs", json=body) for thread in streams]
    await _begun(held)
    # Last: every event that happens wakes them.
    feed = {"Accept": "text/event-stream"}
    held += [client.hold("GET", "/events", headers=feed) for _ in range(followers)]
    await _begun(held[len(streams) :])
    # Answered behind all of them: they have been taken in.
    await client.get("/models")
    print("ready", flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    ended = sum(wait.answered for wait in waiting) + sum(each.task.done() for each in held)
    for each in held:
        each.task.cancel()
    if ended:
        raise RuntimeError(f"{ended} of {len(waiting) + len(held)} were not held")


async def _begun(held: Sequence[Held]) -> None:
    for each in held:
        await asyncio.wait({each.task, each.begun}, return_when=asyncio.FIRST_COMPLETED)


async def wake(
    client: Client, paths: Sequence[str], pause: float, elsewhere: Sequence[str] = ()
) -> Any:
    """Cancel queued runs, one after the other, each with a wait for it and one feed for all.

    Args:
        elsewhere: URL and key of another process, to which the cancels are sent.

    For each: when the cancel was sent, and when the first bytes came of the wait's answer and of
    the event; in nanoseconds of the system's monotonic clock.
    """
    if elsewhere:
        base_url, key = elsewhere
        async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {key}"}) as session:
            return await _wake(client, Client(session, base_url), paths, pause)
    return await _wake(client, client, paths, pause)


async def _wake(client: Client, other: Client, paths: Sequence[str], pause: float) -> Any:
    stamps = []
    feed = await client.raw("/events", "Accept: text/event-stream")
    await feed.received(b": open")
    for path in paths:
        wait = await client.raw(path, "Prefer: wait=60")
        await asyncio.sleep(pause)
        feed.forget()
        sent = time.monotonic_ns()
        await other.post(f"{path}/cancel", None)
        key = path.rpartition("/")[2].encode()
        stamps.append((sent, await wait.received(b'"cancelled"'), await feed.received(key)))
        wait.close()
    feed.close()
    return stamps


JOBS = {
    job.__name__: job
    for job in (
        prepare_threads,
        create_and_read,
        read_runs,
        fill,
        one_at_a_time,
        watched,
        completed_events,
        enqueue,
        register,
        enable,
        create_at_rate,
        stamps_of_events,
        hold,
        wake,
    )
}


async def _work(order: dict[str, Any]) -> Any:
    headers = {"Authorization": f"Bearer {order['api_key']}"}
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(headers=headers, connector=connector) as session:
        client = Client(session, order["base_url"])
        return await JOBS[order["job"]](client, **order["arguments"])


if __name__ == "__main__":
    print(json.dumps(asyncio.run(_work(json.loads(sys.stdin.readline())))))
