"""Recipes: known data sets, each read into one row an event."""

from __future__ import annotations

from features.recipes.base import DATA_VARIABLE, Recipe, find_data
from features.recipes.criteo import Criteo
from features.recipes.frappe import Frappe
from features.recipes.movielens_1m import MovieLens1M
from features.recipes.open_bandit import OpenBandit
from features.recipes.synthetic import Synthetic

RECIPES: dict[str, Recipe] = {
    recipe.name: recipe for recipe in (MovieLens1M(), Criteo(), Frappe(), OpenBandit(), Synthetic())
}

__all__ = ["DATA_VARIABLE", "RECIPES", "Recipe", "find_data"]
