"""Imagined steps as returns of several steps."""

import torch as th

from sb3_mbrl.contracts import Imagined
from sb3_mbrl.states import state_map


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
        next_obs=state_map(after, imagined.next_obs), reward=reward, terminated=after(imagined.terminated), discount=discount
    )
