"""The direction of imports, what an import loads, and what gets installed under which name."""

from __future__ import annotations

import ast
import importlib.metadata
import json
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
#: From the ground up. A room may import what stands in a row above it and, in its own row, to its left.
LAYERS = [
    "foundation",
    "data models flow masks maskconvert",
    "scoring alive",
    "compaction export pruners streaming episode tasks training api moves integrations",
    "envs",
    "agents",
    "jobs measure compare searches explaining",
    "calls service client cli testing __main__",
]
ORDER = [room for rooms in LAYERS for room in rooms.split()]
#: Of foundation, the files that know torch; what stands on the others starts without it.
WITH_TORCH = {
    "device", "modes", "nests", "overruns", "seeding", "tensorfile", "torch_private", "torchfile", "tracking", "wrappers",
}  # fmt: skip
#: Masks.effective_density calls up, inside the function.
#: The method that is a shipped policy runs it, where there is one.
EXCEPTIONS = {
    ("panning/masks/masks.py", "panning.alive.connectivity"),
    ("panning/pruners/shipped.py", "panning.episode.agent_pruner"),
}
#: Third-party packages and where alone they may be imported.
HOMES = {
    "ray": lambda path: path.name.startswith("ray_"),
    "stable_baselines3": lambda path: path.parts[0] == "agents",
    "gymnasium": lambda path: path.parts[0] in ("envs", "agents") or path.parts[:2] == ("panning", "testing"),
    "pytest": lambda path: path.parts[:2] == ("panning", "testing"),
    "transformers": lambda path: path.parts[:2] == ("panning", "integrations"),
    "lightning": lambda path: path.parts[:2] == ("panning", "integrations"),
    "timm": lambda path: path.parts[:2] == ("panning", "models"),
    "typer": lambda path: path.parts[:2] == ("panning", "cli"),
    "rich": lambda path: path.parts[:2] == ("panning", "cli"),
    "optuna": lambda path: path.name.startswith("optuna"),
    "cmaes": lambda path: path.name.startswith("optuna"),
    "wandb": lambda path: path.name == "tracking.py",
    "mlflow": lambda path: path.name == "tracking.py",
    "sqlalchemy": lambda path: path.parts[:2] == ("panning", "service"),
    "alembic": lambda path: path.parts[:2] == ("panning", "service"),
    "fastapi": lambda path: path.parts[:3] in (("panning", "service", "api"), ("panning", "service", "page")),
    "starlette": lambda path: path.parts[:3] in (("panning", "service", "api"), ("panning", "service", "page")),
    "jinja2": lambda path: path.parts[:3] == ("panning", "service", "page"),
    "uvicorn": lambda path: path.parts[:2] == ("panning", "service"),
    "h11": lambda path: path.parts[:2] == ("panning", "service"),
    "prometheus_client": lambda path: path.parts[:2] == ("panning", "service"),
    "matplotlib": lambda path: path.as_posix() == "panning/foundation/pictures.py",
    "torch": lambda path: room_of(path) != "foundation" or path.stem in WITH_TORCH,
}


def source_files() -> list[Path]:
    found = [path.relative_to(ROOT) for top in ("panning", "envs", "agents") for path in (ROOT / top).rglob("*.py")]
    return sorted(path for path in found if path != Path("panning/__init__.py"))


def room_of(path: Path) -> str:
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


def refused(path: Path) -> Iterator[str]:
    """What a file imports that it may not."""
    place = ORDER.index(room_of(path))
    for name in imports(ast.parse((ROOT / path).read_text())):
        top, *rest = name.split(".")
        if top in HOMES and not HOMES[top](path):
            yield f"{path} may not import {top}"
        if top != "panning" or name == "panning.configs" or (str(path), name) in EXCEPTIONS:
            continue
        if not rest or rest[0] not in ORDER:
            yield f"{path} imports {name}, which is no room in LAYERS"
        elif ORDER.index(rest[0]) > place:
            yield f"{path} imports {name}, a room above it"


def test_imports_point_downwards() -> None:
    unplaced = sorted({room_of(path) for path in source_files()} - set(ORDER))
    assert not unplaced, f"place these rooms in LAYERS: {unplaced}"
    assert not (found := [line for path in source_files() for line in refused(path)]), "\n".join(found)


def lines_of(node: ast.FunctionDef) -> int:
    """Lines of a function, its docstring apart."""
    first = node.body[0]
    documented = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
    return node.end_lineno - node.lineno + 1 - (first.end_lineno - first.lineno + 1 if documented else 0)


def test_files_and_functions_are_short() -> None:
    long = [str(path) for path in source_files() if len((ROOT / path).read_text().splitlines()) > 350]
    for path in source_files():
        for node in ast.walk(ast.parse((ROOT / path).read_text())):
            declares = any("command" in ast.unparse(decorator) for decorator in getattr(node, "decorator_list", []))
            if isinstance(node, ast.FunctionDef) and not declares and lines_of(node) > 60:
                long.append(f"{path}:{node.name}")
    assert long == []


def test_the_order_has_no_dead_names() -> None:
    assert {room_of(path) for path in source_files()} == set(ORDER)


def test_the_exceptions_are_still_needed() -> None:
    assert {
        (path, name) for path, _ in EXCEPTIONS for name in imports(ast.parse((ROOT / path).read_text()))
    } >= EXCEPTIONS


#: What takes seconds to import, beside torch itself.
SLOW = "torchvision torch._dynamo"
#: What a user does -> the packages that must not be loaded by then. The steps follow one another in one process.
NOT_LOADED = {
    "import panning": "torch ray stable_baselines3 matplotlib scipy pydantic typer rich",
    "import panning.cli": "torch ray stable_baselines3 matplotlib scipy pydantic",
    "for name in panning.__all__: getattr(panning, name)": f"ray stable_baselines3 matplotlib scipy sklearn {SLOW}",
    "import torch, panning.envs, panning.training": f"ray stable_baselines3 matplotlib scipy sklearn {SLOW}",
    "panning.prune(torch.nn.Linear(4, 3), density=0.9, method='synflow', input_shape=(4,))": SLOW,
    "import gymnasium, importlib; importlib.reload(panning)": "ray stable_baselines3 matplotlib scipy sklearn",
    "assert gymnasium.make('panning:Panning-v0').spec.id == 'Panning-v0'": "ray stable_baselines3 matplotlib",
    "import panning.agents, panning.searches, panning.compare.grid": f"ray matplotlib optuna {SLOW}",
}


def test_an_import_loads_only_what_it_needs_and_registers_the_environment_once() -> None:
    """Gymnasium warns where a registration overrides another."""
    lines = ["import json, sys", "loaded = []"]
    for step in NOT_LOADED:
        lines += [step, "loaded.append(sorted(sys.modules))"]
    lines.append("print(json.dumps(loaded))")
    warnings = ["-W", "error::UserWarning", "-W", "ignore::DeprecationWarning"]
    result = subprocess.run([sys.executable, *warnings, "-c", "\n".join(lines)], capture_output=True)
    assert result.returncode == 0, result.stderr.decode()
    for (step, kept_out), modules in zip(NOT_LOADED.items(), json.loads(result.stdout), strict=True):
        assert not set(kept_out.split()) & set(modules), step


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
