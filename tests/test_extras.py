"""A light installation: what works without the optional packages, and the sentence where one is missing."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from panning.foundation.errors import MissingExtraError
from panning.foundation.extras import EXTRAS, extra_packages

ROOT = Path(__file__).resolve().parent.parent
#: Distribution -> the package that is imported, where the two differ.
IMPORTED = {
    "prometheus-client": "prometheus_client",
    "scikit-learn": "sklearn",
    "scikit-posthocs": "scikit_posthocs",
    "stable-baselines3": "stable_baselines3",
    "mlflow-skinny": "mlflow",
}
#: Come with a distribution that is named: Pillow with torchvision, pandas with scikit-posthocs.
ALONG = {"PIL", "pandas"}
#: Imports as if nothing but the core were installed.
BLOCK = f"""
import importlib.machinery, sys

class WithoutExtras:
    def find_spec(self, name, path=None, target=None):
        return None if name in {sorted(EXTRAS)!r} else importlib.machinery.PathFinder.find_spec(name, path, target)

sys.meta_path = [WithoutExtras() if one is importlib.machinery.PathFinder else one for one in sys.meta_path]
"""
CORE = """
import gymnasium, torch, panning, tempfile, pathlib
model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
optimizer = torch.optim.SGD(model.parameters(), 0.1)
batch = torch.randn(8, 4), torch.arange(8) % 2
for name in panning.__all__:
    getattr(panning, name)
masks = panning.prune(model, batch, density=0.5, method="snip", all_alive=True)
path = pathlib.Path(tempfile.mkdtemp()) / "mask.safetensors"
panning.save_masks(masks, path)
assert panning.load_masks(path) == masks
small = panning.compact(model, masks, (4,))
panning.enforce_masks(model, masks, optimizer)
model(batch[0]).sum().backward()
optimizer.step()
import panning.envs, panning.training, panning.data, panning.models, panning.jobs, panning.compare.grid
import panning.agents, panning.searches.kinds, panning.searches.cost
print("done")
"""


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", BLOCK + code], capture_output=True, text=True)


PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def packages(requirements: list[str]) -> set[str]:
    """What requirements let one import, other extras apart."""
    names = {re.split(r"[\[>]", line)[0] for line in requirements} - {"panning"}
    return {IMPORTED.get(name, name) for name in names}


@pytest.mark.parametrize("package", sorted(set(EXTRAS) - ALONG))
def test_an_extra_brings_what_messages_say(package: str) -> None:
    assert package in packages(PROJECT["optional-dependencies"][EXTRAS[package]])


def test_the_core_needs_none_of_them() -> None:
    core = {"filelock", "gymnasium", "numpy", "pydantic", "pyyaml", "safetensors", "torch"}
    assert packages(PROJECT["dependencies"]) == core
    found = run(CORE)
    assert found.stdout == "done\n", found.stderr


#: What a user does -> the extra that the sentence names.
WITHOUT = {
    "from panning.agents import train_agent": "search",
    "import panning.jobs.ray_executor": "search",
    "from panning.data import load_data; load_data('digits')": "data",
    "from panning.models import build_model; build_model('alexnet', input_shape=(3, 32, 32), n_classes=10, seed=0)": "data",
    "from panning.jobs.pictures import curve_picture; curve_picture([], '')": "bench",
    "from panning.compare.statistics import detectable; detectable(3, 1)": "bench",
    "from panning.export.onnx import save_onnx; save_onnx(None, 'net.onnx', (4,))": "onnx",
}


def test_a_missing_package_is_one_sentence() -> None:
    lines = ["from panning import PanningError"]
    for step in WITHOUT:
        lines += ["try:", f"    {step}", "except PanningError as error:", "    print(error)"]
    found = run("\n".join(lines))
    assert len(said := found.stdout.splitlines()) == len(WITHOUT), found.stderr
    for sentence, (step, extra) in zip(said, WITHOUT.items(), strict=True):
        assert re.fullmatch(rf"This needs \w+, which is not installed: pip install 'panning\[{extra}\]'\.", sentence), (
            step
        )


def test_the_command_without_its_packages_ends_with_one_sentence() -> None:
    found = run("from panning.__main__ import main; main()")
    assert (found.returncode, found.stdout) == (2, "")
    assert found.stderr == "error: This needs typer, which is not installed: pip install 'panning[cli]'.\n"


def test_other_failed_imports_stay_as_they_are() -> None:
    with pytest.raises(ModuleNotFoundError, match="no_such_package") as caught, extra_packages():
        import no_such_package  # type: ignore[import-not-found]  # noqa: F401
    assert not isinstance(caught.value, MissingExtraError)
