"""Measure what an agent adds: search one action for all networks at the agent's cost, and compare policies with each other.

`search` looks for the constant action with the highest mean reward over the episodes of an agent's config: each proposal of
the sampler takes the same episodes (networks, seeds, densities drawn once), so that proposals differ by their action alone.
200 proposals of 50 episodes cost what an agent costs that is trained for 10,000. `compare` lets trained policies, the best
actions of searches and the reward's own fixed policies take the same episodes; changes of the config make them others than
those that were trained on. Both go on where they were stopped: run the same command again.

    python docs/measure/policies_beside.py search agent/population --sampler tpe --out tpe.jsonl --data-root DIR
    python docs/measure/policies_beside.py compare agent/population env.population.seed=7 env.seeds=[200] \\
        --policy runs/agent-population/policy.safetensors --best tpe.jsonl --out beside.jsonl --data-root DIR
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler, RandomSampler

from panning.agents.config import AgentConfig, EnvSpec
from panning.agents.demonstrations import play
from panning.compare.statistics import interval
from panning.envs import PanningEnv
from panning.envs.ending import Final, reference
from panning.episode.levers import Levers
from panning.episode.policies import Constant
from panning.episode.policy_net import digest_of_policy, load_policy
from panning.foundation.cache import REWARDS, Cache, cache_folder
from panning.foundation.machine import environment_info
from panning.foundation.records import RecordStore, RunRecord, content_key
from panning.foundation.seeding import numpy_rng
from panning.foundation.tables import markdown_table, origin
from panning.searches.kinds import AGENT, named_config
from panning.searches.samplers.optuna_samplers import MADE
from panning.tasks import load_task

SAMPLERS: dict[str, Callable[[int], BaseSampler]] = {**MADE, "random": lambda seed: RandomSampler(seed)}
COLUMNS = ("policy", "mean reward", "95 %", "of the best", "n")
Action = NDArray[np.float32]
#: (number of the task, seed, density)
Start = tuple[int, int, float]


@dataclass(frozen=True)
class Taker:
    """A policy that takes the episodes.

    Attributes:
        identity: what records know it by: two files may have one name.
        reward: of the episode that begins at a start.
    """

    name: str
    identity: Any
    reward: Callable[[Start], float]

    def rewards(self, starts: Sequence[Start]) -> dict[str, Any]:
        """Take an episode from each start; the figures of a record hold the reward of each."""
        return {"rewards": [self.reward(start) for start in starts]}


def episode(env: PanningEnv, act: Callable[[Any], Action], start: Start) -> float:
    """The reward of an episode."""
    return play(env, act, start).reward


def score_of_rival(config: AgentConfig, cache: Path | None, levers: Levers, start: Start) -> float:
    """The reward of one of the contest's fixed policies, from the training that the contest itself compares with.

    An episode of its own would end where its mask dies on the way; the contest mends such a mask.
    """
    (number, seed, density), reward = start, config.env.reward
    task = load_task(config.env.every_task[number], seed, config.source)
    final = Final(task, density, None, reward, 1, None if cache is None else Cache(cache / REWARDS))
    rivals = [reference(final, other).accuracy for other in reward.against.rivals]
    return reward.contest * reward.against.score(reference(final, levers).accuracy, rivals)


def starts_of(env: EnvSpec, n: int, seed: int) -> list[Start]:
    """So many starts of episodes, drawn as ``reset`` draws them; the first ones stay when more are asked for."""
    targets, found = env.targets, []
    for number in range(n):
        rng = numpy_rng(seed, "starts", number)
        task, at_seed = (int(rng.integers(len(pool))) for pool in (env.every_task, env.seeds))
        found.append((task, env.seeds[at_seed], targets[task][int(rng.integers(len(targets[task])))]))
    return found


def kept(store: RecordStore, kind: str, asked: dict[str, Any], make: Callable[[], dict[str, Any]]) -> RunRecord:
    """The record of what is asked, made now if it is not there."""
    key = content_key({"kind": kind, **asked})
    if key not in store:
        store.append(RunRecord(key, kind, asked, make(), environment_info()))
    return store[key]


def entries_of(env: EnvSpec) -> dict[str, BaseDistribution]:
    """Name of an action's entry -> where it lies."""
    action = env.action
    if action.form == "pick":
        choices = zip(action.dimensions, action.choices, strict=True)
        return {name: IntDistribution(0, n - 1) for name, n in choices}
    return {name: FloatDistribution(-1.0, 1.0) for name in action.dimensions}


