"""Who may come in: API keys, and the projects that they open."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import secrets
from collections.abc import Iterable
from dataclasses import dataclass

from runbell.clock import Clock
from runbell.errors import Conflict, RequestRefused
from runbell.service.operations.ids import new_id
from runbell.storage import projects
from runbell.storage.records import ApiKey, KeyOrigin, Project
from runbell.storage.store import Store, Transaction

__all__ = [
    "DEFAULT_PROJECT",
    "Access",
    "Caller",
    "comes_from_here",
    "create_key",
    "ensure_project",
    "masked",
    "new_key",
]

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
    store: Store, clock: Clock, project: Project, origin: KeyOrigin, rpm: int | None = None
) -> tuple[str, ApiKey]:
    """Make a key for a project and store its row.

    Args:
        rpm: requests a minute that it may make; 0 is no limit, None is the service's.

    Returns:
        The key, which nothing can show again, and its row.
    """
    key, row = new_key(clock, project, origin, rpm)
    await store.write(lambda tx: projects.insert_key(tx, row))
    return key, row


def new_key(
    clock: Clock, project: Project, origin: KeyOrigin, rpm: int | None = None
) -> tuple[str, ApiKey]:
    """A key for a project and its row, which is not stored yet."""
    key = f"sk-rb-{secrets.token_urlsafe(32)}"
    row = ApiKey(
        id=new_id("key", clock),
        project_id=project.id,
        digest=_digest(key),
        hint=masked(key),
        origin=origin,
        created_at_ms=clock.now_ms(),
        rpm=rpm,
    )
    return key, row


@dataclass(frozen=True, slots=True)
class Caller:
    """Who sent a request, by its key.

    Attributes:
        project: the id of the project that the key opens.
        key_id: of the key; that from the settings has none, and is called `settings`.
        hint: what may be shown of the key.
        rpm: requests a minute that it may make; 0 is no limit, None is the service's.
    """

    project: str
    key_id: str
    hint: str
    rpm: int | None = None


class Access:
    """Finds out whose key a request carries.

    Args:
        settings_key: a key from the settings, for the project `settings_project`; None without.
    """

    def __init__(self, store: Store, settings_key: str | None, settings_project: str) -> None:
        self._store = store
        self._settings_digest = None if settings_key is None else _digest(settings_key)
        self._settings_caller = Caller(settings_project, "settings", masked(settings_key or ""))

    async def caller(self, key: str | None) -> Caller:
        """Who it is. A key that was revoked elsewhere is refused from that moment.

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
            return self._settings_caller
        row = await self._store.read(lambda tx: projects.find_key(tx, digest))
        # Found by its digest; compared once more so that an index's timing decides nothing.
        if row is None or not hmac.compare_digest(row.digest, digest):
            raise RequestRefused(
                401,
                f"Incorrect API key provided: {masked(key)}. A key of this service is needed: "
                "'runbell keys create' makes one.",
                code="invalid_api_key",
            )
        return Caller(row.project_id, row.id, row.hint, row.rpm)

    async def operator(self, key: str | None) -> None:
        """Let in who looks after the service: the default project's keys, and no others.

        The numbers of the whole service tell every project's doings.

        Raises:
            RequestRefused: (401) there is no key, or it opens nothing; (403) it is another's.
        """
        if (await self.caller(key)).project != self._settings_caller.project:
            raise RequestRefused(
                403, f"This is for keys of the project '{DEFAULT_PROJECT}'.", code="forbidden"
            )


_FORWARDED = frozenset(
    {b"forwarded", b"via", b"x-forwarded-for", b"x-forwarded-host", b"x-real-ip"}
)


def comes_from_here(peer: tuple[str, int] | None, headers: Iterable[tuple[bytes, bytes]]) -> bool:
    """A request was sent by a program on this machine, for itself.

    A proxy on this machine has a loopback address too, and speaks for others: a request that bears
    a proxy's mark does not count. The marks are believed in this direction alone; nothing that they
    say lets anybody in.
    """
    if peer is None:
        return False
    try:
        address = ipaddress.ip_address(peer[0].partition("%")[0])
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    if not (mapped or address).is_loopback:
        return False
    return not any(name in _FORWARDED for name, _ in headers)
