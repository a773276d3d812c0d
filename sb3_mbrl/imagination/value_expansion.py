"""Model-based value expansion: targets of real rows that look further ahead (Feinberg et al. 2018, arXiv 1803.00101)."""

from typing import Any

import torch as th
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.type_aliases import DictReplayBufferSamples, ReplayBufferSamples
from stable_baselines3.common.vec_env import VecNormalize

from sb3_mbrl.buffers.imagined import normalised_obs
from sb3_mbrl.checks import whole
from sb3_mbrl.contracts import Imagination, LearnerView, ReplaySampler
from sb3_mbrl.rng import RandomStream
from sb3_mbrl.trees import tree_map


class ValueExpansion(Imagination):
    """
    An imagination that expands the targets of real rows: after every real step, the policy is rolled out for ``horizon`` steps
    in the world model. Nothing is stored.

    With a real row ``(s, a, r, s', d)`` and imagined steps ``(r_k, p_k)`` of reward and termination probability, the base
    class's target ``R + D V(S)`` becomes (equation 2 of the paper, with terminations in expectation)::

        R = r + sum_k c_k r_k        c_1 = gamma (1 - d),   c_{k+1} = c_k gamma (1 - p_k)
        D = c_{horizon + 1}          S = the last imagined state

    ``R``, ``S`` and ``D`` are returned in the fields of SB3's n-step rows: ``rewards``, ``next_observations`` and
    ``discounts``. SAC's entropy bonus is added at ``S`` only, as in SB3's n-step returns.

    :param horizon: the number of imagined steps; 0: none, the learner's own targets
    """

    uses_real_ratio = False

    def __init__(self, horizon: int = 1) -> None:
        self.horizon = whole("horizon", horizon, 0)

    def sampler(self, learner: LearnerView, real: ReplayBuffer) -> ReplaySampler | None:
        return _ExpandedSampler(self.horizon, learner, real) if self.horizon else None


class _ExpandedSampler:
    """A sampler of real rows with expanded targets. Every other attribute is the real buffer's."""

    def __init__(self, horizon: int, learner: LearnerView, real: ReplayBuffer) -> None:
        self.horizon, self.learner, self.real = horizon, learner, real

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)

    @th.no_grad()
    def sample(self, batch_size: int, env: VecNormalize | None = None) -> ReplayBufferSamples | DictReplayBufferSamples:
        """
        Draw real rows, and expand their targets by ``horizon`` steps.

        :param batch_size: the number of rows
        :param env: the statistics by which SB3 normalises observations and rewards
        """
        rows: Any = self.real.sample(batch_size)  # without env, so not normalised: the model knows raw observations
        model, device = self.learner.world_model, rows.rewards.device
        obs = tree_map(lambda leaf: leaf.to(model.device), rows.next_observations)
        state = model.initial(obs)
        first = self.learner.gamma if rows.discounts is None else rows.discounts[:, 0]
        follow = self.learner.follow or self.learner.act
        # R = r and D = gamma (1 - d), then per imagined step R <- R + D r_k and D <- D gamma (1 - p_k).
        reward = scaled_reward(rows.rewards[:, 0], self.real, env)
        discount = first * (1.0 - rows.dones[:, 0].to(rows.rewards.dtype))
        # The policy draws from torch's global generators; inside the scope these continue the learner's own stream.
        with RandomStream.of(self.learner.generator).scope(model.device):
            for _ in range(self.horizon):
                prediction = model.step(state, follow(obs), generator=self.learner.generator)
                reward = reward + discount * scaled_reward(prediction.reward.to(device), self.real, env)
                step_discount = prediction.discount
                if step_discount is None:
                    step_discount = self.learner.gamma * (1.0 - prediction.terminated)
                discount = discount * step_discount.to(device)
                state = prediction.state
                obs = model.decode(state)
        observations, next_observations = rows.observations, tree_map(lambda leaf: leaf.to(device), obs)
        if env is not None:
            observations, next_observations = (
                tree_map(lambda leaf: leaf.to(device), normalised_obs(value, self.real, env))
                for value in (observations, next_observations)
            )
        return rows._replace(
            observations=observations,
            next_observations=next_observations,
            dones=th.zeros_like(rows.dones),  # terminations are part of the discount
            rewards=reward[:, None],
            discounts=discount[:, None],
        )


def scaled_reward(reward: th.Tensor, real: ReplayBuffer, env: VecNormalize | None) -> th.Tensor:
    """Normalise rewards as the replay buffer does when it samples: step by step, since large ones are clipped."""
    if env is None:
        return reward
    return th.as_tensor(real._normalize_reward(reward.cpu().numpy(), env)).to(reward)
