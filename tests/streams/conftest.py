"""The fixtures of the protocol tests, here too."""

from tests.protocol.conftest import echo, new_project, project

__all__ = ["echo", "new_project", "project"]
