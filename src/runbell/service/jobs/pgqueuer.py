"""Jobs on PostgreSQL."""

from typing import Any


async def install(connection: Any) -> None:
    pass
