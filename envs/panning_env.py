"""The environment: a thin Gymnasium shell around the pure episode of ``panning.episode.episode``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from panning.envs import arguments, rendering
from panning.envs.ending import RewardSpec, ending_reward, ending_terms
from panning.episode.actions import ActionSpec
from panning.episode.episode import decode, initial, is_terminated, result_of, transition
from panning.episode.observations import STANDARD, ObservationSpec, observe
from panning.episode.round_reward import round_reward, round_terms
from panning.episode.state import EpisodeState
from panning.flow import Forward
from panning.foundation.cache import REWARDS, Cache
from panning.foundation.config import parse_config
from panning.foundation.device import check_device_name
from panning.foundation.errors import ConfigError
from panning.foundation.keywords import keywords
from panning.masks.masks import Masks
from panning.pruners.described import described
from panning.scoring.losses import Loss
from panning.tasks import DataSource, Task, TaskSpec, load_task

#: An environment holds the networks of so many tasks and seeds; those of others are built again.
MAX_TASKS = 32
#: The counts of layers that sources of quotas gave (``Problem.at_target``), by task and seed: they take longer to find than
#: a network to build, and all environments of a process share them.
_COUNTS: dict[tuple[TaskSpec, int], dict[tuple[str, float], Sequence[int]]] = {}
_MAX_COUNTS = 10_000


class PanningEnv(gymnasium.Env[NDArray[np.float32], NDArray[Any]]):
    """An environment in which each episode prunes one network before training, in rounds, down to a target density.

    >>> import numpy as np
    >>> from panning.envs import PanningEnv
    >>> env = PanningEnv(densities=[0.05], n_rounds=2)
    >>> observation, info = env.reset(seed=0)
    >>> action = np.array([-1, -1, -1, 1, 0, -1], np.float32)  # SynFlow alone, half of the way
    >>> observation, reward, terminated, truncated, info = env.step(action)
    >>> observation.shape, terminated, round(info["density"], 3)
    ((16,), False, 0.224)
    >>> env.masks().n_kept, env.masks().n_prunable
    (11277, 50432)

    A network and data of your own:

    >>> import torch
    >>> net = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    >>> data = (torch.randn(100, 6), torch.arange(100) % 2)
    >>> env = PanningEnv(model=net, data=data, densities=[0.2], n_rounds=1)
    >>> env.reset(seed=0)[0].shape
    (16,)
    >>> *_, info = env.step(action)
    >>> info["masks"].n_kept
    13

    ## Description
    An episode starts with a dense network at its initial weights. In each round the agent says how to weigh the scoring
    indices, how much to cut, and how far the weights of a layer are spread. Masked weights may return in every round.

    ## Action Space
    ``form="mix"``: ``Box(-1, 1)``, one weight per index (-1 off, 1 full), the step, the spread.
    ``form="pick"``: ``MultiDiscrete``: which index, which step, which spread. More levers follow where the spec switches
    them on: the shares of sources of ``quotas``, ``balance``, ``start``. See ``panning.episode.actions``.

    ## Observation Space
    ``Box(-1, 1)``, one number for each of ``observations``; the same for every architecture.

    ## Rewards
    Per round the terms of ``panning.episode.round_reward``, the paper's; at the end those of ``panning.envs.ending`` whose
    weight in ``reward`` is above 0.

    ## Starting State
    A task, a seed and a target density drawn from ``tasks``, ``seeds`` and ``densities``; ``options`` of ``reset`` fixes
    any of them: ``{"task": 0, "seed": 3, "density": 0.01}``.

    ## Episode End
    Terminated when the target is reached, after ``n_rounds`` rounds at the latest, or when no path from input to output
    is left. Never truncated by itself; ``max_episode_steps`` of ``gymnasium.make`` is such an outside limit.

    ## Information
    ``density``, ``effective_density``, ``target_density``, ``task``, ``seed``, ``round`` and the unweighted terms of the
    round; at the end of an episode also the figures of the final mask (``RewardSpec.figures``) and the mask itself,
    ``masks`` (``panning.Masks``).

    ## Arguments

    Args:
        tasks: a list of "MODEL/DATA" in names, mappings with the keys of ``panning.tasks.TaskSpec``, or such specs; None is
            the MLP on the digits.
        model: in place of tasks: a module, a function or class that makes one for each seed, or a name. A module is copied
            as it is, and is the network of every seed.
        data: of ``model``: a name, (inputs, labels), a Dataset, a DataLoader, or a mapping of such with the keys train,
            validation and test (``panning.data.OwnData``); or a mapping of the model's own inputs, as for
            ``panning.prune``.
        forward, loss: as for ``panning.prune``: ``data`` may then be any batch, Dataset or DataLoader. Such data score
            networks and train none, so the reward's term ``training`` stays at 0.
        densities: targets; each episode draws one. In place of one list for all tasks there may be a list for each.
        seeds: of the initial weights and scoring batches; each episode draws one.
        n_rounds: the most rounds an episode may take.
        observations: rows of ``panning.episode.observations.OBSERVATIONS``.
        data_root: where data sets lie.
        device: where networks are scored and, at the end, trained: auto, cpu, cuda, cuda:N or mps.
        cache: a folder that keeps what short trainings gave, for all environments and runs that are given it; None keeps
            nothing. It changes how long an episode takes, never what comes out.
        render_mode: ``ansi`` (text) or ``rgb_array`` (picture): density of each layer over the rounds.

    An environment can be pickled and copied at any time: the copy runs the episode's actions again.

    ## References
    Kang et al., Neural Network Panning, ACCV 2022, arXiv 2209.13378.

    ## Version History
    - v0: first version.
    """

    metadata = {"render_modes": ["ansi", "rgb_array"], "render_fps": 2}

    @keywords("densities", "n_rounds", name="panning.envs.PanningEnv")
    def __init__(
        self,
        tasks: Sequence[TaskSpec | Mapping[str, Any] | str] | None = None,
        densities: Sequence[float] | Sequence[Sequence[float]] = (0.05,),
        seeds: Sequence[int] = (0,),
        n_rounds: int = 6,
        *,
        model: Any = None,
        data: Any = None,
        forward: Forward | None = None,
        loss: Loss | None = None,
        action: ActionSpec | Mapping[str, Any] = ActionSpec(),  # noqa: B008 (frozen)
        reward: RewardSpec | Mapping[str, Any] = RewardSpec(),  # noqa: B008 (frozen)
        observations: Sequence[str] = STANDARD,
        data_root: str | None = None,
        device: str = "cpu",
        cache: str | Path | None = None,
        render_mode: str | None = None,
    ) -> None:
        if type(n_rounds) is not int or n_rounds < 1:
            raise ConfigError(f"n_rounds is {n_rounds!r}, but must be a whole number of at least 1.")
        if render_mode is not None and render_mode not in self.metadata["render_modes"]:
            raise ConfigError(f"Unknown render mode '{render_mode}'. Allowed: {self.metadata['render_modes']}.")
        self.seeds = arguments.listed("seeds", seeds, "[0, 1]")
        self.n_rounds = n_rounds
        self.spec_of_action = arguments.spec(ActionSpec, action, "action", "{'form': 'pick'}")
        self.spec_of_reward = arguments.spec(RewardSpec, reward, "reward", "{'training': 20.0}")
        self.tasks = arguments.tasks(tasks, model, data, forward, loss, trains=self.spec_of_reward.trains)
        self.densities = arguments.densities(densities, len(self.tasks))
        self.source = DataSource(root=data_root, device=check_device_name(device))
        self.cache = None if cache is None else Cache(Path(cache) / REWARDS)
        self.render_mode = render_mode
        seen = {"observations": arguments.listed("observations", observations, f"{list(STANDARD[:2])}")}
        self.observations = parse_config(ObservationSpec, seen, "the environment").observations
        self.observation_space = spaces.Box(-1.0, 1.0, (len(self.observations),), np.float32)
        self.action_space = action_space(self.spec_of_action)
        self._tasks: dict[tuple[int, int], Task] = {}
        self._task: Task | None = None
        self._state: EpisodeState | None = None
        self._frames: list[rendering.Frame] = []
        self._begun: tuple[int, int, float] | None = None  # task, seed and density of the episode
        self._actions: list[NDArray[Any]] = []

    @property
    def state(self) -> EpisodeState:
        """Where the episode stands; its mask is the product."""
        if self._state is None:
            raise ConfigError("Call reset() before the first step.")
        return self._state

    def masks(self) -> Masks:
        """The mask as it stands, with its manifest.

        Raises:
            ConfigError: before the first ``reset``.
        """
        state = self.state
        assert self._task is not None  # set together with the state
        return described(
            state.problem, result_of(state), method="panning episode", all_alive=False, rounds=state.round_number,
            **self._task.said(),
        ).masks  # fmt: skip

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        super().reset(seed=seed)
        options = options or {}
        if unknown := set(options) - {"task", "seed", "density"}:
            raise ConfigError(f"Unknown reset options {sorted(unknown)}. Allowed: task, seed, density.")
        drawn, at_seed = (int(self.np_random.integers(len(pool))) for pool in (self.tasks, self.seeds))
        if not 0 <= (number := int(options.get("task", drawn))) < len(self.tasks):
            raise ConfigError(f"Task {number} does not exist; there are {len(self.tasks)}.")
        targets = self.densities[number]
        target = targets[int(self.np_random.integers(len(targets)))]
        self._begin(number, int(options.get("seed", self.seeds[at_seed])), float(options.get("density", target)))
        return observe(self.state, self.observations), self._info()

    def _begin(self, number: int, seed: int, density: float) -> None:
        self._task = self._load(number, seed)
        self._state = initial(self._task.problem, density, self.n_rounds)
        self._frames = []
        self._show(self._state)
        self._begun, self._actions = (number, seed, density), []

    def _advance(self, action: NDArray[Any]) -> None:
        self._state = transition(self.state, decode(self.spec_of_action, action, self.state))
        self._show(self._state)
        self._actions.append(np.copy(action))

    def _show(self, state: EpisodeState) -> None:
        if self.render_mode is not None:
            self._frames.append(rendering.frame(state))

    def __getstate__(self) -> dict[str, Any]:
        derived: dict[str, Any] = {"_tasks": {}, "_task": None, "_state": None, "_frames": []}
        return vars(self) | derived

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        actions, self._tasks = self._actions, {}
        if self._begun is not None:
            self._begin(*self._begun)
            for action in actions:
                self._advance(action)

    def step(self, action: NDArray[Any]) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        if is_terminated(self.state):
            raise ConfigError("The episode is over; call reset() first.")
        assert self._task is not None  # reset() set it together with the state
        self._advance(action)
        terminated = is_terminated(self.state)
        reward = round_reward(self.spec_of_reward.weights(self.spec_of_reward.round_terms), self.state)
        info = self._info()
        if terminated:
            figures = ending_terms(self.spec_of_reward, self._task, self.state, self.cache)
            reward += ending_reward(self.spec_of_reward, figures)
            info |= {**figures, "masks": self.masks()}
        return observe(self.state, self.observations), float(reward), terminated, False, info

    def render(self) -> Any:
        if self.render_mode == "ansi":
            return rendering.as_text(self._frames)
        if self.render_mode == "rgb_array":
            assert self.state and self._task is not None  # set together
            return rendering.as_picture(self._frames, f"{self._task.spec.model_name} on {self._task.data.label}")
        return None

    def _load(self, number: int, seed: int) -> Task:
        if (number, seed) not in self._tasks:
            if len(self._tasks) >= MAX_TASKS:
                del self._tasks[next(iter(self._tasks))]  # the oldest
            self._tasks[number, seed] = task = load_task(self.tasks[number], seed, self.source)
            if (key := (task.spec, seed)) not in _COUNTS and len(_COUNTS) >= _MAX_COUNTS:
                del _COUNTS[next(iter(_COUNTS))]
            vars(task.problem)["at_target"] = _COUNTS.setdefault(key, {})
        return self._tasks[number, seed]

    def _info(self) -> dict[str, Any]:
        return {
            "density": self.state.density,
            "effective_density": self.state.effective_density,
            "target_density": self.state.target_density,
            "task": self._begun[0] if self._begun else None,
            "seed": self.state.problem.seed,
            "round": self.state.round_number,
            **round_terms(self.state, self.spec_of_reward.round_terms),
        }


def action_space(spec: ActionSpec) -> spaces.Space[Any]:
    """The Gymnasium space of an action's spec."""
    if spec.form == "pick":
        return spaces.MultiDiscrete(list(spec.choices))
    return spaces.Box(-1.0, 1.0, (len(spec.dimensions),), np.float32)
