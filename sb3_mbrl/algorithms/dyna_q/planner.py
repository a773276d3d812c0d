"""Planning on a tabular model: its random stream, its clock and its queue."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from sb3_mbrl.agent.objects import AgentObject
from sb3_mbrl.algorithms.dyna_q import planning as updates
from sb3_mbrl.algorithms.dyna_q.planning import Queue, new_queue
from sb3_mbrl.models.tabular.counts import Tables

PLANNING = ("dyna_q", "dyna_q_plus", "prioritized_sweeping", "value_iteration")


class TabularPlanner(AgentObject):
    """
    A planner that improves a Q-table on a tabular model, by one of the book's four methods (Sutton and Barto 2018, chapter 8).

    :param pairs: the number of pairs of state and action
    :param planning: one of :data:`PLANNING`
    :param seed: the seed of the private random stream
    """

    def __init__(self, pairs: int, planning: str, seed: int | None) -> None:
        self.planning = planning
        self.rng = np.random.default_rng(seed)
        self.clock = 0
        """The number of real steps so far, never reset: it measures how long ago a pair was tried"""
        self.n_backups = 0
        """The number of planning updates so far"""
        self.queue: Queue | None = new_queue(pairs) if planning == "prioritized_sweeping" else None

    def restart(self, seed: int) -> None:
        """Restart the random stream."""
        self.rng = np.random.default_rng(seed)

    def queue_errors(self, table: np.ndarray, tables: Tables, state: int, action: int, gamma: float, theta: float) -> None:
        """
        Queue a pair that was just tried, and the pairs that lead to its state, by the size of their errors.

        :param table: action values, ``(S, A)``
        :param tables: the model
        :param gamma: the discount
        :param theta: smaller errors are not queued
        """
        if self.queue is not None:
            updates.prioritise(table, tables, self.queue, state, action, gamma, theta)
            updates.prioritise_before(table, tables, self.queue, state, gamma, theta)

    def plan(self, table: np.ndarray, tables: Tables, n: int, alpha: float, gamma: float, kappa: float, theta: float) -> None:
        """
        Update the table on the model.

        :param table: action values, ``(S, A)``; changed in place
        :param tables: the model
        :param n: the number of updates, or for value iteration the largest number of sweeps
        :param alpha: the step size
        :param gamma: the discount
        :param kappa: the weight of the exploration bonus of Dyna-Q+
        :param theta: smaller errors are not queued, and smaller changes end value iteration
        """
        done = n  # Dyna-Q makes exactly n updates; the other methods may stop earlier, and value iteration makes more
        if self.planning == "dyna_q":
            updates.dyna_q(table, tables, self.rng.random((n, 3)), alpha, gamma)
        elif self.planning == "dyna_q_plus":
            updates.dyna_q_plus(table, tables, self.rng.random((n, 3)), alpha, gamma, kappa, self.clock)
        elif self.queue is not None:
            done = updates.prioritised_sweeping(table, tables, self.queue, n, alpha, gamma, theta)
        else:
            done = updates.value_iteration(table, tables, gamma, theta, n)
        self.n_backups += int(done)

    # ---- saving

    def state_dict(self) -> dict[str, Any]:
        queue = None if self.queue is None else self.queue._asdict()
        return {"rng": self.rng.bit_generator.state, "clock": self.clock, "n_backups": self.n_backups, "queue": queue}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.rng.bit_generator.state = state["rng"]
        self.clock, self.n_backups = state["clock"], state["n_backups"]
        self.queue = None if state["queue"] is None else Queue(**state["queue"])
