"""A ``VecEnv`` whose environments live in Ray actors, each with one torch thread.

Every actor wraps Stable-Baselines3's own ``DummyVecEnv`` of its share, so that results do not depend on the number of
workers. An actor that dies is replaced: the new one is seeded, reset and stepped through the actions since the last
reset, which brings it to the same state. Every wait has a deadline: an actor that is silent for too long counts as dead.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import gymnasium
import numpy as np
import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayError, RayTaskError
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs, VecEnvStepReturn

from panning.data import ImageData
from panning.data.ray_shipping import Cargo, Offers, accept_offers
from panning.data.shipped import WAY_OUT
from panning.foundation.errors import DataError, PanningError, WorkerError
from panning.foundation.memory import keep_freed_memory
from panning.foundation.own import Own
from panning.foundation.ray_answers import STOP_S, answer, first_done
from panning.foundation.ray_gpus import gpu_share
from panning.foundation.ray_own import sent_with_code

EnvMaker = Callable[[], gymnasium.Env[Any, Any]]
#: So many actors may be replaced in an hour; a training that is preempted on and off for days goes on.
MAX_REPLACEMENTS = 5
AN_HOUR_S = 3600.0
#: How long an actor may take to come up, and to answer; a round of pruning and a short training end sooner.
START_S = 240.0
ANSWER_S = 3600.0


class _EnvWorker:
    def __init__(self, makers: list[EnvMaker], offers: Offers) -> None:
        import torch

        keep_freed_memory()
        accept_offers(offers)
        torch.set_num_threads(1)
        self.envs = DummyVecEnv(makers)

    def spaces(self) -> tuple[Any, Any]:
        return self.envs.observation_space, self.envs.action_space

    def reset(self, seed: int | None) -> Any:
        """``seed`` is the first environment's, the others' follow; None goes on with what they have."""
        if seed is not None:
            self.envs.seed(seed)
        return np.copy(self.envs.reset())  # type: ignore[arg-type]

    def step(self, actions: Any) -> Any:
        observations, rewards, dones, infos = self.envs.step(actions)
        for info in infos:
            info.pop("masks", None)  # large, and no training reads them
        return np.copy(observations), rewards, dones, infos  # type: ignore[arg-type]

    def call(self, function: Callable[[Any, Any], Any], item: Any) -> Any:
        return function(self.envs.envs[0].unwrapped, item)

    def replay(self, seed: int | None, actions: list[Any]) -> Any:
        result = self.reset(seed)
        for action in actions:
            result = self.step(action)
        return result


_RemoteEnvWorker: Any = ray.remote(num_cpus=1, max_restarts=0)(_EnvWorker)


class RayVecEnv(VecEnv):
    """``len(makers)`` environments over at most ``n_workers`` actors. Ray must be running.

    Args:
        device: on which the environments score; actors share the GPUs of the cluster evenly (``gpu_share``).
        own: what is the caller's own in the makers.
        data: what names the data of the makers -> reads them; offered to actors that lack them.
    """

    def __init__(
        self, makers: Sequence[EnvMaker], n_workers: int, device: str = "cpu", own: Sequence[Own] = (),
        data: Mapping[Hashable, Callable[[], ImageData]] = MappingProxyType({}),
    ) -> None:  # fmt: skip
        shares = np.array_split(np.arange(len(makers)), min(n_workers, len(makers)))
        makers_of = [[makers[i] for i in share] for share in shares]
        self._slices = [slice(int(share[0]), int(share[-1]) + 1) for share in shares]
        self._actor = _RemoteEnvWorker.options(num_gpus=gpu_share(device, len(shares)))
        with sent_with_code(own):
            self._sent = [ray.put(part) for part in makers_of]
        self._offers = Cargo().load(data)
        self._workers = [self._actor.remote(part, self._offers) for part in self._sent]
        self._next_seed: int | None = None  # serves one reset, as in DummyVecEnv
        self._episode_seed: int | None = None  # of the last reset
        self._actions: list[Any] = []
        self._replaced: deque[float] = deque()  # when, in seconds
        observation_space, action_space = self._spaces()
        self.render_mode = None
        super().__init__(len(makers), observation_space, action_space)

    def _spaces(self) -> tuple[Any, Any]:
        try:
            spaces: tuple[Any, Any] = answer(self._workers[0].spaces.remote(), START_S)
            return spaces
        except GetTimeoutError:
            self.close()
            raise WorkerError(
                f"No worker for the agent's rollouts came up in {START_S:.0f} s: are the cores of the cluster taken?"
            ) from None
        except RayActorError as error:
            self.close()
            raise WorkerError(f"A worker for the agent's rollouts does not start: {_reason(error)}") from None
        except RayTaskError as error:
            self.close()
            raise _own(error) from None

    def seed(self, seed: int | None = None) -> Sequence[int | None]:
        seeds = super().seed(seed)
        self._next_seed = seeds[0]
        return seeds

    def reset(self) -> VecEnvObs:
        self._episode_seed, self._next_seed, self._actions = self._next_seed, None, []
        calls = [worker.reset.remote(self._seed_of(i)) for i, worker in enumerate(self._workers)]
        return np.concatenate([self._result(i, call) for i, call in enumerate(calls)])

    def _seed_of(self, worker: int) -> int | None:
        return None if self._episode_seed is None else self._episode_seed + self._slices[worker].start

    def step_async(self, actions: Any) -> None:
        self._actions.append(np.copy(actions))
        self._calls = [
            worker.step.remote(actions[part]) for worker, part in zip(self._workers, self._slices, strict=True)
        ]

    def step_wait(self) -> VecEnvStepReturn:
        results = [self._result(i, call) for i, call in enumerate(self._calls)]
        observations, rewards, dones, infos = zip(*results, strict=True)
        return np.concatenate(observations), np.concatenate(rewards), np.concatenate(dones), sum(infos, [])

    def each(self, function: Callable[[Any, Any], Any], given: Sequence[Any]) -> Iterator[tuple[int, Any]]:
        """The number and the result of each item as they come: whichever worker is free takes the next.

        Args:
            function: of an environment and an item; what it leaves of the environment's episode is not to be relied on.
        """
        left, free = deque(range(len(given))), list(range(len(self._workers)))
        calls: dict[Any, tuple[int, int]] = {}  # -> worker, item
        while left or calls:
            while left and free:
                worker, item = free.pop(), left.popleft()
                calls[self._workers[worker].call.remote(function, given[item])] = worker, item
            try:
                call = first_done(list(calls), ANSWER_S)
            except GetTimeoutError:
                call = next(iter(calls))  # out for longest
            worker, item = calls.pop(call)
            try:
                result = answer(call, STOP_S)
            except RayTaskError as error:
                raise _own(error) from None
            except RayError:
                self._replace(worker)
                left.appendleft(item)
            else:
                yield item, result
            free.append(worker)

    def _result(self, number: int, call: Any) -> Any:
        try:
            return answer(call, ANSWER_S)
        except RayTaskError as error:
            raise _own(error) from None
        except RayError:  # it died, was ended for its memory, or is silent
            return self._replace(number)

    def _replace(self, number: int) -> Any:
        """A new actor in the state the dead one should have reached; its last result."""
        part = self._slices[number]
        while True:
            now = time.monotonic()
            while self._replaced and now - self._replaced[0] > AN_HOUR_S:
                self._replaced.popleft()
            self._replaced.append(now)
            if len(self._replaced) > MAX_REPLACEMENTS:
                raise WorkerError(
                    f"Workers for the agent's rollouts died or were silent {len(self._replaced)} times in an hour; is the "
                    "memory enough? What is done is kept; run the same again to go on."
                )
            ray.kill(self._workers[number])
            self._workers[number] = self._actor.remote(self._sent[number], self._offers)
            try:
                actions = [a[part] for a in self._actions]
                return answer(self._workers[number].replay.remote(self._seed_of(number), actions), START_S + ANSWER_S)
            except RayTaskError as error:
                raise _own(error) from None
            except RayError:
                continue

    def close(self) -> None:
        for worker in self._workers:
            ray.kill(worker)
        self._workers = []

    def _n_of(self, indices: Any) -> int:
        return np.arange(self.num_envs)[slice(None) if indices is None else indices].size

    def env_is_wrapped(self, wrapper_class: Any, indices: Any = None) -> list[bool]:
        return [False] * self._n_of(indices)

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        if attr_name == "render_mode":
            return [None] * self._n_of(indices)
        raise NotImplementedError("Attributes of environments in Ray actors are not reachable.")

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        raise NotImplementedError("Attributes of environments in Ray actors are not reachable.")

    def env_method(self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any) -> list[Any]:
        raise NotImplementedError("Methods of environments in Ray actors are not reachable.")


def _own(error: RayTaskError) -> Exception:
    """The error that an environment raised; an error of this package comes without the worker's traceback."""
    if isinstance(error.cause, DataError):
        return DataError(f"{error.cause} {WAY_OUT}")
    if isinstance(error.cause, PanningError):
        return error.cause
    return WorkerError(f"An environment of the agent failed: {_reason(error)}")


def _reason(error: BaseException) -> str:
    return str(error).strip().rpartition("\n")[2][:200] or type(error).__name__
