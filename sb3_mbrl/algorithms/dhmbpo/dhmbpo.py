"""
``DHMBPO`` and ``SVG``: SAC whose actor and critics learn through the gradient of a world model.

An update of DHMBPO (double-horizon model-based policy optimisation, Kubo et al. 2025, https://arxiv.org/abs/2512.15439), from
states ``s_0`` that the *distribution rollouts* of the policy have visited::

    a_t ~ pi(s_t),  (s_t+1, r_t, d_t) ~ model(s_t, a_t)   for t < H         the training rollout, with its gradient
    m_0 = 1,  m_t+1 = m_t (1 - d_t)                                         the probability that the episode goes on

    y   = sum_(t<H) gamma^t m_t (r_t - [t > 0] alpha log pi_t)              the critics' target (MVE)
          + gamma^H m_H (min of two target critics - alpha log pi_H)
    J   = sum_(t<H) gamma^t m_t (r_t - alpha log pi_t)                      the actor's objective (SVG)
          + gamma^H m_H (mean of the critics - alpha log pi_H)

SVG (stochastic value gradients, Amos et al. 2021) is the same from real states. With ``horizon=0`` there is no model in the
update, which is then SAC's with these critics: the control.
"""

from collections.abc import Iterable
from typing import Any, ClassVar

import torch as th
import torch.nn.functional as F
from gymnasium import spaces
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, Schedule
from stable_baselines3.common.utils import polyak_update
from stable_baselines3.sac.policies import SACPolicy

from sb3_mbrl.algorithms.dhmbpo.rollout import TrainingRollout, ValueBounds, frozen
from sb3_mbrl.algorithms.mbpo import MBPO
from sb3_mbrl.checks import number, whole
from sb3_mbrl.contracts import (
    FitBudget,
    Imagination,
    Obs,
    RewardFn,
    RolloutImagination,
    TerminationFn,
    UnsupportedSpace,
    WorldModel,
)
from sb3_mbrl.policies.value_gradient import StackedCritic, ValueGradientPolicy
from sb3_mbrl.trees import tree_leaves


