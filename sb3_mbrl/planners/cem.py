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
    The cross-entropy method: draw sequences, fit the distribution to the best ones (the elites), repeat; act by the mean.

    As in PETS, actions come from a truncated normal distribution within the bounds. Its mean is carried over by one step, and
    its width is reset at every decision. The authors stop when the largest variance is below 0.001; here the number of
    iterations is fixed. For discrete actions the distribution is a table of probabilities, fitted to the elites' frequencies
    (the original cross-entropy method).

    :param action_space: the action space of the environment
    :param population: the number of sequences per iteration
    :param elite_ratio: the share of the sequences that are elites
    :param iterations: the number of iterations
    :param alpha: the share of the old mean and variance in the new ones
    :param kwargs: further arguments of :class:`~sb3_mbrl.planners.base.SequencePlanner`
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
        parameters = self._start(task)
        for _ in range(self.iterations):
            actions = self.distribution.sample(parameters, self.population, task.generator)
            if task.prior_sequences is not None:
                actions = th.cat([actions, task.prior_sequences], dim=1)
            returns = task.score(actions).returns
            elites = top(actions, returns, self.n_elites)
            parameters = self._refit(parameters, elites, self.alpha)
        return self.distribution.mode(parameters), parameters, elites.value
