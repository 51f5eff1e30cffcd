"""Recipes by name: how the papers train a model on a data set, and a short form that fits two cores.

A recipe is a file of ``panning.configs``/recipes, ``MODEL-DATA.yaml``, with the forms ``paper`` and ``short``. A file of
``panning.configs``/dynamics, ``METHOD.yaml``, has the numbers of a method that moves masks, with a recipe, for each
``MODEL-DATA/FORM``.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import field_validator

from panning.foundation.config import OR_NAME, Config, load_config
from panning.foundation.packaged import packaged_configs
from panning.foundation.registry import Row, unknown_name_message
from panning.training import Recipe


class Preset(Config):
    """A file of recipes.

    Attributes:
        paper: as the papers train, or as near as the file says.
        short: fits two cores.
    """

    paper: Recipe
    short: Recipe


@functools.cache
def recipes() -> dict[str, Recipe]:
    """All presets by ``MODEL-DATA/FORM``."""
    files = {path.stem: load_config(Preset, path) for path in packaged_configs("recipes").values()}
    return {f"{stem}/{form}": getattr(file, form) for stem, file in files.items() for form in Preset.model_fields}


def load_recipe(name: str) -> Recipe:
    """The preset ``MODEL-DATA/FORM``.

    Raises:
        ValueError: with the nearest right name.
    """
    return _row(recipes(), name, "recipe")


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


@functools.cache
def dynamic_presets() -> dict[str, DynamicPreset]:
    """All settings of methods that move masks by ``METHOD/MODEL-DATA/FORM``."""
    files = {path.stem: load_config(DynamicPresets, path) for path in packaged_configs("dynamics").values()}
    return {f"{stem}/{name}": setting for stem, file in files.items() for name, setting in file.settings.items()}


def load_dynamic_preset(name: str) -> DynamicPreset:
    """The setting ``METHOD/MODEL-DATA/FORM``.

    Raises:
        ValueError: with the nearest right name.
    """
    return _row(dynamic_presets(), name, "preset")


def _row(table: Mapping[str, Row], name: str, kind: str) -> Row:
    if name not in table:
        raise ValueError(unknown_name_message(kind, name, table))
    return table[name]
