"""Gradient coupled flow (GCS, Kang): how much a weight couples the gradients of groups of samples.

The scoring batch is split into groups with the same labels; g_a is the gradient of group a. For two groups
q_ab = d<g_a, g_b>/du = H_a g_b + H_b g_a.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch
from torch import Tensor

from panning.data.batches import Batch
from panning.foundation.errors import DataError
from panning.foundation.nests import n_samples, samples, told
from panning.scoring.losses import labels_of
from panning.scoring.signals.site import Site, gradient

N_GROUPS = 5


def pair(site: Site) -> dict[str, Tensor]:
    """``coupled_grad`` = q_12 of two groups (GCS)."""
    (coupled,) = couplings(site, 2)
    return {"coupled_grad": coupled}


def groups(site: Site) -> dict[str, Tensor]:
    """``coupled_grad_norm`` = sqrt(sum of q_ab^2) over all pairs of five groups (GCS-Group)."""
    squares = torch.zeros_like(site.problem.weight)
    for coupled in couplings(site, N_GROUPS):
        squares.addcmul_(coupled, coupled)
    return {"coupled_grad_norm": squares.sqrt_()}


def couplings(site: Site, n_groups: int) -> Iterator[Tensor]:
    """q_ab of all pairs a < b, each flat; one at a time, for each is as large as the network.

    Raises:
        DataError: if the batch has fewer samples than groups.
    """
    effective = site.effective()
    parts = split_by_label(site.batch, n_groups)
    grads = [gradient(site.loss(effective, part), effective, create_graph=True) * site.kept for part in parts]
    for a, b in itertools.combinations(grads, 2):
        yield gradient((a * b).sum(), effective, retain_graph=True)


def split_by_label(batch: Batch, n_groups: int) -> list[Batch]:
    """Groups with every label equally often where the batch has it so: its j-th sample of a label is in group j mod n.

    Targets that are no labels (more than one number a sample, or not whole) are dealt in turn.
    """
    n = n_samples(batch)
    if n is None:
        raise DataError(
            f"This method splits the scoring batch into groups of samples, and its tensors do not agree on the first axis "
            f"({told(batch[0])}): take another method, or a batch of one sample a row."
        )
    if n < n_groups:
        raise DataError(f"This method needs a scoring batch of at least {n_groups} samples, given {n}.")
    labels = labels_of(batch)
    order = torch.arange(n)
    if labels is not None and labels.dim() == 1 and not labels.is_floating_point():
        labels = labels.cpu()
        order = labels.argsort(stable=True)
        _, counts = labels[order].unique_consecutive(return_counts=True)
        rank = torch.cat([torch.arange(int(count)) for count in counts])
        order = order[rank.argsort(stable=True)]  # all first samples of a label, then all second ones
        group = rank.sort(stable=True).values % n_groups
        if len(group.unique()) < n_groups:  # fewer samples a label than groups
            group = torch.arange(n) % n_groups
    else:
        group = order % n_groups
    return [samples(batch, order[group == number]) for number in range(n_groups)]
