"""A receiver of webhooks for tests: takes every POST, and answers as the test says."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from runbell.service.delivery.dialling import Posted
from runbell.webhooks import check_url

__all__ = ["Post", "ScriptedPoster", "answered", "unanswered"]


@dataclass(slots=True)
class Post:
    """One POST as it was sent.

    Attributes:
        answer: what it is answered; set by the test where the receiver is one that `holds`.
    """

    url: str
    headers: Mapping[str, str]
    body: bytes
    answer: asyncio.Future[Posted] = field(repr=False)

    @property
    def id(self) -> str:
        """The `webhook-id`."""
        return self.headers["webhook-id"]

    def finish(self, posted: Posted) -> None:
        """Answer it now."""
        self.answer.set_result(posted)


def answered(status: int, text: str = "", retry_after: float | None = None) -> Posted:
    """A whole answer."""
    return Posted(status, None, 3, retry_after, text.encode())


def unanswered(error: str = "There was no connection.") -> Posted:
    """No answer, and why."""
    return Posted(None, error, 3)


class ScriptedPoster:
    """In place of the real one: sends nothing.

    Attributes:
        sent: every POST, in the order in which they began.
        answer: what a POST is answered at once; None holds it until the test finishes it.
    """

    def __init__(self) -> None:
        self.sent: list[Post] = []
        self.answer: Callable[[Post], Posted | None] = lambda _: answered(200)

    async def post(self, url: str, headers: Mapping[str, str], body: bytes, project: str) -> Posted:
        """Take a POST."""
        post = Post(url, dict(headers), body, asyncio.get_running_loop().create_future())
        self.sent.append(post)
        given = self.answer(post)
        return given if given is not None else await post.answer

    async def check_reachable_address(self, url: str, project: str) -> None:
        """By the text of the URL alone."""
        check_url(url)

    async def close(self) -> None:
        """Nothing is open."""
