"""``steve``: value expansion over several horizons, weighted by how much the model agrees (Buckman et al., NeurIPS 2018)."""

from typing import Any

import torch as th
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.type_aliases import DictReplayBufferSamples, ReplayBufferSamples
from stable_baselines3.common.vec_env import VecNormalize

from sb3_mbrl.buffers.imagined import normalised_obs
from sb3_mbrl.checks import whole
from sb3_mbrl.contracts import Imagination, LearnerView, MissingCapability, Obs, ReplaySampler
from sb3_mbrl.rng import RandomStream
from sb3_mbrl.trees import tree_index, tree_map


class EnsembleValueExpansion(Imagination):
    """
    An imagination that replaces the targets of real rows by a mean over horizons (stochastic ensemble value expansion,
    arXiv 1807.01675). Nothing is stored.

    From the next state of a real row, each member ``e`` of the ensemble is rolled out by the policy, and each target critic
    ``c`` gives a value. For a horizon ``h = 0 ... H`` there are as many candidates as members times critics::

        T_h^(e,c) = r + sum_(k<=h) d_k^e r_k^e + d_(h+1)^e V_c(s_h^e)
        d_1 = gamma (1 - d),  d_(k+1) = d_k gamma (1 - p_k)

    with rewards ``r_k`` and probabilities of termination ``p_k`` of the model. The target is the mean of their means, weighted
    by the inverse of their variances over ``e`` and ``c``::

        T = sum_h w_h mean(T_h)         w_h = var(T_h)^-1 / sum_j var(T_j)^-1

    It is returned in the rewards of the rows, with discounts of 0. So the value of the learner's own target is the mean of its
    critics here, as in the paper, and not their minimum; SAC's entropy counts where a value does.

    :param horizon: ``H``, the largest number of imagined steps; 0: none, the learner's own targets
    """

    needs_members = True
    uses_real_ratio = False

    def __init__(self, horizon: int = 3) -> None:
        self.horizon = whole("horizon", horizon, 0)

    def sampler(self, learner: LearnerView, real: ReplayBuffer) -> ReplaySampler | None:
        if learner.values is None:
            raise MissingCapability(
                "imagination='steve' needs the target critics of SAC, TD3 or DDPG, which this class lacks: take 'mve' or "
                "'branched'"
            )
        return _WeightedSampler(self.horizon, learner, real) if self.horizon else None


class _WeightedSampler:
    """A sampler of real rows whose rewards are weighted targets. Every other attribute is the real buffer's."""

    def __init__(self, horizon: int, learner: LearnerView, real: ReplayBuffer) -> None:
        self.horizon, self.learner, self.real = horizon, learner, real

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)

    @th.no_grad()
    def sample(self, batch_size: int, env: VecNormalize | None = None) -> ReplayBufferSamples | DictReplayBufferSamples:
        """
        Draw real rows, and compute their targets.

        :param batch_size: the number of rows
        :param env: the statistics by which SB3 normalises observations and rewards
        """
        rows: Any = self.real.sample(batch_size)  # without env, so not normalised: the model knows raw observations
        device = rows.rewards.device
        first = self.learner.gamma if rows.discounts is None else rows.discounts[:, 0]
        discount = first * (1.0 - rows.dones[:, 0].to(rows.rewards.dtype))
        reward = self._scaled(rows.rewards[:, 0], env)
        with RandomStream.of(self.learner.generator).scope(self.learner.world_model.device):
            target = weighted(self._candidates(rows.next_observations, reward, discount, env))
        observations, next_observations = rows.observations, rows.next_observations
        if env is not None:
            observations, next_observations = (
                tree_map(lambda leaf: leaf.to(device), normalised_obs(value, self.real, env))
                for value in (observations, next_observations)
            )
        return rows._replace(
            observations=observations,
            next_observations=next_observations,
            dones=th.zeros_like(rows.dones),
            rewards=target[:, None].to(device),
            discounts=th.zeros_like(target)[:, None].to(device),
        )

    def _candidates(self, next_obs: Obs, reward: th.Tensor, discount: th.Tensor, env: VecNormalize | None) -> th.Tensor:
        """Compute the candidates of every horizon, ``(H + 1, E * C, B)``."""
        learner, model = self.learner, self.learner.world_model
        assert learner.values is not None
        n, rows = model.n_choices, len(reward)
        everyone = th.arange(rows).repeat(n)  # the rows of the first member, then those of the second, ...
        member = th.arange(n, device=model.device).repeat_interleave(rows)
        obs = tree_index(tree_map(lambda leaf: leaf.to(model.device), next_obs), everyone.to(model.device))
        total, discount = (
            reward[everyone.to(reward.device)].to(model.device),
            discount[everyone.to(discount.device)].to(model.device),
        )
        state, targets = model.initial(obs), []
        for step in range(self.horizon + 1):
            values = learner.values(obs).to(model.device)
            targets.append((total + discount * values).unflatten(1, (n, rows)).flatten(0, 1))
            if step == self.horizon:
                break
            prediction = model.member_step(state, learner.act(obs), member, generator=learner.generator)
            total = total + discount * self._scaled(prediction.reward, env)
            step_discount = prediction.discount
            discount = discount * (learner.gamma * (1.0 - prediction.terminated) if step_discount is None else step_discount)
            state = prediction.state
            obs = model.decode(state)
        return th.stack(targets)

    def _scaled(self, reward: th.Tensor, env: VecNormalize | None) -> th.Tensor:
        """Normalise rewards as the replay buffer does when it samples."""
        if env is None:
            return reward
        return th.as_tensor(self.real._normalize_reward(reward.cpu().numpy(), env)).to(reward)


def weighted(targets: th.Tensor, least: float = 1e-8) -> th.Tensor:
    """
    Compute the mean of targets over horizons, weighted by the inverse of their variances.

    :param targets: the candidates, ``(H + 1, N, B)``
    :param least: the smallest variance; candidates that agree exactly would take all of the weight
    :return: ``(B,)``
    """
    precision = 1 / targets.var(1, correction=0).clamp(min=least)
    return (precision / precision.sum(0) * targets.mean(1)).sum(0)
