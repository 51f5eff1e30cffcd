"""Digits: the 1,797 hand-written digits, 8x8 grey, that scikit-learn ships; no download, for tests and demos.

From the UCI "Optical Recognition of Handwritten Digits" test part (Alpaydin and Kaynak, 1998). It has no division of
its own: 20 % of each class are the test part here.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch

from panning.data.splits import SPLIT_SEED, InMemorySplit, Parts, stratified_holdout
from panning.foundation.extras import extra_packages
from panning.foundation.seeding import torch_generator

TEST_FRACTION = 0.2


def read_digits(root: Path | None = None, download: bool = False) -> Parts:
    """The digits; the arguments of the other sources are not needed."""
    return Parts(_read(test=False), None, partial(_read, test=True))


@extra_packages()
def _read(test: bool) -> InMemorySplit:
    from sklearn.datasets import load_digits  # slow to import, and only this source needs it

    bunch = load_digits()
    grey = torch.from_numpy(bunch.images).mul(255 / 16).round().to(torch.uint8)  # 0..16 -> 0..255
    labels = torch.from_numpy(bunch.target).long()
    rest, held = stratified_holdout(labels, TEST_FRACTION, torch_generator(SPLIT_SEED, "digits", "test"))
    chosen = held if test else rest
    return InMemorySplit(grey[chosen].unsqueeze(1), labels[chosen])
