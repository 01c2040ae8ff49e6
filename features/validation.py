"""Reads plain data into pydantic models and turns what is wrong into one readable ConfigError.

The error names the full dotted path, what was found, what was expected and the nearest known name.
"""

from __future__ import annotations

import types
from collections.abc import Iterator
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError

from features.errors import ConfigError, did_you_mean, list_names

Model = TypeVar("Model", bound=BaseModel)


class Strict(BaseModel):
    """Base of every config model: unknown keys are errors, and a model is never changed in place."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)


def validate(model_cls: type[Model], data: object, *, where: str = "") -> Model:
    """Reads `data` into `model_cls`.

    Args:
        model_cls: The pydantic model.
        data: Usually a mapping, as read from YAML or JSON.
        where: Dotted path of `data` in the file it came from, put before every key named in an error.

    Raises:
        ConfigError: The first thing that is wrong, and how many more there are.

    Example:
        >>> class Table(Strict):
        ...     width: int = 4
        >>> validate(Table, {"width": 8})
        Table(width=8)
        >>> validate(Table, {"widht": 8}, where="embedding")
        Traceback (most recent call last):
        features.errors.ConfigError: embedding.widht: unknown key. Expected: one of width. Mend: did...
    """
    try:
        return model_cls.model_validate(data)
    except ValidationError as error:
        raise _config_error(model_cls, error, where) from None


def _config_error(model_cls: type[BaseModel], error: ValidationError, where: str) -> ConfigError:
    # A misspelt key gives two errors, unknown and missing: the first tells more.
    details = sorted(error.errors(include_url=False), key=lambda item: item["type"] != "extra_forbidden")
    first = details[0]
    types_on_path, location = _walk(model_cls, first["loc"])
    path = ".".join([*([where] if where else []), *[str(part) for part in location]]) or model_cls.__name__
    more = f" (and {len(details) - 1} more)" if len(details) > 1 else ""
    kind, found = first["type"], first.get("input")
    if kind == "extra_forbidden":
        known = _field_names(types_on_path[-2] if len(types_on_path) > 1 else [model_cls])
        return ConfigError(
            f"unknown key{more}",
            field=path,
            expected=f"one of {list_names(known)}",
            mend=did_you_mean(str(location[-1]), known, "remove the key"),
        )
    if kind == "missing":
        return ConfigError(f"required key is missing{more}", field=path, mend=f"add {location[-1]!r}")
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        context = first.get("ctx", {})
        tag_key = str(context.get("discriminator", "")).strip("'")
        expected = str(context.get("expected_tags", "")).replace("'", "")
        tag = context.get("tag")
        return ConfigError(
            f"unknown {tag_key}{more}" if tag is not None else f"key {tag_key!r} is missing{more}",
            field=f"{path}.{tag_key}",
            found=repr(tag) if tag is not None else None,
            expected=f"one of {expected}" if expected else None,
            mend=did_you_mean(str(tag), expected.split(", ")) if tag is not None else None,
        )
    expected = first["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
    mend = None
    if kind == "literal_error":
        options = [
            text.strip("'") for text in str(first.get("ctx", {}).get("expected", "")).replace(" or ", ", ").split(", ")
        ]
        mend = did_you_mean(str(found), options)
    return ConfigError(f"wrong value{more}", field=path, found=_short(found), expected=expected, mend=mend)


def _short(value: object, limit: int = 80) -> str:
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 3] + "..."


def _field_names(models: list[Any]) -> list[str]:
    names: dict[str, None] = {}
    for model in models:
        if isinstance(model, type) and issubclass(model, BaseModel):
            for name, info in model.model_fields.items():
                names[info.alias or name] = None
    return list(names)


def _walk(model_cls: type[BaseModel], location: tuple[int | str, ...]) -> tuple[list[list[Any]], list[int | str]]:
    """Follows an error's location through the annotations.

    Pydantic puts the tag of a discriminated union, or a type's name, into the location; the user's file
    has no such key, so these are left out.

    Returns:
        The candidate types at each kept part of the path (the root first), and the kept parts.
    """
    trail: list[list[Any]] = [[model_cls]]
    kept: list[int | str] = []
    for number, part in enumerate(location):
        here = trail[-1]
        tagged = [kind for kind in here if _has_tag(kind, part)]
        last = number == len(location) - 1
        if tagged and len(here) > 1 and not last:
            trail[-1] = tagged
            continue
        following: list[Any] = []
        for kind in here:
            following.extend(_step(kind, part))
        if not following and not last and any(getattr(kind, "__name__", None) == part for kind in here):
            continue
        if not following and isinstance(part, str) and kept and not _is_container(here):
            continue
        kept.append(part)
        trail.append(following)
    return trail, kept


def _is_container(kinds: list[Any]) -> bool:
    return any(
        (isinstance(kind, type) and issubclass(kind, BaseModel)) or get_origin(kind) in (list, tuple, dict)
        for kind in kinds
    )


def _has_tag(kind: Any, tag: int | str) -> bool:
    if not (isinstance(kind, type) and issubclass(kind, BaseModel)):
        return False
    for info in kind.model_fields.values():
        if get_origin(info.annotation) is Literal and get_args(info.annotation) == (tag,):
            return True
    return False


def _step(kind: Any, part: int | str) -> Iterator[Any]:
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        for name, info in kind.model_fields.items():
            if part in (name, info.alias):
                yield from _options(info.annotation)
        return
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (list, tuple) and isinstance(part, int):
        for argument in arguments:
            yield from _options(argument)
    elif origin is dict and len(arguments) == 2:
        yield from _options(arguments[1])


def _options(annotation: Any) -> Iterator[Any]:
    origin = get_origin(annotation)
    if origin is Annotated:
        yield from _options(get_args(annotation)[0])
    elif origin is Union or origin is types.UnionType:
        for argument in get_args(annotation):
            yield from _options(argument)
    elif annotation is not type(None):
        yield annotation
