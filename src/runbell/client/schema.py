"""Does a value fit a JSON Schema? The part of it that tools use, without a package."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping
from typing import Any

__all__ = ["problems"]

TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "number": (int, float),
    "integer": (int,),
    "boolean": (bool,),
    "array": (list,),
    "object": (dict,),
    "null": (type(None),),
}

BOUNDS = {
    "minimum": operator.ge,
    "maximum": operator.le,
    "exclusiveMinimum": operator.gt,
    "exclusiveMaximum": operator.lt,
}


def problems(value: Any, schema: Any, path: str = "") -> Iterator[str]:
    """What is wrong with `value`, as sentences; nothing if it fits.

    Checks `type`, `enum`, `const`, `properties`, `required`, `additionalProperties`, `items`,
    `anyOf` and `oneOf` (as any of), and the bounds of numbers. What else a schema says is not
    looked at: a function may still refuse its arguments.
    """
    if not isinstance(schema, Mapping):
        return
    place = path or "the arguments"
    wanted = schema.get("type")
    if wanted is not None and not _has_type(value, wanted):
        yield f"{place} should be {_either(wanted)}, not {_type_of(value)}"
        return
    yield from _in_choices(value, schema, path, place)
    if isinstance(value, dict):
        yield from _in_object(value, schema, path)
    elif isinstance(value, list):
        for number, item in enumerate(value):
            yield from problems(item, schema.get("items"), f"{path}[{number}]")
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield from _in_bounds(value, schema, place)


def _in_choices(value: Any, schema: Mapping[str, Any], path: str, place: str) -> Iterator[str]:
    if "enum" in schema and value not in schema["enum"]:
        yield f"{place} should be one of {schema['enum']}"
    if "const" in schema and value != schema["const"]:
        yield f"{place} should be {schema['const']!r}"
    for choice in ("anyOf", "oneOf"):
        options = schema.get(choice)
        if options and all(any(problems(value, option, path)) for option in options):
            yield f"{place} fits none of the forms that it can have"


def _in_object(value: dict[str, Any], schema: Mapping[str, Any], path: str) -> Iterator[str]:
    properties = schema.get("properties") or {}
    for name in schema.get("required") or ():
        if name not in value:
            yield f"{_at(path, name)} is missing"
    rest = schema.get("additionalProperties", True)
    for name, item in value.items():
        if name in properties:
            yield from problems(item, properties[name], _at(path, name))
        elif rest is False:
            yield f"{_at(path, name)} is not known"
        else:
            yield from problems(item, rest, _at(path, name))


def _in_bounds(value: float, schema: Mapping[str, Any], place: str) -> Iterator[str]:
    for name, holds in BOUNDS.items():
        bound = schema.get(name)
        # Before 2019 the exclusive ones were booleans.
        if (
            isinstance(bound, int | float)
            and not isinstance(bound, bool)
            and not holds(value, bound)
        ):
            yield f"{place} is beyond its {name}, {bound}"


def _has_type(value: Any, wanted: Any) -> bool:
    names = wanted if isinstance(wanted, list) else [wanted]
    return any(name not in TYPES or _is(value, name) for name in names)


def _is(value: Any, name: str) -> bool:
    if isinstance(value, bool):  # which Python takes for an integer
        return name == "boolean"
    if name == "integer" and isinstance(value, float):
        return value.is_integer()
    return isinstance(value, TYPES[name])


def _type_of(value: Any) -> str:
    return next(name for name in ("boolean", "integer", *TYPES) if _is(value, name))


def _either(wanted: Any) -> str:
    return " or ".join(wanted) if isinstance(wanted, list) else str(wanted)


def _at(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
