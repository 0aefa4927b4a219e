"""What a measurement says: a number beside its target, on a machine that is described."""

from __future__ import annotations

import os
import platform
import sqlite3
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from typing import Any

import psutil

from runbell import __version__

__all__ = ["Figure", "machine", "percentile", "significant", "within"]

PACKAGES = ("starlette", "uvicorn", "uvloop", "msgspec", "sqlalchemy", "aiohttp")


@dataclass(frozen=True)
class Figure:
    """One number.

    Attributes:
        name: which, in snake case, with its unit at the end.
        value: the number.
        target: what it should be, such as `<= 1.5`; None for a number that only explains.
        met: whether it is; None without a target.
        how: what was counted.
        detail: what the number was made from.
    """

    name: str
    value: float
    target: str | None = None
    met: bool | None = None
    how: str = ""
    detail: dict[str, Any] = field(default_factory=dict)

    def line(self) -> str:
        """For people: `cpu_a_read_ms: 0.12, target <= 0.15: met`."""
        if self.target is None:
            return f"{self.name}: {self.value:g}"
        verdict = "met" if self.met else "MISSED"
        return f"{self.name}: {self.value:g}, target {self.target}: {verdict}"

    def document(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if value not in ("", {})}


def within(name: str, value: float, limit: float, how: str, **detail: Any) -> Figure:
    """A figure that must not be above a limit."""
    return Figure(name, significant(value), f"<= {limit:g}", value <= limit, how, detail)


def significant(value: float) -> float:
    """The first three digits: what stands behind them is noise."""
    return float(f"{value:.3g}")


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest value that `percent` of the values do not exceed (nearest rank)."""
    ordered = sorted(values)
    rank = max(1, -(-len(ordered) * percent // 100))
    return ordered[int(rank) - 1]


def machine() -> dict[str, Any]:
    """What the numbers depend on."""
    return {
        "cores": os.cpu_count(),
        "load_average": [round(load, 2) for load in os.getloadavg()],
        "platform": platform.platform(),
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
        "database_filesystem": _filesystem(tempfile.gettempdir()),
        "runbell": __version__,
        "packages": {name: version(name) for name in PACKAGES},
    }


def _filesystem(directory: str) -> str:
    """What the database is on: one in memory makes every commit look free."""
    path = os.path.realpath(directory)
    mounts = [
        mount
        for mount in psutil.disk_partitions(all=True)
        if os.path.commonpath([path, mount.mountpoint]) == mount.mountpoint
    ]
    return max(mounts, key=lambda mount: len(mount.mountpoint)).fstype if mounts else "unknown"
