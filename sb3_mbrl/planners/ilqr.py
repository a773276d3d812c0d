"""``ilqr``: the iterative linear-quadratic regulator (Li and Todorov 2004; regularised as Tassa et al. 2012)."""

from typing import Any

import torch as th
from gymnasium import spaces

from sb3_mbrl.checks import number, whole
from sb3_mbrl.contracts import UnsupportedSpace
from sb3_mbrl.planners.base import SequencePlanner, Task
from sb3_mbrl.planners.lqr import FlatStep, FlatValue, expand, expand_value, flat_step, flat_value, flatten, simulate, solve
from sb3_mbrl.trees import State

STEP_SIZES = (1.0, 0.5, 0.25, 0.1, 0.03)
"""The step sizes of the line search, which are all tried at once"""


class ILQR(SequencePlanner):
    """
    The iterative linear-quadratic regulator: expand the model around the present plan, solve the linear-quadratic problem that
    results, search along its solution for a better plan, and repeat.

    For continuous actions and models whose step is differentiable in state and action by :mod:`torch.func`. The planner
    follows the model's mean, and ignores terminations. Actions are clipped to their bounds. The Hessians of the rewards are
    made negative semidefinite, and the damping grows until a step increases the return.

    :param action_space: the action space of the environment
    :param iterations: the number of expansions
    :param regularization: the initial damping, which is subtracted from the eigenvalues of the Hessian in the action; it is
        divided by ten after a step that increases the return, and multiplied by ten after one that does not
    :param kwargs: further arguments of :class:`~sb3_mbrl.planners.base.SequencePlanner`; ``population`` and ``n_prior`` have
        no effect
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
        parameters = self._start(task)
        step, state = flat_step(task.model, task.state), flatten(task.state)
        actions = mode = self.distribution.mode(parameters)
        value = flat_value(task.value, task.state)
        states, returns = simulate(step, state, lambda t, x: mode[:, t], self.horizon, self.gamma, value)
        damping = th.full((task.rows,), self.regularization, device=actions.device)
        for _ in range(self.iterations):
            expansion = expand(step, states[:, :-1], actions)
            changes, feedback = solve(expansion, damping, self.gamma, expand_value(value, states[:, -1]))
            trials = [self._forward(step, states, actions, changes, feedback, size, value) for size in STEP_SIZES]
            # Per row, the best of the line search's trials; it replaces the plan only if it has a higher return.
            best, which = th.stack([trial[2] for trial in trials]).max(0)
            better = best > returns
            rows = th.arange(task.rows, device=actions.device)
            chosen_states, chosen_actions = (th.stack([trial[i] for trial in trials])[which, rows] for i in (0, 1))
            states = th.where(better[:, None, None], chosen_states, states)
            actions = th.where(better[:, None, None], chosen_actions, actions)
            returns = th.where(better, best, returns)
            damping = th.where(better, damping / 10, damping * 10).clamp(1e-8, 1e8)
        return actions, {"mean": actions, "std": parameters["std"]}, returns

    def _forward(
        self,
        step: FlatStep,
        states: th.Tensor,
        actions: th.Tensor,
        changes: th.Tensor,
        feedback: th.Tensor,
        size: float,
        value: FlatValue | None,
    ) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
        """
        Roll the model out along the solution, ``u'_t = clip(u_t + size k_t + K_t (x'_t - x_t))``.

        :param step: the model's step
        :param states: ``(B, H + 1, D)``: the states ``x_t`` of the present plan
        :param actions: ``(B, H, A)``: its actions ``u_t``
        :param changes: ``(B, H, A)``: the changes ``k_t``
        :param feedback: ``(B, H, A, D)``: the feedback matrices ``K_t``
        :param size: the step size
        :param value: the value function of the last states
        :return: states, actions and returns
        """
        used: list[th.Tensor] = []

        def act(t: int, x: th.Tensor) -> th.Tensor:
            correction = (feedback[:, t] @ (x - states[:, t])[:, :, None]).squeeze(2)
            used.append((actions[:, t] + size * changes[:, t] + correction).clamp(-1, 1))
            return used[-1]

        trajectory, returns = simulate(step, states[:, 0], act, self.horizon, self.gamma, value)
        return trajectory, th.stack(used, 1), returns
