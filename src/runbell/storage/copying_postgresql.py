"""A PostgreSQL database that is copied, or into which an installation is."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING, Any

import asyncpg
from sqlalchemy import Table

from runbell.errors import ConfigurationError
from runbell.storage import schema
from runbell.storage.copying import TABLES
from runbell.storage.migrate_postgresql import stay_ahead
from runbell.storage.postgresql_work import CURSOR_ROWS, storable

if TYPE_CHECKING:
    from runbell.storage.copying import Values

__all__ = ["PostgresqlRows", "lock_empty"]


class PostgresqlRows:
    """A database, inside a transaction of the caller's, as a source or as a target."""

    def __init__(self, connection: asyncpg.Connection) -> None:
        self._connection = connection

    async def rows(self, table: Table) -> AsyncIterator[Values]:
        columns = ", ".join(f'"{column.name}"' for column in table.c)
        query = f"SELECT {columns} FROM {table.name}"  # noqa: S608 - ours
        async for row in self._connection.cursor(query, prefetch=CURSOR_ROWS):
            yield tuple(row)

    async def end_of_feed(self) -> int:
        horizon: int = await self._connection.fetchval("SELECT runbell_feed_horizon()")
        return horizon

    def stored(self, row: Values) -> Values:
        return tuple(storable(value) for value in row)

    async def add(self, table: Table, rows: Sequence[Values]) -> None:
        columns = [column.name for column in table.c]
        try:
            await self._connection.copy_records_to_table(table.name, records=rows, columns=columns)
        except asyncpg.IntegrityConstraintViolationError as error:
            raise ConfigurationError(
                f"a row of {table.name} cannot be there: {error}; is the source in order? "
                "runbell check says so"
            ) from None
        except (asyncpg.DataError, TypeError, ValueError, OverflowError) as error:
            # Without its words, which hold the value.
            raise ConfigurationError(
                f"a row of {table.name} has a value that PostgreSQL cannot hold there "
                f"({type(error).__name__}); is the source in order? runbell check says so"
            ) from None

    async def go_on_behind(self, end_of_feed: int) -> None:
        for table in TABLES:
            if "position" in table.c and table is not schema.events:
                await self._connection.execute(
                    "SELECT setval(pg_get_serial_sequence($1, 'position'), max(position)) "  # noqa: S608 - ours
                    f"FROM {table.name} HAVING max(position) IS NOT NULL",
                    table.name,
                )
        await stay_ahead(self._connection, end_of_feed)


async def lock_empty(connection: asyncpg.Connection) -> None:
    """Make sure that the database has no row, and let nobody else add one in this transaction.

    Raises:
        ConfigurationError: it has some; says which.
    """
    names = [*(table.name for table in TABLES), schema.key_checks.name, "pgqueuer"]
    await connection.execute(f"LOCK TABLE {', '.join(names)} IN EXCLUSIVE MODE")
    found: list[Any] = []
    for name in names:
        count = await connection.fetchval(f"SELECT count(*) FROM {name}")  # noqa: S608 - ours
        if count:
            found.append(f"{name} ({count})")
    if found:
        raise ConfigurationError(
            f"the target is not empty, it has rows in {', '.join(found)}: copy into a new database"
        )
