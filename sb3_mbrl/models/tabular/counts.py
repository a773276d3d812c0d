"""Counts of a finite environment: the outcomes of all pairs of state and action, with their weights."""

from typing import Any, NamedTuple

import numpy as np

from sb3_mbrl.jit import jit


class Tables(NamedTuple):
    """
    Arrays over ``S`` states, ``A`` actions and ``K`` outcomes; an outcome is a next state (with its termination) of one pair.

    The outcomes of a pair form a linked list, and so do the outcomes that lead to a state, so that neither has to be searched
    for.
    """

    total: np.ndarray
    """``(S, A)``: the total weight of the outcomes; 0 where the pair was never tried"""
    head: np.ndarray
    """``(S, A)``: the pair's first outcome, or -1"""
    link: np.ndarray
    """``(K,)``: the next outcome of the same pair, or -1"""
    state: np.ndarray
    """``(K,)``: the next state"""
    weight: np.ndarray
    """``(K,)``: the number of times that the outcome was seen; older ones count less if the model forgets"""
    reward: np.ndarray
    """``(K,)``: the mean reward"""
    terminal: np.ndarray
    """``(K,)``: 1 where the episode ended in a terminal state"""
    source: np.ndarray
    """``(K,)``: the pair, ``state * A + action``"""
    back_head: np.ndarray
    """``(S,)``: the first outcome that leads to a state, or -1"""
    back_link: np.ndarray
    """``(K,)``: the next outcome that leads to the same state, or -1"""
    visited: np.ndarray
    """``(S,)``: the states in which an action was taken, in order of the first time; the first ``sizes[1]`` entries"""
    tried: np.ndarray
    """``(S, A)``: the actions that were taken in a state, in order of the first time; the first ``n_tried`` entries"""
    n_tried: np.ndarray
    """``(S,)``: the number of different actions that were taken in a state"""
    last: np.ndarray
    """``(S, A)``: the time at which the pair was last tried"""
    sizes: np.ndarray
    """``(2,)``: the numbers of outcomes and of visited states"""


GROWING = ("link", "state", "weight", "reward", "terminal", "source", "back_link")


def new_tables(states: int, actions: int, outcomes: int = 64) -> Tables:
    """Make empty tables, with room for ``outcomes`` outcomes."""
    return Tables(
        total=np.zeros((states, actions)),
        head=np.full((states, actions), -1),
        link=np.full(outcomes, -1),
        state=np.zeros(outcomes, np.int64),
        weight=np.zeros(outcomes),
        reward=np.zeros(outcomes),
        terminal=np.zeros(outcomes, np.int64),
        source=np.zeros(outcomes, np.int64),
        back_head=np.full(states, -1),
        back_link=np.full(outcomes, -1),
        visited=np.zeros(states, np.int64),
        tried=np.zeros((states, actions), np.int64),
        n_tried=np.zeros(states, np.int64),
        last=np.zeros((states, actions), np.int64),
        sizes=np.zeros(2, np.int64),
    )


def with_room(tables: Tables) -> Tables:
    """Return the tables with room for another outcome; arrays of outcomes double when they are full."""
    if tables.sizes[0] < len(tables.state):
        return tables
    grown: dict[str, Any] = {name: np.concatenate([getattr(tables, name)] * 2) for name in GROWING}
    return tables._replace(**grown)


@jit
def record(tables, state, action, reward, next_state, terminal, now, memory):
    """
    Count one transition. There must be room for another outcome.

    With the factor ``m`` (``memory``), the weights ``w_k`` of the pair's outcomes, the outcome ``j`` seen now and its mean
    reward ``r_j``::

        w_k <- m w_k for all k, then w_j <- w_j + 1
        r_j <- r_j + (reward - r_j) / w_j

    :param now: the time, for :attr:`Tables.last`
    :param memory: the factor of the weights of the pair's older outcomes: 1 counts all alike, 0 keeps only the last outcome
    """
    if tables.n_tried[state] == 0:
        tables.visited[tables.sizes[1]] = state
        tables.sizes[1] += 1
    if tables.head[state, action] < 0:
        tables.tried[state, tables.n_tried[state]] = action
        tables.n_tried[state] += 1
    tables.last[state, action] = now

    outcome, k = -1, tables.head[state, action]
    while k >= 0:
        tables.weight[k] *= memory
        if tables.state[k] == next_state and tables.terminal[k] == terminal:
            outcome = k
        k = tables.link[k]
    if outcome < 0:
        outcome = tables.sizes[0]
        tables.sizes[0] += 1
        tables.state[outcome] = next_state
        tables.terminal[outcome] = terminal
        tables.weight[outcome] = 0.0
        tables.reward[outcome] = 0.0
        tables.source[outcome] = state * tables.head.shape[1] + action
        tables.link[outcome] = tables.head[state, action]
        tables.head[state, action] = outcome
        tables.back_link[outcome] = tables.back_head[next_state]
        tables.back_head[next_state] = outcome
    tables.weight[outcome] += 1.0
    tables.reward[outcome] += (reward - tables.reward[outcome]) / tables.weight[outcome]
    tables.total[state, action] = tables.total[state, action] * memory + 1.0


@jit
def draw(tables, state, action, uniform):
    """
    Draw one outcome of a pair that was tried, with the probability ``weight / total``.

    :param uniform: a random number in [0, 1): the drawn outcome is the first whose running sum of weights exceeds
        ``uniform * total``
    """
    rest = uniform * tables.total[state, action]
    k = tables.head[state, action]
    chosen = k
    while k >= 0:
        if tables.weight[k] > 0.0:
            chosen = k
            rest -= tables.weight[k]
            if rest < 0.0:
                return chosen
        k = tables.link[k]
    return chosen  # rounding errors: the sum of the weights may be slightly below the total


@jit
def heaviest(tables, state, action):
    """Return the outcome with the largest weight, the first seen among equals; -1 if the pair was never tried."""
    k = tables.head[state, action]
    chosen = k
    while k >= 0:
        if tables.weight[k] >= tables.weight[chosen]:  # >= and not >: newer outcomes come first in the list
            chosen = k
        k = tables.link[k]
    return chosen


@jit
def draw_many(tables, states, actions, uniforms, outcomes):
    """
    Draw one outcome for each of many pairs.

    :param states: the states of the pairs, ``(B,)``
    :param actions: the actions of the pairs, ``(B,)``
    :param uniforms: ``(B,)``, random numbers in [0, 1); a negative one selects the outcome with the largest weight
    :param outcomes: ``(B,)``: the array to write the result to; -1 for pairs that were never tried
    """
    for i in range(len(states)):
        if tables.head[states[i], actions[i]] < 0:
            outcomes[i] = -1
        elif uniforms[i] < 0.0:
            outcomes[i] = heaviest(tables, states[i], actions[i])
        else:
            outcomes[i] = draw(tables, states[i], actions[i], uniforms[i])
