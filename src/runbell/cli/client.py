"""How a command that is a client reaches a service: the options, and what can go wrong.

def command(base_url: BaseUrl = None, api_key: ApiKey = None) -> None:
    with connect(base_url, api_key) as client:
        client.get("/events", cast_to=object)
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated

import typer

from runbell.errors import ConfigurationError, RunbellError

if TYPE_CHECKING:
    from openai import APIStatusError, OpenAI

__all__ = ["API_KEY_VARIABLE", "ApiKey", "BaseUrl", "Service", "connect", "locate", "sentence"]

BASE_URL_VARIABLE = "OPENAI_BASE_URL"
API_KEY_VARIABLE = "OPENAI_API_KEY"

BaseUrl = Annotated[
    str | None,
    typer.Option(
        "--base-url",
        envvar=BASE_URL_VARIABLE,
        metavar="URL",
        help="The service, for example http://127.0.0.1:8100/v1.",
    ),
]
ApiKey = Annotated[
    str | None,
    # The value of the variable is a secret: help shows its name alone.
    typer.Option(
        "--api-key",
        envvar=API_KEY_VARIABLE,
        metavar="KEY",
        show_default=False,
        help="A key of the service.",
    ),
]


@dataclass(frozen=True)
class Service:
    """A service that the options name, and what to say when it does not do what it should."""

    url: str
    key: str = field(repr=False)

    def refusal(self, status: int, said: str) -> RunbellError:
        """The error for an answer that nobody expected; `said` is its message."""
        if status in (401, 403):
            origin = _origin(self.key, "--api-key", API_KEY_VARIABLE)
            return ConfigurationError(f"{self.url} refused the key from {origin}: {said}")
        if status == 404 and not self.url.rstrip("/").endswith(("/v1", "/openai")):
            return ConfigurationError(f"{self.url} has no such API; a base URL mostly ends in /v1")
        return RunbellError(f"{self.url} answered: {said}")

    def silence(self, cause: BaseException) -> ConfigurationError:
        """The error for no answer at all."""
        return ConfigurationError(
            f"no answer from {self.url} ({str(cause) or type(cause).__name__}); is the service "
            f"running, and is {_origin(self.url, '--base-url', BASE_URL_VARIABLE)} right?"
        )


def locate(base_url: str | None, api_key: str | None) -> Service:
    """The service that the options name; nothing is asked of it yet.

    Raises:
        ConfigurationError: there is no base URL or key, or it cannot be one.
    """
    url = _required("base URL", base_url, "--base-url", BASE_URL_VARIABLE)
    key = _required("API key", api_key, "--api-key", API_KEY_VARIABLE)
    if not url.startswith(("http://", "https://")):
        raise ConfigurationError(f"the base URL must start with http:// or https://: {url!r}")
    if not (key.isascii() and key.isprintable()):
        raise ConfigurationError(
            f"the API key from {_origin(key, '--api-key', API_KEY_VARIABLE)} "
            "holds characters that no key has"
        )
    return Service(url, key)


@contextmanager
def connect(base_url: str | None, api_key: str | None) -> Iterator[OpenAI]:
    """A client of the service that the options name; its errors become sentences of ours.

    Raises:
        ConfigurationError: there is no base URL or key, nobody answers at the URL, or the service
            refused the key.
        RunbellError: the service answered with another error that the command did not expect.
    """
    service = locate(base_url, api_key)

    from openai import APIConnectionError, APIError, APIStatusError, OpenAI

    with OpenAI(base_url=service.url, api_key=service.key, timeout=30) as client:
        try:
            yield client
        except APIStatusError as error:
            raise service.refusal(error.status_code, sentence(error)) from error
        except APIConnectionError as error:
            raise service.silence(error.__cause__ or error) from error
        except APIError as error:
            message = f"{service.url} sent an answer that is not the API's: {error}"
            raise RunbellError(message) from error


def sentence(error: APIStatusError) -> str:
    """What the service said: the message of its error body, or else its status."""
    body = error.body
    if isinstance(body, dict) and isinstance(body.get("message"), str):
        return str(body["message"])
    return f"HTTP status {error.status_code}"


def _required(what: str, value: str | None, option: str, variable: str) -> str:
    value = (value or "").strip()
    if not value:
        raise ConfigurationError(f"no {what}: set {option} or {variable}")
    return value


def _origin(value: str, option: str, variable: str) -> str:
    """Where a value came from, so that an error can name the place to change."""
    return variable if os.environ.get(variable, "").strip() == value else option
