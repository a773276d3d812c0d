"""Returns: n-step returns of imagined rows, lambda-returns, and the scale of returns."""

import torch as th
from torch import nn

from sb3_mbrl.contracts import Imagined
from sb3_mbrl.trees import tree_map


def lambda_returns(
    reward: th.Tensor,
    goes_on: th.Tensor,
    value: th.Tensor,
    lam: float = 0.95,
    is_last: th.Tensor | None = None,
) -> th.Tensor:
    """
    Mixtures of n-step returns (DreamerV3, critic learning)::

        R_t = r_{t+1} + c_{t+1} ((1 - lam) v_{t+1} + lam R_{t+1}),   R_T = v_T

    :param reward: ``(B, T + 1)``: of arriving in each state; the first is not used
    :param goes_on: ``(B, T + 1)``: the discounts, 0 where an episode is over
    :param value: ``(B, T + 1)``: of each state
    :param lam: 0: one step and a value; 1: all rewards and the last value
    :param is_last: ``(B, T + 1)``: states of real sequences after which another episode begins, so that returns end with
        their value
    :return: ``(B, T)``: of all states but the last
    """
    mix = th.full_like(value, lam) if is_last is None else lam * (1 - is_last.to(value.dtype))
    single, further = reward + goes_on * (1 - mix) * value, goes_on * mix
    last, found = value[:, -1], []
    for t in range(reward.shape[1] - 1, 0, -1):
        last = single[:, t] + further[:, t] * last
        found.append(last)
    return th.stack(found[::-1], 1)


class ReturnScale(nn.Module):
    """
    The range of returns, from the 5th to the 95th percentile, as a moving average; never below 1, so that small rewards are
    not blown up (DreamerV3).

    :param rate: of the moving average, which begins at 0
    :param low: percentile, as a share
    :param high: percentile, as a share
    :param least: the smallest scale
    """

    low: th.Tensor
    high: th.Tensor

    def __init__(self, rate: float = 0.01, low: float = 0.05, high: float = 0.95, least: float = 1.0) -> None:
        super().__init__()
        self.rate, self.least = rate, least
        self.shares = (low, high)
        self.register_buffer("low", th.zeros(()))
        self.register_buffer("high", th.zeros(()))

    @th.no_grad()
    def update(self, returns: th.Tensor) -> None:
        """Take note of returns of any shape."""
        flat = returns.detach().float().flatten()
        for buffer, share in zip((self.low, self.high), self.shares, strict=True):
            buffer.lerp_(th.quantile(flat, share), self.rate)

    def forward(self) -> th.Tensor:
        """The scale, a scalar."""
        return (self.high - self.low).clamp(min=self.least)


def multi_step(imagined: Imagined, n_steps: int, gamma: float) -> Imagined:
    """
    Every row becomes what follows it: the discounted rewards of up to ``n_steps`` steps, the observation after them, and the
    discount of its value, as in SB3's ``NStepReplayBuffer``. All actions but the first of a rollout are the present agent's
    (DQN's with the share of random ones that it explores with just then): it is the model-based value expansion of Feinberg
    et al. (2018, arXiv 1803.00101, equation 2), which carries what ends an episode back in one update instead of ``n_steps``.

    :param imagined: ``(T, B, ...)``, single steps
    :param n_steps: at most; fewer at the end of a rollout
    :param gamma: of a step, where the model gives no discount of its own
    """
    if n_steps == 1:
        return imagined
    over = imagined.terminated > 0.5
    discounts = th.full_like(imagined.reward, gamma) if imagined.discount is None else imagined.discount
    discounts = th.where(over, 0.0, discounts)
    length = len(imagined.reward)
    first = th.arange(length, device=imagined.reward.device)[:, None].expand_as(imagined.reward)
    last, reward, discount = first, imagined.reward, discounts
    going_on = imagined.valid & ~over
    for step in range(1, n_steps):
        place = (first + step).clamp(max=length - 1)
        going_on = going_on & (first + step < length) & imagined.valid.gather(0, place)
        last = th.where(going_on, place, last)
        reward = th.where(going_on, reward + discount * imagined.reward.gather(0, place), reward)
        discount = th.where(going_on, discount * discounts.gather(0, place), discount)
        going_on = going_on & ~over.gather(0, place)

    def after(leaf: th.Tensor) -> th.Tensor:
        index = last.reshape(*last.shape, *(1 for _ in leaf.shape[2:]))
        return leaf.gather(0, index.expand_as(leaf))

    return imagined._replace(
        next_obs=tree_map(after, imagined.next_obs), reward=reward, terminated=after(imagined.terminated), discount=discount
    )
