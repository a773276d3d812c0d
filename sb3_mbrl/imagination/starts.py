"""The states that imagination starts from. They are model states, not observations: a recurrent model filters its context."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3 import HerReplayBuffer
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.preprocessing import get_obs_shape

from sb3_mbrl.buffers import ReplayData, SideStore
from sb3_mbrl.buffers.her import goal_starts
from sb3_mbrl.contracts import Data, Obs, Sequences, WorldModel
from sb3_mbrl.spaces import outside, torch_dtype
from sb3_mbrl.trees import State, tree_index, tree_map


class StartStates(Protocol):
    """A function that draws states to start from."""

    def __call__(self, n: int, generator: th.Generator | None) -> State:
        """
        Draw states.

        :param n: the number of states
        :param generator: the source of randomness (``None``: torch's global one)
        :return: states of the world model, ``(n, ...)``
        """


def buffer_starts(world_model: WorldModel, data: Data) -> StartStates:
    """
    Return a function that draws states in which the agent has been, filtered from contexts of real data.

    :param world_model: the world model; its :attr:`~sb3_mbrl.contracts.WorldModel.context` is the length of the contexts
    :param data: a view of the replay buffer, which is read at every call
    """

    def draw(n: int, generator: th.Generator | None) -> State:
        return filter_contexts(world_model, data.contexts(n, world_model.context, generator=generator))

    return draw


def filter_contexts(world_model: WorldModel, contexts: Sequences) -> State:
    """Filter windows of real data, and return their last states."""
    given = (contexts.obs, contexts.action, contexts.is_first)
    return world_model.filter(*tree_map(lambda leaf: leaf.to(world_model.device), given))


def replay_starts(
    world_model: WorldModel,
    buffer: ReplayBuffer,
    side: SideStore | None,
    n: int,
    generator: th.Generator,
    choose: Callable[[Data, int, th.Generator], th.Tensor | None] | None = None,
) -> State:
    """
    Draw states to start from out of a replay buffer, by the way that model and buffer need: from contexts for models that
    filter them, from snapshots for an oracle, with relabelled goals for hindsight experience replay.

    :param world_model: the world model
    :param buffer: the replay buffer
    :param side: the side store of the buffer, in which an oracle's snapshots are
    :param n: the number of states
    :param generator: the source of randomness
    :param choose: the imagination's rule, which returns row ids, or ``None`` to draw from all rows uniformly
    """
    snapshots = world_model.needs_snapshot
    # An oracle starts only from rows with a snapshot.
    data = ReplayData(buffer, side, "snapshot" if snapshots else None)
    chosen = None if choose is None else choose(data, n, generator)
    plain = chosen is None and not snapshots and world_model.context == 1
    # With copy_info_dict, rewards need more than goals, and could not be computed for goals that are replaced.
    if isinstance(buffer, HerReplayBuffer) and plain and not buffer.copy_info_dict:
        return world_model.initial(goal_starts(buffer, n, generator))
    rows, envs = data.draw(n, generator) if chosen is None else data.places(chosen)
    if not snapshots:
        return filter_contexts(world_model, data.contexts_at(rows, envs, world_model.context))
    assert side is not None  # written with every row of an agent whose model needs snapshots
    obs = tree_map(lambda leaf: leaf[:, 0], data.contexts_at(rows, envs, 1).obs)
    return world_model.initial(obs, side.get("snapshot", rows, envs))


def observation_starts(
    world_model: WorldModel, obs: np.ndarray | th.Tensor | Mapping[str, np.ndarray | th.Tensor]
) -> StartStates:
    """
    Return a function that draws states from given observations, uniformly with replacement.

    :param world_model: the world model
    :param obs: observations as SB3's buffers store them, ``(N, *shape)`` or ``(size, n_envs, *shape)``; a dictionary of these
        for ``Dict`` spaces
    :raises ValueError: for observations that are not in the model's observation space, are empty, or are not finite
    """
    rows = _observation_rows(world_model.observation_space, obs, world_model.device)
    first = next(iter(rows.values())) if isinstance(rows, dict) else rows
    count = len(first)

    def draw(n: int, generator: th.Generator | None) -> State:
        index = th.randint(count, (n,), generator=generator, device="cpu" if generator is None else generator.device)
        return world_model.initial(tree_index(rows, index.to(first.device)))

    return draw


def _observation_rows(space: spaces.Space, obs: object, device: th.device, key: str = "") -> Obs:
    """Convert observations to one tensor of rows per key, in the layout of SB3's replay buffer."""
    if isinstance(space, spaces.Dict):
        if not isinstance(obs, Mapping) or set(obs) != set(space.spaces):
            found = sorted(obs) if isinstance(obs, Mapping) else type(obs).__name__
            raise ValueError(f"Start observations: expected a dictionary with the keys {sorted(space.spaces)}, got {found}")
        rows: Any = {name: _observation_rows(child, obs[name], device, f"[{name!r}]") for name, child in space.spaces.items()}
        if len({len(value) for value in rows.values()}) != 1:
            raise ValueError(f"Start observations: keys of different lengths: { {name: len(v) for name, v in rows.items()} }")
        return rows
    if isinstance(obs, Mapping):
        raise ValueError(f"Start observations{key}: expected an array for {space}, got a dictionary")
    tensor = th.as_tensor(obs, device=device)
    shape = get_obs_shape(space)
    assert isinstance(shape, tuple)
    fits = tensor.dim() > len(shape) and tuple(tensor.shape[tensor.dim() - len(shape) :]) == shape
    if isinstance(space, spaces.Discrete) and tensor.dim() == 1:
        fits = True
    if not fits:
        raise ValueError(
            f"Start observations{key}: expected shape (N, {', '.join(map(str, shape))}) for {space}, got {tuple(tensor.shape)}"
        )
    tensor = tensor.reshape(-1, *shape)
    if len(tensor) == 0:
        raise ValueError(f"Start observations{key}: there are none; give at least one")
    if not tensor.isfinite().all():
        raise ValueError(f"Start observations{key}: not finite in {int((~tensor.isfinite()).flatten(1).any(1).sum())} rows")
    assert space.dtype is not None
    if (wrong := outside(space, tensor)).any():
        raise ValueError(f"Start observations{key}: {tensor[int(wrong.argmax())].tolist()} is not in {space}")
    return tensor.to(torch_dtype(space.dtype))


StartRule = Callable[[Data, int, th.Generator | None], th.Tensor]
"""A function ``rule(data, n, generator)`` to ``(n,)`` integers out of ``data.row_ids()``, which are ordered oldest first"""


def pick(ids: th.Tensor, n: int, generator: th.Generator | None) -> th.Tensor:
    """Draw ``n`` of some rows, uniformly with replacement."""
    return ids[th.randint(len(ids), (n,), generator=generator)]


def initial(data: Data, n: int, generator: th.Generator | None) -> th.Tensor:
    """Draw from the first observations of episodes; from all rows if all first observations have been overwritten."""
    ids = data.episode_starts()
    return pick(ids if len(ids) else data.row_ids(), n, generator)


def recent(data: Data, n: int, generator: th.Generator | None, *, rows: int) -> th.Tensor:
    """Draw from the newest ``rows`` real observations, where the present policy goes."""
    return pick(data.row_ids()[-rows:], n, generator)


def parse_rule(starts: Any, max_age: int) -> StartRule | None:
    """
    Return the rule that a setting names.

    :param starts: ``"uniform"``, ``"recent"``, ``"initial"`` or a function
    :param max_age: the number of real steps that count as recent
    :return: the rule; ``None`` to draw from all rows uniformly
    :raises ValueError: for anything else
    """
    if callable(starts):
        return starts
    rules = {"uniform": None, "recent": partial(recent, rows=max_age), "initial": initial}
    if not isinstance(starts, str) or starts not in rules:
        raise ValueError(
            f"starts={starts!r}: choose one of {', '.join(map(repr, rules))}, or give a function (data, n, generator)"
        )
    return rules[starts]


def check_choice(chosen: Any, n: int, data: Data, where: str) -> th.Tensor:
    """
    Check the row ids that a rule returned.

    :param chosen: the result of the rule
    :param n: the number of row ids that were asked for
    :param data: the data to choose from
    :param where: the name of the rule, for messages
    :raises ValueError: for anything but ``(n,)`` integers out of ``data.row_ids()``
    """
    given = th.as_tensor(chosen)
    if given.shape != (n,) or given.is_floating_point() or given.dtype == th.bool:
        raise ValueError(
            f"{where} returned {tuple(given.shape)} of {given.dtype}, expected ({n},) integers out of data.row_ids()"
        )
    unknown = ~th.isin(given, data.row_ids())
    if bool(unknown.any()):
        raise ValueError(
            f"{where} chose row {int(given[unknown][0])}, which is none of data.row_ids(): return "
            "elements of row_ids(), not their indices"
        )
    return given
