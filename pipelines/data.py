"""Lists the data sets the package knows, or writes one's events to Parquet."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from features.recipes import RECIPES
from pipelines.console import Console
from pipelines.prepare import recipe_named
from pipelines.workspace import written_aside


def list_recipes(console: Console) -> dict[str, Any]:
    """Every recipe: what it is and how to get its files."""
    for recipe in RECIPES.values():
        console.title(recipe.name)
        console.note(f"  {recipe.description}")
        console.note(f"  {recipe.how_to_get}")
    return {
        "recipes": [
            {"name": recipe.name, "description": recipe.description, "how_to_get": recipe.how_to_get}
            for recipe in RECIPES.values()
        ]
    }


def write_events(name: str, out: Path, params: dict[str, Any], folder: Path | None, console: Console) -> dict[str, Any]:
    """Write a recipe's events to a Parquet file.

    Args:
        name: The recipe.
        out: The file.
        params: The recipe's parameters.
        folder: Its files; found by RECSYS_DATA when left out.
        console: Told what was written.

    Returns:
        recipe, out, rows, columns.

    Raises:
        ConfigError: No such recipe or parameter.
        DataError: Its files are absent.
        ArtifactError: The file cannot be written; nothing is left of it.
    """
    frame = recipe_named(name).load(folder, **params).collect()
    with written_aside(out) as aside:
        frame.write_parquet(aside)
    console.table(f"{name}: {len(frame):,} rows", [{"column": c, "type": str(t)} for c, t in frame.schema.items()])
    console.note(f"written: {out}")
    return {
        "recipe": name,
        "out": str(out),
        "rows": len(frame),
        "columns": {c: str(t) for c, t in frame.schema.items()},
    }
