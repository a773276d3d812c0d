"""The random streams that an agent shares with everything else, for a run that continues after ``load`` bit by bit."""

import random
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.vec_env import VecEnv

from sb3_mbrl.agent.objects import AgentObject
from sb3_mbrl.policies import StatefulPolicy


class SharedStreams(AgentObject):
    """
    The random streams of Python, NumPy, torch, the action space, the environments and (where it has one) the policy.

    Exploration, minibatches and dropout of SB3 draw from them. They are saved with the agent. ``load`` itself leaves the
    global ones alone, so that whoever only predicts is not surprised; the first ``learn`` that continues the run puts them
    back (:meth:`put_back`). The action space belongs to the agent, and its stream continues at once.

    :param action_space: the agent's; SB3 draws random actions from it
    :param policy: the agent's; a :class:`~sb3_mbrl.policies.StatefulPolicy` has a stream of its own
    :param device: the agent's; on a GPU torch has another stream
    :param environments: returns the agent's environments, where it has any
    """

    def __init__(
        self,
        action_space: spaces.Space,
        policy: BasePolicy,
        device: th.device,
        environments: Callable[[], VecEnv | None],
    ) -> None:
        self.action_space, self.policy, self.device, self.environments = action_space, policy, device, environments
        self._saved: dict[str, Any] | None = None
        """The streams of a saved agent, until they are put back"""

    @property
    def waiting(self) -> bool:
        """Whether the agent was loaded, and its streams were not put back yet"""
        return self._saved is not None

    def put_back(self) -> None:
        """Continue the streams of the saved agent. Nothing happens where the agent was not loaded."""
        saved, self._saved = self._saved, None
        if saved is None:
            return
        random.setstate(saved["python"])
        np.random.set_state(saved["numpy"])
        th.set_rng_state(saved["torch"])
        if self.device.type == "cuda" and saved["cuda"] is not None:
            th.cuda.set_rng_state(saved["cuda"], self.device)
        self.action_space.np_random.bit_generator.state = saved["action_space"]
        if isinstance(self.policy, StatefulPolicy) and saved["policy"] is not None:
            self.policy.generator.set_state(saved["policy"])
        self._put_back_environments(saved["environments"])

    def _put_back_environments(self, states: list[Any] | None) -> None:
        """
        Continue the environments' streams where SB3's ``load`` has seeded them again, and they were not reset since: their
        next episodes would begin like the first ones of the saved run. (The state of an episode is not put back.)
        """
        venv = self.environments()
        if venv is None or states is None or len(states) != venv.num_envs:
            return
        if all(seed is None for seed in venv.unwrapped._seeds):
            return
        venv.unwrapped._reset_seeds()
        for index, state in enumerate(states):
            venv.set_attr("np_random", _generator(state), index)

    def continue_actions(self) -> None:
        """Continue the stream of the action space alone, at the end of ``load``."""
        if self._saved is not None:
            self.action_space.np_random.bit_generator.state = self._saved["action_space"]

    def drop(self) -> None:
        """Forget the streams of the saved agent: a new run begins."""
        self._saved = None

    # ---- saving

    def state_dict(self) -> dict[str, Any]:
        if self._saved is not None:  # loaded, and saved again before any training
            return self._saved
        return {
            "python": random.getstate(),
            "numpy": np.random.get_state(),
            "torch": th.get_rng_state(),
            "cuda": th.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None,
            "action_space": self.action_space.np_random.bit_generator.state,
            "policy": self.policy.generator.get_state() if isinstance(self.policy, StatefulPolicy) else None,
            "environments": self._environments_state(),
        }

    def _environments_state(self) -> list[Any] | None:
        """Return the states of the environments' streams; ``None`` for environments that have none of Gymnasium's."""
        venv = self.environments()
        if venv is None or not venv.has_attr("np_random"):
            return None
        generators = venv.get_attr("np_random")
        if not all(isinstance(generator, np.random.Generator) for generator in generators):
            return None
        return [generator.bit_generator.state for generator in generators]

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        # Tried out now: a damaged one would fail at the next ``learn``.
        random.Random().setstate(state["python"])
        np.random.RandomState().set_state(state["numpy"])
        th.Generator().set_state(state["torch"])
        for generator in (state["action_space"], *(state["environments"] or ())):
            _generator(generator)
        if isinstance(self.policy, StatefulPolicy) and state["policy"] is not None:
            th.Generator().set_state(state["policy"])
        self._saved = dict(state)


def _generator(state: Mapping[str, Any]) -> np.random.Generator:
    """
    Make a NumPy generator that continues a saved one.

    :raises ValueError: for the state of no bit generator of NumPy
    """
    kind = getattr(np.random, state["bit_generator"], None)
    if not (isinstance(kind, type) and issubclass(kind, np.random.BitGenerator)):
        raise ValueError(f"{state['bit_generator']!r} is no bit generator of NumPy")
    generator = np.random.Generator(kind())
    generator.bit_generator.state = state
    return generator
