"""The example of docs/cluster.md: its config and network go together, and its cluster files are what they say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from test_layers import ROOT

from panning.searches.kinds import SEARCH, named_config
from panning.searches.run import check_search

FOLDER = ROOT / "docs" / "examples" / "cluster"


def test_the_network_of_the_example_fits_its_search(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(FOLDER)
    config = named_config(SEARCH, "search.yaml").config.with_network("nets:bottleneck", None)
    assert config.order == "free" and config.task.model_name == "nets:bottleneck"
    assert check_search(config).n_train > 1000


@pytest.mark.parametrize(
    ("name", "place"), [("kuberay.yaml", ("spec", "entrypoint")), ("ray-up.yaml", ("provider", "type"))]
)
def test_files_of_clusters_are_yaml_and_the_page_shows_them(name: str, place: tuple[str, str]) -> None:
    held: Any = yaml.safe_load((FOLDER / name).read_text())
    said = held[place[0]][place[1]]
    assert said.startswith("panning search ") or said == "local"
    assert f"examples/cluster/{name}" in Path(ROOT / "docs" / "cluster.md").read_text()
