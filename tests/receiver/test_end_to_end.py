"""All rooms together: a service pushes, a receiver hears, a waiter returns; hardly anybody asks."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import uvicorn

from runbell import AsyncWaiter
from runbell.client.records import Polled
from runbell.pacing import Backstop
from runbell.receiver import Inbox, Receiver
from tests.receiver.databases import new_inbox
from tests.served import Served


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Any:
        yield


@contextlib.asynccontextmanager
async def listening(receiver: Receiver, listener: socket.socket) -> AsyncIterator[None]:
    """The receiver behind a real socket, on this event loop."""
    config = uvicorn.Config(
        receiver.asgi(), log_config=None, access_log=False, timeout_graceful_shutdown=2
    )
    server = _Server(config)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    while not server.started:
        assert not serving.done()
        await asyncio.sleep(0.001)
    try:
        yield
    finally:
        server.should_exit = True
        await serving


def test_a_wait_by_webhook_from_beginning_to_end(tmp_path: Path) -> None:
    """In the receiver's process and by its inbox: what ends a wait is the event, and far fewer
    requests are made than there are runs; each event is handled once beside that."""
    path = new_inbox(tmp_path / "inbox.db")
    handled: list[str] = []

    async def story(served: Served, secret: str, listener: socket.socket) -> None:
        receiver = Receiver([secret], f"sqlite:///{path}")

        @receiver.on("thread.run.completed")
        async def done(event: Any) -> None:
            handled.append(event.run_id)

        inbox = Inbox(f"sqlite:///{path}")
        async with listening(receiver, listener), served.async_client() as client:
            for source in (receiver, inbox):
                polls: list[Any] = []
                # No look is due before everything is over.
                async with AsyncWaiter(
                    client, events=source, hooks=[polls.append], policy=Backstop(silence=600)
                ) as waiter:
                    assistant = await client.beta.assistants.create(model="echo")
                    threads = [
                        await client.beta.threads.create(
                            messages=[{"role": "user", "content": f"hello {n}"}]
                        )
                        for n in range(5)
                    ]
                    runs = await asyncio.gather(
                        *(
                            client.beta.threads.runs.create(
                                thread_id=thread.id, assistant_id=assistant.id
                            )
                            for thread in threads
                        )
                    )
                    ended = await asyncio.wait_for(waiter.wait_all(runs, hold=False), 60)
                assert [run.status for run in ended] == ["completed"] * 5
                looks = [each for each in polls if isinstance(each, Polled)]
                asked = [each for each in looks if not each.pushed]
                assert len(asked) < len(runs) / 2, asked
                assert any(each.pushed for each in looks)
                async with asyncio.timeout(60):
                    while not {run.id for run in runs} <= set(handled):
                        await asyncio.sleep(0.01)
        inbox.close()

    with (
        Served(tmp_path, env={"RUNBELL_ALLOW_PRIVATE_WEBHOOKS": "true"}) as served,
        socket.create_server(("127.0.0.1", 0)) as listener,
    ):
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/hooks"
        endpoint = served.client().webhooks.create(
            name="waiter", url=url, event_types=["thread.run.completed"]
        )
        asyncio.run(story(served, endpoint.signing_secret, listener))
    assert len(handled) == len(set(handled)) == 10
