"""Run by Alembic, on the connection that `runbell.storage.migrate` opened."""

from alembic import context

from runbell.receiver.schema import INBOX, metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    version_table=INBOX.version_table,
    transactional_ddl=True,
    render_as_batch=True,
)
with context.begin_transaction():
    context.run_migrations()
