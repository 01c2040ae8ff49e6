"""The OpenAPI description of the server, made for the model that is served: its fields, with examples that work."""

from __future__ import annotations

from typing import Any

from features.spec import FeatureSpec, VectorFeature
from recsys.serving.server import arrow
from recsys.serving.server.bodies import JSON, REQUEST
from recsys.serving.server.served import ServedModel
from recsys.serving.server.settings import ServerSettings

_TEXT = {"type": "string"}
_WHOLE = {"type": "integer", "minimum": -(2**63), "maximum": 2**63 - 1}
_FIELDS: dict[str, dict[str, Any]] = {
    "string": _TEXT,
    "integer": _WHOLE,
    "number": {"type": "number"},
    "boolean": {"type": "boolean"},
    "datetime": {"type": "string", "format": "date-time"},
}
_EXAMPLES: dict[str, Any] = {
    "string": "a",
    "integer": 1,
    "number": 1.5,
    "boolean": True,
    "datetime": "2024-01-31T12:00:00",
}


def schema_of(model: ServedModel, settings: ServerSettings) -> dict[str, dict[str, Any]]:
    """The schemas of bodies and answers by name, for one model."""
    sizes = _sizes(model.scorer.spec)
    fields = {column: _field(kind, settings.max_list, sizes.get(column)) for column, kind in model.types.items()}
    row = {
        "type": "object",
        "description": "A field that is left out is null, which is an ordinary value of every field.",
        "properties": fields,
        "additionalProperties": settings.unknown_fields == "ignore",
    }
    rows = {"type": "array", "maxItems": settings.max_rows, "items": {"$ref": "#/components/schemas/Row"}}
    probability = {"type": "number", "minimum": 0, "maximum": 1}
    who = {"model": _TEXT, "version": _TEXT, "request_id": _TEXT}
    example = example_row(model)
    columns = list(example)
    user = {column: example[column] for column in columns[: len(columns) // 2]}
    candidate = {column: example[column] for column in columns[len(columns) // 2 :]}
    return {
        "Row": row,
        "ScoreRequest": {
            "type": "object",
            "properties": {"rows": rows},
            "required": ["rows"],
            "additionalProperties": False,
            "example": {"rows": [example, dict.fromkeys(example)]},
        },
        "ScoreResponse": _exactly(
            who
            | {
                "scores": _exactly({name: {"type": "array", "items": probability} for name in model.outputs})
                | {"description": "A list for each task, in the order of the rows."}
            }
        ),
        "RankRequest": {
            "type": "object",
            "properties": {
                "user": {"$ref": "#/components/schemas/Row"},
                "candidates": rows,
                "k": {"type": "integer", "minimum": 1},
                "by": {"type": "string", "enum": list(model.outputs)},
            },
            "required": ["candidates"],
            "additionalProperties": False,
            "example": {"user": user, "candidates": [candidate, dict.fromkeys(candidate)], "k": 1},
        },
        "RankResponse": _exactly(
            who
            | {
                "ranking": {
                    "type": "array",
                    "description": "The best candidates, best first.",
                    "items": _exactly(
                        {"index": {"type": "integer", "description": "Place in the request."}}
                        | dict.fromkeys(model.outputs, probability)
                    ),
                }
            }
        ),
        "Health": _exactly({"status": _TEXT}),
        "Ready": {
            "type": "object",
            "properties": {
                "status": _TEXT,
                "model": _TEXT,
                "version": _TEXT,
                "registry": {
                    "type": "object",
                    "properties": {
                        "reachable": {"type": "boolean"},
                        "seconds_since_reached": {"type": "number"},
                        "refused_version": {"type": ["string", "null"]},
                    },
                },
            },
            "required": ["status"],
        },
        "Models": _exactly({"models": {"type": "array", "items": {"type": "object"}}}),
        "Description": {"type": "object"},
    }


ERROR = {
    "type": "object",
    "properties": {
        "error": {
            "type": "object",
            "properties": {
                "type": {"type": "string"},
                "field": {"type": ["string", "null"]},
                "message": {"type": "string"},
            },
        }
    },
}
_STATUSES = {
    "400": "The body is no JSON object, or no Arrow stream.",
    "401": "The API key is missing or wrong.",
    "413": "The body, or the number of rows, is above the limit.",
    "415": "Neither JSON nor an Arrow stream, or a compressed body.",
    "422": "A key or a value is wrong; `field` names it.",
    "429": "Too many requests at a time. Retry-After says when to ask again.",
    "500": "An error of the server.",
    "503": "No model yet, or the deadline passed. Retry-After says when to ask again.",
}
_STREAMS = {
    "Score": (
        "A row for each row to score, a column for each field.",
        "A row for each row, a column of probabilities for each task; its schema's metadata names who made them.",
    ),
    "Rank": (
        f"A row for each candidate, a column for each field. The schema's metadata holds under `{REQUEST}` the JSON "
        'object of the other body without its candidates, such as `{"user": {...}, "k": 10}`.',
        "The best candidates, best first: `index`, the place in the request, and a column of probabilities for each "
        "task; its schema's metadata names who made them.",
    ),
}
"""By operation: what the streams of requests and of answers hold."""
LONGEST_TIMEOUT_MS = 999_999_999
"""The largest number that is read; a deadline is never later than the server's own."""
HEADERS = [
    {
        "name": "X-Request-Id",
        "in": "header",
        "description": "Comes back in the answer, and stands in the prediction log; made up when left out.",
        "schema": {"type": "string", "maxLength": 128, "pattern": "^[A-Za-z0-9._-]+$"},
    },
    {
        "name": "X-Timeout-Ms",
        "in": "header",
        "description": "The scores are of no use after so many milliseconds.",
        "schema": {"type": "integer", "minimum": 1, "maximum": LONGEST_TIMEOUT_MS},
    },
]


def question(name: str | None = None, *, key: bool = True, model: bool = False) -> dict[str, Any]:
    """What a route without a body adds to its description.

    Args:
        name: Schema of its answer; without one the answer is text.
        key: Whether it asks for a key.
        model: Whether it needs a model.
    """
    answer = {JSON: {"schema": {"$ref": f"#/components/schemas/{name}"}}} if name else {"text/plain": {"schema": _TEXT}}
    refused = [status for status, given in (("401", key), ("503", model), ("500", True)) if given]
    described = errors({status: _STATUSES[status] for status in refused})
    if name == "Ready":
        described["503"] = {"description": "There is no model yet.", "content": answer}
    return {"responses": {"200": {"description": "The answer.", "content": answer}} | described}


def operation(name: str) -> dict[str, Any]:
    """What a route with a body adds to its description."""
    asked, answered = _STREAMS[name]
    answer = {JSON: {"schema": {"$ref": f"#/components/schemas/{name}Response"}}, arrow.MEDIA_TYPE: _stream(answered)}
    body = {JSON: {"schema": {"$ref": f"#/components/schemas/{name}Request"}}, arrow.MEDIA_TYPE: _stream(asked)}
    return {
        "parameters": HEADERS,
        "requestBody": {"required": True, "content": body},
        "responses": {"200": {"description": "The scores.", "content": answer}} | errors(_STATUSES),
    }


def _stream(holds: str) -> dict[str, Any]:
    return {"schema": {"type": "string", "format": "binary", "description": f"An Arrow IPC stream. {holds}"}}


def errors(statuses: dict[str, str]) -> dict[str, Any]:
    """Answers that are errors."""
    content = {JSON: {"schema": {"$ref": "#/components/schemas/Error"}}}
    return {status: {"description": text, "content": content} for status, text in statuses.items()}


def example_row(model: ServedModel) -> dict[str, Any]:
    """A row that the model can score."""
    sizes = _sizes(model.scorer.spec)
    return {column: _example(kind, sizes.get(column, 1)) for column, kind in model.types.items()}


def _sizes(spec: FeatureSpec) -> dict[str, int]:
    """Of columns with lists of one length: that length."""
    return {feature.column: feature.size for feature in spec.features if isinstance(feature, VectorFeature)}


def _field(kind: str, max_list: int, size: int | None) -> dict[str, Any]:
    if kind == "any":
        return {}
    field = dict(_FIELDS[kind.removesuffix("[]")])
    if kind.endswith("[]"):
        field = {"type": "array", "minItems": size or 0, "maxItems": size or max_list, "items": field}
    return field | {"type": [field["type"], "null"]}


def _exactly(properties: dict[str, Any]) -> dict[str, Any]:
    """An object with these properties, all of them, and no others."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def _example(kind: str, size: int) -> Any:
    if kind == "any":
        return None
    value = _EXAMPLES[kind.removesuffix("[]")]
    return [value] * size if kind.endswith("[]") else value
