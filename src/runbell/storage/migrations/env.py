"""Run by Alembic, on the connection that `runbell.storage.migrate` opened."""

from alembic import context

from runbell.storage.schema import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    transactional_ddl=True,
    render_as_batch=True,
)
with context.begin_transaction():
    context.run_migrations()
