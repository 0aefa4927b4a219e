"""What the protocol tests share: assistants that are ready, and projects of their own."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass

import pytest
from openai import OpenAI
from openai.types.beta import Assistant

from tests.protocol.scenario import function_tool
from tests.served import Api, Served


@dataclass(frozen=True)
class Project:
    """A project with a key of its own."""

    name: str
    key: str
    client: OpenAI
    api: Api


@pytest.fixture(scope="session")
def echo(client: OpenAI) -> Assistant:
    """An assistant that has two functions; nobody changes it."""
    return client.beta.assistants.create(
        model="echo", tools=[function_tool("get-weather"), function_tool("look_up")]
    )


@pytest.fixture(scope="session")
def new_project(served: Served) -> Callable[[], Project]:
    """Make a project that has nothing in it."""

    def make() -> Project:
        # Other folders have this fixture too, and the same service.
        name = f"project-{secrets.token_hex(4)}"
        key = served.create_key(name)
        return Project(name, key, served.client(key), served.api(key))

    return make


@pytest.fixture
def project(new_project: Callable[[], Project]) -> Project:
    """A project that nobody else uses."""
    return new_project()