class DHMBPO(MBPO):
    """
    Double-horizon MBPO: long rollouts of the policy in the world model give the states to learn in (the *distribution*
    horizon), and short ones give the gradient of the value with respect to the policy (the *training* horizon).

    For continuous control with few real steps. All arguments are those of :class:`~sb3_mbrl.MBPO` and of
    SAC, with other defaults; differences from the paper are listed in ``docs/dhmbpo.md``.

    :param policy: ``"MlpPolicy"`` is here :class:`~sb3_mbrl.policies.value_gradient.ValueGradientPolicy`
    :param env: as in SAC; ``Box`` observations and actions
    :param learning_rate: as in SAC
    :param buffer_size: as in SAC
    :param learning_starts: the number of real steps before the first fit and the first update
    :param batch_size: the number of training rollouts of an update
    :param tau: as in SAC
    :param gamma: as in SAC
    :param train_freq: as in SAC
    :param gradient_steps: the number of updates per ``train_freq``
    :param action_noise: as in SAC
    :param replay_buffer_class: as in SAC
    :param replay_buffer_kwargs: as in SAC
    :param optimize_memory_usage: as in SAC
    :param n_steps: 1; training rollouts take its place
    :param ent_coef: as in SAC
    :param target_update_interval: as in SAC
    :param target_entropy: as in SAC
    :param use_sde: ``False``
    :param sde_sample_freq: not used
    :param use_sde_at_warmup: not used
    :param stats_window_size: as in SAC
    :param tensorboard_log: as in SAC
    :param policy_kwargs: as in SAC
    :param verbose: as in SAC
    :param seed: as in SAC
    :param device: as in SAC
    :param _init_setup_model: as in SAC
    :param horizon: ``H``, the number of model steps of a training rollout; 0: none, and updates are SAC's on real transitions
    :param real_ratio: the share of real states among those that updates begin in; ``None``: 0, and 1 for :class:`SVG`
    :param bounds_rate: the speed of the bounds of values (:class:`ValueBounds`); 0: values have no bounds
    :param world_model: as in MBPO; its steps must have gradients
    :param world_model_kwargs: as in MBPO
    :param imagination: the distribution rollouts, as in MBPO
    :param imagination_kwargs: as in MBPO
    :param fit_freq: as in MBPO
    :param fit_kwargs: as in MBPO
    :param reward_fn: as in MBPO; differentiable where it is a function
    :param termination_fn: as in MBPO
    :param plugins: as in MBPO
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {"MlpPolicy": ValueGradientPolicy, "SACPolicy": SACPolicy}
    object_names: ClassVar[tuple[str, ...]] = (*MBPO.object_names, "value_bounds")
    preset_file: ClassVar[str | None] = "dhmbpo"
    when_untrusted: ClassVar[str] = "Updates use real transitions alone, without the model, until it is better."
    share_of_real_states: ClassVar[float] = 0.0
    """The default of ``real_ratio``"""
    value_bounds: ValueBounds

    def __init__(
        self,
        policy: str | type[SACPolicy],
        env: GymEnv | str,
        learning_rate: float | Schedule = 3e-4,
        buffer_size: int = 1_000_000,
        learning_starts: int = 1000,
        batch_size: int = 256,
        tau: float = 0.005,
        gamma: float = 0.995,
        train_freq: int | tuple[int, str] = 1,
        gradient_steps: int = 1,
        action_noise: ActionNoise | None = None,
        replay_buffer_class: type[ReplayBuffer] | None = None,
        replay_buffer_kwargs: dict[str, Any] | None = None,
        optimize_memory_usage: bool = False,
        n_steps: int = 1,
        ent_coef: str | float = "auto_0.1",
        target_update_interval: int = 1,
        target_entropy: str | float = "auto",
        use_sde: bool = False,
        sde_sample_freq: int = -1,
        use_sde_at_warmup: bool = False,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: th.device | str = "auto",
        _init_setup_model: bool = True,
        *,
        horizon: int = 5,
        real_ratio: float | None = None,
        bounds_rate: float = 3e-4,
        world_model: str | type[WorldModel] | WorldModel | Any | None = "ensemble",
        world_model_kwargs: dict[str, Any] | None = None,
        imagination: str | type[Imagination] | Imagination | Any = "branched",
        imagination_kwargs: dict[str, Any] | None = None,
        fit_freq: int = 250,
        fit_kwargs: dict[str, Any] | None = None,
        reward_fn: RewardFn | str | None = None,
        termination_fn: TerminationFn | str | None = "auto",
        plugins: Iterable[Any] | None = None,
    ) -> None:
        super().__init__(
            policy,
            env,
            learning_rate=learning_rate,
            buffer_size=buffer_size,
            learning_starts=learning_starts,
            batch_size=batch_size,
            tau=tau,
            gamma=gamma,
            train_freq=train_freq,
            gradient_steps=gradient_steps,
            action_noise=action_noise,
            replay_buffer_class=replay_buffer_class,
            replay_buffer_kwargs=replay_buffer_kwargs,
            optimize_memory_usage=optimize_memory_usage,
            n_steps=n_steps,
            ent_coef=ent_coef,
            target_update_interval=target_update_interval,
            target_entropy=target_entropy,
            use_sde=use_sde,
            sde_sample_freq=sde_sample_freq,
            use_sde_at_warmup=use_sde_at_warmup,
            stats_window_size=stats_window_size,
            tensorboard_log=tensorboard_log,
            policy_kwargs=policy_kwargs,
            verbose=verbose,
            seed=seed,
            device=device,
            world_model=world_model,
            world_model_kwargs=_default(world_model, "ensemble", world_model_kwargs, ENSEMBLE),
            imagination=imagination,
            imagination_kwargs=_default(imagination, "branched", imagination_kwargs, DISTRIBUTION),
            real_ratio=self.share_of_real_states if real_ratio is None else real_ratio,
            fit_freq=fit_freq,
            fit_kwargs=fit_kwargs,
            reward_fn=reward_fn,
            termination_fn=termination_fn,
            plugins=plugins,
            _init_setup_model=False,
        )
        self.horizon, self.bounds_rate = horizon, bounds_rate
        if _init_setup_model:
            self._setup_model()

    # ------------------------------------------------------------------------------------------------ setup

    def _make_objects(self) -> None:
        super()._make_objects()
        self.value_bounds = ValueBounds(self.gamma, self.bounds_rate)

    def _check_hyperparameters(self) -> None:
        super()._check_hyperparameters()
        self.horizon = whole("horizon", self.horizon, 0)
        number("bounds_rate", self.bounds_rate, 0.0, 1.0)
        if self.bounds_rate and self.gamma >= 1.0:
            raise ValueError(f"gamma={self.gamma}: values then have no bounds: give gamma below 1, or bounds_rate=0")
        if self.world_model_class is None:
            return
        name = type(self).__name__
        if self.policy_kwargs.get("share_features_extractor"):
            raise ValueError(
                f"share_features_extractor=True: SB3's critics then pass no gradient on to observations, which {name} learns "
                "from: leave it out"
            )
        if self.use_sde:
            raise ValueError(
                f"use_sde=True: {name}'s training rollouts draw fresh noise at every step; use action_noise, or MBPO"
            )
        if self.n_steps != 1:
            raise ValueError(
                f"n_steps={self.n_steps}: {name}'s training rollouts are its multi-step targets: give horizon instead"
            )
        if self._vec_normalize_env is not None:
            raise ValueError(
                f"{name} standardises observations by itself, and its actor must see what its world model predicts: train "
                "without VecNormalize"
            )

    def _check_spaces(self) -> None:
        if self.world_model_class is not None and not isinstance(self.observation_space, spaces.Box):
            raise UnsupportedSpace(
                f"{type(self).__name__} learns through gradients of next observations, and {self.observation_space} has none: "
                "give Box observations, or use MBPO"
            )
        super()._check_spaces()

    def _build(self) -> None:
        imagination, name = self.imagination, type(self).__name__
        if self.world_model is not None and imagination is not None:
            states_alone = f"{name} takes nothing but states from its imagination, and has targets of its own (horizon)"
            if not isinstance(imagination, RolloutImagination) or not imagination.uses_real_ratio:
                raise ValueError(f"{states_alone}: leave {type(imagination).__name__} out, or use MBPO with it")
            if imagination.changes_rewards or imagination.n_steps > 1:
                what = f"n_steps={imagination.n_steps}" if imagination.n_steps > 1 else "changed rewards"
                raise ValueError(f"{states_alone}, so {type(imagination).__name__}'s {what} would be lost: use MBPO with it")
        super()._build()
        if self.horizon and self.world_model is not None and not self._has_gradients():
            raise ValueError(
                f"{type(self.world_model).__name__}.step has no gradient with respect to actions, which {type(self).__name__} "
                "learns from: choose 'ensemble' or 'mlp', or MBPO, which needs none"
            )

    def _has_gradients(self) -> bool:
        """Tell whether gradients flow from a step of the world model into its actions."""
        if self._model.needs_snapshot:
            return False
        obs = th.zeros(1, *(self.observation_space.shape or ()), device=self.device)
        action = th.zeros(1, *(self.action_space.shape or ()), device=self.device, requires_grad=True)
        with self.random.scope(self.device) as generator:
            prediction = self._model.step(self._model.initial(obs), action, generator=generator)
        return any(leaf.requires_grad for leaf in tree_leaves(prediction.state))

    def _model_is_off(self) -> bool:
        return False  # real_ratio is about states here; world_model=None turns the model off

    # ------------------------------------------------------------------------------------------------ train

    def _imagination_is_due(self) -> bool:
        return self.horizon > 0 and super()._imagination_is_due()

    def fit_world_model(self, budget: FitBudget | None = None) -> dict[str, float]:
        """Fit the world model as MBPO does, and first take from the real steps so far what scales observations and values."""
        if isinstance(self.policy, ValueGradientPolicy) and self._buffer.size():
            rows: Any = self._buffer.observations
            self.policy.standardise(rows[: self._buffer.size()].reshape(-1, *(self.observation_space.shape or ())))
        self.value_bounds.episodes_end = self._episodes_end()
        return super().fit_world_model(budget)

    def _update(self, gradient_steps: int, batch_size: int) -> None:
        """Update critics, actor and temperature ``gradient_steps`` times."""
        self.policy.set_training_mode(True)
        optimizers = [self.actor.optimizer, self.critic.optimizer]
        if self.ent_coef_optimizer is not None:
            optimizers.append(self.ent_coef_optimizer)
        self._update_learning_rate(optimizers)
        metrics: dict[str, th.Tensor] = {}
        horizon = self.horizon if self.trainer.trusted else 0
        with self.random.scope(self.device) as generator, frozen(self._model):
            for _ in range(gradient_steps):
                metrics = self._update_once(batch_size, horizon, generator)
                self._n_updates += 1
        self.recorder.record("train/n_updates", self._n_updates)
        for name, value in metrics.items():
            self.recorder.record(f"train/{name}", float(value))

    def _update_once(self, batch_size: int, horizon: int, generator: th.Generator) -> dict[str, th.Tensor]:
        replay: Any = self.replay_buffer  # or what stands in for it
        batch = replay.sample(batch_size)
        alpha = self.ent_coef_tensor if self.log_ent_coef is None else self.log_ent_coef.detach().exp()
        rollout = self.training_rollout(batch.observations, horizon, generator)

        # Critics
        with th.no_grad():
            if horizon:
                obs, action, soft_rewards = rollout.obs, rollout.action, rollout.rewards - alpha * rollout.log_probs[:-1]
                target = rollout.returns(alpha, self._target_value(rollout.last_obs, rollout.last_action), first_entropy=False)
            else:
                obs, action, soft_rewards = batch.observations, batch.actions, batch.rewards
                target = self._td_target(batch, alpha)
            target = self._bounded(target, soft_rewards)
        values = self.critic(obs, action.detach())
        critic_loss = sum((F.mse_loss(value.flatten(), target) for value in values), start=target.new_zeros(()))
        self._step(self.critic.optimizer, critic_loss, "critic")

        # Actor; dropout is for the critics' own learning
        self.critic.set_training_mode(False)
        with frozen(self.critic):
            last_value = th.stack(self.critic(rollout.last_obs, rollout.last_action)).mean(0).flatten()
            actor_loss = -rollout.returns(alpha, last_value, first_entropy=True).mean()
        self._step(self.actor.optimizer, actor_loss, "actor")
        self.critic.set_training_mode(True)

        # Temperature
        metrics = {"actor_loss": actor_loss.detach(), "critic_loss": critic_loss.detach(), "ent_coef": alpha.flatten()[0]}
        if self.log_ent_coef is not None and self.ent_coef_optimizer is not None:
            gap = rollout.log_probs[0].detach() + float(self.target_entropy)
            self._step(self.ent_coef_optimizer, -(self.log_ent_coef * gap).mean(), "temperature")
        if (self._n_updates + 1) % self.target_update_interval == 0:
            polyak_update(self.critic.parameters(), self.critic_target.parameters(), self.tau)
        return {**metrics, "value": target.mean(), "entropy": -rollout.log_probs[0].detach().mean()}

    def trial_update(self, batch_size: int) -> None:
        """Make one update on the copy of a trial."""
        with self.random.scope(self.device) as generator, frozen(self._model):
            self._update_once(batch_size, self.horizon, generator)

    def training_rollout(self, obs: Obs, horizon: int, generator: th.Generator | None = None) -> TrainingRollout:
        """
        Roll the policy out in the world model, with gradients.

        :param obs: raw observations, ``(B, ...)``
        :param horizon: ``H``
        :param generator: the source of the model's randomness; the policy draws from torch's global one
        """
        model, first = self._model, obs
        action, log_prob = self.actor.action_log_prob(obs)
        actions, log_probs, rewards = [action], [log_prob], []
        weights = [th.ones_like(log_prob)]
        state = model.initial(obs) if horizon else None
        for _ in range(horizon):
            prediction = model.step(state, actions[-1], generator=generator)
            rewards.append(prediction.reward)
            going_on = 1 - prediction.terminated
            weights.append(weights[-1] * (self.gamma * going_on if prediction.discount is None else prediction.discount))
            state, obs = prediction.state, model.decode(prediction.state)
            action, log_prob = self.actor.action_log_prob(obs)
            actions.append(action)
            log_probs.append(log_prob)
        stacked = th.stack(rewards) if rewards else log_prob.new_zeros(0, len(log_prob))
        return TrainingRollout(first, actions[0], stacked, th.stack(log_probs), th.stack(weights), obs, actions[-1])

    def _target_value(self, obs: Obs, action: th.Tensor) -> th.Tensor:
        """Compute the minimum of two target critics that are drawn at random, ``(B,)``."""
        values = th.stack(self.critic_target(obs, action)).flatten(1)
        two = th.randperm(len(values))[:2]
        return values[two].min(0).values

    def _td_target(self, batch: Any, alpha: th.Tensor) -> th.Tensor:
        """Compute SAC's target of real transitions, ``r + gamma (1 - d) (Q - alpha log pi)``, ``(B,)``."""
        action, log_prob = self.actor.action_log_prob(batch.next_observations)
        value = self._target_value(batch.next_observations, action) - alpha * log_prob
        discount = self.gamma if batch.discounts is None else batch.discounts.flatten()
        return batch.rewards.flatten() + (1 - batch.dones.flatten()) * discount * value

    def _bounded(self, target: th.Tensor, soft_rewards: th.Tensor) -> th.Tensor:
        """Move the bounds of values, and clip targets to them."""
        if not self.bounds_rate or not isinstance(self.critic, StackedCritic):
            return target
        bounds = self.value_bounds
        bounds.move(soft_rewards)
        critics: Any = (self.critic, self.critic_target)
        for critic in critics:
            critic.set_bounds(bounds.low, bounds.high)
        return target.clamp(bounds.low, bounds.high)

    def _episodes_end(self) -> bool:
        """Tell whether any real episode has ended before its time limit."""
        buffer: Any = self._buffer
        rows = slice(0, buffer.size())
        return bool((buffer.dones[rows] * (1 - buffer.timeouts[rows])).any())

    def _step(self, optimizer: th.optim.Optimizer, loss: th.Tensor, what: str) -> None:
        if not bool(loss.isfinite()):
            raise ValueError(
                f"The loss of the {what} is {float(loss.detach())} after {self._n_updates} updates and {self.num_timesteps} "
                "steps. It was not learned from, and the agent can be saved. A shorter horizon, a lower learning_rate or "
                "scaled rewards help."
            )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    def learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 4,
        tb_log_name: str = "DHMBPO",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> "DHMBPO":
        """Train as in SAC. Only steps of the real environment count."""
        super().learn(total_timesteps, callback, log_interval, tb_log_name, reset_num_timesteps, progress_bar)
        return self


