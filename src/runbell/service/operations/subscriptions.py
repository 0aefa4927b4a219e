"""Which endpoint wants which event. Pure."""

from __future__ import annotations

from runbell.runs import Run
from runbell.service.wire.webhooks import ALL_EVENTS
from runbell.storage.endpoints import Subscription

__all__ = ["wants"]


def wants(subscription: Subscription, run: Run, kind: str) -> bool:
    """Whether an endpoint is to be sent an event of this type, of the run as it is then."""
    types = subscription.event_types
    if kind not in types and ALL_EVENTS not in types:
        return False
    if subscription.assistant_ids and run.assistant_id not in subscription.assistant_ids:
        return False
    return subscription.metadata.items() <= run.metadata.items()
