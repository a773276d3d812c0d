"""The mixture of real and imagined transitions that stands in for the replay buffer while the base class trains."""

from typing import Any

import torch as th
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.type_aliases import DictReplayBufferSamples, ReplayBufferSamples
from stable_baselines3.common.vec_env import VecNormalize

from sb3_mbrl.buffers.imagined import ImaginedBuffer
from sb3_mbrl.trees import tree_map


class MixedSampler:
    """
    Answers ``sample`` like a replay buffer: ``int(batch_size * real_ratio)`` real rows, the rest imagined (MBPO's code,
    unlike mbrl-lib's coin flip per batch). Every other attribute is the real buffer's.

    :param real: the agent's own replay buffer
    :param imagined: not empty
    :param real_ratio: share of real rows, in [0, 1]
    :param gamma: the discount of imagined rows where real ones carry theirs (n-step returns)
    :param generator: draws the imagined rows; real ones are drawn as SB3 draws them
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
        :param batch_size: rows in all
        :param env: as in SB3: normalise with its statistics
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
        if samples.discounts is not None:
            return samples
        return samples._replace(discounts=th.full_like(samples.rewards, self.gamma))


def _join(real: th.Tensor, imagined: th.Tensor) -> th.Tensor:
    """
    Floats meet in float32 (SB3 buffers of float64 spaces are float64, and policies cast); integers in the real rows' type.
    """
    dtype = th.float32 if real.is_floating_point() else real.dtype
    return th.cat([real.to(dtype), imagined.to(dtype)])
