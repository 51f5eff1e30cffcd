"""A plug-in: an index, a method, a model, a reward and a sampler, which pyproject.toml names as entry points."""

import torch
from torch import nn

from panning.episode.state import EpisodeState
from panning.jobs.ways import Way
from panning.pruners.score_rounds import ScoreRounds
from panning.scoring.indices import Index
from panning.scoring.signals import Signals
from panning.searches.samplers import Result, Sampler, Setting
from panning.searches.samplers.space import Space


def taylor(signals: Signals) -> torch.Tensor:
    """(w g)^2: the squared change of the loss, to first order, if the weight goes. Flat, higher is kept."""
    return (signals.weight * signals.grad).square()


TAYLOR = Index(taylor, needs=("weight", "grad"), paper="Molchanov et al. 2019, arXiv 1906.10771")

#: Prunes by the index above in three rounds.
THIRDS = ScoreRounds({"example_taylor": 1.0}, n_rounds=3)


class ExampleNet(nn.Module):
    """One hidden layer."""

    def __init__(self, input_shape: tuple[int, ...], n_classes: int, width: int = 32) -> None:
        super().__init__()
        self.hidden = nn.Linear(torch.Size(input_shape).numel(), width)
        self.out = nn.Linear(width, n_classes)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.out(self.hidden(inputs.flatten(1)).relu())


def layers(state: EpisodeState) -> float:
    """-(layers without an alive weight) / layers, in [-1, 0]."""
    counts = state.problem.layout.counts(state.alive)
    return -counts.count(0) / len(counts)


class Steps(Sampler):
    """The first index alone, cut in ever larger steps, until a candidate fails."""

    def __init__(self, setting: Setting) -> None:
        self.space = Space.of(setting)
        self.n = 0
        self.goes_on = True

    def ask(self) -> Way | None:
        if not self.goes_on or self.n > 10:
            return None
        action = self.space.episode.action.encode({self.space.episode.action.indices[0]: 1.0}, step=self.n / 10)
        self.n += 1
        return self.space.replay((tuple(map(float, action)),), all_alive=True)

    def tell(self, result: Result) -> None:
        self.goes_on = self.goes_on and (result.failure is None or result.is_repeated)
