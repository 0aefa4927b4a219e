"""How a database gets its schema: Alembic's migrations, forward only, inside one transaction."""

from __future__ import annotations

import contextlib
import sqlite3
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from runbell.errors import ConfigurationError, StorageUnavailable
from runbell.storage.lock import InstallationLock

__all__ = ["HEAD", "SERVICE", "Lineage", "require_current", "upgrade", "upgrade_sqlite"]

HEAD = "0005"
"""The revision of the service's database that this version of Runbell works with."""


@dataclass(frozen=True, slots=True)
class Lineage:
    """The migrations of one kind of database.

    Attributes:
        what: the kind, for messages.
        head: the revision that this version of Runbell works with.
        folder: where the migrations are.
        version_table: where a database of this kind keeps its revision.
        landmark: a table that only such a database has.
        option: what names another file.
    """

    what: str
    head: str
    folder: Path
    version_table: str
    landmark: str
    option: str


SERVICE = Lineage(
    "database",
    HEAD,
    Path(__file__).with_name("migrations"),
    "alembic_version",
    "runs",
    "--database",
)


def upgrade_sqlite(path: Path, lock: InstallationLock) -> None:
    """Create the schema of a service's file or bring it up to `HEAD`; see `upgrade`."""
    upgrade(path, lock, SERVICE)


def upgrade(path: Path, lock: InstallationLock, lineage: Lineage) -> None:
    """Create the file's schema or bring it up to the lineage's head.

    Args:
        path: the SQLite file; made, readable for its owner alone, where it is missing.
        lock: of this installation. It is taken for the time of a change where it isn't held, so
            that no schema changes under a running service.

    Raises:
        ConfigurationError: the file is newer than this version, no database, or in use.
        StorageUnavailable: it is locked.
    """
    current = _revision(path, lineage)
    if current == lineage.head:
        return
    if current is not None and current > lineage.head:
        raise ConfigurationError(
            f"{path} was written by a newer version of Runbell (schema {current}, this version "
            f"has {lineage.head}): upgrade with pip install -U runbell"
        )
    with lock.held() as held:
        if not held:
            raise ConfigurationError(
                f"{path} has an older schema and is in use by process {lock.holder()}: "
                "stop that service first"
            )
        try:
            path.touch(mode=0o600)
            _migrate(path, lineage)
        except Exception as error:
            # SQLAlchemy's errors wrap the driver's; a full disk or a lock is nobody's defect.
            if isinstance(getattr(error, "orig", error), sqlite3.OperationalError | OSError):
                raise StorageUnavailable(f"cannot make the schema of {path}: {error}") from error
            raise


def require_current(path: Path, lineage: Lineage = SERVICE) -> None:
    """Make sure that a file is a database of this version; it is not changed.

    Raises:
        ConfigurationError: it is missing, no database of ours, or of another version.
        StorageUnavailable: it is locked.
    """
    if not path.exists():
        raise ConfigurationError(
            f"there is no file {path}: name your {lineage.what} with {lineage.option}"
        )
    current = _revision(path, lineage, mode="ro")
    if current is None:
        raise ConfigurationError(
            f"{path} is no {lineage.what} of Runbell: name yours with {lineage.option}"
        )
    if current != lineage.head:
        raise ConfigurationError(
            f"{path} has schema {current}, this version of Runbell has {lineage.head}: "
            + ("start the service once" if current < lineage.head else "upgrade Runbell")
        )


def _migrate(path: Path, lineage: Lineage) -> None:
    # Imported here: a database that is up to date starts without Alembic.
    from alembic import command
    from alembic.config import Config
    from sqlalchemy import URL, create_engine, event

    engine = create_engine(URL.create("sqlite", database=str(path)))

    # The driver would otherwise commit before each change of the schema.
    @event.listens_for(engine, "connect")
    def _no_implicit_transactions(connection: sqlite3.Connection, _: object) -> None:
        connection.isolation_level = None

    @event.listens_for(engine, "begin")
    def _begin(connection: object) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")  # type: ignore[attr-defined] # a Connection

    config = Config()
    config.set_main_option("script_location", str(lineage.folder))
    try:
        with engine.begin() as connection:
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
    finally:
        engine.dispose()


def _revision(path: Path, lineage: Lineage, *, mode: str = "rwc") -> str | None:
    """The schema's revision; None for a file that is missing or empty."""
    if not path.exists():
        return None
    try:
        uri = f"file:{quote(str(path))}?mode={mode}"
        with contextlib.closing(sqlite3.connect(uri, uri=True, timeout=2.0)) as connection:
            tables = {
                row[0]
                for row in connection.execute("SELECT name FROM sqlite_master WHERE type='table'")
            }
            # Other programs use Alembic too: its table alone does not make a file ours.
            if not {lineage.version_table, lineage.landmark} <= tables:
                if tables:
                    raise ConfigurationError(
                        f"{path} is a SQLite file of another program; name another with "
                        f"{lineage.option}"
                    )
                return None
            row = connection.execute(
                f"SELECT version_num FROM {lineage.version_table}"  # noqa: S608 - a constant
            ).fetchone()
            return row[0] if row is not None else None
    except sqlite3.OperationalError as error:
        raise StorageUnavailable(f"cannot open {path}: {error}") from error
    except sqlite3.DatabaseError as error:
        if error.sqlite_errorcode == sqlite3.SQLITE_CORRUPT:
            raise ConfigurationError(
                f"{path} is damaged ({error}): restore a backup, see docs/operations.md"
            ) from error
        raise ConfigurationError(f"{path} is not a SQLite database: {error}") from error
