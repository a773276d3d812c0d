"""``cem``: the cross-entropy method as PETS uses it (Chua et al. 2018, section 6; github.com/kchua/handful-of-trials)."""

from typing import Any

import torch as th
from gymnasium import spaces

from sb3_mbrl.checks import number, whole
from sb3_mbrl.planners.action_distributions import ActionDistribution, make_action_distribution
from sb3_mbrl.planners.base import SequencePlanner, Task, top
from sb3_mbrl.trees import State


class CEM(SequencePlanner):
    """
    Draw sequences, keep the best (the elites), draw around these, and so on; act by the mean.

    As in PETS: a truncated normal distribution within the bounds, its mean carried over by one step, its width anew at every
    decision. The authors stop when the largest variance is below 0.001; here the number of iterations is fixed. For discrete
    actions the parameters are a table of probabilities, updated by the elites' frequencies, as in the original method.

    :param action_space: the real environment's
    :param population: sequences per iteration
    :param elite_ratio: the share of them that is kept
    :param iterations: of drawing and keeping
    :param alpha: the share of the old mean and variance in the new
    :param kwargs: of :class:`~sb3_mbrl.planners.base.SequencePlanner`
    """

    def __init__(
        self,
        action_space: spaces.Space,
        *,
        population: int = 400,
        elite_ratio: float = 0.1,
        iterations: int = 5,
        alpha: float = 0.1,
        **kwargs: Any,
    ) -> None:
        super().__init__(action_space, population=population, **kwargs)
        self.n_elites = max(1, round(number("elite_ratio", elite_ratio, 0.0, 1.0, open_low=True) * self.population))
        self.iterations, self.alpha = whole("iterations", iterations, 1), number("alpha", alpha, 0.0, 1.0)

    def _make_distribution(self) -> ActionDistribution:
        return make_action_distribution(self.action_space, self.horizon, self.std, truncate=True)

    def _optimise(self, task: Task) -> tuple[th.Tensor, State, th.Tensor]:
        parameters = self._initial_parameters(task)
        for _ in range(self.iterations):
            actions = self.distribution.sample(parameters, self.population, task.generator)
            if task.prior_actions is not None:
                actions = th.cat([actions, task.prior_actions], dim=1)
            returns = task.score(actions).returns
            elites = top(actions, returns, self.n_elites)
            parameters = self._refit(parameters, elites, self.alpha)
        return self.distribution.mode(parameters), parameters, elites.value