class SVG(DHMBPO):
    """
    Stochastic value gradients (Heess et al. 2015; with entropy, SAC-SVG, Amos et al. 2021): :class:`DHMBPO` whose training
    rollouts begin in real states, without distribution rollouts.

    The arguments are those of :class:`DHMBPO`.
    """

    share_of_real_states = 1.0

    def learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 4,
        tb_log_name: str = "SVG",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> "SVG":
        """Train as in SAC. Only steps of the real environment count."""
        super().learn(total_timesteps, callback, log_interval, tb_log_name, reset_num_timesteps, progress_bar)
        return self


ENSEMBLE: dict[str, Any] = {
    "members": 5,
    "elites": 5,
    "hidden": [256, 256, 256],
    "layer_norm": [1.0, 0.1, 0.01],
    "noise": "constant",
    "nll_beta": 0.0,
    "bootstrap": "weights",
}
"""The default world model of DHMBPO: the paper's, with 5 members instead of 8, and without dropout"""

DISTRIBUTION: dict[str, Any] = {"horizon": 20, "freq": 20, "starts_per_step": 12.8, "max_age": 200}
"""
The distribution rollouts of the paper: 256 of 20 steps for every 20 real steps, of which the last ten are kept
"""


def _default(choice: Any, name: str, given: dict[str, Any] | None, default: dict[str, Any]) -> dict[str, Any] | None:
    """Return the keyword arguments of a part: the default ones of a named part, unless there are others."""
    return dict(default) if given is None and isinstance(choice, str) and choice == name else given
