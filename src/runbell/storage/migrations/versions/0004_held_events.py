"""Endpoints that the service has disabled: until when events are owed to them all the same."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

LISTENING = "enabled OR owed_until_ms IS NOT NULL"


def upgrade() -> None:
    op.add_column("webhook_endpoints", sa.Column("owed_until_ms", sa.BigInteger(), nullable=True))
    op.drop_index("ix_webhook_endpoints_enabled", "webhook_endpoints")
    op.create_index(
        "ix_webhook_endpoints_listening",
        "webhook_endpoints",
        ["project_id"],
        sqlite_where=sa.text(LISTENING),
        postgresql_where=sa.text(LISTENING),
    )
