"""Train a panning agent with PPO, rollout by rollout, resumable after each.

At the start of every rollout all environments are reset and all global random states set from (seed, rollout). A rollout
then depends on the parameters, the optimizer's state and its number alone: a run resumed from a checkpoint, or run with
another number of workers, ends with the same policy, bit for bit.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger, configure
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

from panning.agents.cards import write_card
from panning.agents.config import TRAINING, AgentConfig, EnvSpec
from panning.agents.fastest import with_fastest
from panning.agents.mixed import mixed
from panning.agents.rollouts import check_rollout, read_rollouts
from panning.agents.saving import export_policy, load_agent, rollouts_done, save_agent
from panning.agents.sight import named, seen_by, widened
from panning.agents.starting import Began, begin
from panning.alive.connectivity import Connectivity
from panning.data.shipped import data_name, ships_data
from panning.episode.policy_net import PolicyNet, save_policy
from panning.episode.shelf import CARD
from panning.foundation.cache import cache_folder
from panning.foundation.device import accelerator_name, find_device
from panning.foundation.errors import DensityError, NonFiniteError, PolicyError
from panning.foundation.files import claim_folder, sole_writer
from panning.foundation.machine import environment_info
from panning.foundation.progress import Event, Listener, silent
from panning.foundation.records import RecordStore, RunRecord, content_key
from panning.foundation.seeding import derive_seed, isolated_global_rngs
from panning.foundation.stopping import check_stop
from panning.masks.masks import n_kept_at
from panning.tasks import DataSource, TaskSpec, load_task, load_task_data


def train_agent(
    config: AgentConfig, out: Path, *, n_workers: int = 0, listen: Listener = silent, cache: Path | None | bool = True,
    start_workers: Callable[[], None] = lambda: None,
) -> PolicyNet:  # fmt: skip
    """Train, or go on training, in the folder ``out``.

    >>> from pathlib import Path
    >>> from panning.agents import AgentConfig, train_agent
    >>> env = {"tasks": [{"model": "mlp", "data": "digits", "n_train": 100}], "densities": [0.05], "n_rounds": 2}
    >>> ppo = {"n_rollouts": 1, "n_envs": 1, "n_steps": 4, "batch_size": 4}
    >>> policy = train_agent(AgentConfig.model_validate({"env": env, "ppo": ppo}), Path("agent"))
    >>> policy.spec.dimensions
    ('magnitude', 'snip', 'grasp', 'synflow', 'step', 'spread')

    Leaves ``agent.safetensors`` (checkpoint), ``policy.safetensors`` (the exported network) with its card ``policy.yaml``,
    ``rollouts.jsonl`` (a record a rollout), ``logs/`` (TensorBoard and CSV), ``precision.json`` if the reward asks for
    the fastest, and ``demonstrations.jsonl`` and ``start.safetensors`` if it begins at the best of several actions.

    Args:
        n_workers: Ray actors for the rollouts; 0 runs them in this process. The result is the same.
        listen: hears of each rollout, with its figures.
        cache: the folder of what short trainings gave, which all runs share; True takes the user's own (``cache_folder``),
            None or False none. The policy is the same, bit for bit.
        start_workers: called before the first rollout on Ray; without it Ray must be running. It is not called if all
            rollouts are done.

    Raises:
        ConfigError: if ``out`` holds the training of another config.
        OutputError: if another process writes there.
    """
    if n_workers == 0:
        find_device(config.device)  # said at once; Ray's workers have devices of their own
    for task, targets in zip(config.env.every_task, config.env.targets, strict=True):
        _check_task(task, min(targets), config)  # one clear error, not one from every worker
    with sole_writer(out):
        claim_folder(out, config.identity)
        folder = (cache_folder() if cache else None) if isinstance(cache, bool) else cache
        policy, began = _trained(config, out, n_workers, listen, folder, start_workers)
        save_policy(policy, out / "policy.safetensors")
        write_card(config, read_rollouts(out / "rollouts.jsonl"), policy.seen, out / f"policy{CARD}", began)
    return policy


def _check_task(spec: TaskSpec, lowest: float, config: AgentConfig) -> None:
    """Raise a PanningError if a task cannot be loaded, or the lowest density keeps fewer weights than a path has."""
    problem = load_task(spec, config.env.seeds[0], config.source.on_cpu).problem
    try:
        n_kept = n_kept_at(lowest, problem.layout.n_prunable)
        Connectivity.of(problem).check_reachable(n_kept)
    except DensityError as error:
        raise DensityError(f"{spec.model_name} on {spec.label or spec.data}: {error}") from None


def _trained(
    config: AgentConfig,
    out: Path,
    n_workers: int,
    listen: Listener,
    cache: Path | None,
    start_workers: Callable[[], None],
) -> tuple[PolicyNet, Began]:
    """The policy after all rollouts, and where it began.

    Episodes and rollouts that the folder holds are not run again.
    """
    store, checkpoint = RecordStore(out / "rollouts.jsonl", check_rollout), out / "agent.safetensors"
    done = rollouts_done(checkpoint)
    if done > len(store):
        raise PolicyError(
            f"{checkpoint} is of {done} rollouts, {store.path} has {len(store)}; delete it to train again."
        )
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in the workers, or the last bits of the scores would differ
    envs: VecEnv | None = None
    try:
        with isolated_global_rngs(derive_seed(config.seed, "agent")):
            is_left = done < config.ppo.n_rollouts
            if is_left:
                start_workers()
            settled = with_fastest(config, out)
            envs = _make_envs(settled, n_workers if is_left else 0, cache)
            model = _build(config, envs)
            began = begin(model, config, envs, out, listen, untrained=not done)
            n_observations = len(config.env.observations)
            seen = seen_by(load_agent(checkpoint, model), n_observations, checkpoint) if done else began.seen
            model.num_timesteps = done * config.ppo.n_steps * config.ppo.n_envs
            if is_left:
                with _logger(out / "logs" / f"from-rollout-{done:05d}") as logger:
                    model.set_logger(logger)
                    listen(Event(TRAINING, done, config.ppo.n_rollouts))
                    for rollout in range(done, config.ppo.n_rollouts):
                        figures, said = _one_rollout(model, config, rollout)
                        shown = model.rollout_buffer.observations.reshape(-1, n_observations)
                        seen = widened(seen, shown) if rollout == 0 or seen is not None else None
                        # The record first: killed in between, the rollout is run again and its record is there.
                        _record(store, config, rollout, figures)
                        save_agent(
                            checkpoint, model, {"rollouts": rollout + 1} | ({} if seen is None else {"seen": seen})
                        )
                        listen(Event(TRAINING, rollout + 1, config.ppo.n_rollouts, "rollout", {**figures, **said}))
                        check_stop()
            images = sum(int(record.metrics.get("images_seen", 0)) for record in store) + began.images_seen
            facts = {"config": config.identity, "rollouts": config.ppo.n_rollouts, "images_seen": images}
            facts |= {"start": dict(began.facts)} if began.facts else {}
            facts |= {"plugins": plugins} if (plugins := config.env.plugins) else {}
            facts |= {"precision": settled.env.reward.recipe.precision} if config.env.reward.fastest else {}
            return export_policy(model, config.env, facts, named(config.env.observations, seen)), began
    finally:
        torch.set_num_threads(threads)
        if envs is not None:
            envs.close()


def _one_rollout(model: PPO, config: AgentConfig, rollout: int) -> tuple[dict[str, float], dict[str, Any]]:
    """The figures of a rollout, and what else listeners are told of it."""
    seed = derive_seed(config.seed, "rollout", rollout) % 2**31
    np.random.seed(seed)
    torch.manual_seed(seed)
    share = 1 - rollout / config.ppo.n_rollouts if config.ppo.schedule == "linear" else 1.0
    rate = config.ppo.learning_rate * share
    assert model.env is not None  # built with one
    model.env.seed(seed)
    model.set_env(model.env)  # makes learn() reset the environments
    if model.ep_info_buffer is not None:
        model.ep_info_buffer.clear()
    try:
        model.lr_schedule = lambda _: rate  # the share of the training that is left counts this rollout alone
        steps, heard = config.ppo.n_steps * config.ppo.n_envs, _Figures(config)
        model.learn(steps, callback=heard, reset_num_timesteps=False, log_interval=1)
    except ValueError as error:  # SB3's and torch's way to say that the policy's outputs are NaN
        reason = str(error).splitlines()[0]
        raise NonFiniteError(f"PPO failed in rollout {rollout + 1}: {reason} Lower the learning rate.") from None
    return _figures(model, config), heard.said


def _figures(model: PPO, config: AgentConfig) -> dict[str, float]:
    """Means over the episodes that ended in this rollout."""
    episodes: list[dict[str, Any]] = list(model.ep_info_buffer or [])
    figures = {"episodes": float(len(episodes)), "timesteps": float(model.num_timesteps)}
    if episodes:
        figures["reward"] = float(np.mean([episode["r"] for episode in episodes]))
        for key in _logged(config.env):
            figures[key] = float(np.mean([episode[key] for episode in episodes]))
        figures["images_seen"] = float(sum(episode.get("images_seen", 0) for episode in episodes))
    return figures


class _Figures(BaseCallback):
    """Tags ``panning/NAME`` of TensorBoard and the CSV: the figures of a rollout's episodes, beside SB3's own.

    Also where a rollout is stopped, which takes minutes on large networks.

    Attributes:
        said: what the agent mixed.
    """

    def __init__(self, config: AgentConfig) -> None:
        super().__init__()
        self.config = config
        self.said: dict[str, Any] = {}

    def _on_step(self) -> bool:
        check_stop()
        return True

    def _on_rollout_end(self) -> None:
        assert isinstance(self.model, PPO)
        for name, value in _figures(self.model, self.config).items():
            if name not in ("timesteps", "reward"):  # SB3's own
                self.logger.record(f"panning/{name}", value)
        buffer = self.model.rollout_buffer  # before PPO's update, which makes one row of steps and environments
        self.said = mixed(self.config.env.action, buffer.actions, buffer.episode_starts)


def _make_envs(config: AgentConfig, n_workers: int, cache: Path | None = None) -> VecEnv:
    makers = [partial(_make_env, config.env, config.source, cache)] * config.ppo.n_envs
    if n_workers == 0:
        return DummyVecEnv(list(makers))
    from panning.agents.ray_vec_env import RayVecEnv  # imports Ray

    own = [thing for task in config.env.every_task for thing in task.own.values()]
    named = [task for task in config.env.every_task if ships_data() and isinstance(task.data, str)]
    data = {data_name(task): partial(load_task_data, task, config.source.on_cpu) for task in named}
    return RayVecEnv(makers, n_workers, config.device, own, data)


def _make_env(spec: EnvSpec, source: DataSource, cache: Path | None = None) -> Monitor:
    return Monitor(spec.make(source, cache), info_keywords=_logged(spec))


def _logged(spec: EnvSpec) -> tuple[str, ...]:
    """Keys of the environment's info that the logs keep of each episode."""
    return ("effective_density", *spec.reward.figures)


