"""CONTRIBUTING's lists are complete: one of each thing is added in a copy of the package, in exactly the files that its list
names, and the contract tests run over it there."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MAPPED = ("envs", "agents", "configs")  # at the top of a checkout, inside the installed package

#: A file's text, before and after; of a new file, from nothing.
Edit = Callable[[str], str]


def new(text: str) -> Edit:
    def make(before: str) -> str:
        assert before == "", "the file is there already"
        return text

    return make


def behind(anchor: str, text: str) -> Edit:
    """``text`` on the lines behind the one that holds ``anchor``."""

    def insert(before: str) -> str:
        lines = before.splitlines(keepends=True)
        (place,) = (number for number, line in enumerate(lines, 1) if anchor in line)
        return "".join([*lines[:place], text, *lines[place:]])

    return insert


def instead(old: str, text: str) -> Edit:
    def replace(before: str) -> str:
        assert before.count(old) == 1, old
        return before.replace(old, text)

    return replace


def at_end(text: str) -> Edit:
    return lambda before: before + text


def all_of(*edits: Edit) -> Edit:
    def run(before: str) -> str:
        for edit in edits:
            before = edit(before)
        return before

    return run


@dataclass(frozen=True)
class Addition:
    """One thing that is added.

    Attributes:
        name: what stands for NAME in the list's paths.
        edits: path -> what happens to the file.
        checks: pytest's arguments; the last one selects tests of which some have the name.
        generated: path -> the arguments of the Python that prints it, the whole file or the file's tables.
    """

    name: str
    edits: Mapping[str, Edit]
    checks: tuple[str, ...]
    generated: Mapping[str, tuple[str, ...]] | None = None

    @property
    def paths(self) -> list[str]:
        return [*self.edits, *(self.generated or {})]


MODEL = Addition(
    "tiny",
    {
        "panning/models/tiny.py": new('''"""A tiny network."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from panning.models.initialization import initialize


