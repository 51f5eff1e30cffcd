"""Acceptance tests H1 and H4 of METHODS.md: exactly k at small k, for every method; what may not alter GraSP's mask."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from toys import mlp_problem

from panning.masks.allocation import top_k
from panning.scoring.indices import INDICES
from panning.scoring.signals import Signals

#: Quotas that keep a fifth or more of the classifier, which has more than 64 weights of its own.
FIXED_SHARES = {"uniform_plus", "smart_ratio", "smart_ratio_vgg"}


@pytest.mark.parametrize("index", ["grasp_signed", "grasp"])
@pytest.mark.parametrize("factor", [2.0, 9.0, 0.5])
def test_grasps_mask_is_that_of_a_summed_or_scaled_loss(index: str, factor: float) -> None:
    problem = mlp_problem(sizes=(6, 8, 8, 3), dtype=torch.float64)
    scaled = dataclasses.replace(problem, loss=lambda outputs, targets: factor * F.cross_entropy(outputs, targets))
    summed = dataclasses.replace(
        problem, loss=lambda outputs, targets: F.cross_entropy(outputs, targets, reduction="sum")
    )
    dense = torch.ones(problem.layout.n_prunable, dtype=torch.bool)
    formula = INDICES[index].formula
    for k in (8, 40, 100):
        mask = top_k(formula(Signals(problem, dense)), k)
        assert torch.equal(top_k(formula(Signals(scaled, dense)), k), mask)
        assert torch.equal(top_k(formula(Signals(summed, dense)), k), mask)
