"""Where it is kept: the tables, their keys and their indexes, for every database.

The migrations are what builds a database; a test holds this module and their result together.

Rules that hold throughout:

- `position` is the order of insertion, from the database itself. Lists are sorted by it, since
  stamps tie. Only the feed's positions are never given twice, which costs a write more.
- Times are milliseconds since the epoch. JSON is text, encoded and decoded by us: the databases
  never look inside.
- An id is unique for the whole installation, except an assistant's, which its maker may choose: a
  chosen id must not tell one project what another has.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
    text,
)

__all__ = [
    "ACTIVE",
    "LAST_MS",
    "LISTENING",
    "LIVE",
    "NAMES",
    "PENDING",
    "UNSETTLED",
    "WORKABLE",
    "api_keys",
    "assistants",
    "attempts",
    "deliveries",
    "events",
    "idempotency_keys",
    "key_checks",
    "messages",
    "metadata",
    "numbered",
    "probes",
    "projects",
    "run_steps",
    "runs",
    "threads",
    "webhook_endpoints",
]

NAMES = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "fk": "fk_%(table_name)s_%(column_0_name)s",
    "pk": "pk_%(table_name)s",
}
"""How indexes and keys are called, in every schema of ours."""

metadata = MetaData(naming_convention=NAMES)

LIVE = "status IN ('queued', 'in_progress', 'requires_action', 'cancelling')"
"""Not terminal: what partial indexes and the queries that use them have to say alike."""

WORKABLE = "status IN ('queued', 'in_progress')"
"""For a worker to take up. Narrower than `LIVE`, so that only those who say so use its index."""

ACTIVE = f"{LIVE} AND NOT waits_turn"
"""Holding its thread: the database itself keeps this to one run a thread."""

PENDING = "status = 'pending'"
"""A delivery that is still owed."""

LISTENING = "enabled OR owed_until_ms IS NOT NULL"
"""An endpoint to which events may be owed."""

LAST_MS = 2**62
"""A time that no other is later than."""

UNSETTLED = "status <> 'succeeded'"
"""A delivery that somebody may want to look at: the few among the many that went well."""


def numbered() -> Column[int]:
    """The column `position`: rows are numbered by the database, in the order of their insertion."""
    # SQLite numbers rows by itself only where the key is exactly INTEGER.
    return Column(
        "position",
        BigInteger().with_variant(Integer, "sqlite"),
        primary_key=True,
        autoincrement=True,
    )


def _project() -> Column[str]:
    return Column("project_id", Text, ForeignKey("projects.id"), nullable=False)


projects = Table(
    "projects",
    metadata,
    Column("id", Text, primary_key=True),
    Column("name", Text, nullable=False, unique=True),
    Column("created_at_ms", BigInteger, nullable=False),
)

api_keys = Table(
    "api_keys",
    metadata,
    Column("id", Text, primary_key=True),
    _project(),
    Column("digest", Text, nullable=False, unique=True),
    Column("hint", Text, nullable=False),
    Column("origin", Text, nullable=False),
    Column("created_at_ms", BigInteger, nullable=False),
    Column("revoked_at_ms", BigInteger),
    Column("rpm", Integer),
)

assistants = Table(
    "assistants",
    metadata,
    numbered(),
    _project(),
    Column("id", Text, nullable=False),
    Column("created_at_ms", BigInteger, nullable=False),
    Column("config", Text, nullable=False),
    UniqueConstraint("project_id", "id"),
    Index(None, "project_id", "position"),
)

threads = Table(
    "threads",
    metadata,
    Column("id", Text, primary_key=True),
    _project(),
    Column("created_at_ms", BigInteger, nullable=False),
    Column("tool_resources", Text, nullable=False),
    Column("metadata", Text, nullable=False),
)

messages = Table(
    "messages",
    metadata,
    numbered(),
    _project(),
    Column("thread_id", Text, nullable=False),
    Column("id", Text, nullable=False, unique=True),
    Column("created_at_ms", BigInteger, nullable=False),
    Column("role", Text, nullable=False),
    Column("content", Text, nullable=False),
    Column("status", Text, nullable=False),
    Column("incomplete_reason", Text),
    Column("completed_at_ms", BigInteger),
    Column("incomplete_at_ms", BigInteger),
    Column("assistant_id", Text),
    Column("run_id", Text),
    Column("metadata", Text, nullable=False),
    Index(None, "thread_id", "position"),
)

runs = Table(
    "runs",
    metadata,
    numbered(),
    _project(),
    Column("thread_id", Text, nullable=False),
    Column("id", Text, nullable=False, unique=True),
    Column("assistant_id", Text, nullable=False),
    Column("status", Text, nullable=False),
    Column("sequence", Integer, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("takeovers", Integer, nullable=False),
    Column("waits_turn", Boolean, nullable=False),
    Column("created_at_ms", BigInteger, nullable=False),
    Column("expires_at_ms", BigInteger, nullable=False),
    Column("updated_at_ms", BigInteger, nullable=False),
    Column("started_at_ms", BigInteger),
    Column("cancelling_at_ms", BigInteger),
    Column("cancelled_at_ms", BigInteger),
    Column("failed_at_ms", BigInteger),
    Column("completed_at_ms", BigInteger),
    Column("incomplete_at_ms", BigInteger),
    Column("expired_at_ms", BigInteger),
    Column("tool_calls", Text),
    Column("error_code", Text),
    Column("error_message", Text),
    Column("incomplete_reason", Text),
    Column("status_reason", Text),
    Column("prompt_tokens", BigInteger, nullable=False),
    Column("completion_tokens", BigInteger, nullable=False),
    Column("metadata", Text, nullable=False),
    Column("config", Text, nullable=False),
    # Messages that a run which waits its turn adds to the thread when that comes.
    Column("pending_messages", Text),
    Index(None, "thread_id", "position"),
    Index(
        "uq_runs_active_thread",
        "thread_id",
        unique=True,
        sqlite_where=text(ACTIVE),
        postgresql_where=text(ACTIVE),
    ),
    Index(
        "ix_runs_live_expiry",
        "expires_at_ms",
        sqlite_where=text(LIVE),
        postgresql_where=text(LIVE),
    ),
    Index(None, "project_id", "position"),
    Index(
        "ix_runs_live_project",
        "project_id",
        "position",
        sqlite_where=text(LIVE),
        postgresql_where=text(LIVE),
    ),
    Index(
        "ix_runs_waiting",
        "thread_id",
        "position",
        sqlite_where=text("waits_turn"),
        postgresql_where=text("waits_turn"),
    ),
    Index(
        "ix_runs_cancelling",
        "cancelling_at_ms",
        sqlite_where=text("status = 'cancelling'"),
        postgresql_where=text("status = 'cancelling'"),
    ),
    Index(
        "ix_runs_workable",
        "status",
        "position",
        sqlite_where=text(WORKABLE),
        postgresql_where=text(WORKABLE),
    ),
)

run_steps = Table(
    "run_steps",
    metadata,
    numbered(),
    _project(),
    Column("thread_id", Text, nullable=False),
    Column("run_id", Text, nullable=False),
    Column("assistant_id", Text, nullable=False),
    Column("id", Text, nullable=False, unique=True),
    Column("created_at_ms", BigInteger, nullable=False),
    Column("status", Text, nullable=False),
    Column("message_id", Text),
    Column("tool_calls", Text),
    Column("error_code", Text),
    Column("error_message", Text),
    Column("ended_at_ms", BigInteger),
    Column("usage", Text),
    Column("metadata", Text, nullable=False),
    Index(None, "run_id", "position"),
    Index(None, "thread_id"),
)

# One row, written to find out whether the database can be.
probes = Table(
    "probes",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("at_ms", BigInteger, nullable=False),
)

# One row at the most: a known text, encrypted with the key with which all processes encrypt.
key_checks = Table(
    "key_checks",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("sealed", LargeBinary, nullable=False),
)

events = Table(
    "events",
    metadata,
    numbered(),
    _project(),
    Column("id", Text, nullable=False, unique=True),
    Column("run_id", Text, nullable=False),
    Column("sequence", Integer, nullable=False),
    Column("type", Text, nullable=False),
    Column("created_at_ms", BigInteger, nullable=False),
    Column("body", LargeBinary, nullable=False),
    UniqueConstraint("run_id", "sequence"),
    Index(None, "project_id", "position"),
    sqlite_autoincrement=True,
)

# What was answered to requests that are to happen once. The answer is null only inside the
# transaction that makes it; of a stream its run is kept instead.
idempotency_keys = Table(
    "idempotency_keys",
    metadata,
    numbered(),
    _project(),
    Column("key", Text, nullable=False),
    Column("digest", LargeBinary, nullable=False),
    Column("created_at_ms", BigInteger, nullable=False),
    Column("status", Integer),
    Column("headers", Text),
    Column("body", LargeBinary),
    Column("run_id", Text),
    UniqueConstraint("project_id", "key"),
)

# Where events are pushed. Secrets and headers are encrypted; only the service has the key.
webhook_endpoints = Table(
    "webhook_endpoints",
    metadata,
    numbered(),
    _project(),
    Column("id", Text, nullable=False, unique=True),
    Column("created_at_ms", BigInteger, nullable=False),
    Column("updated_at_ms", BigInteger, nullable=False),
    Column("name", Text, nullable=False),
    Column("url", Text, nullable=False),
    Column("subscription", Text, nullable=False),
    Column("rate_limit", Integer),
    Column("headers", LargeBinary),
    Column("metadata", Text, nullable=False),
    Column("secret", LargeBinary, nullable=False),
    Column("secret_hint", Text, nullable=False),
    Column("old_secret", LargeBinary),
    Column("old_secret_until_ms", BigInteger),
    Column("enabled", Boolean, nullable=False),
    Column("disabled_reason", Text),
    Column("failing_since_ms", BigInteger),
    Column("owed_until_ms", BigInteger),
    Index(None, "project_id", "position"),
    Index(
        "ix_webhook_endpoints_listening",
        "project_id",
        sqlite_where=text(LISTENING),
        postgresql_where=text(LISTENING),
    ),
)

# One event that is owed to one endpoint; its id is the event's. A new one is due at 0, which is in
# front of every retry: first attempts begin in the order of the positions.
deliveries = Table(
    "deliveries",
    metadata,
    numbered(),
    Column("endpoint_id", Text, nullable=False),
    Column("id", Text, nullable=False),
    Column("run_id", Text, nullable=False),
    Column("type", Text, nullable=False),
    Column("created_at_ms", BigInteger, nullable=False),
    Column("status", Text, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("failures", Integer, nullable=False),
    Column("since_ms", BigInteger, nullable=False),
    Column("next_at_ms", BigInteger),
    Column("settled_at_ms", BigInteger),
    UniqueConstraint("endpoint_id", "id"),
    Index(None, "endpoint_id", "position"),
    Index(None, "run_id"),
    Index(
        "ix_deliveries_due",
        "endpoint_id",
        "next_at_ms",
        "position",
        sqlite_where=text(PENDING),
        postgresql_where=text(PENDING),
    ),
    Index(
        "ix_deliveries_unsettled",
        "endpoint_id",
        "status",
        "position",
        sqlite_where=text(UNSETTLED),
        postgresql_where=text(UNSETTLED),
    ),
)

# What came of each POST. `delivery` is the position of its delivery.
attempts = Table(
    "attempts",
    metadata,
    numbered(),
    Column("delivery", BigInteger, nullable=False),
    Column("number", Integer, nullable=False),
    Column("at_ms", BigInteger, nullable=False),
    Column("duration_ms", BigInteger, nullable=False),
    Column("status_code", Integer),
    Column("error", Text),
    Column("excerpt", Text),
    UniqueConstraint("delivery", "number"),
)
