"""Events, runs, quarantine, side effects that happened, cursors."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "inbox_cursors",
        sa.Column("feed", sa.Text(), nullable=False),
        sa.Column("event_id", sa.Text(), nullable=False),
        sa.Column("updated_at_ms", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("feed", name=op.f("pk_inbox_cursors")),
    )
    op.create_table(
        "inbox_events",
        sa.Column(
            "position",
            sa.BigInteger().with_variant(sa.Integer(), "sqlite"),
            autoincrement=True,
            nullable=False,
        ),
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("type", sa.Text(), nullable=True),
        sa.Column("subject", sa.Text(), nullable=True),
        sa.Column("sequence", sa.BigInteger(), nullable=True),
        sa.Column("urgent", sa.Boolean(), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.Column("origin", sa.Text(), nullable=False),
        sa.Column("received_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("due_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("claim", sa.Text(), nullable=True),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("done", sa.Text(), nullable=True),
        sa.Column("forced", sa.Boolean(), nullable=False),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("ended_at_ms", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("position", name=op.f("pk_inbox_events")),
        sa.UniqueConstraint("id", name=op.f("uq_inbox_events_id")),
        sqlite_autoincrement=True,
    )
    op.create_index(
        "ix_inbox_events_dead",
        "inbox_events",
        ["position"],
        unique=False,
        sqlite_where=sa.text("state = 'dead'"),
        postgresql_where=sa.text("state = 'dead'"),
    )
    op.create_index(
        op.f("ix_inbox_events_due_at_ms_position"),
        "inbox_events",
        ["due_at_ms", "position"],
        unique=False,
        sqlite_where=sa.text("state = 'waiting'"),
        postgresql_where=sa.text("state = 'waiting'"),
    )
    op.create_index(
        op.f("ix_inbox_events_subject_sequence"),
        "inbox_events",
        ["subject", "sequence"],
        unique=False,
    )
    op.create_table(
        "inbox_once",
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("claim", sa.Text(), nullable=True),
        sa.Column("until_ms", sa.BigInteger(), nullable=False),
        sa.Column("done_at_ms", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("key", name=op.f("pk_inbox_once")),
    )
    op.create_index(op.f("ix_inbox_once_done_at_ms"), "inbox_once", ["done_at_ms"], unique=False)
    op.create_table(
        "inbox_others",
        sa.Column(
            "position",
            sa.BigInteger().with_variant(sa.Integer(), "sqlite"),
            autoincrement=True,
            nullable=False,
        ),
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("digest", sa.LargeBinary(), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.Column("received_at_ms", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("position", name=op.f("pk_inbox_others")),
        sa.UniqueConstraint("id", "digest", name=op.f("uq_inbox_others_id_digest")),
    )
    op.create_index(
        op.f("ix_inbox_others_received_at_ms"), "inbox_others", ["received_at_ms"], unique=False
    )
    op.create_table(
        "inbox_runs",
        sa.Column("run_id", sa.Text(), nullable=False),
        sa.Column("handled", sa.BigInteger(), nullable=False),
        sa.Column("updated_at_ms", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("run_id", name=op.f("pk_inbox_runs")),
    )
    op.create_index(
        op.f("ix_inbox_runs_updated_at_ms"), "inbox_runs", ["updated_at_ms"], unique=False
    )
