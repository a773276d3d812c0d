"""The targets of unrolled training: values of n steps that bootstrap through time limits, and what is known past an end."""

from typing import NamedTuple

import numpy as np


class Steps(NamedTuple):
    """``W`` consecutive stored steps of one environment each, ``(B, W)``."""

    reward: np.ndarray
    """The rewards, for the player who moved"""
    discount: np.ndarray
    """
    The signed discounts: ``gamma``; ``-gamma`` where the other player moves next; 0 where the episode terminated
    """
    cut: np.ndarray
    """Booleans: what follows the step is not known: a time limit, a cut-off episode, the newest step"""
    explored: np.ndarray
    """
    Booleans: the action was drawn at random, and is not the choice of the search. What it led to says nothing of the value of
    the state before it
    """


def ends(steps: Steps) -> np.ndarray:
    """Return which steps are the last ones of their window's episode that are known, ``(B, W)`` booleans."""
    return (steps.discount == 0) | steps.cut


def alive(steps: Steps, states: int) -> np.ndarray:
    """
    Return which of the first states are states of the window's first episode, ``(B, S)`` booleans. State ``k`` is the one
    before step ``k``.
    """
    before = np.zeros_like(steps.cut[:, :states])
    before[:, 1:] = np.logical_or.accumulate(ends(steps)[:, : states - 1], axis=1)
    return ~before


def absorbed(steps: Steps, states: int) -> np.ndarray:
    """Return which of the first states lie behind a termination (the value there is 0), ``(B, S)`` booleans."""
    # The first end decides: behind a cut nothing is known, whatever the steps of the next episode are.
    terminated = (steps.discount[:, : states - 1] == 0) & alive(steps, states)[:, : states - 1]
    behind = np.zeros_like(steps.cut[:, :states])
    behind[:, 1:] = np.logical_or.accumulate(terminated & ~steps.cut[:, : states - 1], axis=1)
    return behind


def last_steps(steps: Steps, states: int, n: int, *, of_actions: bool = False) -> np.ndarray:
    """
    Return the last step whose reward the target of each state sums, ``(B, S)``: ``n`` steps from the state on, or fewer at
    the end of what is known, and before a random action. The target bootstraps from the state after that step, which is the
    state itself where its own action was random (then the result is one less than its index).

    :param n: the number of steps
    :param of_actions: whether the targets are those of the states' actions (of afterstates), to which the first reward belongs
        even where the action was random
    """
    width = steps.reward.shape[1]
    end = ends(steps)
    # next_end[k]: the last step to sum from step k on, whatever n is.
    next_end = np.full(end.shape, width - 1)
    following = np.full(len(end), width - 1)
    for k in range(width - 1, -1, -1):
        of_action = np.where(end[:, k], k, following)
        following = np.where(steps.explored[:, k], k - 1, of_action)
        next_end[:, k] = of_action if of_actions else following
    own = np.arange(states)
    return np.minimum(np.minimum(own + n - 1, width - 1), next_end[:, :states])


def value_targets(steps: Steps, last: np.ndarray, bootstrap: np.ndarray) -> np.ndarray:
    """
    Compute the value targets of states::

        z_k = sum_(j = k .. l) (prod_(i = k .. j-1) d_i) r_j  +  (prod_(i = k .. l) d_i) v_l

    with the signed discounts ``d``, so that two players need no other formula. States behind a termination have 0.

    :param last: ``l``, the result of :func:`last_steps`, ``(B, S)``
    :param bootstrap: ``v_l``, the value of the state after step ``l`` for who moves there, ``(B, S)``
    :return: ``(B, S)``
    """
    states = last.shape[1]
    target, weight = np.zeros(last.shape), np.ones(last.shape)
    rows, own = np.arange(len(last))[:, None], np.arange(states)
    for ahead in range(int((last - own).max()) + 1):
        step = np.maximum(np.minimum(own + ahead, last), 0)
        summed = own + ahead <= last
        target += np.where(summed, weight * steps.reward[rows, step], 0.0)
        weight = np.where(summed, weight * steps.discount[rows, step], weight)
    target += weight * bootstrap
    return np.where(alive(steps, states), target, 0.0)
