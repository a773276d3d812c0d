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
    Model predictive path integral control: draw sequences around the mean, weight each by the exponential of its return, and
    take the weighted mean; act by it.

    As in most implementations, the paper's control cost (its cross term of action and noise) is left out.

    :param action_space: the action space of the environment
    :param population: the number of sequences per iteration
    :param iterations: the number of iterations
    :param sigma: the standard deviation of the noise on scaled actions, which stays the same
    :param temperature: the temperature of the weights, in standard deviations of the returns of one decision, so that it does
        not depend on the units of reward; with a small one, the best sequences alone have weight
    :param kwargs: further arguments of :class:`~sb3_mbrl.planners.base.SequencePlanner`
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
        parameters = self._start(task)
        for _ in range(self.iterations):
            actions = self.distribution.sample(parameters, self.population, task.generator)
            if task.prior_sequences is not None:
                actions = th.cat([actions, task.prior_sequences], dim=1)
            returns = task.score(actions).returns
            weights = path_weights(returns, self.temperature)
            parameters = self.distribution.refit(parameters, actions, weights, 0.0, width=False)
        return self.distribution.mode(parameters), parameters, (weights * returns.nan_to_num(neginf=0.0)).sum(1)


def path_weights(returns: th.Tensor, temperature: float) -> th.Tensor:
    """
    Compute the weights of sequences from their returns ``R_i``, separately for every environment::

        w_i = exp((R_i - mean(R)) / (temperature * s)) / sum_j exp((R_j - mean(R)) / (temperature * s))

    The scale ``s`` is the standard deviation of the returns, but at most their interquartile range, so that one sequence with
    a very low return does not make all others look alike. Sequences that diverged have the weight 0; if all of them did, all
    weights are equal.

    :param returns: ``(B, n)``, minus infinity for sequences that diverged
    :param temperature: the temperature; the smaller, the more the best sequence prevails
    :return: ``(B, n)``, which sum to 1 per row
    """
    # In double precision: the squares of a model's returns that is about to diverge overflow single precision.
    dtype, returns = returns.dtype, returns.double()
    finite = returns.isfinite()
    count = finite.sum(1, keepdim=True).clamp(min=1)
    filled = returns.masked_fill(~finite, 0.0)
    mean = filled.sum(1, keepdim=True) / count
    deviation = th.where(finite, returns - mean, 0.0)
    std = (deviation.square().sum(1, keepdim=True) / count).sqrt()
    quartiles = th.nanquantile(returns.masked_fill(~finite, th.nan), returns.new_tensor([0.25, 0.75]), dim=1)
    interquartile = (quartiles[1] - quartiles[0]).nan_to_num(0.0)[:, None]
    scale = th.where(interquartile > 0, th.minimum(std, interquartile), std).clamp(min=1e-8)
    logits = (deviation / (scale * temperature)).masked_fill(~finite, -th.inf)
    none_finite = ~finite.any(1, keepdim=True)
    return logits.masked_fill(none_finite, 0.0).softmax(1).to(dtype)
