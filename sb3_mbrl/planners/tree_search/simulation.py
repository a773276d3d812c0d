"""
One simulation in all trees: selection, expansion, backup.

Compiled where numba is installed. The compiled entry points, :func:`begin` and :func:`advance`, take the arrays one by one,
since a named tuple costs several microseconds per call; inside they are :class:`Arrays` again.
"""

import math
from typing import NamedTuple

import numpy as np

from sb3_mbrl.jit import jit
from sb3_mbrl.planners.tree_search.gumbel import choose_at_root, choose_below, complete, scale
from sb3_mbrl.planners.tree_search.puct import choose_by_puct
from sb3_mbrl.planners.tree_search.tree import Arrays

GUMBEL, PUCT = 0, 1


class Rule(NamedTuple):
    """The settings of a search as numbers; see :class:`~sb3_mbrl.planners.tree_search.TreeSearch`."""

    kind: float
    q_norm: float
    min_q_range: float
    c_visit: float
    c_scale: float
    fpu: float
    pb_c_init: float
    pb_c_base: float


# ---- selection


@jit
def choose_outcome(tree, row, node):
    """Choose the outcome of a chance node, so that visits approach probabilities: ``argmax_a P(a) / (1 + n(a))``."""
    best, highest = 0, -1.0
    for a in range(tree.prior.shape[2]):
        score = tree.prior[row, node, a] / (1 + tree.visits[row, node, a])
        if score > highest:
            best, highest = a, score
    return best


@jit
def select(tree, row, rule, score, considered, out):
    """
    Walk from the root of one tree along the chosen edges to an edge that has no node yet, or that has ended the episode.

    :param score: the scores ``g + logits`` of the root's edges, ``(A,)`` (Gumbel)
    :param considered: the number of visits of the edges that are considered at the root (Gumbel)
    :param out: room for ``(A,)`` numbers
    :return: the node at which the walk ends, its chosen edge, and the number of edges walked
    """
    node, depth = 0, 0
    while True:
        if tree.chance[row, node]:
            edge = choose_outcome(tree, row, node)
        elif rule.kind == PUCT:
            edge = choose_by_puct(tree, row, node, rule)
        elif node == 0:
            edge = choose_at_root(tree, row, rule, score, considered, out)
        else:
            edge = choose_below(tree, row, node, rule, out)
        depth += 1
        child = tree.children[row, node, edge]
        if child < 0 or tree.discount[row, child] == 0.0:
            return node, edge, depth
        node = child


# ---- expansion


@jit
def expand(tree, row, node, parent, edge, logits, value, reward, discount, chance):
    """
    Add a node to one tree, with the prior ``P = softmax(logits)``.

    :param node: the number of the node
    :param parent: the node before it; -1 for the root
    :param edge: the parent's edge that leads to it
    :param logits: the logits of its edges, ``(A,)``
    :return: whether the numbers are usable: finite, except for logits of minus infinity
    """
    if not (math.isfinite(value) and math.isfinite(reward) and math.isfinite(discount)):
        return False
    edges, largest = logits.shape[0], -math.inf
    for a in range(edges):
        logit = logits[a]
        if math.isnan(logit) or logit == math.inf:
            return False
        largest = max(largest, logit)
    total = 0.0
    for a in range(edges):
        # A node without any edge is the end of an episode, from which nothing is ever chosen; the discount says so.
        p = math.exp(logits[a] - largest) if largest > -math.inf else 1.0
        tree.prior[row, node, a] = p
        total += p
    for a in range(edges):
        tree.prior[row, node, a] /= total
    if discount == 0.0:
        value = 0.0  # nothing comes after the end
    tree.value[row, node] = tree.raw_value[row, node] = value
    tree.reward[row, node], tree.discount[row, node] = reward, discount
    tree.parent[row, node], tree.edge[row, node] = parent, edge
    tree.chance[row, node] = chance
    tree.count[row, node] = 1
    if parent >= 0:
        tree.children[row, parent, edge] = node
    return True


# ---- backup


@jit
def backup(tree, row, node, value):
    """
    Add the return of one simulation to every node on the way from a node back to the root::

        G <- r + d G        V <- V + (G - V) / (1 + n)        Q = r + d V(child)

    ``d`` is the discount of the edge: negative where the other player moves next, so that no other code knows about players.

    :param node: the last node of the walk
    :param value: the value from there on, ``G``
    """
    while node > 0:
        parent, edge = tree.parent[row, node], tree.edge[row, node]
        reward, discount = tree.reward[row, node], tree.discount[row, node]
        q = reward + discount * tree.value[row, node]
        tree.q[row, parent, edge] = q
        tree.visits[row, parent, edge] += 1
        tree.bounds[row, 0] = min(tree.bounds[row, 0], q)
        tree.bounds[row, 1] = max(tree.bounds[row, 1], q)
        value = reward + discount * value
        count = tree.count[row, parent]
        tree.value[row, parent] += (value - tree.value[row, parent]) / (count + 1)
        tree.count[row, parent] = count + 1
        node = parent


