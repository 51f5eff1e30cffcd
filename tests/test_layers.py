"""The direction of imports (DESIGN 2), and what gets installed under which name."""

from __future__ import annotations

import ast
import importlib.metadata
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LAYERS = [
    "errors registry config configs seeding records memory pictures",
    "layout masks maskfile maskconvert tensorfile models data",
    "flow signals indices allocation schedules connectivity mixing problem enforce",
    "pruners training export image_format policies tasks api",
    "envs",
    "agents",
    "search benchmark",
    "cli service",
]
LEVEL = {module: level for level, modules in enumerate(LAYERS) for module in modules.split()}
#: Masks.effective_density calls up, inside the function.
EXCEPTIONS = {("panning/masks.py", "panning.connectivity")}
#: Third-party packages and where alone they may be imported.
HOMES = {
    "ray": lambda path: path.name.startswith("ray_"),
    "stable_baselines3": lambda path: path.parts[0] == "agents",
    "gymnasium": lambda path: path.parts[0] in ("envs", "agents"),
    "typer": lambda path: path.parts[:2] == ("panning", "cli"),
    "rich": lambda path: path.parts[:2] == ("panning", "cli"),
    "torch": lambda path: LEVEL[module_of(path)] > 0 or path.stem == "seeding",
}


def source_files() -> list[Path]:
    found = [path.relative_to(ROOT) for top in ("panning", "envs", "agents") for path in (ROOT / top).rglob("*.py")]
    return sorted(path for path in found if path != Path("panning/__init__.py"))


def module_of(path: Path) -> str:
    return (path.parts[0] if path.parts[0] != "panning" else path.parts[1]).removesuffix(".py")


def imports(tree: ast.AST) -> Iterator[str]:
    """Dotted names of all imports, those inside functions too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            if node.module == "panning":
                yield from (f"panning.{alias.name}" for alias in node.names)
            else:
                yield str(node.module)


@pytest.mark.parametrize("path", source_files(), ids=str)
def test_imports_point_downwards(path: Path) -> None:
    assert module_of(path) in LEVEL, f"{path}: place this module in LAYERS"
    for name in imports(ast.parse((ROOT / path).read_text())):
        top, *rest = name.split(".")
        assert top not in HOMES or HOMES[top](path), f"{path} may not import {top}"
        if top != "panning" or (str(path), name) in EXCEPTIONS:
            continue
        assert rest and rest[0] in LEVEL, f"{path} imports {name}, which is no module in LAYERS"
        assert LEVEL[rest[0]] <= LEVEL[module_of(path)], f"{path} imports {name}, a layer above it"


def test_the_exceptions_are_still_needed() -> None:
    assert {
        (path, name) for path, _ in EXCEPTIONS for name in imports(ast.parse((ROOT / path).read_text()))
    } >= EXCEPTIONS


def test_every_folder_with_code_is_installed_inside_panning() -> None:
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = {path.parent.as_posix().replace("/", ".") for path in source_files()} | {"panning", "configs"}
    expected = {name if name.startswith("panning") else f"panning.{name}" for name in folders}
    assert sorted(setuptools["packages"]) == sorted(expected | {"panning.envs", "panning.agents"})
    mapping = {name.removeprefix("panning."): folder for name, folder in setuptools["package-dir"].items()}
    assert mapping == {"panning": "panning", "envs": "envs", "agents": "agents", "configs": "configs"}


def test_no_other_top_level_name_is_installed() -> None:
    names = importlib.metadata.distribution("panning").read_text("top_level.txt")
    assert names is not None and names.split() == ["panning"]
