"""The application without its HTTP, in the test's time: requests go in, answers come out."""

from __future__ import annotations

import asyncio
import json as jsonlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from runbell.service.app import App
from runbell.service.operations.access import Access, ensure_project
from runbell.testing.embedded import EmbeddedService, embedded

__all__ = ["House", "Reply", "on_a_house"]

KEYS = {"sk-default-0123456789": "default", "sk-other-0123456789": "other"}


@dataclass
class Reply:
    """An answer, as far as it has come."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""

    @property
    def replayed(self) -> bool:
        return self.headers.get("idempotent-replayed") == "true"

    def json(self) -> Any:
        return jsonlib.loads(self.body)

    def ok(self) -> Any:
        assert self.status == 200, (self.status, self.body)
        return self.json()

    @property
    def events(self) -> list[str]:
        """The names of the events of a stream."""
        lines = self.body.decode().splitlines()
        return [line.removeprefix("event: ") for line in lines if line.startswith("event: ")]


class House:
    """A service and its application."""

    def __init__(self, service: EmbeddedService, projects: dict[str, str]) -> None:
        self.service = service
        self._projects = projects
        self.open()

    def open(self) -> None:
        """Put the application on the service's parts, as a process does at its start."""
        self.apps = {
            project: App(self.service.ctx, Access(self.service.store, key, self._projects[project]))
            for key, project in KEYS.items()
        }
        self.keys = {project: key for key, project in KEYS.items()}

    async def restart(self) -> None:
        """Lose everything that is not in the store."""
        await self.service.restart()
        self.open()

    async def post(
        self,
        path: str,
        json: Any = None,
        *,
        once: str | None = None,
        project: str = "default",
        raw: bytes | None = None,
        reply: Reply | None = None,
    ) -> Reply:
        """POST with an `Idempotency-Key` where `once` says one."""
        headers = [(b"authorization", b"Bearer " + self.keys[project].encode())]
        if once is not None:
            headers.append((b"idempotency-key", once.encode("latin-1")))
        body = raw if raw is not None else b"" if json is None else jsonlib.dumps(json).encode()
        return await self._request("POST", path, headers, body, project, reply or Reply())

    async def _request(
        self,
        method: str,
        path: str,
        headers: list[tuple[bytes, bytes]],
        body: bytes,
        project: str,
        reply: Reply,
    ) -> Reply:
        scope = {
            "type": "http",
            "method": method,
            "path": path,
            "query_string": b"",
            "headers": headers,
        }
        unread = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive() -> Any:
            if unread:
                return unread.pop()
            return await asyncio.get_running_loop().create_future()

        async def send(message: Any) -> None:
            if message["type"] == "http.response.start":
                reply.status = message["status"]
                reply.headers = {n.decode(): v.decode() for n, v in message["headers"]}
            else:
                reply.body += message["body"]

        await self.apps[project](scope, receive, send)
        return reply


async def rest() -> None:
    """Let requests get as far as they can without anybody else; nothing here takes time."""
    for _ in range(200):
        await asyncio.sleep(0)


@asynccontextmanager
async def house(path: Path, **options: Any) -> AsyncIterator[House]:
    async with embedded(path, **options) as service:
        other = (await ensure_project(service.store, service.clock, "other")).id
        yield House(service, {"default": service.project, "other": other})


def on_a_house(
    **options: Any,
) -> Callable[[Callable[[House], Awaitable[None]]], Callable[[Path], None]]:
    """Make a test of an async function that is given a house."""

    def decorate(test: Callable[[House], Awaitable[None]]) -> Callable[[Path], None]:
        async def story(path: Path) -> None:
            async with house(path, **options) as built, asyncio.timeout(60):
                await test(built)

        def run(tmp_path: Path) -> None:
            asyncio.run(story(tmp_path / "runbell.db"))

        run.__doc__ = test.__doc__
        run.__name__ = run.__qualname__ = getattr(test, "__name__", "test")
        run.__module__ = test.__module__
        return run

    return decorate
