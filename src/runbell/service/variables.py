"""Variables of the environment, and the files that stand for them.

Secrets reach a process as files: Docker and Kubernetes mount them, systemd has its credentials. So
`NAME_FILE` may name the file that holds what `NAME` would.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from runbell.errors import InvalidSetting

__all__ = ["FILE", "variable"]

FILE: Final = "_FILE"
"""Behind a variable's name: its value is in the file that this one names."""

_LARGEST_FILE: Final = 65_536


def variable(name: str, environ: Mapping[str, str]) -> str:
    """A variable's value, or what the file holds that its `_FILE` names; empty for neither.

    Raises:
        InvalidSetting: both are set, or the file cannot be used. Says nothing of what is in it.
    """
    # Mounted secrets and env files end in line feeds.
    value = environ.get(name, "").strip()
    named = environ.get(f"{name}{FILE}", "").strip()
    if not named:
        return value
    if value:
        raise InvalidSetting(f"{name} and {name}{FILE} are both set: unset one of them")
    return _held(named, f"{name}{FILE}")


def _held(path: str, origin: str) -> str:
    try:
        with Path(path).open("rb") as stream:
            text = stream.read(_LARGEST_FILE + 1)
        held = text.decode().strip()
    except OSError as error:
        raise InvalidSetting(f"{origin} names {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise InvalidSetting(f"{origin} names {path}, which is no text") from None
    if not held or len(text) > _LARGEST_FILE:
        # Nothing in it is not nothing said: a secret that was to be there is missing.
        raise InvalidSetting(f"{origin} names {path}, which is {'too long' if held else 'empty'}")
    return held
