"""``tabular``: a model that counts outcomes, for ``Discrete`` observations and actions."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces

from sb3_mbrl.checks import number
from sb3_mbrl.contracts import Data, FitBudget, Obs, Prediction, RewardFn, TerminationFn, UnsupportedSpace, WorldModel
from sb3_mbrl.models.tabular.counts import Tables, draw_many, new_tables, record, with_room
from sb3_mbrl.spaces import discrete_spaces, outside
from sb3_mbrl.trees import State


class TabularModel(WorldModel):
    """
    The maximum likelihood model of a finite environment: an outcome (next state and termination) is drawn with the frequency
    with which it was seen, ``P(s', d | s, a) = weight(s, a, s', d) / total(s, a)``, and its reward is the mean of those seen.

    A pair of state and action that was never tried leads back to its state, with reward 0. The model's state is the number of
    the environment's state, counted from 0, ``(B, 1)``.

    :param observation_space: ``Discrete``
    :param action_space: ``Discrete``
    :param memory: the factor by which a new outcome of a pair multiplies the weights of its older ones: 1 counts all alike; 0
        keeps only the last outcome, as the book's algorithms for deterministic environments do, and follows an environment
        that changes
    :param reward_fn: see :class:`~sb3_mbrl.contracts.WorldModel`
    :param termination_fn: see :class:`~sb3_mbrl.contracts.WorldModel`
    :param device: the device of states and predictions; the tables are on the CPU
    :raises UnsupportedSpace: for other spaces
    """

    observation_space: spaces.Discrete
    action_space: spaces.Discrete
    holds_out = False

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        *,
        memory: float = 1.0,
        reward_fn: RewardFn | None = None,
        termination_fn: TerminationFn | None = None,
        device: th.device | str = "auto",
    ) -> None:
        super().__init__(observation_space, action_space, reward_fn=reward_fn, termination_fn=termination_fn, device=device)
        if reason := discrete_spaces(observation_space, action_space):
            raise UnsupportedSpace(f"{type(self).__name__} does not take these spaces: {reason}")
        self.memory = number("memory", memory, 0.0, 1.0)
        self.tables = self._empty()

    def _empty(self) -> Tables:
        return new_tables(int(self.observation_space.n), int(self.action_space.n))

    # ---- learning

    def record(self, state: int, action: int, reward: float, next_state: int, terminal: bool, now: int = 0) -> None:
        """
        Count one real transition.

        :param state: the number of the state. States and actions are counted from 0, whatever the ``start`` of their space is
        :param now: the time at which the pair was tried
        """
        tables = with_room(self.tables)
        record(tables, state, action, float(reward), next_state, int(terminal), now, self.memory)
        if tables is not self.tables:  # setting an attribute of a torch module costs as much as counting
            self.tables = tables
        if not self.fitted:
            self.fitted = True

    def fit(self, data: Data, budget: FitBudget | None = None, *, generator: th.Generator | None = None) -> dict[str, float]:
        """
        Count all transitions from the beginning, oldest first.

        :return: ``rows``, and the numbers of different ``pairs`` and ``outcomes``
        """
        rows = data.transitions()
        self.tables = self._empty()
        columns = (self._index(rows.obs), self._action_index(rows.action), self._index(rows.next_obs))
        states, actions, next_states = (column.tolist() for column in columns)
        everything = zip(states, actions, rows.reward.tolist(), next_states, (rows.terminated > 0).tolist(), strict=True)
        for now, (state, action, reward, next_state, terminal) in enumerate(everything, start=1):
            self.record(state, action, reward, next_state, terminal, now)
        pairs = float((self.tables.total > 0).sum())
        return {"rows": float(len(states)), "pairs": pairs, "outcomes": float(self.tables.sizes[0])}

    def _index(self, obs: Obs) -> th.Tensor:
        assert isinstance(obs, th.Tensor)
        return _from_zero("observation", obs, self.observation_space)

    def _action_index(self, action: th.Tensor) -> th.Tensor:
        return _from_zero("action", action, self.action_space)

    # ---- rollouts

    def initial(self, obs: Obs, snapshot: th.Tensor | None = None) -> State:
        return self._index(obs).to(self.device)[:, None]

    def step(
        self, state: State, action: th.Tensor, *, deterministic: bool = False, generator: th.Generator | None = None
    ) -> Prediction:
        """Draw an outcome; with ``deterministic`` the one with the largest weight, the first seen among equals."""
        assert isinstance(state, th.Tensor)
        states, actions = state[:, 0].cpu().numpy(), self._action_index(action).numpy()
        if deterministic:
            uniforms = np.full(len(states), -1.0)
        else:
            draws = th.rand(len(states), generator=generator, device=generator.device if generator else None, dtype=th.float64)
            uniforms = draws.cpu().numpy()
        outcome = np.empty(len(states), np.int64)
        draw_many(self.tables, states, actions, uniforms, outcome)
        known, tables = outcome >= 0, self.tables
        following = th.as_tensor(np.where(known, tables.state[outcome], states)).to(self.device)[:, None]
        reward = th.as_tensor(np.where(known, tables.reward[outcome], 0.0), dtype=th.float32).to(self.device)
        terminated = th.as_tensor(np.where(known, tables.terminal[outcome], 0), dtype=th.float32).to(self.device)
        return Prediction(
            following, *self.with_known(lambda: (self.decode(state), action, self.decode(following)), reward, terminated)
        )

    def decode(self, state: State) -> Obs:
        assert isinstance(state, th.Tensor)
        return state + int(self.observation_space.start)

    # ---- saving

    def extra_state(self) -> dict[str, Any]:
        return {**super().extra_state(), "tables": {name: array.copy() for name, array in self.tables._asdict().items()}}

    def load_extra_state(self, extra: Mapping[str, Any]) -> None:
        super().load_extra_state(extra)
        self.tables = Tables(**{name: array.copy() for name, array in extra["tables"].items()})


def _from_zero(what: str, values: th.Tensor, space: spaces.Discrete) -> th.Tensor:
    """
    Convert members of a space to indices of the tables, ``(B,)``.

    :raises ValueError: for a value that is not in the space; the compiled code does not check indices
    """
    index = values.reshape(-1).long().cpu()
    wrong = outside(space, index)
    if wrong.any():
        raise ValueError(f"The {what} {int(index[int(wrong.argmax())])} is not in {space}")
    return index - int(space.start)
