"""Run by Alembic for `runbell.receiver`: on the connection that `storage.migrate` has opened, or
to write down the statements that bring a PostgreSQL database forward."""

from alembic import context

from runbell.receiver.schema import INBOX, metadata

if context.is_offline_mode():
    # One transaction is around all of it, where the statements are executed.
    context.configure(
        dialect_name="postgresql",
        target_metadata=metadata,
        version_table=INBOX.version_table,
        transactional_ddl=False,
    )
else:
    context.configure(
        connection=context.config.attributes["connection"],
        target_metadata=metadata,
        version_table=INBOX.version_table,
        transactional_ddl=True,
        render_as_batch=True,
    )
with context.begin_transaction():
    context.run_migrations()
