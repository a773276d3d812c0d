"""The replay of MuZero: windows drawn by priority, with the results of the searches that were made in them."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch as th
from stable_baselines3.common.buffers import ReplayBuffer

from sb3_mbrl.algorithms.muzero import targets
from sb3_mbrl.algorithms.muzero.targets import Steps
from sb3_mbrl.buffers.priorities import Priorities
from sb3_mbrl.buffers.replay_view import ReplayData
from sb3_mbrl.buffers.side_store import SideStore
from sb3_mbrl.contracts import Obs, Sequences
from sb3_mbrl.trees import State, tree_map

POLICY, VALUE, EDGES, MASK = "search.policy", "search.value", "search.edges", "search.mask"
"""The names in the side store of what belongs to a row's search: its policy, root value, sampled actions, allowed actions"""
SIGN, VERSION, EXPLORED = "search.sign", "search.version", "search.explored"
"""-1 where the other player moves next; the number of updates of the network that searched; 1 where the action was random"""
SNAPSHOT = "search.snapshot"
"""The state of the true environment, where it is searched in"""


class Drawn(NamedTuple):
    """Windows that were drawn: ``B`` of ``W`` stored steps each."""

    positions: np.ndarray
    """The positions of the steps in the replay buffer, ``(B, W)``; past the newest step it is repeated"""
    envs: np.ndarray
    """The environments, ``(B,)``"""
    weights: np.ndarray
    """The importance weights, ``(B,)``"""
    steps: Steps
    """Rewards, signed discounts and ends, ``(B, W)``"""

    def places(self, states: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the positions and environments of the first states, ``(B, S)`` each."""
        positions = self.positions[:, :states]
        return positions, np.broadcast_to(self.envs[:, None], positions.shape)


class UnrollReplay:
    """
    A sampler of windows of ``unroll + 1`` states for unrolled training.

    :param buffer: SB3's replay buffer, whose rows are single steps
    :param side: its side store, with the results of searches
    :param gamma: the discount of a step
    :param unroll: ``K``, the number of unrolled steps
    :param n_steps: the number of real steps whose rewards a value target sums; ``None``: all until the episode ends
    :param alpha: see :class:`~sb3_mbrl.buffers.priorities.Priorities`
    :param beta: see :class:`~sb3_mbrl.buffers.priorities.Priorities`
    :raises ValueError: for a buffer that does not know how episodes ended
    """

    def __init__(
        self, buffer: ReplayBuffer, side: SideStore, gamma: float, unroll: int, n_steps: int | None, alpha: float, beta: float
    ) -> None:
        if buffer.optimize_memory_usage or not getattr(buffer, "handle_timeout_termination", True):
            raise ValueError(
                "MuZero's targets bootstrap through time limits, from the last observations of episodes, and a replay buffer "
                "with optimize_memory_usage=True or handle_timeout_termination=False does not know these: leave them out"
            )
        self.data, self.side = ReplayData(buffer), side
        self.gamma, self.unroll, self.n_steps = gamma, unroll, n_steps
        self.priorities = Priorities((buffer.buffer_size, buffer.n_envs), alpha, beta)

    @property
    def buffer(self) -> ReplayBuffer:
        """The replay buffer"""
        return self.data.buffer

    def added(self, position: int) -> None:
        """Note that steps were stored at a position of the buffer."""
        self.priorities.added(position)

    # ---- drawing

    def draw(self, n: int, generator: th.Generator | None = None) -> Drawn:
        """
        Draw windows by the priority of their first step.

        :param n: the number of windows
        :param generator: the source of randomness
        """
        positions = self.data.positions()
        offsets, envs, weights = self.priorities.draw(positions, n, generator)
        width = self.unroll + 1 + (self._longest_episode() if self.n_steps is None else self.n_steps)
        places = offsets[:, None] + np.arange(width)
        newest = len(positions) - 1
        slots = positions[np.minimum(places, newest)]
        wide = np.broadcast_to(envs[:, None], slots.shape)
        done, timeout = self.buffer.dones[slots, wide] > 0, self.buffer.timeouts[slots, wide] > 0
        discount = self.gamma * self._signs(slots, wide) * ~(done & ~timeout)
        cut = (done & timeout) | (places == newest) & ~(done & ~timeout) | (places > newest)
        explored = self.side.arrays.get(EXPLORED)
        random = np.zeros(slots.shape, bool) if explored is None else explored[slots, wide] > 0
        return Drawn(slots, envs, weights, Steps(self.buffer.rewards[slots, wide].astype(np.float64), discount, cut, random))

    def _longest_episode(self) -> int:
        """Return the length of the longest stored episode, which a target without a limit sums."""
        positions = self.data.positions()
        longest = 1
        for env in range(self.buffer.n_envs):
            ends = np.flatnonzero(self.buffer.dones[positions, env])
            longest = max(longest, int(np.diff(ends, prepend=-1, append=len(positions) - 1).max()))
        return longest

    def _signs(self, slots: np.ndarray, envs: np.ndarray) -> np.ndarray:
        """Return -1 where the other player moves next, and 1 elsewhere."""
        signs = self.side.arrays.get(SIGN)
        return np.ones(slots.shape) if signs is None else signs[slots, envs].astype(np.float64)

    # ---- a batch

    def batch(
        self,
        drawn: Drawn,
        value_of: Callable[[Obs], np.ndarray],
        *,
        stored_values: bool = False,
        action_values: bool = False,
    ) -> Sequences:
        """
        Make the targets of windows.

        :param drawn: the windows
        :param value_of: the values of raw observations ``(N, ...)`` by the target network
        :param stored_values: whether to bootstrap from the values of stored searches where there are some (else, and behind
            time limits always, from the target network)
        :param action_values: whether to make targets for the values of actions too, which afterstates learn
        :return: windows of ``K`` steps, with the ``extra`` that :meth:`~sb3_mbrl.models.muzero.model.MuZeroModel.loss` takes
        """
        steps, unroll, states = drawn.steps, self.unroll, self.unroll + 1
        n = steps.reward.shape[1] if self.n_steps is None else self.n_steps
        living, gone = targets.alive(steps, states), targets.absorbed(steps, states)
        last = targets.last_steps(steps, states, n)
        value = targets.value_targets(steps, last, self._bootstrap(drawn, last, value_of, stored_values))
        positions, envs = drawn.places(states)
        rows = self.data.transitions_at(positions[:, :unroll].ravel(), envs[:, :unroll].ravel())
        obs, action, next_obs, reward, terminated = tree_map(
            lambda leaf: leaf.unflatten(0, (len(positions), unroll)), tuple(rows)
        )
        ended = th.as_tensor(gone[:, :unroll])
        extra = {
            "known": th.as_tensor(living[:, :unroll] | gone[:, :unroll]),
            "real": th.as_tensor(living[:, :unroll]),
            "value": th.as_tensor(value, dtype=th.float32),
            "value_weight": th.as_tensor((living & (stored_values | ~_of_itself(last))) | gone, dtype=th.float32),
            "policy": th.as_tensor(self.side.arrays[POLICY][positions, envs]),
            "policy_weight": th.as_tensor(living, dtype=th.float32),
        }
        if action_values:
            last = targets.last_steps(steps, unroll, n, of_actions=True)
            of_actions = targets.value_targets(steps, last, self._bootstrap(drawn, last, value_of, stored_values))
            extra["action_value"] = th.as_tensor(of_actions, dtype=th.float32)
        if EDGES in self.side.arrays:
            extra["edges"] = th.as_tensor(self.side.arrays[EDGES][positions, envs])
        none = th.zeros_like(ended)
        # Behind a termination: no reward, whatever is done (the actions are those of the next episode).
        return Sequences(
            obs, action, next_obs, reward.masked_fill(ended, 0.0), terminated.masked_fill(ended, 1.0), none, none, extra
        )

    def _bootstrap(
        self, drawn: Drawn, last: np.ndarray, value_of: Callable[[Obs], np.ndarray], stored_values: bool
    ) -> np.ndarray:
        """Return the values of the observations after the last steps of the targets, ``(B, S)``."""
        rows, envs = np.arange(len(last))[:, None], np.broadcast_to(drawn.envs[:, None], last.shape)
        own, steps = _of_itself(last), drawn.steps
        step = np.maximum(last, 0)
        needed = own | (steps.discount[rows, step] != 0)
        following = np.minimum(last + 1, drawn.positions.shape[1] - 1)
        inside = (following > last) & (own | ~steps.cut[rows, step])  # the next state is one of the episode, with a search
        stored = needed & inside & stored_values
        values = np.zeros(last.shape)
        values[stored] = self.side.arrays[VALUE][drawn.positions[rows, following], envs][stored]
        needed &= ~stored
        # The state after the last step; where none is summed, the state itself.
        for here, kind in ((needed & ~own, "next_obs"), (needed & own, "obs")):
            if here.any():
                positions = drawn.positions[rows, following if kind == "obs" else step]
                values[here] = value_of(getattr(self.data.transitions_at(positions[here], envs[here]), kind))
        return values

    def obs_at(self, positions: np.ndarray, envs: np.ndarray) -> Obs:
        """Return the raw observations of stored steps, ``(N, ...)``."""
        return self.data.transitions_at(positions, envs).obs

    def update(self, drawn: Drawn, predicted: th.Tensor, batch: Sequences) -> None:
        """
        Replace the priorities of the windows' first steps by ``|v - z|``.

        :param predicted: the values that the network predicted of the first states, ``(B,)``
        """
        errors = (predicted.cpu() - batch.extra["value"][:, 0]).abs().numpy()
        self.priorities.update(drawn.positions[:, 0], drawn.envs, errors)

    # ---- saving

    def buffer_state(self) -> dict[str, Any]:
        """Return the values to save with the replay buffer, apart from the side store's."""
        return {"priorities": self.priorities.state_dict()}

    def restore_buffer_state(self, state: Mapping[str, Any]) -> None:
        """Restore the result of :meth:`buffer_state`; without priorities, all rows are as if they were new."""
        saved = state.get("priorities")
        if saved is not None and saved["values"].shape == self.priorities.values.shape:
            self.priorities.load_state_dict(saved)
        else:
            self.priorities.values[self.data.positions()] = self.priorities.largest

    # ---- the contract of an object that an agent has

    def state_dict(self) -> dict[str, Any]:
        """Return nothing: everything is saved with the replay buffer."""
        return {}

    def load_state_dict(self, state: State) -> None:
        """Take back what :meth:`state_dict` gave."""


def _of_itself(last: np.ndarray) -> np.ndarray:
    """
    Return which states' targets sum no reward, since their own action was random, ``(B, S)`` booleans. They have the state's
    own value, which by the network there is nothing to learn from.

    :param last: the result of :func:`~.targets.last_steps`
    """
    return last < np.arange(last.shape[1])
