"""Tools in a Harmony system or developer message, declared in TypeScript's manner.

The form is openai-harmony's (`src/encoding.rs`), compared with it in the tests.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from vpmoe.tokenizer.harmony_values import HarmonyError, check_keys, field, show, write_value


def tools_section(tools: Mapping[str, Any]) -> str:
    """Renders the `# Tools` section.

    Args:
        tools: namespaces by key, sorted by it in the text: each with `name`, `description` (or
            None) and `tools`, a list of `name`, `description` and `parameters` (a JSON schema, or
            None).

    Returns:
        The text.

    Raises:
        HarmonyError: a field of another kind, or one that openai-harmony does not have.
    """
    return "\n\n".join(["# Tools", *(_namespace(key, tools[key]) for key in sorted(tools))])


def _namespace(key: str, namespace: Any) -> str:
    if not isinstance(namespace, dict):
        raise HarmonyError(f"`tools`: `{key}` must be an object, found {show(namespace)}")
    check_keys(namespace, ("name", "description", "tools"))
    name = field(namespace, "name", str, required=True)
    tools = field(namespace, "tools", list, required=True)
    comment = "// " if tools else ""
    about = field(namespace, "description", str)
    lines = [f"## {name}\n", *(comment + line for line in _lines(about or ""))]
    if tools:
        lines += [f"namespace {name} {{\n", *(line for tool in tools for line in _tool(tool))]
        lines.append(f"}} // namespace {name}")
    return "\n".join(lines)


def _tool(tool: Any) -> list[str]:
    if not isinstance(tool, dict):
        raise HarmonyError(f"a tool must be an object, found {show(tool)}")
    check_keys(tool, ("name", "description", "parameters"))
    name = field(tool, "name", str, required=True)
    lines = [f"// {line}" for line in _lines(field(tool, "description", str, required=True))]
    parameters = tool.get("parameters")
    argument = "" if parameters is None else f"_: {_type(parameters, '')}"
    return [*lines, f"type {name} = ({argument}) => any;\n"]


def _type(schema: Any, indent: str) -> str:
    """A JSON schema as a type; indent is that of a property's line."""
    schema = _schema(schema)
    variants = schema.get("oneOf")
    if isinstance(variants, list):
        return "".join(f"\n{indent} | {_variant(_schema(v), indent)}" for v in variants)
    kind = schema.get("type")
    if isinstance(kind, list):
        kinds = [_scalar_name(name) for name in kind if isinstance(name, str)]
        if kinds:
            return " | ".join(kinds)
    if kind == "object":
        return _object(schema, indent)
    if kind == "array":
        return f"{_type(schema['items'], indent)}[]" if "items" in schema else "Array<any>"
    if kind == "string":
        values = schema.get("enum")
        texts = [v for v in values if isinstance(v, str)] if isinstance(values, list) else []
        return " | ".join(f'"{text}"' for text in texts) or "string"
    if kind in ("number", "integer", "boolean"):
        return _scalar_name(kind)
    return "any"


def _object(schema: Mapping[str, Any], indent: str) -> str:
    parts = []
    if isinstance(schema.get("description"), str):
        parts.append(f"{indent}// {schema['description']}\n")
    parts.append("{\n")
    properties, required = schema.get("properties"), schema.get("required")
    needed = required if isinstance(required, list) else []
    for key, value in properties.items() if isinstance(properties, Mapping) else ():
        prop = _schema(value)
        parts += [f"{indent}{line}\n" for line in _property_comments(prop)]
        name = key if key in needed else f"{key}?"
        if isinstance(prop.get("oneOf"), list):
            parts += _union_property(name, prop, indent)
        else:
            line = f"{indent}{name}: {_nullable(prop, _type(prop, f'{indent}    '))},"
            if "default" in prop and "oneOf" not in prop:
                line += f" // default: {_default(prop)}"
            parts.append(f"{line}\n")
    parts.append(f"{indent}}}")
    return "".join(parts)


def _property_comments(prop: Mapping[str, Any]) -> Iterator[str]:
    if isinstance(prop.get("title"), str):
        yield f"// {prop['title']}"
        yield "//"
    if "oneOf" not in prop and isinstance(prop.get("description"), str):
        yield f"// {prop['description']}"
    examples = prop.get("examples")
    if isinstance(examples, list) and examples:
        yield "// Examples:"
        yield from (f'// - "{text}"' for text in examples if isinstance(text, str))


def _union_property(name: str, prop: Mapping[str, Any], indent: str) -> Iterator[str]:
    variants = [_schema(variant) for variant in prop["oneOf"]]
    description = prop.get("description") if isinstance(prop.get("description"), str) else None
    first = variants[0].get("description") if variants else None
    above = description is not None and description != first
    if above:
        yield f"{indent}// {description}\n"
    if "default" in prop:
        yield f"{indent}// default: {_default(prop)}\n"
    yield f"{indent}{name}:\n"
    for number, variant in enumerate(variants):
        comments = []
        text = variant.get("description")
        if isinstance(text, str) and text != description and not (number == 0 and above):
            comments.append(text)
        if "default" in variant:
            comments.append(f"default: {_default(variant)}")
        yield f"{indent} | {_nullable(variant, _type(variant, f'{indent}   '))}"
        yield f" // {' '.join(comments)}\n" if comments else "\n"
    yield f"{indent},\n"


def _variant(variant: Mapping[str, Any], indent: str) -> str:
    comments = []
    if isinstance(variant.get("description"), str):
        comments.append(variant["description"])
    if "default" in variant:
        default = variant["default"]
        quoted = write_value(default) if _is_enum(variant) else _default(variant)
        comments.append(f"default: {quoted}")
    text = _nullable(variant, _type(variant, f"{indent}   "))
    return f"{text} // {' '.join(comments)}" if comments else text


def _nullable(schema: Mapping[str, Any], text: str) -> str:
    return f"{text} | null" if schema.get("nullable") is True and "null" not in text else text


def _default(schema: Mapping[str, Any]) -> str:
    default = schema["default"]
    if not isinstance(default, str):
        return write_value(default)
    return default if _is_enum(schema) else f'"{default}"'


def _is_enum(schema: Mapping[str, Any]) -> bool:
    return isinstance(schema.get("enum"), list) and bool(schema["enum"])


def _schema(value: Any) -> Mapping[str, Any]:
    """A schema's keywords; a schema that is no object (`true`, say) has none."""
    return value if isinstance(value, dict) else {}


def _scalar_name(name: str) -> str:
    return "number" if name == "integer" else name


def _lines(text: str) -> list[str]:
    """Lines as Rust's `str::lines` has them, which leaves the text's last carriage return."""
    *lines, last = text.split("\n")
    return [line.removesuffix("\r") for line in lines] + ([last] if last else [])
