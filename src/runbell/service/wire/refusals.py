"""What is said about a request that is wrong: one function for each of OpenAI's sentences.

Programs match these sentences and codes, so they are OpenAI's to the letter where OpenAI has one.
Each function returns the error; the caller raises it. What a client sent is repeated only in
part, so that an answer stays small.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from runbell.errors import RequestRefused

__all__ = [
    "above_maximum",
    "below_minimum",
    "clipped",
    "invalid_type",
    "invalid_value",
    "kind_of",
    "malformed",
    "missing_parameter",
    "pattern_mismatch",
    "too_long",
    "too_many_properties",
    "too_short",
    "unknown_parameter",
    "unknown_query_parameter",
    "unsupported",
    "unsupported_value",
]

_MAX_REPEATED = 100
"""Characters of a name or a value from the request that an answer repeats."""

_WORDS: dict[type, str] = {
    type(None): "null",
    bool: "boolean",
    int: "integer",
    float: "decimal",
    str: "string",
    list: "array",
    dict: "object",
}

_ARTICLES = {"integer": "an", "array": "an", "object": "an"}


def clipped(text: str) -> str:
    """The text as an answer may repeat it."""
    return text if len(text) <= _MAX_REPEATED else text[:_MAX_REPEATED] + "…"


def kind_of(value: Any) -> str:
    """JSON's word for what the value is."""
    return _WORDS[type(value)]


def malformed(reason: str) -> RequestRefused:
    """The body is not JSON that can be read; `reason` says where, and repeats nothing of it."""
    return _refused(f"We could not parse the JSON body of your request: {reason}.", None, None)


def unknown_parameter(path: str) -> RequestRefused:
    return _refused(f"Unknown parameter: '{path}'.", path, "unknown_parameter")


def unknown_query_parameter(name: str) -> RequestRefused:
    name = clipped(name)
    return _refused(f"Unknown query parameter: '{name}'.", name, "unknown_parameter")


def missing_parameter(path: str) -> RequestRefused:
    return _refused(f"Missing required parameter: '{path}'.", path, "missing_required_parameter")


def invalid_type(path: str, expected: Iterable[str], got: str) -> RequestRefused:
    """`expected` and `got` are JSON's kinds: "string", "integer", "decimal", "null", …"""
    wanted = " or ".join(_with_article(kind) for kind in expected)
    if " or " in wanted:
        wanted = f"one of {wanted}"
    subject = f"Invalid type for '{path}'" if path else "Invalid type for the request body"
    sentence = f"{subject}: expected {wanted}, but got {_with_article(got)} instead."
    return _refused(sentence, path, "invalid_type")


def unsupported_value(path: str, value: str, supported: Sequence[str]) -> RequestRefused:
    """The value is none of the few that the field can have."""
    *others, last = [f"'{each}'" for each in supported]
    listed = f"{', '.join(others)}{',' if len(others) > 1 else ''} and {last}" if others else last
    verb = "Supported values are" if others else "The only supported value is"
    return _refused(f"Invalid value: '{clipped(value)}'. {verb}: {listed}.", path, "invalid_value")


def invalid_value(path: str, reason: str) -> RequestRefused:
    """The value has the right type and breaks a rule; `reason` says which."""
    subject = f"Invalid '{path}'" if path else "Invalid request body"
    return _refused(f"{subject}: {reason}.", path, "invalid_value")


def pattern_mismatch(path: str, pattern: str) -> RequestRefused:
    return invalid_value(
        path,
        f"string does not match pattern. Expected a string that matches the pattern '{pattern}'",
    )


def above_maximum(path: str, kind: str, maximum: float, value: float) -> RequestRefused:
    return _refused(
        f"Invalid '{path}': {kind} above maximum value. "
        f"Expected a value <= {_number(maximum)}, but got {_number(value)} instead.",
        path,
        f"{kind}_above_max_value",
    )


def below_minimum(path: str, kind: str, minimum: float, value: float) -> RequestRefused:
    return _refused(
        f"Invalid '{path}': {kind} below minimum value. "
        f"Expected a value >= {_number(minimum)}, but got {_number(value)} instead.",
        path,
        f"{kind}_below_min_value",
    )


def too_long(path: str, kind: str, maximum: int, length: int) -> RequestRefused:
    """`kind` is "string", "array", or "key" for a key of the object at `path`."""
    one = _with_article(kind)
    return _refused(
        f"Invalid '{path}': {kind} too long. Expected {one} with maximum length {maximum}, "
        f"but got {one} with length {length} instead.",
        path,
        "array_above_max_length" if kind == "array" else "string_above_max_length",
    )


def too_short(path: str, kind: str, minimum: int, length: int) -> RequestRefused:
    """`kind` is "string" or "array"."""
    got = f"an empty {kind}" if not length else f"{_with_article(kind)} with length {length}"
    return _refused(
        f"Invalid '{path}': {kind} too short. Expected {_with_article(kind)} with minimum length "
        f"{minimum}, but got {got} instead.",
        path,
        f"{kind}_below_min_length",
    )


def too_many_properties(path: str, maximum: int, count: int) -> RequestRefused:
    return _refused(
        f"Invalid '{path}': too many properties. Expected an object with at most {maximum} "
        f"properties, but got an object with {count} properties instead.",
        path,
        "object_above_max_properties",
    )


def unsupported(path: str, advice: str) -> RequestRefused:
    """Runbell does not have what the field asks for; `advice` is a sentence on what to do."""
    return _refused(f"Unsupported parameter: '{path}'. {advice}", path, "unsupported_parameter")


def _refused(message: str, path: str | None, code: str | None) -> RequestRefused:
    return RequestRefused(400, message, param=path or None, code=code)


def _with_article(kind: str) -> str:
    return kind if kind == "null" else f"{_ARTICLES.get(kind, 'a')} {kind}"


def _number(value: float) -> str:
    """As a client would write it: limits are declared as floats, but 2.0 is meant as 2."""
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        value = int(value)
    return clipped(str(value))
