"""
Planning on counted transitions (Sutton and Barto 2018, chapter 8): each function improves a table of action values in place.

Random numbers are drawn beforehand and handed in, so that a seed gives the same values compiled and not compiled.
"""

from typing import NamedTuple

import numpy as np

from sb3_mbrl.jit import jit
from sb3_mbrl.models.tabular.counts import draw


@jit
def best(q, state):
    """Return the largest value of a state."""
    value = q[state, 0]
    for action in range(1, q.shape[1]):
        if q[state, action] > value:
            value = q[state, action]
    return value


@jit
def dyna_q(q, tables, uniforms, alpha, gamma):
    """
    Make updates of Dyna-Q (section 8.2): draw a visited state, an action that was taken in it and an outcome of the model, and
    update by one-step Q-learning::

        Q(s, a) <- Q(s, a) + alpha [r + gamma max_a' Q(s', a') - Q(s, a)]

    :param q: the action values, ``(S, A)``
    :param tables: the tables of the model
    :param uniforms: uniform random numbers in [0, 1), ``(n, 3)`` for ``n`` updates
    :param alpha: the step size
    :param gamma: the discount
    """
    states = tables.sizes[1]
    for i in range(uniforms.shape[0]):
        state = tables.visited[int(uniforms[i, 0] * states)]
        action = tables.tried[state, int(uniforms[i, 1] * tables.n_tried[state])]
        k = draw(tables, state, action, uniforms[i, 2])
        target = tables.reward[k]
        if tables.terminal[k] == 0:
            target += gamma * best(q, tables.state[k])
        q[state, action] += alpha * (target - q[state, action])


@jit
def dyna_q_plus(q, tables, uniforms, alpha, gamma, kappa, now):
    """
    Make updates of Dyna-Q+ (section 8.3): modelled rewards get a bonus of ``kappa * sqrt(tau)`` for the ``tau`` real steps
    since the pair was tried. Planning includes actions that were never tried, which are assumed to lead back to the same state
    with a reward of 0.

    :param kappa: the weight of the bonus
    :param now: the number of real steps so far
    """
    states, actions = tables.sizes[1], q.shape[1]
    for i in range(uniforms.shape[0]):
        state = tables.visited[int(uniforms[i, 0] * states)]
        action = int(uniforms[i, 1] * actions)
        target = kappa * np.sqrt(max(now - tables.last[state, action], 0))
        if tables.head[state, action] < 0:
            target += gamma * best(q, state)
        else:
            k = draw(tables, state, action, uniforms[i, 2])
            target += tables.reward[k]
            if tables.terminal[k] == 0:
                target += gamma * best(q, tables.state[k])
        q[state, action] += alpha * (target - q[state, action])


@jit
def expected(q, tables, state, action, gamma):
    """Return the expected target of a tried pair: the model's mean of ``r + gamma max_a' Q(s', a')``."""
    total, k = 0.0, tables.head[state, action]
    while k >= 0:
        if tables.weight[k] > 0.0:
            value = tables.reward[k]
            if tables.terminal[k] == 0:
                value += gamma * best(q, tables.state[k])
            total += tables.weight[k] * value
        k = tables.link[k]
    return total / tables.total[state, action]


@jit
def value_iteration(q, tables, gamma, tolerance, sweeps):
    """
    Run value iteration (section 4.4) on the learned model, in place: sweep over all tried pairs until none changes by more
    than ``tolerance``.

    :param sweeps: the largest number of sweeps
    :return: the number of updates
    """
    updates = 0
    for _ in range(sweeps):
        change = 0.0
        for i in range(tables.sizes[1]):
            state = tables.visited[i]
            for j in range(tables.n_tried[state]):
                action = tables.tried[state, j]
                value = expected(q, tables, state, action, gamma)
                change = max(change, abs(value - q[state, action]))
                q[state, action] = value
                updates += 1
        if change <= tolerance:
            break
    return updates


class Queue(NamedTuple):
    """
    A priority queue of pairs: a binary heap with the largest priority first, and every pair at most once.

    :param priority: the priority of each pair, ``(S * A,)``; 0 if it is not queued
    :param heap: the queued pairs, the first ``size[0]`` entries of ``(S * A,)``
    :param place: the position of each pair in the heap, ``(S * A,)``; -1 if it is not queued
    :param size: the number of queued pairs, ``(1,)``
    """

    priority: np.ndarray
    heap: np.ndarray
    place: np.ndarray
    size: np.ndarray


def new_queue(pairs: int) -> Queue:
    """Make an empty queue."""
    return Queue(np.zeros(pairs), np.zeros(pairs, np.int64), np.full(pairs, -1), np.zeros(1, np.int64))


@jit
def _swap(queue, i, j):
    left, right = queue.heap[i], queue.heap[j]
    queue.heap[i], queue.heap[j] = right, left
    queue.place[right], queue.place[left] = i, j


@jit
def push(queue, pair, priority):
    """Queue a pair, or raise its priority."""
    if queue.place[pair] < 0:
        i = queue.size[0]
        queue.heap[i], queue.place[pair] = pair, i
        queue.size[0] += 1
    elif priority <= queue.priority[pair]:
        return
    queue.priority[pair] = priority
    i = queue.place[pair]
    while i > 0:
        above = (i - 1) // 2
        if queue.priority[queue.heap[above]] >= priority:
            break
        _swap(queue, i, above)
        i = above


@jit
def pop(queue):
    """Remove the pair of the highest priority, and return it."""
    pair = queue.heap[0]
    last = queue.size[0] - 1
    _swap(queue, 0, last)
    queue.size[0] = last
    queue.place[pair] = -1
    queue.priority[pair] = 0.0
    i = 0
    while True:
        largest = i
        for child in (2 * i + 1, 2 * i + 2):
            if child < last and queue.priority[queue.heap[child]] > queue.priority[queue.heap[largest]]:
                largest = child
        if largest == i:
            return pair
        _swap(queue, i, largest)
        i = largest


@jit
def prioritise(q, tables, queue, state, action, gamma, theta):
    """Queue a pair whose value has an error of more than ``theta``: the size of the error is its priority."""
    priority = abs(expected(q, tables, state, action, gamma) - q[state, action])
    if priority > theta:
        push(queue, state * q.shape[1] + action, priority)


@jit
def prioritise_before(q, tables, queue, state, gamma, theta):
    """Queue the pairs that lead to a state whose value has changed."""
    actions, k = q.shape[1], tables.back_head[state]
    while k >= 0:
        if tables.weight[k] > 0.0 and tables.terminal[k] == 0:
            before = tables.source[k]
            prioritise(q, tables, queue, before // actions, before % actions, gamma, theta)
        k = tables.back_link[k]


@jit
def prioritised_sweeping(q, tables, queue, n, alpha, gamma, theta):
    """
    Make updates of prioritised sweeping (section 8.4): update the pair with the largest error, then queue the pairs that lead
    to its state.

    :param n: the largest number of updates; there are fewer when no error exceeds ``theta``
    :return: the number of updates
    """
    actions = q.shape[1]
    for i in range(n):
        if queue.size[0] == 0:
            return i
        pair = pop(queue)
        state, action = pair // actions, pair % actions
        q[state, action] += alpha * (expected(q, tables, state, action, gamma) - q[state, action])
        # A step size below 1 leaves an error, so the pair may be queued again.
        prioritise(q, tables, queue, state, action, gamma, theta)
        prioritise_before(q, tables, queue, state, gamma, theta)
    return n
