"""Recipes by name: how the papers train a model on a data set, and a short form that fits two cores.

A preset is a file of ``panning.configs``/recipes, ``MODEL-DATA.yaml``, with the forms ``paper`` and ``short``.
"""

from __future__ import annotations

from importlib import resources

from panning.config import Config, load_config
from panning.registry import unknown_name_message
from panning.training import Recipe


class Preset(Config):
    """A file of recipes.

    Attributes:
        paper: as the papers train, or as near as the file says.
        short: fits two cores.
    """

    paper: Recipe
    short: Recipe


def recipe_names() -> list[str]:
    """All presets, as ``load_recipe`` takes them."""
    folder = resources.files("panning.configs") / "recipes"
    stems = sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))
    return [f"{stem}/{form}" for stem in stems for form in Preset.model_fields]


def load_recipe(name: str) -> Recipe:
    """The preset ``MODEL-DATA/FORM``.

    Raises:
        ValueError: with the nearest right name.
    """
    if name not in recipe_names():
        raise ValueError(unknown_name_message("recipe", name, recipe_names()))
    stem, _, form = name.rpartition("/")
    with resources.as_file(resources.files("panning.configs") / "recipes" / f"{stem}.yaml") as path:
        recipe: Recipe = getattr(load_config(Preset, path), form)
    return recipe