class Tiny(nn.Module):
    """Images -> one convolution -> logits."""

    def __init__(self, input_shape: Sequence[int], n_classes: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(input_shape[0], 64, 3)
        self.classifier = nn.Linear(64, n_classes)
        initialize(self)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.classifier(self.conv(inputs).relu().mean((2, 3)))
'''),
        "panning/models/__init__.py": all_of(
            behind("from panning.models.mlp", "from panning.models.tiny import Tiny\n"),
            behind('"vgg19": ModelRow(', '    "tiny": ModelRow(Tiny, "Tiny", "nobody", _GREY),\n'),
        ),
        "docs/commands.md": instead("`vgg19`,\n", "`vgg19`, `tiny`,\n"),
    },
    ("tests/test_models.py", "tests/test_readme.py", "-k", "tiny or own_model_and_data_set"),
)

DATA_SET = Addition(
    "stripes",
    {
        "panning/data/stripes.py": new('''"""Stripes: two classes of made images."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch

from panning.data.splits import InMemorySplit, Parts


def read_stripes(root: Path | None = None, download: bool = False) -> Parts:
    """Upright stripes are 0, level ones 1."""
    return Parts(_read(40), None, partial(_read, 10))


def _read(n: int) -> InMemorySplit:
    upright = (torch.arange(8) % 2 * 255).to(torch.uint8).expand(8, 8)
    labels = torch.arange(n) % 2
    return InMemorySplit(torch.stack([upright, upright.T])[labels].unsqueeze(1), labels)
'''),
        "panning/data/__init__.py": all_of(
            behind("from panning.data.npz", "from panning.data.stripes import read_stripes\n"),
            behind('"cifar100": DatasetRow(', '    "stripes": DatasetRow("Stripes", read_stripes),\n'),
        ),
        "docs/commands.md": instead("`cifar100` (from", "`cifar100`, `stripes` (from"),
        "tests/test_data.py": at_end('''

def test_stripes() -> None:
    data = load_data("stripes")
    assert data.input_shape == (1, 8, 8) and data.n_classes == 2 and len(data.train) == 36
'''),
    },
    ("tests/test_data.py", "tests/test_readme.py", "-k", "stripes or names or own_model_and_data_set"),
)  # fmt: skip

LAYER_KIND = Addition(
    "bilinear",
    {
        "panning/masks/kinds.py": behind("    Kind(nn.Conv3d),", "    Kind(nn.Bilinear),\n"),
        "tests/test_kinds.py": behind(
            '    "Linear": (lambda',
            '    "Bilinear": (lambda: Called(\n'
            "        lambda self, x: self.out(self.two(x, x)), two=nn.Bilinear(4, 4, 5), out=nn.Linear(5, 3),\n"
            "    ), (4,)),\n",
        ),
    },
    ("tests/test_kinds.py", "-k", "Bilinear or page_of_layers or kind_has_a_network"),
    {"docs/layers.md": ("tests/test_kinds.py",)},
)

INDEX = Addition(
    "taylor",
    {
        "panning/scoring/indices.py": all_of(
            instead(
                "@dataclass(frozen=True)\nclass Index:",
                'def taylor(signals: Signals) -> Tensor:\n    """(w g)^2."""\n    return snip(signals).square()\n\n\n'
                "@dataclass(frozen=True)\nclass Index:",
            ),
            behind('    "random": Index(', '    "taylor": Index(taylor, ("weight", "grad"), "nobody"),\n'),
        ),
        "tests/test_signals.py": at_end('''

def test_taylor_is_as_computed_by_hand() -> None:
    model = chain([[2.0]], [[-3.0]])
    problem = Problem.of(model, (1,), lambda n: (torch.tensor([[5.0]]), torch.zeros(1)), loss=lambda y, t: y.sum())
    assert INDICES["taylor"].formula(Signals(problem, dense(problem))).tolist() == [900.0, 900.0]
'''),
    },
    ("tests/test_signals.py", "tests/test_episode.py", "-k", "taylor or every_index_can_be_weighed"),
)  # fmt: skip

SIGNAL = Addition(
    "example_signal",
    {
        "panning/scoring/signals/example_signal.py": new('''"""How much a single sample pulls at a weight."""

from __future__ import annotations

import torch
from torch import Tensor

from panning.scoring.signals.site import Site, gradient


def squares(site: Site) -> dict[str, Tensor]:
    """``example_square`` = mean of (dL/du)^2 over the samples of the scoring batch."""
    inputs, targets = site.batch
    found = []
    for sample in zip(inputs.split(1), targets.split(1), strict=True):
        effective = site.effective()
        found.append(gradient(site.loss(effective, sample), effective).square())
    return {"example_square": torch.stack(found).mean(0)}
'''),
        "panning/scoring/signals/__init__.py": all_of(
            behind(
                "from panning.scoring.signals import", "from panning.scoring.signals import example_signal\n"
            ),
            behind('    "coupled_grad_norm": Pass(', '    "example_square": Pass(example_signal.squares),\n'),
        ),
        "tests/test_signals.py": at_end('''

def test_example_signal_is_as_computed_by_hand() -> None:
    model = chain([[2.0]], [[-3.0]])
    batch = torch.tensor([[5.0], [1.0]]), torch.zeros(2)
    problem = Problem.of(model, (1,), lambda n: batch, loss=lambda y, t: y.sum())
    assert Signals(problem, dense(problem)).example_square.tolist() == [(225 + 9) / 2, (100 + 4) / 2]
'''),
    },
    ("tests/test_signals.py", "-k", "example_signal"),
)  # fmt: skip

#: What prints the tables of docs/methods.md.
METHOD_TABLES = ("-c", "from panning.cli import main; main(['methods', '--markdown'])")

METHOD = Addition(
    "snip3",
    {
        "panning/pruners/__init__.py": behind(
            '    "magnitude": PrunerRow(',
            '    "snip3": PrunerRow(ScoreRounds({"snip": 1.0}, n_rounds=3), "SNIP in three rounds", "nobody"),\n',
        ),
        "tests/test_methods.py": at_end('''

def test_snip3_is_iterative_snip_in_three_rounds() -> None:
    masks = [
        prune_problem(mlp_problem(), 0.1, name, rounds=rounds).mask
        for name, rounds in (("snip3", Rounds()), ("iter_snip", Rounds(3)))
    ]
    assert torch.equal(*masks)
'''),
    },
    (
        "tests/test_pruners.py", "tests/test_methods.py", "tests/test_readme.py", "tests/test_cli.py",
        "-k", "snip3 or table_of_methods or methods_are_listed",
    ),
    {"docs/methods.md": METHOD_TABLES},
)  # fmt: skip

DYNAMIC = Addition(
    "wander",
    {
        "panning/training/moving/methods/wander.py": new('''"""Wander: the smallest weights for others, by lot."""

from __future__ import annotations

from panning.training.moving.method import Move, Share, View
from panning.training.moving.selection import exchange, noise_like, shares
from panning.training.moving.timing import DropAndGrow


class Wander(DropAndGrow):
    """Drops the smallest weights, grows at random.

    Attributes:
        fraction: of a layer's weights that a move exchanges.
    """

    every: int | None = 100
    fraction: Share = 0.3

    def move(self, view: View) -> Move:
        counts = shares(self.fraction, view.mask, view.layout)
        return exchange(view, counts, grow_by=noise_like(view.weight, view.generator))
'''),
        "panning/training/moving/methods/__init__.py": all_of(
            behind(
                "from panning.training.moving.methods.surgery",
                "from panning.training.moving.methods.wander import Wander\n",
            ),
            behind('    "dpf": DynamicRow(', '    "wander": DynamicRow(Wander(), "wander", "nobody", "erk"),\n'),
        ),
        "configs/dynamics/wander.yaml": new(
            "settings:\n  lenet5-fashion_mnist/short: {recipe: lenet5-fashion_mnist/short, options: {every: 50}}\n"
        ),
        "tests/test_dynamic_methods.py": at_end('''

def test_wander_drops_the_smallest() -> None:
    seen = view([4.0, 1.0, 3.0, 2.0], [1.0] * 4, mask=[1, 1, 0, 0] * 2)
    moved = kept(make_dynamic("wander", {"fraction": 0.5}).move(seen))
    assert moved[0] == 1 and [sum(moved[:4]), sum(moved[4:])] == [2, 2]
'''),
    },
    (
        "tests/test_dynamics.py", "tests/test_dynamic_methods.py", "tests/test_grid.py", "tests/test_readme.py",
        "-k", "wander or table_of_methods or preset",
    ),
    {"docs/methods.md": METHOD_TABLES},
)  # fmt: skip

END_OF_OBSERVATIONS = "    )\n}  # fmt: skip\n\n#: The observations of a policy"

OBSERVATION = Addition(
    "example_observation",
    {
        "panning/episode/observations.py": all_of(
            instead(
                "def _layer_densities(",
                "def example_observation(state: EpisodeState) -> float:\n"
                '    """The share of layers without an alive weight."""\n'
                "    return float(np.mean([density == 0.0 for density in _layer_densities(state)]))\n\n\n"
                "def _layer_densities(",
            ),
            instead(END_OF_OBSERVATIONS, f"        example_observation,\n{END_OF_OBSERVATIONS}"),
        ),
        "tests/test_episode.py": at_end('''

def test_example_observation_counts_collapsed_layers() -> None:
    state = initial(mlp_problem(), 0.1, 2)
    assert observe(state, ("example_observation",)).tolist() == [0.0]
    alive = state.alive.clone()
    alive[: state.problem.layout.sizes[0]] = False
    state = dataclasses.replace(state, alive=alive)
    assert observe(state, ("example_observation",)).tolist() == [pytest.approx(1 / 3)]
'''),
    },
    ("tests/test_episode.py", "-k", "example_observation or shipped_policies or observations"),
)  # fmt: skip

REWARD_TERM = Addition(
    "collapse",
    {
        "panning/episode/round_reward.py": all_of(
            instead(
                "Term = Callable",
                "def collapse(state: EpisodeState) -> float:\n"
                '    """-(layers without an alive weight) / layers."""\n'
                "    counts = state.problem.layout.counts(state.alive)\n"
                "    return -counts.count(0) / len(counts)\n\n\n"
                "Term = Callable",
            ),
            instead('"gradient": gradient}', '"gradient": gradient, "collapse": collapse}'),
        ),
        "envs/ending.py": instead("    training: Weight", "    collapse: Weight = 0.0\n    training: Weight"),
        "tests/test_env.py": at_end('''

def test_collapsed_layers_are_told() -> None:
    env = make(reward={"collapse": 1.0})
    assert env.reset(seed=0)[1]["collapse"] == 0.0 and "collapse" in env.spec_of_reward.figures
'''),
    },
    ("tests/test_env.py", "-k", "collapsed_layers or every_term or papers"),
)  # fmt: skip

ADDITIONS = {
    "An index": INDEX,
    "A signal": SIGNAL,
    "A method before training": METHOD,
    "A method while training": DYNAMIC,
    "An observation": OBSERVATION,
    "A reward term": REWARD_TERM,
    "A layer kind": LAYER_KIND,
    "A model": MODEL,
    "A data set": DATA_SET,
}


def listed(heading: str) -> list[str]:
    """The files that the numbered list below a heading of CONTRIBUTING names, one an item."""
    (section,) = re.findall(
        rf"^### {re.escape(heading)}\n(.*?)(?=^##|\Z)", (ROOT / "CONTRIBUTING.md").read_text(), re.DOTALL | re.MULTILINE
    )
    return re.findall(r"^\d\. `([^`]+)`", section, re.MULTILINE)


def copy_of_package(folder: Path) -> Path:
    """A checkout without pictures and records, in which the mapped folders lie where an installation has them, too."""
    folder.mkdir()
    for name in ("panning", "tests", *MAPPED):
        # With what is compiled already, but for what another process is just writing.
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("*.pyc.*"))
    shutil.copytree(ROOT / "docs", folder / "docs", ignore=shutil.ignore_patterns("results"))
    for path in ("README.md", "CONTRIBUTING.md", "pyproject.toml"):
        shutil.copy(ROOT / path, folder / path)
    for name in MAPPED:
        (folder / "panning" / name).symlink_to(folder / name)
    return folder


def python(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{folder / 'tests'}", "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=280
    )


def apply(folder: Path, *additions: Addition) -> None:
    for addition in additions:
        for name, edit in addition.edits.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(edit(path.read_text() if path.exists() else ""))
    generated = {name: arguments for addition in additions for name, arguments in (addition.generated or {}).items()}
    for name, arguments in generated.items():
        printed = python(folder, *arguments)
        assert printed.returncode == 0, printed.stderr
        before = (folder / name).read_text()
        (folder / name).write_text(printed.stdout if printed.stdout[0] == "#" else with_tables(before, printed.stdout))


def with_tables(page: str, printed: str) -> str:
    """The page with each table for the printed one that has the same columns."""
    for table in printed.strip().split("\n\n"):
        columns = table.splitlines()[0]
        page = re.sub(rf"^{re.escape(columns)}\n(\|.*\n)+", lambda _, new=table: new + "\n", page, flags=re.MULTILINE)
    return page


def check(folder: Path, *checks: str) -> subprocess.CompletedProcess[str]:
    options = ("-v", "-x", "-p", "no:cacheprovider", "-o", "addopts=--import-mode=importlib --strict-markers")
    return python(folder, "-m", "pytest", *options, *checks)


def test_every_list_of_contributing_is_tried() -> None:
    headings = re.findall(r"^### (An? .*)$", (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE)
    assert headings == list(ADDITIONS)


@pytest.mark.parametrize("heading", ADDITIONS)
def test_an_addition_touches_the_files_of_its_list(heading: str) -> None:
    addition = ADDITIONS[heading]
    touched = [path.replace(f"/{addition.name}.", "/NAME.") for path in addition.paths]
    assert listed(heading) == touched


def test_all_additions_together_pass_their_checks(tmp_path: Path) -> None:
    folder = copy_of_package(tmp_path / "copy")
    apply(folder, *ADDITIONS.values())
    paths = dict.fromkeys(arg for addition in ADDITIONS.values() for arg in addition.checks if arg.endswith(".py"))
    words = " or ".join(addition.checks[-1] for addition in ADDITIONS.values())
    result = check(folder, *paths, "-k", words)
    assert result.returncode == 0, result.stdout + result.stderr
    for addition in ADDITIONS.values():  # no list is tried by the others' tests
        assert re.search(rf"{addition.name}.* PASSED", result.stdout, re.IGNORECASE), addition.name


@pytest.mark.slow
@pytest.mark.parametrize("heading", ADDITIONS)
def test_an_addition_alone_passes_its_checks(heading: str, tmp_path: Path) -> None:
    folder = copy_of_package(tmp_path / "copy")
    apply(folder, ADDITIONS[heading])
    result = check(folder, *ADDITIONS[heading].checks)
    assert result.returncode == 0, result.stdout + result.stderr
