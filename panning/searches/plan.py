"""What a search will do at most: its stages with their jobs, dense epochs and cost, before the first begins."""

from __future__ import annotations

from panning.foundation.progress import Stage
from panning.jobs.ways import Way
from panning.measure.estimate import (
    Pricing,
    Work,
    agent_stage,
    cell_work,
    in_images,
    pruning_work,
    stage,
    training_work,
)  # fmt: skip
from panning.searches.candidates import agent_itself, fixed_candidates, sample_of
from panning.searches.config import SearchConfig
from panning.tasks import load_task
from panning.training import Recipe

#: With and without all-alive repair.
FORMS = 2


def search_stages(config: SearchConfig, pricing: Pricing = in_images) -> list[Stage]:
    """The stages in their order, under the names that events give them.

    Candidates whose masks are equal are tried once, and a winner may be a baseline, so that there may be less to do.

    Examples:
        >>> from panning.searches.kinds import SEARCH, named_config
        >>> from panning.searches.plan import search_stages
        >>> stages = search_stages(named_config(SEARCH, "demo/digits").config)
        >>> stages[0].name, stages[0].steps, stages[-1].name
        ('training the agent', 30, 'training every method in full')
    """
    task = load_task(config.task, config.seeds[0], config.source)
    part, n_densities, n_seeds = config.agent, len(config.densities), len(config.seeds)

    def add(name: str, steps: int, work: Work, recipe: Recipe = config.recipe) -> None:
        stages.append(stage(name, steps, work, pricing(task, recipe)))

    stages = [] if part.policy is not None else [agent_stage(config.agent_config(), pricing)]
    sample = pruning_work(sample_of(part, 0))
    add("sampling the agent", n_densities * config.n_samples, sample * (n_densities * config.n_samples))
    fixed = fixed_candidates(part, config.baselines)
    n_left = len(fixed) + FORMS * config.n_samples
    every = sum(map(pruning_work, fixed), sample * (FORMS * config.n_samples))
    mean = every * (1 / n_left)
    add("pruning with every candidate", n_densities * n_left, every * n_densities)
    for number, rung in enumerate(config.rungs, start=1):
        n = n_densities * n_left
        add(f"rung {number}: pruning", n * rung.n_seeds, mean * (n * (rung.n_seeds - 1)))  # the first seed's are there
        trained = training_work(task, rung.recipe) * (n * rung.n_seeds)
        add(f"rung {number}: short trainings", n * rung.n_seeds, trained, rung.recipe)
        n_left = min(n_left, rung.keep)
    add("pruning with the winners", n_densities * n_seeds, mean * (n_densities * n_seeds))
    ways = [agent_itself(part), *(Way(by=method) for method in config.baselines)]
    work = cell_work(task, Way(), 1.0, config.recipe)
    for density in config.densities:
        of_winner = cell_work(task, Way(), density, config.recipe) + mean
        work += sum((cell_work(task, way, density, config.recipe) for way in ways), of_winner)
    add("training every method in full", n_seeds * (1 + n_densities * (len(ways) + 1)), work * n_seeds)
    return [one for one in stages if one.steps]
