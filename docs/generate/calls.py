"""The reference of the HTTP calls, from the OpenAPI documents."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from fastapi import FastAPI

from docs.generate.answers import answers
from docs.generate.text import code, fence, paragraph, table
from mdservice.gateway.make import make_tracker
from mdservice.gateway.serve import gateway_app
from mdservice.http_api.server import create_app
from mdservice.settings import Settings
from mdservice.testing.fake_service import FakeService

__all__ = ["gateway_calls", "gateway_schemas", "service_calls", "service_schemas"]

Json = Mapping[str, Any]

_OK = "Successful Response"
"""What FastAPI says where nothing else is said."""


def service_calls() -> str:
    """Each call of the service's API."""
    return _calls(create_app(FakeService()))


def service_schemas() -> str:
    """The bodies of its answers."""
    return _schemas(create_app(FakeService()))


def gateway_calls() -> str:
    """Each call of the gateway."""
    return _calls(_gateway())


def gateway_schemas() -> str:
    """The bodies of its answers."""
    return _schemas(_gateway())


def _gateway() -> FastAPI:
    return gateway_app(make_tracker(list, Settings(), redis_url="redis://localhost:1"))


def _calls(app: FastAPI) -> str:
    return "\n\n".join(
        part
        for path, methods in app.openapi()["paths"].items()
        for method, call in methods.items()
        for part in _call(f"{method.upper()} {path}", call)
    )


def _call(name: str, call: Json) -> Iterator[str]:
    yield f"### `{name}`"
    for part in call["description"].split("\n\n"):
        yield paragraph(part)
    inputs = [
        (code(given["name"]), given["in"], given.get("description", "The symbol."))
        for given in call.get("parameters", ())
    ]
    body = call.get("requestBody")
    if body is not None:
        [content] = body["content"].values()
        fields = ", ".join(map(code, content["schema"]["properties"]))
        inputs.append((fields, "body", body["description"]))
    if inputs:
        yield table(("input", "in", "meaning"), inputs)
    yield _statuses(call["responses"])
    if body is not None:
        [content] = body["content"].values()
        yield "A body:"
        yield fence("json", _line(content["example"]))
    example = answers().get(name)
    if example is not None:
        yield "An answer:"
        yield fence("json", example)


def _statuses(responses: Json) -> str:
    rows = [(status, *_answer(told)) for status, told in sorted(responses.items())]
    if [status for status, _, _ in rows] == ["200"]:
        [(status, body, meaning)] = rows
        return paragraph(f"Answers {status} with {body}. {meaning}".removesuffix(" Fine."))
    return table(("status", "body", "meaning"), rows)


def _line(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def _answer(told: Json) -> tuple[str, str]:
    [(kind, content)] = told.get("content", {"": {}}).items()
    body = _type(content["schema"]) if "$ref" in content.get("schema", {}) else code(kind)
    return body, "Fine." if told["description"] == _OK else told["description"]


def _schemas(app: FastAPI) -> str:
    schemas = app.openapi()["components"]["schemas"]
    return "\n\n".join(_schema(name, schema) for name, schema in schemas.items())


def _shown(name: str) -> str:
    return name.lstrip("_")


def _schema(name: str, schema: Json) -> str:
    required = schema.get("required", ())
    rows = [
        (code(field), _type(told), _meaning(told, required=field in required))
        for field, told in schema["properties"].items()
    ]
    parts = [f"### {_shown(name)}"]
    if "description" in schema:
        parts.append(paragraph(schema["description"]))
    return "\n\n".join([*parts, table(("field", "type", "meaning"), rows)])


def _meaning(told: Json, *, required: bool) -> str:
    words = [told["description"]] if "description" in told else []
    if not required:
        words.append("May be left out.")
    examples = told.get("examples", ())
    words += [f"Such as {code(_line(example))}." for example in examples]
    return " ".join(words)


def _type(told: Json) -> str:
    if "$ref" in told:
        name = _shown(told["$ref"].rpartition("/")[2])
        return f"[{name}](#{name.lower()})"
    if "anyOf" in told:
        return " or ".join(_type(one) for one in told["anyOf"])
    if "enum" in told:
        return ", ".join(code(_line(one)) for one in told["enum"])
    if told["type"] == "array":
        items = told.get("prefixItems") or [told["items"]]
        return f"list of {', '.join(map(_type, items))}"
    if "additionalProperties" in told:
        return f"object: {_type(told['additionalProperties'])} by name"
    return str(told["type"])
