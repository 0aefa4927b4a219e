"""`python -m bench.receiver FILE`: a receiver of webhooks that is never what is slow.

It prints the port that it listens on. `/ok…` is answered with 200 at once, `/fail…` with 500,
`/never…` not at all. `count` on stdin has it say how many POSTs came; `write` has it write to FILE
path, webhook-id and time of each, by the monotonic clock in nanoseconds, which is the
same for every process, and begin anew.
"""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path

import uvloop

ANSWERS = {
    b"/ok": b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n",
    b"/fa": b"HTTP/1.1 500 No\r\ncontent-length: 0\r\n\r\n",
}

arrivals: list[tuple[bytes, bytes, int]] = []


class Receiver(asyncio.Protocol):
    """One connection: as much of HTTP as the service speaks."""

    def __init__(self) -> None:
        self._buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        now = time.monotonic_ns()
        self._buffer += data
        while (end := self._buffer.find(b"\r\n\r\n")) >= 0:
            head = self._buffer[:end].lower()
            length = int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0])
            whole = end + 4 + length
            if len(self._buffer) < whole:
                return
            path = self._buffer.split(b" ", 2)[1]
            at = head.index(b"webhook-id: ") + len(b"webhook-id: ")
            arrivals.append((path, self._buffer[at : self._buffer.index(b"\r\n", at)], now))
            self._buffer = self._buffer[whole:]
            answer = ANSWERS.get(path[:3])
            if answer is not None:
                self._transport.write(answer)  # type: ignore[attr-defined] # a Transport


async def main(file: Path) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Receiver, "127.0.0.1", 0, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        if line == "count\n":
            print(len(arrivals), flush=True)
        else:
            lines = [b"%b %b %d\n" % each for each in arrivals]
            file.write_bytes(b"".join(lines))  # noqa: ASYNC240 - nothing else happens any more
            arrivals.clear()
            print("written", flush=True)


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main(Path(sys.argv[1])))
