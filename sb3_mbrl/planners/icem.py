"""``icem``: the improved cross-entropy method (Pinneri et al. 2020, arXiv 2008.06389, algorithm 1)."""

import math
from typing import Any

import torch as th
from gymnasium import spaces

from sb3_mbrl.checks import number, whole
from sb3_mbrl.planners.action_distributions import ActionDistribution, make_action_distribution
from sb3_mbrl.planners.base import SequencePlanner, Task, best_of, top
from sb3_mbrl.rng import on_device
from sb3_mbrl.trees import State


class ICEM(SequencePlanner):
    """
    The cross-entropy method with noise that is correlated over time, elites that are used again, in the next iteration and,
    one step on, in the next decision, and a population that shrinks. Acts by the best sequence found.

    Discrete actions are drawn from a table of probabilities, where the colour of the noise has no meaning; all else is as for
    numbers.

    :param action_space: the real environment's
    :param horizon: steps that are looked ahead
    :param population: sequences in the first iteration
    :param elites: how many are kept
    :param iterations: of drawing and keeping
    :param alpha: the share of the old mean and variance in the new
    :param colour: exponent of the noise's power spectrum: 0 is white, 1 pink, 2 red; the paper has 0.25 to 4 by task
    :param keep: the share of the elites that is used again
    :param decay: every iteration draws that many times fewer sequences than the one before, at least twice the elites
    :param kwargs: of :class:`~sb3_mbrl.planners.base.SequencePlanner`
    """

    def __init__(
        self,
        action_space: spaces.Space,
        *,
        horizon: int = 15,
        population: int = 64,
        elites: int = 10,
        iterations: int = 3,
        alpha: float = 0.1,
        colour: float = 2.0,
        keep: float = 0.3,
        decay: float = 1.25,
        **kwargs: Any,
    ) -> None:
        super().__init__(action_space, horizon=horizon, population=population, **kwargs)
        self.n_elites = min(whole("elites", elites, 1), self.population)
        self.iterations, self.alpha = whole("iterations", iterations, 1), number("alpha", alpha, 0.0, 1.0)
        self.colour = number("colour", colour, 0.0, 10.0)
        self.n_kept = math.ceil(number("keep", keep, 0.0, 1.0) * self.n_elites)
        self.decay = number("decay", decay, 1.0, 100.0)

    def _make_distribution(self) -> ActionDistribution:
        return make_action_distribution(self.action_space, self.horizon, self.std, repeat_last=True)

    def _optimise(self, task: Task) -> tuple[th.Tensor, State, th.Tensor]:
        parameters = self._initial_parameters(task._replace(carry=None if task.carry is None else task.carry["parameters"]))
        kept = self._kept_from_last_time(task, parameters)
        for i in range(self.iterations):
            n = max(round(self.population * self.decay**-i), min(2 * self.n_elites, self.population))
            # Within a decision, the best sequence so far is never lost.
            parts = [self._draw(parameters, n, task.generator), kept[:, : max(self.n_kept, min(i, 1))]]
            if i == self.iterations - 1:
                parts.append(self.distribution.mode(parameters)[:, None])
            if task.prior_actions is not None:
                parts.append(task.prior_actions)
            actions = th.cat(parts, dim=1)
            returns = task.score(actions).returns
            elites = top(actions, returns, self.n_elites)
            kept, parameters = elites.actions, self._refit(parameters, elites, self.alpha)
        sequence, best = best_of(actions, returns)
        return sequence, {"parameters": parameters, "elites": kept}, best

    def _kept_from_last_time(self, task: Task, parameters: State) -> th.Tensor:
        """The last elites one step on, their last step drawn anew; where an episode begins, sequences like any other."""
        fresh = self._draw(parameters, self.n_elites, task.generator)
        if task.carry is None:
            return fresh
        shifted = th.cat([task.carry["elites"][:, :, 1:], fresh[:, :, -1:]], dim=2)
        return th.where(task.is_first.to(fresh.device)[:, None, None, None], fresh, shifted)

    def _draw(self, parameters: State, n: int, generator: th.Generator | None) -> th.Tensor:
        noise = None
        if isinstance(self.action_space, spaces.Box):
            mean = parameters["mean"]
            shape = (len(mean), n, self.distribution.size, self.horizon)
            noise = coloured_noise(shape, self.colour, generator, mean.device).transpose(2, 3)
        return self.distribution.sample(parameters, n, generator, noise)


def coloured_noise(shape: tuple[int, ...], exponent: float, generator: th.Generator | None, device: th.device) -> th.Tensor:
    """
    Normal numbers of unit variance, whose power spectrum over the last axis falls as ``f ** -exponent`` (Timmer and Koenig
    1995).

    :param shape: ``(..., T)``
    :param exponent: 0 is white noise
    """
    steps = shape[-1]
    generator = on_device(generator, device)
    if exponent == 0 or steps == 1:
        return th.randn(shape, generator=generator, device=device)
    frequency = th.fft.rfftfreq(steps, device=device).clamp(min=1 / steps)
    scale = frequency ** (-exponent / 2)
    both = th.randn((2, *shape[:-1], len(frequency)), generator=generator, device=device) * scale
    real, imaginary = both[0], both[1]
    # What stands for itself in the spectrum of a real signal is real, with twice the variance.
    alone = [0, -1] if steps % 2 == 0 else [0]
    real[..., alone] *= 2**0.5
    imaginary[..., alone] = 0.0
    # The variance of the sum over the spectrum: ends count once, the others with their mirror images.
    weight = scale.square() * 2
    weight[alone] = scale[alone].square()
    std = (2 * weight.sum()).sqrt() / steps
    return th.fft.irfft(th.complex(real, imaginary), n=steps) / std