def search(config: AgentConfig, given: argparse.Namespace) -> None:
    """Ask the sampler, take the episodes, tell the mean; proposals that are in the file are told without a training."""
    starts, entries = starts_of(config.env, given.episodes, given.seed), entries_of(config.env)
    env, store = config.env.make(config.source, given.cache), RecordStore(given.out)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(direction="maximize", sampler=SAMPLERS[given.sampler](given.seed))
    for number in range(given.proposals):
        trial = study.ask(entries)
        action = [trial.params[name] for name in entries]
        act = Constant(np.array(action, np.float32))
        taker = Taker(given.sampler, action, partial(episode, env, act))
        asked = {
            "agent": content_key(config.identity), "sampler": given.sampler, "seed": given.seed, "proposal": number,
            "episodes": given.episodes, "action": action,
        }  # fmt: skip
        record = kept(store, "proposal", asked, partial(taker.rewards, starts))
        study.tell(trial, float(np.mean(record.metrics["rewards"])))
        print(f"{number + 1}/{given.proposals}: {trial.number} {study.best_value:+.3f} best", flush=True)
    print(dict(study.best_params))


def best_of(path: Path) -> tuple[str, Action]:
    """The sampler and the action with the highest mean in a file of ``search``."""
    best = max(RecordStore(path), key=lambda record: float(np.mean(record.metrics["rewards"])))
    return best.config["sampler"], np.array(best.config["action"], np.float32)


def takers_of(config: AgentConfig, given: argparse.Namespace) -> list[Taker]:
    """Policies of files, best actions of searches, and the contest's fixed policies."""
    own, found = config.env.make(config.source, given.cache), []
    for path in given.policy:
        policy = load_policy(path)
        seen = config.env.model_copy(
            update={"observations": policy.observations, "action": policy.spec, "n_rounds": policy.n_rounds}
        )
        found.append(
            Taker(
                f"policy {Path(path).parent.name}/{Path(path).stem}",
                digest_of_policy(policy),
                partial(episode, seen.make(config.source, given.cache), policy),
            )
        )
    for path in given.best:
        sampler, action = best_of(path)
        found.append(Taker(f"one action ({sampler})", action.tolist(), partial(episode, own, Constant(action))))
    for levers in config.env.reward.against.rivals:
        found.append(Taker(levers.text, levers.text, partial(score_of_rival, config, given.cache, levers)))
    return found


def compare(config: AgentConfig, given: argparse.Namespace) -> None:
    """Let each take all episodes; print means with intervals, and the difference from the highest, pair by pair."""
    starts, store = starts_of(config.env, given.episodes, given.seed), RecordStore(given.out)
    rewards: dict[str, NDArray[np.float64]] = {}
    for taker in takers_of(config, given):
        found = []
        for start in starts:
            asked = {"agent": content_key(config.identity), "policy": taker.identity, "start": list(start)}
            record = kept(store, "episode", asked, partial(taker.rewards, [start]))
            found.append(float(record.metrics["rewards"][0]))
        rewards[taker.name] = np.array(found)
        print(f"{taker.name}: {np.mean(found):+.3f}", flush=True)
    best = max(rewards, key=lambda name: rewards[name].mean())
    cells = []
    for name, values in sorted(rewards.items(), key=lambda row: -row[1].mean()):
        (low, high), (least, most) = interval(values), interval(values - rewards[best])
        beside = "" if name == best else f"{(values - rewards[best]).mean():+.3f} [{least:+.3f}, {most:+.3f}]"
        cells.append([name, f"{values.mean():+.3f}", f"[{low:+.3f}, {high:+.3f}]", beside, str(len(values))])
    print("\n".join([*markdown_table(COLUMNS, cells), "", origin(environment_info())]))


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command, and run it."""
    parser = argparse.ArgumentParser(description="One action for all networks, and policies beside each other.")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, episodes in (("search", 50), ("compare", 200)):
        command = commands.add_parser(name)
        command.add_argument("config", help="an agent's, by name or file")
        command.add_argument("changes", nargs="*", metavar="KEY=VALUE")
        command.add_argument("--episodes", type=int, default=episodes, help="that each action or policy takes")
        command.add_argument("--seed", type=int, default=0, help="of the episodes, and of the sampler")
        command.add_argument("--out", type=Path, required=True, help="the records, JSON lines")
        command.add_argument(
            "--cache",
            type=Path,
            default=cache_folder(),
            help="short trainings' results, shared with agents; default: as theirs",
        )
        command.add_argument("--data-root")
        if name == "search":
            command.add_argument("--sampler", choices=list(SAMPLERS), default="tpe")
            command.add_argument("--proposals", type=int, default=200)
        else:
            command.add_argument("--policy", action="append", default=[], help="a policy's file or name")
            command.add_argument("--best", type=Path, action="append", default=[], help="records of a search")
    given = parser.parse_args(arguments)
    config = named_config(AGENT, given.config, given.changes).config.with_data(given.data_root, False, "cpu")
    {"search": search, "compare": compare}[given.command](config, given)


if __name__ == "__main__":
    main()
