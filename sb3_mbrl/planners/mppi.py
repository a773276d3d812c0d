"""``mppi``: model predictive path integral control (Williams et al. 2017)."""

from typing import Any

import torch as th
from gymnasium import spaces

from sb3_mbrl.checks import number, whole
from sb3_mbrl.planners.action_distributions import ActionDistribution, make_action_distribution
from sb3_mbrl.planners.base import SequencePlanner, Task
from sb3_mbrl.trees import State


class MPPI(SequencePlanner):
    """
    Draw sequences around the mean, weight each by the exponential of its return, and take the weighted mean; act by it. As in
    most practice, without the paper's cost of control (its cross term of action and noise).

    :param action_space: the real environment's
    :param population: sequences per iteration
    :param iterations: of drawing and weighting
    :param sigma: standard deviation of the noise on scaled actions, the same throughout
    :param temperature: of the weights, in standard deviations of the returns of one decision, so that it does not depend on
        the units of reward: small values follow the best sequences alone
    :param kwargs: of :class:`~sb3_mbrl.planners.base.SequencePlanner`
    """

    def __init__(
        self,
        action_space: spaces.Space,
        *,
        population: int = 400,
        iterations: int = 5,
        sigma: float = 0.5,
        temperature: float = 0.2,
        **kwargs: Any,
    ) -> None:
        self.sigma = number("sigma", sigma, 0.0, 10.0, open_low=True)
        super().__init__(action_space, population=population, std=self.sigma, **kwargs)
        self.iterations = whole("iterations", iterations, 1)
        self.temperature = number("temperature", temperature, 0.0, 1e6, open_low=True)

    def _make_distribution(self) -> ActionDistribution:
        return make_action_distribution(self.action_space, self.horizon, self.sigma)

    def _optimise(self, task: Task) -> tuple[th.Tensor, State, th.Tensor]:
        parameters = self._initial_parameters(task)
        for _ in range(self.iterations):
            actions = self.distribution.sample(parameters, self.population, task.generator)
            if task.prior_actions is not None:
                actions = th.cat([actions, task.prior_actions], dim=1)
            returns = task.score(actions).returns
            weights = path_weights(returns, self.temperature)
            parameters = self.distribution.refit(parameters, actions, weights, 0.0, width=False)
        return self.distribution.mode(parameters), parameters, (weights * returns.nan_to_num(neginf=0.0)).sum(1)


def path_weights(returns: th.Tensor, temperature: float) -> th.Tensor:
    """
    ``(B, n)`` weights that sum to 1: exponentials of standardised returns; 0 for what diverged, all alike where all of it did.
    The standard deviation is taken to be at most the width of the middle half, so that one sequence that ends badly does not
    make all others look alike.

    :param returns: ``(B, n)``, minus infinity for what diverged
    """
    # Of a model that is about to diverge, squares are beyond single precision.
    dtype, returns = returns.dtype, returns.double()
    finite = returns.isfinite()
    count = finite.sum(1, keepdim=True).clamp(min=1)
    filled = returns.masked_fill(~finite, 0.0)
    mean = filled.sum(1, keepdim=True) / count
    deviation = th.where(finite, returns - mean, 0.0)
    std = (deviation.square().sum(1, keepdim=True) / count).sqrt()
    quarters = th.nanquantile(returns.masked_fill(~finite, th.nan), returns.new_tensor([0.25, 0.75]), dim=1)
    middle = (quarters[1] - quarters[0]).nan_to_num(0.0)[:, None]
    std = th.where(middle > 0, th.minimum(std, middle), std).clamp(min=1e-8)
    logits = (deviation / (std * temperature)).masked_fill(~finite, -th.inf)
    none = ~finite.any(1, keepdim=True)
    return logits.masked_fill(none, 0.0).softmax(1).to(dtype)
