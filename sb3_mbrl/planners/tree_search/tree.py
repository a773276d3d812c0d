"""The arrays of ``B`` search trees that grow in step: one node each per simulation."""

from typing import NamedTuple

import numpy as np
import torch as th

from sb3_mbrl.trees import State, tree_map


class Leaf(NamedTuple):
    """
    The description of one node in each of ``B`` trees, as a network or a true environment gives it.

    :param state: the states of the nodes, ``(B, ...)``; the trees keep them for :class:`Expand`
    :param logits: the prior logits of the edges, ``(B, A)``; minus infinity where there is no edge (an illegal action)
    :param value: the values for the player to move in these nodes, ``(B,)``
    :param reward: the rewards of the edges that led here, for the player who moved, ``(B,)``; not used at the root
    :param discount: the signed discounts of those edges, ``(B,)``: ``gamma``; ``-gamma`` where the other player moves next; 0
        where the episode has ended. Not used at the root
    :param chance: ``(B,)`` booleans: nodes where chance decides. Their edges are outcomes, and ``logits`` the logarithms of
        their probabilities. ``None``: there are none. Both kinds of node have the same number ``A`` of edges: the larger of
        the numbers of actions and outcomes, the others with logits of minus infinity. The root is never a chance node
    """

    state: State
    logits: np.ndarray
    value: np.ndarray
    reward: np.ndarray
    discount: np.ndarray
    chance: np.ndarray | None = None


class Arrays(NamedTuple):
    """
    ``B`` trees with room for ``N + 1`` nodes of ``A`` edges each. Node 0 is the root, node ``i`` comes from simulation ``i``.

    All numbers are double precision, so that compiled and plain code agree to the last bit.
    """

    children: np.ndarray
    """``(B, N + 1, A)``: the node at the end of each edge; -1 where no simulation has been"""
    prior: np.ndarray
    """``(B, N + 1, A)``: the prior probabilities ``P`` of the edges, the softmax of the logits; 0 where there is no edge"""
    visits: np.ndarray
    """``(B, N + 1, A)``: the number ``n`` of simulations through each edge"""
    q: np.ndarray
    """``(B, N + 1, A)``: the value of each visited edge, ``Q = r + d V(child)``"""
    parent: np.ndarray
    """``(B, N + 1)``: the node before each node; -1 for the root and for nodes that do not exist"""
    edge: np.ndarray
    """``(B, N + 1)``: the parent's edge that leads to each node"""
    total: np.ndarray
    """``(B, N + 1)``: one more than the visits of all edges of each node; 0 for nodes that do not exist"""
    value: np.ndarray
    """``(B, N + 1)``: the search's value ``V`` of each node: the mean of all returns from it, its own raw value being one"""
    raw_value: np.ndarray
    """``(B, N + 1)``: the value that :class:`Leaf` gave"""
    reward: np.ndarray
    """``(B, N + 1)``: the reward ``r`` of the edge to each node"""
    discount: np.ndarray
    """``(B, N + 1)``: the signed discount ``d`` of the edge to each node"""
    chance: np.ndarray
    """``(B, N + 1)`` booleans: whether chance decides in the node"""
    bounds: np.ndarray
    """``(B, 2)``: the lowest and the highest ``Q`` that any edge of the tree has had"""
    depth: np.ndarray
    """``(B,)``: the number of edges of the longest path"""


class Tree(Arrays):
    """The trees of a finished search, with the states of their nodes."""

    states: State = None
    """``(N + 1, B, ...)``: the states of the nodes"""

    def path(self, row: int) -> list[int]:
        """
        Return the principal line of one tree: the edges from the root that were visited most, and among these have the highest
        ``Q``.

        :param row: the index of the tree
        """
        edges: list[int] = []
        node = 0
        while node >= 0 and self.visits[row, node].any():
            visits = self.visits[row, node]
            edge = int(np.where(visits == visits.max(), self.q[row, node], -np.inf).argmax())
            edges.append(edge)
            node = int(self.children[row, node, edge])
        return edges


def new_arrays(rows: int, simulations: int, edges: int) -> Arrays:
    """Make ``rows`` empty trees."""
    nodes = simulations + 1
    per_edge, per_node = (rows, nodes, edges), (rows, nodes)
    arrays = Arrays(
        children=np.empty(per_edge, np.int32),
        prior=np.zeros(per_edge),
        visits=np.zeros(per_edge, np.int32),
        q=np.zeros(per_edge),
        parent=np.empty(per_node, np.int32),
        edge=np.zeros(per_node, np.int32),
        total=np.zeros(per_node, np.int32),
        value=np.zeros(per_node),
        raw_value=np.zeros(per_node),
        reward=np.zeros(per_node),
        discount=np.empty(per_node),
        chance=np.zeros(per_node, np.bool_),
        bounds=np.empty((rows, 2)),
        depth=np.zeros(rows, np.int32),
    )
    arrays.children.fill(-1)
    arrays.parent.fill(-1)
    arrays.discount.fill(1.0)
    arrays.bounds[:] = np.inf, -np.inf
    return arrays


class States:
    """
    The states of all nodes: one preallocated tensor ``(N + 1, B, ...)`` per leaf of the state.

    :param root: the states of the roots, ``(B, ...)``
    :param nodes: ``N + 1``
    """

    def __init__(self, root: State, nodes: int) -> None:
        self.all = tree_map(lambda leaf: leaf.new_empty((nodes, *leaf.shape)), root)
        self._flat = tree_map(lambda leaf: leaf.flatten(0, 1), self.all)  # views, (nodes * B, ...)
        self.put(0, root)

    def put(self, node: int, state: State) -> None:
        """Store the states ``(B, ...)`` of the nodes with one number, in all trees."""
        tree_map(lambda room, leaf: room[node].copy_(leaf), self.all, state)

    def get(self, where: th.Tensor) -> State:
        """Return the states at the places ``node * B + row``, given as ``(B,)`` integers."""
        return tree_map(lambda leaf: leaf.index_select(0, where.to(leaf.device)), self._flat)
