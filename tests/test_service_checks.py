"""The check process, which has torch so that the server needs none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from panning.foundation.errors import ConfigError
from panning.service.checker import Checker
from panning.service.checks import Checks

PRUNE = {"kind": "prune", "task": {"model": "mlp", "data": "digits"}, "density": 0.1, "method": "snip"}


def test_a_checker_finds_what_is_wrong_and_what_a_run_costs(tmp_path: Path) -> None:
    checker = Checker(tmp_path)
    assert checker.answer({"what": "config", "config": PRUNE}) == {"found": None}
    refused = checker.answer({"what": "config", "config": {**PRUNE, "method": "snpi", "densty": 1}})["refused"]
    assert "Did you mean 'snip'" in refused or "Did you mean 'density'" in refused
    assert checker.answer({"what": "cost", "config": PRUNE})["found"]["n_parameters"] == 50_826
    huge = {**PRUNE, "task": {"model": "torchvision:vit_h_14", "data": "digits"}}
    assert "parameters" in checker.answer({"what": "cost", "config": huge})["refused"]


def test_a_checker_tells_methods_and_data_sets(tmp_path: Path) -> None:
    checker = Checker(tmp_path)
    methods = checker.answer({"what": "methods"})["found"]
    assert {("before", "snip"), ("during", "rigl")} <= {(row["when"], row["name"]) for row in methods}
    there = checker.answer({"what": "data"})["found"]
    assert there["digits"] and not there["mnist"]


@pytest.mark.parametrize(
    ("error", "said"), [(MemoryError(), {"refused"}), (RuntimeError("can't allocate memory: it"), {"refused"}),
                        (KeyError("x"), {"failed"})]
)  # fmt: skip
def test_what_a_check_raises_is_an_answer(error: Exception, said: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def raises(_: Any) -> None:
        raise error

    checker = Checker(None)
    monkeypatch.setitem(checker.whats, "cost", raises)
    assert set(checker.answer({"what": "cost", "config": {}})) == said


@pytest.mark.slow
def test_the_process_answers_and_one_without_memory_is_replaced(tmp_path: Path) -> None:
    checks = Checks(str(tmp_path))
    checks.config(PRUNE, 1)
    with pytest.raises(ConfigError, match="Did you mean 'snip'"):
        checks.config({**PRUNE, "method": "snpi"}, 1)
    assert checks.cost(PRUNE, 1)["n_parameters"] == 50_826
    checks.seconds = 0.001
    with pytest.raises(ConfigError, match="takes over"):
        checks.cost({**PRUNE, "task": {"model": "vgg19", "data": "digits"}}, 1)
    checks.seconds = 10
    assert len(checks.methods()) > 50
    checks.close()
