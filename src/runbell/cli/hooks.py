"""A receiver of webhooks on loopback, for the demo: verifies what comes, and notes when.

Programs of your own take `runbell.receiver`, or a web framework; this one keeps nothing.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from types import TracebackType
from typing import Any, Self

from runbell.errors import InvalidSignature
from runbell.webhooks import Secret, verify

__all__ = ["Hooks"]

MAX_HEAD = 16_384
MAX_BODY = 1_000_000


class Hooks:
    """Listens on a free loopback port, from entering until leaving.

    Attributes:
        url: where to POST.
        secret: what is to have signed; set it as soon as it is known.
        posts: how many webhooks came for each run.
        known_ms: when the latest event of each run came, in milliseconds since the epoch, with the
            status that it told of.
        problems: what was wrong with what came; empty where nothing was.
    """

    def __init__(self) -> None:
        self.url = ""
        self.secret: Secret | None = None
        self.posts: Counter[str] = Counter()
        self.known_ms: dict[str, tuple[str, float]] = {}
        self.problems: list[str] = []
        self._sequences: dict[str, int] = {}
        self._open: dict[asyncio.Task[Any], asyncio.StreamWriter] = {}

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, limit=MAX_HEAD)
        port = self._server.sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{port}/hooks"
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.close()
        # The service would keep them for a while.
        for writer in self._open.values():
            writer.close()
        await asyncio.gather(*self._open, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._open[task] = writer
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                headers = _headers(head)
                length = min(int(dict(headers).get("content-length", "0")), MAX_BODY)
                body = await reader.readexactly(length)
                status = self._take(headers, body, time.time() * 1000)
                writer.write(b"HTTP/1.1 %d -\r\ncontent-length: 0\r\n\r\n" % status)
                await writer.drain()
        except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, OSError, ValueError):
            return
        finally:
            del self._open[task]
            writer.close()

    def _take(self, headers: list[tuple[str, str]], body: bytes, now_ms: float) -> int:
        assert self.secret is not None, "nobody knows this URL before it is registered"
        try:
            verify([self.secret], dict(headers), body, now_ms=round(now_ms))
        except InvalidSignature as error:
            self.problems.append(f"a webhook came that is not signed as it should be: {error}")
            return error.status
        run: dict[str, Any] = json.loads(body)["data"]
        self.posts[run["id"]] += 1
        # Webhooks come in any order: the latest event counts, not what came last.
        if run["sequence"] > self._sequences.get(run["id"], 0):
            self._sequences[run["id"]] = run["sequence"]
            self.known_ms[run["id"]] = (run["status"], now_ms)
        return 200


def _headers(head: bytes) -> list[tuple[str, str]]:
    lines = head.decode("latin-1").split("\r\n")[1:]
    pairs = [line.partition(":") for line in lines if line]
    return [(name.strip().lower(), value.strip()) for name, _, value in pairs]
