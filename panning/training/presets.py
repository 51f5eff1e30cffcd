"""Recipes by name: how the papers train a model on a data set, and a short form that fits two cores.

A recipe is a file of ``panning.configs``/recipes, ``MODEL-DATA.yaml``, with the forms ``paper`` and ``short``. A file of
``panning.configs``/dynamics, ``METHOD.yaml``, has the numbers of a method that moves masks, with a recipe, for each
``MODEL-DATA/FORM``.
"""

from __future__ import annotations

from importlib import resources
from typing import Annotated, Any

from pydantic import field_validator

from panning.foundation.config import OR_NAME, Config, ConfigT, load_config
from panning.foundation.registry import unknown_name_message
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
    return [f"{stem}/{form}" for stem in _stems("recipes") for form in Preset.model_fields]


def load_recipe(name: str) -> Recipe:
    """The preset ``MODEL-DATA/FORM``.

    Raises:
        ValueError: with the nearest right name.
    """
    if name not in recipe_names():
        raise ValueError(unknown_name_message("recipe", name, recipe_names()))
    stem, _, form = name.rpartition("/")
    recipe: Recipe = getattr(_load(Preset, "recipes", stem), form)
    return recipe


class DynamicPreset(Config):
    """One setting of a method that moves masks.

    Attributes:
        recipe: as text, a preset: ``resnet20-cifar10/short``.
        options: the method's numbers that are not those of its row.
    """

    recipe: Annotated[Recipe, OR_NAME]
    options: dict[str, Any] = {}

    @field_validator("recipe", mode="before")
    @classmethod
    def _preset(cls, given: Any) -> Any:
        return load_recipe(given) if isinstance(given, str) else given


class DynamicPresets(Config):
    """A file of settings, by ``MODEL-DATA/FORM``."""

    settings: dict[str, DynamicPreset]


def dynamic_preset_names() -> list[str]:
    """All settings of methods that move masks, as ``load_dynamic_preset`` takes them."""
    files = {stem: _load(DynamicPresets, "dynamics", stem) for stem in _stems("dynamics")}
    return [f"{stem}/{setting}" for stem, file in files.items() for setting in file.settings]


def load_dynamic_preset(name: str) -> DynamicPreset:
    """The setting ``METHOD/MODEL-DATA/FORM``.

    Raises:
        ValueError: with the nearest right name.
    """
    if name not in (names := dynamic_preset_names()):
        raise ValueError(unknown_name_message("preset", name, names))
    stem, _, setting = name.partition("/")
    return _load(DynamicPresets, "dynamics", stem).settings[setting]


def _stems(folder: str) -> list[str]:
    entries = (resources.files("panning.configs") / folder).iterdir()
    return sorted(entry.name.removesuffix(".yaml") for entry in entries if entry.name.endswith(".yaml"))


def _load(kind: type[ConfigT], folder: str, stem: str) -> ConfigT:
    with resources.as_file(resources.files("panning.configs") / folder / f"{stem}.yaml") as path:
        return load_config(kind, path)
