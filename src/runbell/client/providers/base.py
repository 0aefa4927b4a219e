"""What a provider is: the few things that differ between one kind of asynchronous work and another.

A provider that somebody else writes needs `owns`, `view` and `retrieve`; see `docs/waiting.md`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypeVar

from runbell.client.view import View

__all__ = ["ActingProvider", "BatchingProvider", "Provider"]

T = TypeVar("T", contravariant=True)


class Provider(Protocol[T]):
    """How one kind of asynchronous work is asked about. It holds no state.

    `client` is the client of the waiter, with its own retries switched off. Whatever a method
    takes as `options` it passes on to the SDK's method: `timeout`, `extra_headers`. It returns what
    that returns, be it a value, an awaitable, or the raw response of either (`with_raw_response`),
    whose headers are then heeded.

    Four more methods are used where a provider has them:
        `cancel(client, item, **options)`: ask the server to end it.
        `again(client, item, **options)`: begin the same work anew, for `restart_on`.
        `policy()`: a default policy that suits how long such work takes.
        `kind_of(item)`: strings, or tuples of them, that work has in common which takes about as
            long, for the default policy, which learns that.
    """

    def owns(self, item: object) -> bool:
        """Whether `item` is an object of this kind."""
        ...

    def view(self, item: T) -> View:
        """The object in our words: its id, its status, and whether that is an end."""
        ...

    def retrieve(self, client: Any, item: T, **options: Any) -> Any:
        """Ask the server how it stands."""
        ...


class ActingProvider(Provider[T], Protocol):
    """A provider of work that asks for tool outputs, restarts, and is told of by events."""

    def cancel(self, client: Any, item: T, **options: Any) -> Any: ...

    def submit(self, client: Any, item: T, outputs: Mapping[str, str], **options: Any) -> Any:
        """Hand in the outputs of tool calls, by call id."""
        ...

    def schemas(self, item: T) -> Mapping[str, Any]:
        """JSON Schemas of the parameters of the functions that the model sees, by name."""
        ...

    def told(self, item: T, event: Mapping[str, Any]) -> Any:
        """The object as it is after an event; None where the event does not say enough."""
        ...


class BatchingProvider(Provider[T], Protocol):
    """A provider whose server can be asked about several at once."""

    def retrieve_many(self, client: Any, items: Sequence[T], **options: Any) -> Any:
        """Ask for these, in one request."""
        ...

    def retrieve_thread(self, client: Any, thread_id: str, **options: Any) -> Any:
        """Ask for the latest of one thread, in one request."""
        ...

    def by_id(self, reply: Any) -> dict[str, Any] | None:
        """The objects of such an answer; None where it is none: the server can't do that."""
        ...
