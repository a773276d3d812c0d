"""``ilqr``: the iterative linear-quadratic regulator (Li and Todorov 2004; regularised as Tassa et al. 2012)."""

from typing import Any

import torch as th
from gymnasium import spaces

from sb3_mbrl.checks import number, whole
from sb3_mbrl.contracts import UnsupportedSpace
from sb3_mbrl.planners.base import SequencePlanner, Task
from sb3_mbrl.planners.lqr import Flat, Step, expand, expand_value, flat_step, flat_value, flatten, simulate, solve
from sb3_mbrl.trees import State

STEP_SIZES = (1.0, 0.5, 0.25, 0.1, 0.03)
"""The step sizes of the line search, all tried at once"""


class ILQR(SequencePlanner):
    """
    Expand the model around the present plan, solve the linear-quadratic problem that results, and search along its solution.

    For continuous actions and models whose step is differentiable, by :mod:`torch.func`, in state and action; the model's mean
    is followed, as if episodes did not end. Actions are kept within their bounds by clipping. Positive eigenvalues of a
    reward's Hessian are taken for 0, and the damping grows until a step improves the return. Nothing is drawn at random, so
    that every plan is deterministic.

    :param action_space: the real environment's
    :param iterations: expansions
    :param regularization: the damping to begin with, subtracted from the Hessian in the action, divided by ten
        after a success and multiplied by ten after a failure
    :param kwargs: of :class:`~sb3_mbrl.planners.base.SequencePlanner`; ``population`` and ``n_prior`` do nothing
    """

    differentiates = follows_mean = True

    def __init__(
        self, action_space: spaces.Space, *, iterations: int = 15, regularization: float = 1e-3, **kwargs: Any
    ) -> None:
        if not isinstance(action_space, spaces.Box):
            raise UnsupportedSpace(f"iLQR needs continuous actions, not {action_space}: choose 'cem', 'icem' or 'mppi'")
        super().__init__(action_space, **{"n_prior": 0, **kwargs})
        self.iterations = whole("iterations", iterations, 1)
        self.regularization = number("regularization", regularization, 0.0, 1e6, open_low=True)

    def _optimise(self, task: Task) -> tuple[th.Tensor, State, th.Tensor]:
        parameters = self._initial_parameters(task)
        step, state = flat_step(task.model, task.state), flatten(task.state)
        actions = mode = self.distribution.mode(parameters)
        value_of = flat_value(task.value, task.state)
        states, value = simulate(step, state, lambda t, x: mode[:, t], self.horizon, self.gamma, value_of)
        damping = th.full((task.rows,), self.regularization, device=actions.device)
        for _ in range(self.iterations):
            around = expand(step, states[:, :-1], actions)
            ahead, feedback = solve(around, damping, self.gamma, expand_value(value_of, states[:, -1]))
            trials = [self._forward(step, states, actions, ahead, feedback, size, value_of) for size in STEP_SIZES]
            returns = th.stack([trial[2] for trial in trials])
            best, which = returns.max(0)
            better = best > value
            rows = th.arange(task.rows, device=actions.device)
            chosen_states, chosen_actions = (th.stack([trial[i] for trial in trials])[which, rows] for i in (0, 1))
            states = th.where(better[:, None, None], chosen_states, states)
            actions = th.where(better[:, None, None], chosen_actions, actions)
            value = th.where(better, best, value)
            damping = th.where(better, damping / 10, damping * 10).clamp(1e-8, 1e8)
        return actions, {"mean": actions, "std": parameters["std"]}, value

    def _forward(
        self,
        step: Step,
        states: th.Tensor,
        actions: th.Tensor,
        ahead: th.Tensor,
        feedback: th.Tensor,
        size: float,
        value_of: Flat | None,
    ) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
        """Along the solution, with feedback on where the model really goes: states, actions, returns."""
        used: list[th.Tensor] = []

        def act(t: int, x: th.Tensor) -> th.Tensor:
            correction = (feedback[:, t] @ (x - states[:, t])[:, :, None]).squeeze(2)
            used.append((actions[:, t] + size * ahead[:, t] + correction).clamp(-1, 1))
            return used[-1]

        trajectory, total = simulate(step, states[:, 0], act, self.horizon, self.gamma, value_of)
        return trajectory, th.stack(used, 1), total
