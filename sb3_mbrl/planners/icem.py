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
    The improved cross-entropy method, which acts by the best sequence that it has tried.

    It differs from :class:`~sb3_mbrl.planners.cem.CEM` in three ways: noise is correlated over time; some elites are tried
    again, in the next iteration and, shifted by one step, in the next decision; and the population shrinks from iteration to
    iteration.

    Discrete actions are drawn from a table of probabilities, to which the colour of the noise does not apply; the rest is the
    same as for continuous actions.

    :param action_space: the action space of the environment
    :param horizon: the number of steps to look ahead
    :param population: the number of sequences in the first iteration
    :param elites: the number of elites
    :param iterations: the number of iterations
    :param alpha: the share of the old mean and variance in the new ones
    :param colour: the exponent of the noise's power spectrum: 0 is white, 1 pink, 2 red; the paper has 0.25 to 4, depending on
        the task
    :param keep: the share of the elites that are tried again
    :param decay: the factor by which the population shrinks per iteration; it never falls below twice the elites
    :param kwargs: further arguments of :class:`~sb3_mbrl.planners.base.SequencePlanner`
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
        parameters = self._start(task._replace(carry=None if task.carry is None else task.carry["parameters"]))
        kept = self._elites_of_last_plan(task, parameters)
        for i in range(self.iterations):
            # Iteration i draws n = max(population / decay^i, 2 n_elites) sequences, but never more than the population.
            n = max(round(self.population * self.decay**-i), min(2 * self.n_elites, self.population))
            # From the second iteration on at least one elite is kept, so the best sequence of a decision is never lost.
            parts = [self._draw(parameters, n, task.generator), kept[:, : max(self.n_kept, min(i, 1))]]
            if i == self.iterations - 1:
                parts.append(self.distribution.mode(parameters)[:, None])
            if task.prior_sequences is not None:
                parts.append(task.prior_sequences)
            actions = th.cat(parts, dim=1)
            returns = task.score(actions).returns
            elites = top(actions, returns, self.n_elites)
            kept, parameters = elites.actions, self._refit(parameters, elites, self.alpha)
        sequence, best = best_of(actions, returns)
        return sequence, {"parameters": parameters, "elites": kept}, best

    def _elites_of_last_plan(self, task: Task, parameters: State) -> th.Tensor:
        """
        Return the last plan's elites, shifted by one step, with new last steps; where an episode begins, new sequences.

        :return: ``(B, n_elites, H, A)``
        """
        drawn = self._draw(parameters, self.n_elites, task.generator)
        if task.carry is None:
            return drawn
        shifted = th.cat([task.carry["elites"][:, :, 1:], drawn[:, :, -1:]], dim=2)
        return th.where(task.is_first.to(drawn.device)[:, None, None, None], drawn, shifted)

    def _draw(self, parameters: State, n: int, generator: th.Generator | None) -> th.Tensor:
        """Draw ``n`` sequences, ``(B, n, H, A)``, with coloured noise where actions are continuous."""
        noise = None
        if isinstance(self.action_space, spaces.Box):
            mean = parameters["mean"]
            shape = (len(mean), n, self.distribution.size, self.horizon)
            noise = coloured_noise(shape, self.colour, generator, mean.device).transpose(2, 3)
        return self.distribution.sample(parameters, n, generator, noise)


def coloured_noise(shape: tuple[int, ...], exponent: float, generator: th.Generator | None, device: th.device) -> th.Tensor:
    """
    Draw normal numbers of unit variance whose power spectrum over the last axis falls as ``f ** -exponent``.

    The method is that of Timmer and Koenig (1995): draw the Fourier coefficients of every frequency from a normal distribution
    with the standard deviation ``f ** (-exponent / 2)``, and transform them back::

        X_f = f ** (-exponent / 2) (a + ib),  a, b ~ N(0, 1)        x = irfft(X) / std(irfft(X))

    :param shape: ``(..., T)``
    :param exponent: the exponent of the spectrum; 0 is white noise
    :param generator: the source of randomness
    :param device: the device of the result
    """
    steps = shape[-1]
    generator = on_device(generator, device)
    if exponent == 0 or steps == 1:
        return th.randn(shape, generator=generator, device=device)
    # The frequency 0 has no finite scale: it gets that of the lowest one, 1 / T.
    frequency = th.fft.rfftfreq(steps, device=device).clamp(min=1 / steps)
    scale = frequency ** (-exponent / 2)
    both = th.randn((2, *shape[:-1], len(frequency)), generator=generator, device=device) * scale
    real, imaginary = both[0], both[1]
    # In the spectrum of a real signal the frequency 0, and the highest one of an even number of steps, have no mirror image:
    # their coefficients are real. Twice the variance makes up for the imaginary part that they lack.
    alone = [0, -1] if steps % 2 == 0 else [0]
    real[..., alone] *= 2**0.5
    imaginary[..., alone] = 0.0
    # irfft sums over all T frequencies and divides by T, so var(x) = (sum_f weight_f) 2 / T^2 with weight_f = scale_f^2 for
    # the frequencies without a mirror image and 2 scale_f^2 for all others, which occur twice.
    weight = scale.square() * 2
    weight[alone] = scale[alone].square()
    std = (2 * weight.sum()).sqrt() / steps
    return th.fft.irfft(th.complex(real, imaginary), n=steps) / std
