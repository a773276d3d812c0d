"""The sampler that mixes real and imagined transitions, and replaces the replay buffer while the base class trains."""

from typing import Any

import torch as th
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.type_aliases import DictReplayBufferSamples, ReplayBufferSamples
from stable_baselines3.common.vec_env import VecNormalize

from sb3_mbrl.buffers.imagined import ImaginedBuffer
from sb3_mbrl.trees import tree_map


class MixedSampler:
    """
    A sampler with the method ``sample`` of replay buffers, whose batches have ``int(batch_size * real_ratio)`` real rows; the
    others are imagined. (This is the rule of MBPO's code; mbrl-lib draws whole batches from one or the other at random.) Every
    other attribute is the real buffer's.

    :param real: the agent's own replay buffer
    :param imagined: the imagined buffer, which is not empty
    :param real_ratio: the share of real rows, in [0, 1]
    :param gamma: the discount of rows that have none, in batches where others do (n-step returns)
    :param generator: the source of randomness for imagined rows; real ones are drawn as SB3 draws them
    """

    def __init__(
        self,
        real: ReplayBuffer,
        imagined: ImaginedBuffer,
        real_ratio: float,
        gamma: float,
        generator: th.Generator | None = None,
    ) -> None:
        self.real, self.imagined = real, imagined
        self.real_ratio, self.gamma, self.generator = real_ratio, gamma, generator

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)

    def sample(self, batch_size: int, env: VecNormalize | None = None) -> ReplayBufferSamples | DictReplayBufferSamples:
        """
        Draw a batch of real and imagined rows.

        :param batch_size: the number of rows, real and imagined
        :param env: the statistics for normalisation, as in SB3
        """
        n_real = int(batch_size * self.real_ratio)
        if n_real == batch_size:
            return self.real.sample(batch_size, env=env)
        imagined = self.imagined.sample(batch_size - n_real, self.real, env, self.generator)
        if n_real == 0:
            return imagined
        real = self.real.sample(n_real, env=env)
        if real.discounts is not None or imagined.discounts is not None:
            real, imagined = self._with_discounts(real), self._with_discounts(imagined)
        return tree_map(_join, real, imagined)

    def _with_discounts(self, samples: Any) -> Any:
        """Give rows without discounts the discount ``gamma``."""
        if samples.discounts is not None:
            return samples
        return samples._replace(discounts=th.full_like(samples.rewards, self.gamma))


def _join(real: th.Tensor, imagined: th.Tensor) -> th.Tensor:
    """
    Join real and imagined rows: floats as float32 (SB3's buffers of float64 spaces hold float64, which policies cast),
    integers in the type of the real rows.
    """
    dtype = th.float32 if real.is_floating_point() else real.dtype
    return th.cat([real.to(dtype), imagined.to(dtype)])
