"""Returns: n-step returns of imagined rows, lambda-returns, and the scale of returns."""

import torch as th
from torch import nn

from sb3_mbrl.contracts import Imagined
from sb3_mbrl.trees import tree_map


def lambda_returns(
    reward: th.Tensor,
    discount: th.Tensor,
    value: th.Tensor,
    lam: float = 0.95,
    is_last: th.Tensor | None = None,
) -> th.Tensor:
    """
    Compute lambda-returns, which mix n-step returns (DreamerV3, critic learning)::

        R_t = r_{t+1} + c_{t+1} ((1 - lam) v_{t+1} + lam R_{t+1}),   R_T = v_T

    :param reward: the reward of arriving in each state, ``(B, T + 1)``; the first is not used
    :param discount: the discount ``c`` of each state, ``(B, T + 1)``; 0 where an episode is over
    :param value: the value of each state, ``(B, T + 1)``
    :param lam: the mixing weight; 0: one reward and a value; 1: all rewards and the last value
    :param is_last: ``(B, T + 1)``: states of real sequences after which another episode begins, so that returns end with
        their value
    :return: the returns of all states but the last, ``(B, T)``
    """
    mix = th.full_like(value, lam) if is_last is None else lam * (1 - is_last.to(value.dtype))
    # R_t = single_{t+1} + further_{t+1} R_{t+1}, computed backwards from R_T = v_T.
    single, further = reward + discount * (1 - mix) * value, discount * mix
    last, returns = value[:, -1], []
    for t in range(reward.shape[1] - 1, 0, -1):
        last = single[:, t] + further[:, t] * last
        returns.append(last)
    return th.stack(returns[::-1], 1)


class ReturnScale(nn.Module):
    """
    The range of returns, from the 5th to the 95th percentile, as a moving average; never below 1, so that small rewards are
    not blown up (DreamerV3).

    :param rate: the rate of the moving average, which begins at 0
    :param low: the lower percentile, as a share
    :param high: the upper percentile, as a share
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
        """Move the percentiles towards those of returns of any shape."""
        flat = returns.detach().float().flatten()
        for buffer, share in zip((self.low, self.high), self.shares, strict=True):
            buffer.lerp_(th.quantile(flat, share), self.rate)

    def forward(self) -> th.Tensor:
        """Return the scale, a scalar."""
        return (self.high - self.low).clamp(min=self.least)


def multi_step(imagined: Imagined, n_steps: int, gamma: float) -> Imagined:
    """
    Join single steps to n-step transitions: every row gets the discounted rewards of up to ``n_steps`` steps from it on, the
    observation after them, and the discount of that observation's value, as in SB3's ``NStepReplayBuffer``::

        reward = r_1 + c_1 r_2 + c_1 c_2 r_3 + ...,   discount = c_1 c_2 c_3 ...   (c_i: 0 where the episode is over)

    All actions but the first of a rollout are the present agent's (DQN's with its present share of random ones). This is the
    model-based value expansion of Feinberg et al. (2018, arXiv 1803.00101, equation 2): the outcome of an episode reaches
    earlier states in one update instead of ``n_steps``.

    :param imagined: single steps, ``(T, B, ...)``
    :param n_steps: the largest number of steps to join; there are fewer at the end of a rollout
    :param gamma: the discount of a step, for models that predict none
    :return: the rows, ``(T, B, ...)``
    """
    if n_steps == 1:
        return imagined
    over = imagined.terminated > 0.5
    discounts = th.full_like(imagined.reward, gamma) if imagined.discount is None else imagined.discount
    discounts = th.where(over, 0.0, discounts)
    length = len(imagined.reward)
    first = th.arange(length, device=imagined.reward.device)[:, None].expand_as(imagined.reward)
    last, reward, discount = first, imagined.reward, discounts
    running = imagined.valid & ~over
    for step in range(1, n_steps):
        index = (first + step).clamp(max=length - 1)
        running = running & (first + step < length) & imagined.valid.gather(0, index)
        last = th.where(running, index, last)
        reward = th.where(running, reward + discount * imagined.reward.gather(0, index), reward)
        discount = th.where(running, discount * discounts.gather(0, index), discount)
        running = running & ~over.gather(0, index)

    def last_of(leaf: th.Tensor) -> th.Tensor:
        """Return the leaf of each row's last joined step."""
        index = last.reshape(*last.shape, *(1 for _ in leaf.shape[2:]))
        return leaf.gather(0, index.expand_as(leaf))

    return imagined._replace(
        next_obs=tree_map(last_of, imagined.next_obs),
        reward=reward,
        terminated=last_of(imagined.terminated),
        discount=discount,
    )
