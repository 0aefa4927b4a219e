"""What every database can do: the port that the drivers fill.

A *unit of work* is an async function of a `Transaction`, written once for every database. It
awaits the transaction and nothing else: the SQLite driver runs it on its writer thread without an
event loop, so a unit that awaits anything else is an error there.

    async def rename(tx: Transaction) -> None:
        await threads.update(tx, thread)

    await store.write(rename)

Units may be executed and rolled back again (a commit that fails), and on some databases executed
twice: they have no side effects but those on `tx`. What has to happen once the change is durable
is handed to `tx.after_commit`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

from runbell.storage.statements import Statement

__all__ = ["Row", "Store", "Transaction", "Work"]

T = TypeVar("T")
Row = Sequence[Any]


class Transaction(Protocol):
    """One transaction, or one view for reading."""

    async def fetch_one(self, statement: Statement, params: Mapping[str, Any]) -> Row | None:
        """The first row, or None."""
        ...

    async def fetch_all(
        self, statement: Statement, params: Mapping[str, Any], max_bytes: int | None = None
    ) -> list[Row]:
        """All rows; every caller bounds them by a limit or by what one object can have.

        Args:
            max_bytes: stop behind the row with which the texts of all rows reach this size.
        """
        ...

    async def execute(self, statement: Statement, params: Mapping[str, Any]) -> int:
        """Write, and return how many rows were touched.

        Raises:
            Conflict: a unique key is taken. The transaction can go on.
        """
        ...

    async def later(
        self, statement: Statement, params: Mapping[str, Any], missed: Exception | None = None
    ) -> None:
        """Write one row, of which nothing is to be known before the unit goes on.

        A database that is asked over a network is told together with what comes next: at the
        latest before the commit, and in front of whatever reads what this has written.

        Args:
            missed: what to raise where not one row was touched.

        Raises:
            Conflict: here or at a later step, a unique key is taken; or `missed`. The unit fails;
                where it is `Overtaken`, it is executed again first.
        """
        ...

    async def fetch_first(self, *reads: tuple[Statement, Mapping[str, Any]]) -> list[Row | None]:
        """The row of each of several statements that find one at the most, or None."""
        ...

    async def fetch_both(
        self,
        several: tuple[Statement, Mapping[str, Any]],
        first: tuple[Statement, Mapping[str, Any]],
    ) -> tuple[list[Row], Row | None]:
        """All rows of one statement, and the row of another that finds one at the most.

        Neither reads what the unit has written by `later`: they may be told together with it.
        """
        ...

    def after_commit(self, callback: Callable[[], None]) -> None:
        """Call `callback` on the event loop, once, when the transaction is durable."""
        ...


Work = Callable[[Transaction], Awaitable[T]]


class Store(Protocol):
    """One database.

    Every way to use it raises StorageUnavailable where the database is locked, full or gone;
    nothing was written then, except where it is OutcomeUnknown.
    """

    async def write(self, work: Work[T]) -> T:
        """Execute a unit of work in a transaction; returns when its effect is durable."""
        ...

    async def read(self, work: Work[T]) -> T:
        """Execute a unit that reads a few rows by their keys.

        Each of its statements sees the latest commits.
        """
        ...

    async def scan(self, work: Work[T]) -> T:
        """Execute a unit that may read many rows: the same as `read`, never in anybody's way."""
        ...

    async def close(self) -> None:
        """Finish what was begun and let go of the database. Safe to call twice."""
        ...
