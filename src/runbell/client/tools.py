"""Functions that a model can call: what they have to fit, and what becomes of what they give."""

from __future__ import annotations

import dataclasses
import inspect
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from runbell.client.schema import problems
from runbell.errors import ToolMismatch

__all__ = ["BadArguments", "Tool", "Tools", "check", "error_output", "output_of", "toolbox"]

Tools = Mapping[str, Callable[..., Any]] | Iterable[Callable[..., Any]]
"""Functions by the names that the model knows, or functions that have those names themselves."""


class BadArguments(Exception):
    """The model called a function with arguments that it does not take."""


@dataclass(frozen=True, slots=True)
class Tool:
    """One function.

    Attributes:
        schema: of its parameters, as the model sees them; None where nobody said.
    """

    name: str
    function: Callable[..., Any]
    schema: Mapping[str, Any] | None = None

    @property
    def is_async(self) -> bool:
        """What it returns is awaited, on the event loop of whoever waits."""
        call = getattr(self.function, "__call__", None)  # noqa: B004 - objects with an async call
        return inspect.iscoroutinefunction(self.function) or inspect.iscoroutinefunction(call)

    def arguments(self, text: str) -> dict[str, Any]:
        """The arguments of a call, checked.

        Raises:
            BadArguments: they are no JSON object, or do not fit the schema or the function; the
                message is for the model.
        """
        try:
            given = json.loads(text or "{}")
        except ValueError as error:
            raise BadArguments(f"the arguments are not JSON: {error}") from error
        if not isinstance(given, dict):
            raise BadArguments("the arguments are not a JSON object")
        wrong = "; ".join(problems(given, self.schema))
        if wrong:
            raise BadArguments(wrong)
        signature = _signature(self.function)
        try:
            if signature is not None:
                signature.bind(**given)
        except TypeError as error:
            raise BadArguments(str(error)) from error
        return given


def toolbox(tools: Tools | None) -> dict[str, Tool]:
    """The tools by name.

    Raises:
        ToolMismatch: something is no function, has no name, or two have the same.
    """
    if tools is None:
        return {}
    given: object = tools
    if callable(given) or isinstance(given, str):
        raise ToolMismatch(f"tools is a list of functions, or a dict by their names, not {tools!r}")
    pairs = tools.items() if isinstance(tools, Mapping) else [(_name_of(e), e) for e in tools]
    found: dict[str, Tool] = {}
    for name, function in pairs:
        if not callable(function):
            raise ToolMismatch(f"the tool {name} is no function but {type(function).__name__}")
        if name in found:
            raise ToolMismatch(f"two tools are called {name}")
        found[name] = Tool(name, function)
    return found


def _name_of(function: Any) -> str:
    if not callable(function):
        raise ToolMismatch(f"{function!r} is no function: pass the function itself")
    name = getattr(function, "__name__", None)
    if not isinstance(name, str) or name == "<lambda>":
        raise ToolMismatch(f"{function!r} has no name: pass tools={{'name': function}}")
    return name


def check(tools: Mapping[str, Tool], schemas: Mapping[str, Any]) -> dict[str, Tool]:
    """The tools, each with the schema of the function that the model sees.

    Args:
        schemas: JSON Schemas of the parameters, by name; tools that are not among them are kept.

    Raises:
        ToolMismatch: the model could call a function with a parameter that it does not have, or
            has no way to give one that it needs.
    """
    return {
        name: _fitted(tool, schemas[name]) if name in schemas else tool
        for name, tool in tools.items()
    }


def _fitted(tool: Tool, schema: Any) -> Tool:
    signature = _signature(tool.function)
    if not isinstance(schema, Mapping) or signature is None:
        return tool
    properties = schema.get("properties")
    if not isinstance(properties, Mapping):
        return dataclasses.replace(tool, schema=schema)
    parameters = signature.parameters.values()
    takes = {each.name for each in parameters if each.kind in _BY_NAME}
    takes_any = any(each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters)
    unknown = [name for name in properties if name not in takes and not takes_any]
    if unknown:
        raise ToolMismatch(
            f"{tool.name}: the model's tool has {_names(unknown)}, which the function does not take"
        )
    needed = [each.name for each in parameters if each.default is each.empty]
    missing = [name for name in needed if name in takes and name not in properties]
    if missing:
        raise ToolMismatch(
            f"{tool.name}: the function needs {_names(missing)}, which the model's tool has not"
        )
    return dataclasses.replace(tool, schema=schema)


_BY_NAME = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


def _signature(function: Callable[..., Any]) -> inspect.Signature | None:
    try:
        return inspect.signature(function)
    except (TypeError, ValueError):  # some built-ins have none
        return None


def _names(names: Iterable[str]) -> str:
    return ", ".join(repr(name) for name in names)


def output_of(result: Any) -> str:
    """What a function returned, as the model is told: a string as it is, anything else as JSON.

    Raises:
        TypeError, ValueError: it can't be JSON.
    """
    if isinstance(result, str):
        return result
    return json.dumps(result, ensure_ascii=False, default=_plain)


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    if hasattr(value, "model_dump"):  # Pydantic's
        return value.model_dump(mode="json")
    if isinstance(value, set | frozenset | tuple):
        return list(value)
    if hasattr(value, "isoformat"):
        return value.isoformat()
    raise TypeError(f"{type(value).__name__} is nothing that JSON has")


def error_output(message: str) -> str:
    """The output that tells a model that a call did not work."""
    return json.dumps({"error": message}, ensure_ascii=False)
