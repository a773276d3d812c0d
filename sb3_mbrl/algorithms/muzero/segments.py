"""
Collecting real steps in other processes than the updates, or on other machines: what travels between them.

An actor and a learner are both an agent. The learner sends snapshots of its networks; the actor sends back segments of steps
with the results of its searches, and says which snapshot searched. One round::

    actor.load_snapshot(learner.snapshot())               # the networks, and their age
    actor.learn(64, reset_num_timesteps=False)            # acting alone: an actor has gradient_steps=0
    steps = learner.add(actor.newest(64 // actor.n_envs)) # the buffer
    learner.train(gradient_steps=steps)                   # updates, in proportion to the steps that came in

What is sent is arrays and numbers, so it may go through a queue, a file or a socket.
"""

from collections.abc import Callable
from operator import itemgetter
from typing import Any, NamedTuple

import numpy as np
import torch as th

from sb3_mbrl.agent.real_steps import cut_off_episodes
from sb3_mbrl.algorithms.muzero.replay import UnrollReplay

Arrays = np.ndarray | dict[str, np.ndarray]


class Snapshot(NamedTuple):
    """The networks of a learner at one time."""

    version: int
    """The number of updates that were made before"""
    world_model: dict[str, th.Tensor]
    """The ``state_dict`` of the world model, on the CPU"""


class Segment(NamedTuple):
    """``T`` real steps of ``E`` environments, in the order in which they were made, as the replay buffer stores them."""

    obs: Arrays
    """Observations, ``(T, E, ...)``"""
    next_obs: Arrays
    """Observations after the steps; at the end of an episode, its last ones"""
    action: np.ndarray
    """Scaled actions, ``(T, E, A)``"""
    reward: np.ndarray
    """``(T, E)``"""
    done: np.ndarray
    """``(T, E)`` booleans: whether the episode ended"""
    truncated: np.ndarray
    """``(T, E)`` booleans: whether a time limit ended it"""
    beside: dict[str, np.ndarray]
    """The results of searches by name, ``(T, E, ...)``; ``"search.version"`` is the version of the snapshot that searched"""


def newest(replay: UnrollReplay, n: int) -> Segment:
    """
    Return the newest steps of a replay buffer.

    :param replay: the replay
    :param n: ``T``, the number of steps of each environment
    :raises ValueError: if there are fewer
    """
    buffer, positions = replay.buffer, replay.data.positions()
    if not 1 <= n <= len(positions):
        raise ValueError(f"newest({n}): the replay buffer holds {len(positions)} steps of each environment")
    positions = positions[-n:]
    rows, envs = np.repeat(positions, buffer.n_envs), np.tile(np.arange(buffer.n_envs), n)
    steps = replay.data.transitions_at(rows, envs)
    obs, next_obs = (
        _map(lambda leaf: leaf.numpy().reshape(n, -1, *leaf.shape[1:]), part) for part in (steps.obs, steps.next_obs)
    )
    return Segment(
        obs,
        next_obs,
        buffer.actions[positions].copy(),
        buffer.rewards[positions].copy(),
        buffer.dones[positions] > 0,
        buffer.timeouts[positions] > 0,
        {name: values[positions].copy() for name, values in replay.side.arrays.items()},
    )


def add(replay: UnrollReplay, segment: Segment) -> int:
    """
    Add a segment to a replay buffer. Where it does not follow from the newest step there, episodes are cut off before it.

    :return: the number of real steps in it
    :raises ValueError: for a segment of another number of environments, or of another agent
    """
    if not isinstance(segment, Segment):
        raise TypeError(f"add() takes the result of newest(), not {type(segment).__name__}")
    buffer = replay.buffer
    steps, n_envs = segment.reward.shape
    own, given = ({name: leaf.shape[2:] for name, leaf in _leaves(obs)} for obs in (buffer.observations, segment.obs))
    if own != given or segment.action.shape[2:] != buffer.actions.shape[2:]:
        raise ValueError(
            f"The segment is of another agent: observations are {given} and actions {segment.action.shape[2:]}, and the "
            f"replay buffer has {own} and {buffer.actions.shape[2:]}"
        )
    if n_envs != buffer.n_envs:
        raise ValueError(f"The segment is of {n_envs} environments, and the replay buffer of {buffer.n_envs}: make them equal")
    if buffer.size() and (missing := replay.side.arrays.keys() ^ segment.beside.keys()):
        raise ValueError(f"Only one of the segment and the replay buffer has {sorted(missing)}: were the settings different?")
    if buffer.size() and not _follows(replay, segment):
        cut_off_episodes(buffer)
    for step in range(steps):
        for name, values in segment.beside.items():
            replay.side.put(name, buffer.pos, values[step])
        position = buffer.pos
        obs, next_obs = (_map(itemgetter(step), part) for part in (segment.obs, segment.next_obs))
        infos = [{"TimeLimit.truncated": bool(truncated)} for truncated in segment.truncated[step]]
        buffer.add(obs, next_obs, segment.action[step], segment.reward[step], segment.done[step], infos)
        replay.added(position)
    return steps * n_envs


def _follows(replay: UnrollReplay, segment: Segment) -> bool:
    """Tell whether a segment begins where the newest stored steps have led, in every environment whose episode goes on."""
    last = newest(replay, 1)
    running = ~last.done[0]
    leads_to, begins = (part if isinstance(part, dict) else {"": part} for part in (last.next_obs, segment.obs))
    return all(np.array_equal(leaf[0][running], begins[key][0][running]) for key, leaf in leads_to.items())


def _leaves(obs: Arrays) -> list[tuple[str, np.ndarray]]:
    """Return the arrays of observations by name."""
    return list(obs.items()) if isinstance(obs, dict) else [("", obs)]


def _map(function: Callable[[Any], Any], obs: Any) -> Any:
    """Apply a function to an observation, or to every entry of a dictionary of them."""
    return {key: function(leaf) for key, leaf in obs.items()} if isinstance(obs, dict) else function(obs)
