"""Alembic's entry: migrate over the connection that migrate.py hands in."""

from alembic import context

from orchestrator.store.schema import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata, render_as_batch=True)
with context.begin_transaction():
    context.run_migrations()
