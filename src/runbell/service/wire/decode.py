"""How a request's body becomes one of the types of `requests`, and what is said if it does not.

msgspec decodes and checks in one pass, in a few microseconds. Only when it refuses is the body
read a second time, into plain values, and compared with the type: that finds what is wrong, with
the value and its place, which msgspec's own messages do not always name.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterable
from functools import cache
from itertools import accumulate
from typing import Any, TypeVar

import msgspec
from msgspec import inspect

from runbell.errors import RequestRefused
from runbell.service.wire import refusals
from runbell.service.wire.requests import Request

__all__ = ["MAX_DEPTH", "decode"]

MAX_EXPLAINED = 1_000_000
"""Bytes of a wrong body that are read a second time to say exactly what is wrong."""

MAX_DEPTH = 100
"""Levels of objects and arrays within each other that a body may have."""

T = TypeVar("T", bound=Request)


def decode(body: bytes, type: type[T]) -> T:  # noqa: A002 - what it is
    """The request that `body` holds. An empty body is an empty object, as the SDKs send it.

    Raises:
        RequestRefused: (400) it is no JSON, or not a request of this type.
    """
    if not body or body.isspace():
        body = b"{}"
    _check_encoding(body)
    _check_depth(body)
    try:
        request: T = _decoder(type).decode(body)
    except msgspec.ValidationError as error:
        raise _explained(body, type, str(error)) from None
    except msgspec.DecodeError as error:
        raise _malformed(body, str(error)) from None
    request.check()
    return request


@cache
def _decoder(type: Any) -> msgspec.json.Decoder[Any]:  # noqa: A002 - what it is
    return msgspec.json.Decoder(type)


# Whether the bytes can be read at all.

_BRACKETS = b"[]{}"
_NOT_BRACKETS = bytes(byte for byte in range(256) if byte not in _BRACKETS)
_STEPS = bytes.maketrans(_BRACKETS, array("b", [1, -1, 1, -1]).tobytes())
_SURROGATE_PAIR = re.compile(rb"\\u[dD][89abAB]..\\u[dD][c-fC-F]..")
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


def _check_encoding(body: bytes) -> None:
    """msgspec does not look into the strings that it skips; a body is UTF-8 as a whole."""
    if body.isascii():
        return
    try:
        body.decode()
    except UnicodeDecodeError as error:
        raise refusals.malformed(f"it is not UTF-8 (byte {error.start})") from None


def _check_depth(body: bytes) -> None:
    """Refuse what is nested too deep for a decoder that calls itself for each level.

    Up to the first byte that is not JSON the depth is exact, and no decoder gets beyond that byte.
    """
    if body.count(b"[") + body.count(b"{") <= MAX_DEPTH:
        return
    without_escapes = body.replace(rb"\\", b"").replace(rb"\"", b"")
    outside_strings = b"".join(without_escapes.split(b'"')[::2])
    steps = array("b", outside_strings.translate(_STEPS, _NOT_BRACKETS))
    if max(accumulate(steps), default=0) > MAX_DEPTH:
        raise refusals.malformed(f"it is nested more than {MAX_DEPTH} levels deep")


def _malformed(body: bytes, message: str) -> RequestRefused:
    """msgspec says `JSON is malformed: REASON (byte N)` or `Input data was truncated`.

    It says the latter of an emoji that was cut in two as well, which clients do send.
    """
    without_escapes = body.replace(rb"\\", b"")
    if _SURROGATE.search(_SURROGATE_PAIR.sub(b"", without_escapes)):
        return refusals.malformed("a string holds half of a surrogate pair")
    if message.startswith("JSON is malformed: "):
        return refusals.malformed(message.removeprefix("JSON is malformed: "))
    return refusals.malformed(f"it ends too early (byte {len(body)})")


# What is wrong with a body that is JSON.


def _explained(body: bytes, type: Any, message: str) -> RequestRefused:  # noqa: A002 - what it is
    if len(body) > MAX_EXPLAINED:
        return refusals.invalid_value("body", refusals.clipped(message))
    reason, _, place = message.partition(" - at `$")
    path = refusals.clipped(place.partition("[...]")[0].strip("`").lstrip("."))
    if reason in ("Number out of range", "Integer value out of range"):
        return refusals.invalid_value(path, "number out of range")
    try:
        value = msgspec.json.decode(body)
    except msgspec.ValidationError:
        return refusals.malformed("a number is out of range")
    except msgspec.DecodeError as error:
        return _malformed(body, str(error))
    problem = _problem(value, inspect.type_info(type), "")
    # Of a field that stands twice only the last is left in `value`, and that one may be right.
    return problem or refusals.invalid_value(path, refusals.clipped(reason))


_KINDS: dict[type[inspect.Type], tuple[str, ...]] = {
    inspect.NoneType: ("null",),
    inspect.BoolType: ("boolean",),
    inspect.IntType: ("integer",),
    inspect.FloatType: ("decimal", "integer"),
    inspect.StrType: ("string",),
    inspect.LiteralType: ("string",),
    inspect.ListType: ("array",),
    inspect.VarTupleType: ("array",),
    inspect.DictType: ("object",),
    inspect.StructType: ("object",),
    inspect.AnyType: ("null", "boolean", "integer", "decimal", "string", "array", "object"),
}
"""The kinds of JSON value that each kind of type takes; it is named by the first."""


def _problem(value: Any, node: inspect.Type, path: str) -> RequestRefused | None:
    """The first thing about `value` that its type does not allow, in the order of the body."""
    kind = refusals.kind_of(value)
    choices = node.types if isinstance(node, inspect.UnionType) else (node,)
    fitting = [choice for choice in choices if kind in _KINDS[type(choice)]]
    if not fitting:
        names = dict.fromkeys(_KINDS[type(choice)][0] for choice in choices)
        names.pop("null", None)
        return refusals.invalid_type(path, names, kind)
    structs = [choice for choice in fitting if isinstance(choice, inspect.StructType)]
    if structs:
        return _tagged_problem(value, structs, path)
    match fitting[0]:
        case inspect.LiteralType(values=values) if value not in values:
            return refusals.unsupported_value(path, value, [str(each) for each in values])
        case inspect.StrType(min_length=least, max_length=most):
            return _length_problem(len(value), "string", least, most, path)
        case inspect.IntType(ge=least, le=most) | inspect.FloatType(ge=least, le=most):
            name = _KINDS[type(fitting[0])][0]
            if most is not None and value > most:
                return refusals.above_maximum(path, name, most, value)
            if least is not None and value < least:
                return refusals.below_minimum(path, name, least, value)
        case inspect.ListType() | inspect.VarTupleType() as items:
            return _length_problem(
                len(value), "array", items.min_length, items.max_length, path
            ) or _first(
                _problem(item, items.item_type, f"{path}[{index}]")
                for index, item in enumerate(value)
            )
        case inspect.DictType() as properties:
            return _properties_problem(value, properties, path)
    return None


def _tagged_problem(
    value: dict[str, Any], structs: list[inspect.StructType], path: str
) -> RequestRefused | None:
    """Of several structs the tag says which one is meant."""
    field = structs[0].tag_field
    if field is None:
        return _struct_problem(value, structs[0], path)
    place = _join(path, field)
    tag = value.get(field)
    if tag is None:
        return refusals.missing_parameter(place)
    if not isinstance(tag, str):
        return refusals.invalid_type(place, ["string"], refusals.kind_of(tag))
    for struct in structs:
        if struct.tag == tag:
            return _struct_problem(value, struct, path)
    return refusals.unsupported_value(place, tag, [str(struct.tag) for struct in structs])


def _struct_problem(
    value: dict[str, Any], struct: inspect.StructType, path: str
) -> RequestRefused | None:
    fields = {field.encode_name: field for field in struct.fields}
    for name, item in value.items():
        place = _join(path, name)
        field = fields.get(name)
        if field is None:
            if struct.forbid_unknown_fields and name != struct.tag_field:
                return refusals.unknown_parameter(place)
        elif item is None and field.required:
            return refusals.missing_parameter(place)
        elif problem := _problem(item, field.type, place):
            return problem
    for name, field in fields.items():
        if field.required and name not in value:
            return refusals.missing_parameter(_join(path, name))
    return None


def _properties_problem(
    value: dict[str, Any], properties: inspect.DictType, path: str
) -> RequestRefused | None:
    most = properties.max_length
    if most is not None and len(value) > most:
        return refusals.too_many_properties(path, most, len(value))
    longest = getattr(properties.key_type, "max_length", None)
    for key, item in value.items():
        if longest is not None and len(key) > longest:
            return refusals.too_long(path, "key", longest, len(key))
        if problem := _problem(item, properties.value_type, _join(path, key)):
            return problem
    return None


def _length_problem(
    length: int, kind: str, least: int | None, most: int | None, path: str
) -> RequestRefused | None:
    if most is not None and length > most:
        return refusals.too_long(path, kind, most, length)
    if least is not None and length < least:
        return refusals.too_short(path, kind, least, length)
    return None


def _first(problems: Iterable[RequestRefused | None]) -> RequestRefused | None:
    return next((problem for problem in problems if problem), None)


def _join(path: str, name: str) -> str:
    return f"{path}.{refusals.clipped(name)}" if path else refusals.clipped(name)
