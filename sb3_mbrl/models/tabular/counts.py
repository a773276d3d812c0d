"""The counts of a finite world: every outcome of every pair of state and action, with its weight."""

from typing import Any, NamedTuple

import numpy as np

from sb3_mbrl.models.tabular.jit import jit


class Tables(NamedTuple):
    """
    Arrays over ``S`` states, ``A`` actions and ``K`` outcomes; an outcome is a next state (with its termination) of one pair.

    The outcomes of a pair are a linked list, and so are those that lead to a state: both are walked without a search.
    """

    total: np.ndarray
    """``(S, A)``: total weight of the outcomes; 0 where the pair was never tried"""
    head: np.ndarray
    """``(S, A)``: the pair's first outcome, or -1"""
    link: np.ndarray
    """``(K,)``: the next outcome of the same pair, or -1"""
    state: np.ndarray
    """``(K,)``: the next state"""
    weight: np.ndarray
    """``(K,)``: the number of times, where older ones count less if the model forgets"""
    reward: np.ndarray
    """``(K,)``: mean reward"""
    terminal: np.ndarray
    """``(K,)``: 1 where the episode ended in a terminal state"""
    source: np.ndarray
    """``(K,)``: the pair, ``state * A + action``"""
    back_head: np.ndarray
    """``(S,)``: the first outcome that leads to a state, or -1"""
    back_link: np.ndarray
    """``(K,)``: the next outcome that leads to the same state, or -1"""
    visited: np.ndarray
    """``(S,)``: the states in which an action was taken, in order; the first ``sizes[1]``"""
    tried: np.ndarray
    """``(S, A)``: the actions that were taken in a state, in order; the first ``n_tried``"""
    n_tried: np.ndarray
    """``(S,)``"""
    last: np.ndarray
    """``(S, A)``: the time at which the pair was last tried"""
    sizes: np.ndarray
    """``(2,)``: the numbers of outcomes and of visited states"""


GROWING = ("link", "state", "weight", "reward", "terminal", "source", "back_link")


def new_tables(states: int, actions: int, outcomes: int = 64) -> Tables:
    """Make tables in which nothing has been counted yet."""
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
    """Return the same tables with room for another outcome."""
    if tables.sizes[0] < len(tables.state):
        return tables
    grown: dict[str, Any] = {name: np.concatenate([getattr(tables, name)] * 2) for name in GROWING}
    return tables._replace(**grown)


@jit
def record(tables, state, action, reward, next_state, terminal, now, memory):
    """
    Take note of one transition. There must be room for another outcome.

    :param now: the time, for :attr:`Tables.last`
    :param memory: the factor of the weights of the pair's older outcomes: 1 counts all alike, 0 keeps the last
        outcome alone
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
    Draw one outcome of a pair that was tried, by its weight.

    :param uniform: a random number in [0, 1)
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
    return chosen  # rounding


@jit
def heaviest(tables, state, action):
    """Return the outcome of the largest weight, the first seen among equals; -1 where the pair was never tried."""
    k = tables.head[state, action]
    chosen = k
    while k >= 0:
        if tables.weight[k] >= tables.weight[chosen]:  # newer ones come first in the list
            chosen = k
        k = tables.link[k]
    return chosen


@jit
def draw_many(tables, states, actions, uniforms, outcomes):
    """
    Draw an outcome of each of many pairs.

    :param states: ``(B,)``
    :param actions: ``(B,)``
    :param uniforms: ``(B,)`` in [0, 1); negative: the outcome of the largest weight
    :param outcomes: ``(B,)``: the result, -1 for pairs that were never tried
    """
    for i in range(len(states)):
        if tables.head[states[i], actions[i]] < 0:
            outcomes[i] = -1
        elif uniforms[i] < 0.0:
            outcomes[i] = heaviest(tables, states[i], actions[i])
        else:
            outcomes[i] = draw(tables, states[i], actions[i], uniforms[i])