# ---- the entry points


@jit
def begin(
    logits, value, score, considered, settings, where, edges,
    children, prior, visits, q, parent, edge, count, values, raw_value, reward, discount, chance, bounds, depth,
):  # fmt: skip
    """
    Make the roots, and select the first edges.

    :param logits: the logits of the roots, ``(B, A)``
    :param value: the values of the roots, ``(B,)``
    :param score: see :func:`select`, ``(B, A)``
    :param considered: see :func:`select`, ``(B,)``
    :param settings: the numbers of :class:`Rule`
    :param where: receives the nodes from which to expand, as places ``node * B + row``, ``(B,)``
    :param edges: receives the edges to expand, ``(B,)``
    :return: the first tree whose numbers are not finite, or -1
    """
    tree = Arrays(children, prior, visits, q, parent, edge, count, values, raw_value, reward, discount, chance, bounds, depth)
    rows = logits.shape[0]
    for row in range(rows):
        if not expand(tree, row, 0, -1, 0, logits[row], value[row], 0.0, 1.0, False):
            return row
    select_all(tree, score, considered, settings, where, edges)
    return -1


@jit
def select_all(tree, score, considered, settings, where, edges):
    """Select an edge in every tree."""
    rule = Rule(
        settings[0], settings[1], settings[2], settings[3], settings[4], settings[5], settings[6], settings[7]
    )  # fmt: skip
    rows = where.shape[0]
    out = np.empty(tree.prior.shape[2])
    for row in range(rows):
        node, chosen, length = select(tree, row, rule, score[row], considered[row], out)
        where[row], edges[row] = node * rows + row, chosen
        tree.depth[row] = max(tree.depth[row], length)


@jit
def advance(
    node, more, logits, value, reward, discount, chance, score, considered, settings, where, edges,
    children, prior, visits, q, parent, edge, count, values, raw_value, rewards, discounts, chances, bounds, depth,
):  # fmt: skip
    """
    Finish a simulation in every tree, by expansion and backup, and select the edges of the next one.

    :param node: the number of the new nodes
    :param more: whether there is a next simulation
    :param logits: the logits of the new nodes, ``(B, A)``; ``value``, ``reward``, ``discount`` and ``chance`` are ``(B,)``
    :param where: the nodes from which was expanded; receives the next ones (see :func:`begin`)
    :param edges: the edges that were expanded; receives the next ones
    :return: the first tree whose new numbers are not finite, or -1
    """
    tree = Arrays(
        children, prior, visits, q, parent, edge, count, values, raw_value, rewards, discounts, chances, bounds, depth
    )
    rows = logits.shape[0]
    for row in range(rows):
        above, chosen = where[row] // rows, edges[row]
        last = children[row, above, chosen]
        if last < 0:
            last = node
            usable = expand(tree, row, node, above, chosen, logits[row], value[row], reward[row], discount[row], chance[row])
            if not usable:
                return row
        # Otherwise the edge has ended the episode before, and the simulation is one more visit of the end.
        backup(tree, row, last, values[row, last])
    if more:
        select_all(tree, score, considered, settings, where, edges)
    return -1


@jit
def root_values(
    settings, completed, sigma,
    children, prior, visits, q, parent, edge, count, values, raw_value, reward, discount, chance, bounds, depth,
):  # fmt: skip
    """
    Compute the completed Q-values of the roots, and their logits (:func:`complete`, :func:`scale`).

    :param completed: receives the completed Q-values, ``(B, A)``
    :param sigma: receives the logits, ``(B, A)``
    """
    tree = Arrays(children, prior, visits, q, parent, edge, count, values, raw_value, reward, discount, chance, bounds, depth)
    rule = Rule(
        settings[0], settings[1], settings[2], settings[3], settings[4], settings[5], settings[6], settings[7]
    )  # fmt: skip
    for row in range(completed.shape[0]):
        complete_root(tree, row, rule, completed[row], sigma[row])


@jit
def complete_root(tree, row, rule, completed, sigma):
    """Compute the completed Q-values of one root, and their logits."""
    complete(tree, row, 0, completed)
    for a in range(sigma.shape[0]):
        sigma[a] = completed[a]
    scale(tree, row, 0, rule, sigma)
