"""Which kinds of asynchronous work can be waited for, and how an object finds its provider."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from runbell.client.providers.base import (
    ActingProvider,
    BatchingProvider,
    Provider,
)
from runbell.client.providers.jobs import Batches, FileBatches, FineTuningJobs, Responses
from runbell.client.providers.runs import RunRef, Runs
from runbell.errors import ConfigurationError

__all__ = [
    "PROVIDERS",
    "ActingProvider",
    "Batches",
    "BatchingProvider",
    "FileBatches",
    "FineTuningJobs",
    "Provider",
    "Responses",
    "RunRef",
    "Runs",
    "provider_of",
]

PROVIDERS: tuple[Provider[Any], ...] = (
    Runs(),
    Responses(),
    Batches(),
    FineTuningJobs(),
    FileBatches(),
)
"""Those that are built in."""


def provider_of(item: object, more: Sequence[Provider[Any]] = ()) -> Provider[Any]:
    """The provider that `item` belongs to; `more` are asked first.

    Raises:
        ConfigurationError: nobody knows such an object.
    """
    for provider in (*more, *PROVIDERS):
        if provider.owns(item):
            return provider
    raise ConfigurationError(
        f"{type(item).__name__} is nothing that can be waited for: pass what create or retrieve "
        "gave, or a Provider for it"
    )