def _build(config: AgentConfig, envs: VecEnv) -> PPO:
    ppo = config.ppo
    return PPO(
        "MlpPolicy",
        envs,
        learning_rate=ppo.learning_rate,
        n_steps=ppo.n_steps,
        batch_size=ppo.batch_size,
        n_epochs=ppo.n_epochs,
        gamma=ppo.gamma,
        gae_lambda=ppo.gae_lambda,
        clip_range=ppo.clip_range,
        ent_coef=ppo.ent_coef,
        vf_coef=ppo.vf_coef,
        max_grad_norm=ppo.max_grad_norm,
        target_kl=ppo.target_kl,
        policy_kwargs={"net_arch": list(ppo.net_arch), "log_std_init": ppo.log_std_init},
        seed=derive_seed(config.seed, "ppo") % 2**31,
        stats_window_size=ppo.n_steps * ppo.n_envs,  # all episodes of a rollout, for its figures
        device="cpu",  # the network is tiny, and equal results on every machine matter more
    )


@contextlib.contextmanager
def _logger(folder: Path) -> Iterator[Logger]:
    logger = configure(str(folder), ["csv", "tensorboard"])
    try:
        yield logger
    finally:
        logger.close()


def _record(store: RecordStore, agent: AgentConfig, rollout: int, figures: dict[str, float]) -> None:
    config = {"agent": content_key(agent.identity), "rollout": rollout}
    if (key := content_key(config)) not in store:
        environment = environment_info(accelerator_name(agent.device), agent.env.plugins)
        store.append(RunRecord(key, "rollout", config, figures, environment))
