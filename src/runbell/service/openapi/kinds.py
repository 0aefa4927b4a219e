"""What a schema allows, in words: the type of a field as the page shows it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from html import escape
from typing import Any

__all__ = ["kind"]


def kind(schema: Mapping[str, Any]) -> str:
    """HTML for what values a schema allows."""
    if "anyOf" in schema:
        choices = dict.fromkeys(kind(choice) for choice in schema["anyOf"])
        words = _joined(list(choices))
    elif "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        words = f'<a href="#{name}">{name}</a>'
    elif "enum" in schema:
        words = " · ".join(_literal(value) for value in schema["enum"])
    elif "type" not in schema:
        words = "anything"
    else:
        types = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
        words = _joined([_of_type(name, schema) for name in types])
    if "if" in schema:
        (tag,), (field,) = schema["if"]["properties"].items(), schema["then"]["required"]
        words += f"; with {tag[0]} {_literal(tag[1]['const'])}, {_literal(field)} is required"
    default = schema.get("default")
    return words if default is None else f"{words}; {_literal(default)} if absent"


def _joined(choices: list[str]) -> str:
    """With a comma where an `or` would seem to belong to the limits in front of it."""
    *others, last = choices
    return f"{' or '.join(others)}{',' if ', ' in choices[0] else ''} or {last}" if others else last


def _of_type(name: str, schema: Mapping[str, Any]) -> str:
    match name:
        case "array":
            items = schema.get("items")
            inner = f" of {kind(items)}" if isinstance(items, Mapping) else ""
            return f"list{inner}{_span(schema, 'minItems', 'maxItems', 'items')}"
        case "object":
            return f"object{_properties(schema)}"
        case "string":
            pattern = schema.get("pattern")
            matching = f" matching <code>{escape(pattern)}</code>" if pattern else ""
            return f"string{matching}{_span(schema, 'minLength', 'maxLength', 'characters')}"
        case "integer" | "number":
            return f"{name}{_span(schema, 'minimum', 'maximum', '')}"
    return name


def _properties(schema: Mapping[str, Any]) -> str:
    values = schema.get("additionalProperties")
    names = schema.get("propertyNames", {})
    said = [f" of {kind(values)}"] if isinstance(values, Mapping) else []
    if "maxLength" in names:
        said.append(f"; names of at most {names['maxLength']:,} characters")
    said += [
        f"; <code>{escape(name)}</code>: {kind(item)}"
        for name, item in schema.get("properties", {}).items()
    ]
    return f"{_span(schema, 'minProperties', 'maxProperties', 'fields')}{''.join(said)}"


def _span(schema: Mapping[str, Any], low: str, high: str, unit: str) -> str:
    least, most = schema.get(low), schema.get(high)
    if unit:
        unit = f" {unit}"
    if least == 1 and most is None and unit:
        return ", not empty"
    if least is not None and most is not None:
        if least == most == 0:
            return ", empty"
        return f", {least:,} to {most:,}{unit}"
    if most is not None:
        return ", empty" if most == 0 else f", at most {most:,}{unit}"
    return f", at least {least:,}{unit}" if least is not None else ""


def _literal(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return f"<code>{escape(text)}</code>"
