"""Expressions over the columns of one row, written in SQL and read by Polars; nothing is ever evaluated as Python."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Mapping
from typing import Any

import polars as pl

from features.errors import ConfigError
from features.frames import first_line

_OPERATIONS = {"BinaryExpr": ("left", "right"), "Ternary": ("predicate", "truthy", "falsy"), "Cast": ("expr",)}
_GROUPS = ("StringExpr", "ListExpr", "TemporalExpr", "StructExpr", "Trigonometry")
_FUNCTIONS = {
    *("Abs", "Atan2", "Bitwise", "Ceil", "Coalesce", "Exp", "FillNull", "Floor", "Log", "Log1p", "MaxHorizontal"),
    *("MinHorizontal", "Negate", "Pow", "Round", "Sign", "Truncate"),
    *("Boolean.IsNull", "Boolean.IsNotNull", "Boolean.IsIn", "Boolean.IsBetween", "Boolean.Not"),
    *("Sql.IsIn", "Sql.Binary", "Sql.Round"),
}
_REFUSED = {"StringExpr.ConcatVertical"}
_QUOTED = re.compile(r"'(?:[^']|'')*'|\"(?:[^\"]|\"\")*\"")
_CLOCK = re.compile(r"\bnow\s*\(|\bcurrent_(?:date|time|timestamp)\b|\blocaltime(?:stamp)?\b|\btoday\s*\(", re.I)


def row_expressions(derive: Mapping[str, str]) -> dict[str, pl.Expr]:
    """Returns the expressions of derived columns by name, each after those it reads.

    Raises:
        ConfigError: An expression is wrong, or columns are derived from each other in a circle.
    """
    found = {name: row_expression(sql, f"derive.{name}") for name, sql in derive.items()}
    return {name: found[name] for name in _ordered(found)}


def roots(column: str, expressions: Mapping[str, pl.Expr]) -> set[str]:
    """Returns the columns of the data from which a column follows: itself, if it is not derived."""
    if column not in expressions:
        return {column}
    return {root for part in expressions[column].meta.root_names() for root in roots(part, expressions)}


def row_expression(sql: str, field: str) -> pl.Expr:
    """Returns the Polars expression that an SQL expression stands for.

    Args:
        sql: Such as `coalesce(price, 0) * 1.2`.
        field: Where it stands, for errors.

    Raises:
        ConfigError: It is no expression, or its value follows from more than one row's columns.

    Example:
        >>> str(row_expression("price > 10", "derive.dear"))
        '[(col("price")) > (dyn int: 10)]'
        >>> row_expression("price - avg(price)", "derive.dear")
        Traceback (most recent call last):
        features.errors.ConfigError: derive.dear: a derived column may look at nothing but the columns of its own row...
    """
    try:
        expression = pl.sql_expr(sql)
        tree = json.loads(expression.meta.serialize(format="json"))
        columns = expression.meta.root_names()
    except (pl.exceptions.PolarsError, ValueError, TypeError) as error:
        raise ConfigError(
            f"is no SQL expression ({first_line(error)})",
            field=field,
            found=repr(sql),
            mend="write one expression such as coalesce(price, 0) * 1.2; a name with blanks stands in double quotes",
        ) from error
    clock = _CLOCK.search(_QUOTED.sub("''", sql))
    wrong = clock[0].rstrip("( ") if clock else _beyond_the_row(tree)
    if wrong is not None:
        raise ConfigError(
            "a derived column may look at nothing but the columns of its own row",
            field=field,
            found=f"{wrong} in {sql!r}",
            expected="no aggregate, window, subquery, clock or choice of columns",
            mend="use a fitted operator, or compute the column before",
        )
    if not columns:
        raise ConfigError("reads no column", field=field, found=repr(sql), mend="remove it, or name a column in it")
    return pl.Expr.deserialize(io.StringIO(json.dumps(_exact(tree, columns[0]))), format="json")


def _ordered(expressions: Mapping[str, pl.Expr]) -> list[str]:
    """Returns the names so that each stands after those it reads."""
    order: list[str] = []
    path: list[str] = []

    def visit(name: str) -> None:
        if name in order:
            return
        if name in path:
            raise ConfigError(
                "a derived column is derived from itself",
                field=f"derive.{name}",
                found=" <- ".join([*path[path.index(name) :], name]),
                mend="give it a name of its own" if path[-1] == name else "break the circle",
            )
        path.append(name)
        for part in expressions[name].meta.root_names():
            if part in expressions:
                visit(part)
        path.pop()
        order.append(name)

    for name in expressions:
        visit(name)
    return order


def _beyond_the_row(node: Any) -> str | None:
    """Returns the first part of an expression that may look beyond its row, or None.

    Everything that is not known to keep to its row is taken to look beyond it.
    """
    if not isinstance(node, dict) or len(node) != 1:
        return str(node)
    [(kind, inner)] = node.items()
    if kind in ("Column", "Literal"):
        return None
    if kind == "Alias":
        return _beyond_the_row(inner[0])
    if kind == "Function":
        name = _function_name(inner["function"])
        if name in _REFUSED or not (name in _FUNCTIONS or name.partition(".")[0] in (*_GROUPS, *_FUNCTIONS)):
            return name
        parts = inner["input"]
    elif kind in _OPERATIONS:
        parts = [inner[part] for part in _OPERATIONS[kind]]
    else:
        return next(iter(inner)) if kind == "Agg" else kind
    return next((found for part in parts if (found := _beyond_the_row(part)) is not None), None)


def _exact(node: Any, column: str) -> Any:
    """Returns the expression with every divisor as a full column.

    Polars divides by a constant exactly if it has one row before it, and else multiplies by the reciprocal, which may
    differ in the last bit. A request would not have the bits of a frame.
    """
    if isinstance(node, list):
        return [_exact(part, column) for part in node]
    if not isinstance(node, dict) or "Literal" in node:
        return node
    node = {key: _exact(part, column) for key, part in node.items()}
    if node.get("function") == {"Sql": {"Binary": "Div"}}:
        left, right = node["input"]
        return {**node, "input": [left, _sum(right, _zeros(column))]}
    return node


def _zeros(column: str) -> Any:
    missing = {"Function": {"input": [{"Column": column}], "function": {"Boolean": "IsNull"}}}
    flag = {"Cast": {"expr": missing, "dtype": {"Literal": "Int8"}, "options": "Strict"}}
    return {"BinaryExpr": {"left": flag, "op": "Multiply", "right": {"Literal": {"Dyn": {"Int": 0}}}}}


def _sum(left: Any, right: Any) -> Any:
    return {"BinaryExpr": {"left": left, "op": "Plus", "right": right}}


def _function_name(function: Any) -> str:
    if isinstance(function, str):
        return function
    [(name, inner), *_] = function.items()
    if isinstance(inner, str):
        return f"{name}.{inner}"
    return f"{name}.{next(iter(inner))}" if isinstance(inner, dict) and inner else str(name)
