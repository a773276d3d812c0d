"""``cem``: the cross-entropy method as PETS uses it (Chua et al. 2018, section 6; github.com/kchua/handful-of-trials)."""

from typing import Any

import torch as th
from gymnasium import spaces

from sb3_mbrl.checks import number, whole
from sb3_mbrl.planners.action_distributions import Search, make_search
from sb3_mbrl.planners.base import SequencePlanner, Task, top
from sb3_mbrl.trees import State


class CEM(SequencePlanner):
    """
    Draw sequences, keep the best (the elites), draw around these, and so on; act by the mean.

    As in PETS: a truncated normal distribution within the bounds, its mean carried over by one step, its width anew at every
    decision. The authors stop when the largest variance is below 0.001; here the number of iterations is fixed. For discrete
    actions the belief is a table of probabilities, which the elites' frequencies update (the cross-entropy method proper).

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

    def _make_search(self) -> Search:
        return make_search(self.action_space, self.horizon, self.std, truncate=True)

    def _optimise(self, task: Task) -> tuple[th.Tensor, State, th.Tensor]:
        belief = self._belief(task)
        for _ in range(self.iterations):
            actions = self.search.sample(belief, self.population, task.generator)
            if task.suggested is not None:
                actions = th.cat([actions, task.suggested], dim=1)
            returns = task.score(actions).returns
            elites = top(actions, returns, self.n_elites)
            belief = self._refit(belief, elites, self.alpha)
        return self.search.mode(belief), belief, elites.value
