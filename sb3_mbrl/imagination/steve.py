"""``steve``: value expansion over several horizons, weighted by how much the model agrees (Buckman et al., NeurIPS 2018)."""

from collections.abc import Callable
from typing import Any

import torch as th
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.type_aliases import DictReplayBufferSamples, ReplayBufferSamples
from stable_baselines3.common.vec_env import VecNormalize

from sb3_mbrl.buffers.imagined import normalised_obs
from sb3_mbrl.checks import whole
from sb3_mbrl.contracts import Imagination, LearnerView, MissingCapability, Obs, ReplaySampler, WorldModel
from sb3_mbrl.imagination.uncertainty import check_members
from sb3_mbrl.imagination.value_expansion import scaled_reward
from sb3_mbrl.rng import RandomStream
from sb3_mbrl.trees import tree_index, tree_leaves, tree_map


class EnsembleValueExpansion(Imagination):
    """
    An imagination that replaces the targets of real rows by a mean over horizons (stochastic ensemble value expansion,
    arXiv 1807.01675). Nothing is stored.

    From the next state of a real row, each member ``e`` of the ensemble is rolled out by the policy, and each target critic
    ``c`` gives a value. For a horizon ``h = 0 ... H`` there are as many candidates as members times critics::

        T_h^(e,c) = r + sum_(k<=h) d_k^e r_k^e + d_(h+1)^e V_c(s_h^e)
        d_1 = gamma (1 - d),  d_(k+1) = d_k gamma (1 - p_k)

    with rewards ``r_k`` and probabilities of termination ``p_k`` of the model. Members predict their means, and actions are
    drawn with the same noise for all of them, so that candidates differ by what members and critics have learned. The target
    is the mean of their means, weighted by the inverse of their variances over ``e`` and ``c``::

        T = sum_h w_h mean(T_h)         w_h = var(T_h)^-1 / sum_j var(T_j)^-1

    It is returned in the rewards of the rows, with discounts of 0. So the value of the learner's own target is the mean of its
    critics here, as in the paper, and not their minimum; SAC's entropy counts where a value does.

    :param horizon: ``H``, the largest number of imagined steps; 0: none, the learner's own targets
    """

    needs_members = True
    needs_critics = True
    uses_real_ratio = False

    def __init__(self, horizon: int = 3) -> None:
        self.horizon = whole("horizon", horizon, 0)

    def check(self, world_model: WorldModel) -> None:
        super().check(world_model)
        check_members(world_model, noise=False)

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
        reward = scaled_reward(rows.rewards[:, 0], self.real, env)
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
            values = alike(learner.values, obs, n, dim=1).to(model.device)
            targets.append((total + discount * values).unflatten(1, (n, rows)).flatten(0, 1))
            if step == self.horizon:
                break
            action = alike(learner.follow or learner.act, obs, n)
            prediction = model.member_step(state, action, member, deterministic=True, generator=learner.generator)
            total = total + discount * scaled_reward(prediction.reward, self.real, env)
            step_discount = prediction.discount
            discount = discount * (learner.gamma * (1.0 - prediction.terminated) if step_discount is None else step_discount)
            state = prediction.state
            obs = model.decode(state)
        return th.stack(targets)


def alike(function: Callable[[Any], th.Tensor], obs: Obs, n: int, dim: int = 0) -> th.Tensor:
    """
    Call a function that draws from torch's global generators once for each member's rows, each time with the same numbers.

    :param function: a function of observations
    :param obs: the rows of the first member, then those of the second, and so on
    :param n: the number of members
    :param dim: the axis of the rows in the result
    """
    parts = [tree_map(lambda leaf, e=e: leaf.unflatten(0, (n, -1))[e], obs) for e in range(n)]
    devices = {leaf.device.index for leaf in tree_leaves(obs) if leaf.is_cuda}
    results = []
    for part in parts[:-1]:
        with th.random.fork_rng(devices=sorted(devices)):  # puts the generators back, so that the next call draws the same
            results.append(function(part))
    return th.cat([*results, function(parts[-1])], dim)


def weighted(targets: th.Tensor, least: float = 1e-8) -> th.Tensor:
    """
    Compute the mean of targets over horizons, weighted by the inverse of their variances.

    :param targets: the candidates, ``(H + 1, N, B)``
    :param least: the smallest variance; candidates that agree exactly would take all of the weight
    :return: ``(B,)``
    """
    precision = 1 / targets.var(1, correction=0).clamp(min=least)
    return (precision / precision.sum(0) * targets.mean(1)).sum(0)
