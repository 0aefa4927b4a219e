"""Who may come in: API keys, and the projects that they open."""

from __future__ import annotations

import hashlib
import hmac
import secrets

from runbell.clock import Clock
from runbell.errors import Conflict, RequestRefused
from runbell.service.operations.ids import new_id
from runbell.storage import projects
from runbell.storage.records import ApiKey, KeyOrigin, Project
from runbell.storage.store import Store, Transaction

__all__ = ["DEFAULT_PROJECT", "Access", "create_key", "ensure_project", "masked", "new_key"]

DEFAULT_PROJECT = "default"
"""The name of the project that keys belong to where no other is named."""


def masked(key: str) -> str:
    """What may be shown of a key: enough to recognise it, too little to use it."""
    return f"{key[:5]}***{key[-2:]}" if len(key) >= 16 else "***"


def _digest(key: str) -> str:
    # Keys are long and random, so a plain hash cannot be searched; a slow one would cost each call.
    return hashlib.sha256(key.encode(errors="surrogateescape")).hexdigest()


async def ensure_project(store: Store, clock: Clock, name: str) -> Project:
    """The project of this name, made if there is none."""

    async def work(tx: Transaction) -> Project:
        found = await projects.named(tx, name)
        if found is not None:
            return found
        project = Project(new_id("proj", clock), name, clock.now_ms())
        await projects.insert(tx, project)
        return project

    try:
        return await store.write(work)
    except Conflict:
        return await store.write(work)


async def create_key(
    store: Store, clock: Clock, project: Project, origin: KeyOrigin
) -> tuple[str, ApiKey]:
    """Make a key for a project and store its row.

    Returns:
        The key, which nothing can show again, and its row.
    """
    key, row = new_key(clock, project, origin)
    await store.write(lambda tx: projects.insert_key(tx, row))
    return key, row


def new_key(clock: Clock, project: Project, origin: KeyOrigin) -> tuple[str, ApiKey]:
    """A key for a project and its row, which is not stored yet."""
    key = f"sk-rb-{secrets.token_urlsafe(32)}"
    row = ApiKey(
        id=new_id("key", clock),
        project_id=project.id,
        digest=_digest(key),
        hint=masked(key),
        origin=origin,
        created_at_ms=clock.now_ms(),
    )
    return key, row


class Access:
    """Finds the project that a request's key opens.

    Args:
        settings_key: a key from the settings, for the project `settings_project`; None without.
    """

    def __init__(self, store: Store, settings_key: str | None, settings_project: str) -> None:
        self._store = store
        self._settings_digest = None if settings_key is None else _digest(settings_key)
        self._settings_project = settings_project

    async def project(self, key: str | None) -> str:
        """The id of the project. A key that was revoked elsewhere is refused from that moment.

        Raises:
            RequestRefused: (401) there is no key, or it opens nothing.
        """
        if not key:
            raise RequestRefused(
                401,
                "You didn't provide an API key. Send it as 'Authorization: Bearer KEY' or "
                "'api-key: KEY'.",
                code="invalid_api_key",
            )
        digest = _digest(key)
        if self._settings_digest is not None and hmac.compare_digest(digest, self._settings_digest):
            return self._settings_project
        row = await self._store.read(lambda tx: projects.find_key(tx, digest))
        # Found by its digest; compared once more so that an index's timing decides nothing.
        if row is None or not hmac.compare_digest(row.digest, digest):
            raise RequestRefused(
                401,
                f"Incorrect API key provided: {masked(key)}. A key of this service is needed: "
                "'runbell keys create' makes one.",
                code="invalid_api_key",
            )
        return row.project_id
