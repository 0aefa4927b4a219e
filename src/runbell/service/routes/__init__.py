"""What can be called: every route of the API, in one table."""

from __future__ import annotations

from runbell.service.routes import assistants, events, messages, models, runs, threads, webhooks
from runbell.service.routes.routing import Route

__all__ = ["ROUTES", "Route"]

ROUTES: tuple[Route, ...] = (
    *runs.ROUTES,
    *messages.ROUTES,
    *threads.ROUTES,
    *assistants.ROUTES,
    *events.ROUTES,
    *webhooks.ROUTES,
    *models.ROUTES,
)
"""Every route; the app, the documents and the tests are made from this table."""
