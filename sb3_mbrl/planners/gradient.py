"""``gradient``: gradient ascent on the return of a sequence, through the model (back-propagation through time)."""

from typing import Any

import torch as th
from gymnasium import spaces

from sb3_mbrl.checks import number, whole
from sb3_mbrl.contracts import MissingCapability, UnsupportedSpace
from sb3_mbrl.planners.base import SequencePlanner, Task, best_of
from sb3_mbrl.trees import State


class GradientPlanner(SequencePlanner):
    """
    A planner that improves several sequences by gradient ascent at once, and takes the best that any of them has been.

    Each step of Adam is followed by a projection onto the bounds. The first sequence begins at the carried one, the others at
    noisy copies of it. For continuous actions and models whose step is differentiable in the action.

    :param action_space: the action space of the environment
    :param population: the number of sequences
    :param iterations: the number of gradient steps
    :param learning_rate: the learning rate of Adam, on scaled actions
    :param kwargs: further arguments of :class:`~sb3_mbrl.planners.base.SequencePlanner`
    """

    differentiates = True

    def __init__(
        self,
        action_space: spaces.Space,
        *,
        population: int = 16,
        iterations: int = 30,
        learning_rate: float = 0.1,
        **kwargs: Any,
    ) -> None:
        if not isinstance(action_space, spaces.Box):
            raise UnsupportedSpace(f"A gradient needs continuous actions, not {action_space}: choose 'cem', 'icem' or 'mppi'")
        super().__init__(action_space, population=population, **kwargs)
        self.iterations = whole("iterations", iterations, 1)
        self.learning_rate = number("learning_rate", learning_rate, 0.0, 10.0, open_low=True)

    def _optimise(self, task: Task) -> tuple[th.Tensor, State, th.Tensor]:
        parameters = self._start(task)
        with th.no_grad():
            actions = self.distribution.sample(parameters, self.population, task.generator)
            actions[:, 0] = self.distribution.mode(parameters)
            if task.prior_sequences is not None:
                actions = th.cat([actions, task.prior_sequences], dim=1)
        actions = actions.detach().requires_grad_()
        optimizer = th.optim.Adam([actions], lr=self.learning_rate)
        best, best_return = actions.detach()[:, 0].clone(), th.full((task.rows,), -th.inf, device=actions.device)
        for i in range(self.iterations + 1):
            returns = task.score(actions).returns
            candidate, candidate_return = best_of(actions.detach(), returns.detach())
            better = candidate_return > best_return
            best = th.where(better[:, None, None], candidate, best)
            best_return = th.where(better, candidate_return, best_return)
            if i == self.iterations:
                break
            if not returns.requires_grad:
                raise MissingCapability(
                    f"{type(task.model).__name__} is not differentiable in the action: choose 'cem', 'icem' or 'mppi'"
                )
            optimizer.zero_grad()
            # Every sequence affects its own return only, so the gradient of the sum holds the gradients of all sequences.
            total = returns.masked_fill(~returns.isfinite(), 0.0).sum()
            # With respect to the actions alone: the model's parameters accumulate no gradients.
            (gradient,) = th.autograd.grad(-total, [actions], allow_unused=True)
            actions.grad = th.zeros_like(actions) if gradient is None else gradient.nan_to_num(0.0, 0.0, 0.0)
            optimizer.step()
            with th.no_grad():
                actions.clamp_(-1, 1)
        return best, {"mean": best, "std": parameters["std"]}, best_return
