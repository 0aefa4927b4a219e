"""What the types of the wire are in JSON Schema: requests as they are read, answers as written.

msgspec makes schemas for what a decoder accepts. Of an answer every field is there, whether or not
its type has a default; and what an answer never leaves out is required here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import msgspec
from msgspec import inspect

from runbell.runs import EVENT_TYPES, RunEvent, RunEventData, RunStatus

__all__ = ["Schemas"]

Schema = dict[str, Any]

_REF = "#/components/schemas/{name}"
_LIST = re.compile(r"^ListPage_(\w+?)(?:Object)?_$")


class Schemas:
    """The schemas of all types that the document speaks of.

    Args:
        requests: types of bodies and parameters.
        answers: types of answers, of their headers, and of events.
    """

    def __init__(self, requests: Iterable[Any], answers: Iterable[Any]) -> None:
        read, written = list(dict.fromkeys(requests)), list(dict.fromkeys(answers))
        # In any order of importing the same names; RunStatus is named for the events' sake.
        types = [*read, *(each for each in written if each not in read), RunStatus]
        refs, components = msgspec.json.schema_components(types, ref_template=_REF)
        self._refs = {kind: _renamed(_tidy(ref)) for kind, ref in zip(types, refs, strict=True)}
        accepted = _structs(read)
        for name, struct in _structs(written).items():
            if name not in accepted:
                _as_written(components[name], struct)
            elif set(components[name]["required"]) != set(_always_there(struct)):
                raise AssertionError(f"{name} is read differently than it is written")
        _name_values(components)
        self.components: dict[str, Schema] = {
            _name(name): _renamed(_tidy(components[name])) for name in sorted(components, key=_name)
        }

    def of(self, *kinds: Any) -> Schema:
        """The schema of a type, or of any of several."""
        found = [self._refs[kind] for kind in kinds]
        return dict(found[0]) if len(found) == 1 else {"anyOf": found}


def _structs(types: list[Any]) -> dict[str, inspect.StructType]:
    """The structs that these types consist of, by the names of their schemas."""
    return {
        re.sub(r"[^a-zA-Z0-9.\-_]", "_", _class_name(node.cls)): node
        for node in _nodes(inspect.multi_type_info(types))
        if isinstance(node, inspect.StructType)
    }


def _nodes(value: Any) -> Iterator[inspect.Type]:
    """All that a description of types consists of. No type of the wire contains itself."""
    if isinstance(value, tuple):
        for each in value:
            yield from _nodes(each)
    elif isinstance(value, inspect.Type | inspect.Field):
        if isinstance(value, inspect.Type):
            yield value
        for name in value.__struct_fields__:
            yield from _nodes(getattr(value, name))


def _class_name(cls: Any) -> str:
    origin = getattr(cls, "__origin__", None)
    if origin is None:
        return str(cls.__name__)
    return f"{origin.__name__}[{', '.join(each.__name__ for each in cls.__args__)}]"


def _as_written(schema: Schema, struct: inspect.StructType) -> None:
    """Of an answer: fields that are never left out are required, and need no default."""
    schema["required"] = _always_there(struct)
    for field in struct.fields:
        schema["properties"][field.encode_name].pop("default", None)


def _always_there(struct: inspect.StructType) -> list[str]:
    """The fields that are never left out when the struct is written."""
    cls: Any = getattr(struct.cls, "__origin__", struct.cls)
    left_out = cls.__struct_config__.omit_defaults
    tag = [struct.tag_field] if struct.tag_field is not None else []
    return tag + [
        field.encode_name
        for field in struct.fields
        if field.required or not (left_out or field.default is msgspec.UNSET)
    ]


def _name_values(components: dict[str, Schema]) -> None:
    """What strings of an event can be: its type, for programs without msgspec, does not say it."""
    events = components.get(RunEvent.__name__)
    if events is not None:
        events["properties"]["type"] = {"enum": list(EVENT_TYPES)}
        data = components[RunEventData.__name__]["properties"]
        data["status"] = {"$ref": _REF.format(name=RunStatus.__name__)}


def _tidy(schema: Any) -> Any:
    """Without what says nothing: titles that repeat the name, and defaults that are null."""
    if isinstance(schema, list):
        return [_tidy(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    tidied = {key: _tidy(item) for key, item in schema.items() if key != "properties"}
    if "properties" in schema:
        # Its keys are names of fields, not keywords.
        tidied["properties"] = {key: _tidy(item) for key, item in schema["properties"].items()}
    tidied = _with_null(tidied)
    for keyword, void in (("title", ...), ("default", None), ("required", [])):
        if keyword in tidied and (void is ... or tidied[keyword] == void):
            del tidied[keyword]
    if "description" in tidied:
        tidied["description"] = _unwrapped(tidied["description"])
    return tidied


def _with_null(schema: Schema) -> Schema:
    """Of a plain type that may be null too, one schema instead of two."""
    match schema.get("anyOf"):
        case [{"type": str(kind)} as plain, {"type": "null"}]:
            others = {key: item for key, item in schema.items() if key != "anyOf"}
            return {**plain, "type": [kind, "null"], **others}
    return schema


def _unwrapped(text: str) -> str:
    """A docstring's paragraphs, each on one line."""
    return "\n\n".join(" ".join(part.split()) for part in text.split("\n\n"))


def _name(name: str) -> str:
    return _LIST.sub(r"\1List", name)


def _renamed(schema: Any) -> Any:
    """The same, where pages of lists have names that one can say."""
    prefix = _REF.format(name="")
    return _mapped(
        schema,
        lambda text: prefix + _name(text[len(prefix) :]) if text.startswith(prefix) else text,
    )


def _mapped(value: Any, change: Callable[[str], str]) -> Any:
    match value:
        case str():
            return change(value)
        case list():
            return [_mapped(item, change) for item in value]
        case dict():
            return {key: _mapped(item, change) for key, item in value.items()}
    return value
