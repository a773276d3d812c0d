"""``MBPO``: SAC on real and imagined transitions."""

from collections.abc import Iterable
from typing import Any, ClassVar

import torch as th
from stable_baselines3 import SAC
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, Schedule
from stable_baselines3.sac.policies import SACPolicy

from sb3_mbrl.algorithms.base import ModelBasedMixin
from sb3_mbrl.contracts import Imagination, RewardFn, TerminationFn, WorldModel


class MBPO(ModelBasedMixin, SAC):
    """
    Model-Based Policy Optimisation: SAC whose batches mix real transitions with short rollouts of the policy in a learned
    world model, branched off real states.

    Paper: https://arxiv.org/abs/1906.08253. Every argument of :class:`stable_baselines3.SAC` is accepted, in its order, with
    its meaning; two defaults differ: ``learning_starts`` and ``gradient_steps``. The settings of the paper, per environment,
    are ``MBPO.preset(env_id)``. Differences from the authors' code are listed in ``docs/mbpo.md``.

    :param policy: as in SAC
    :param env: as in SAC
    :param learning_rate: as in SAC
    :param buffer_size: as in SAC
    :param learning_starts: the number of real steps before the first fit and the first update
    :param batch_size: the number of real and imagined rows together
    :param tau: as in SAC
    :param gamma: as in SAC
    :param train_freq: as in SAC
    :param gradient_steps: the number of updates per ``train_freq``, as in SAC; with a model, many are worthwhile
    :param action_noise: as in SAC
    :param replay_buffer_class: as in SAC
    :param replay_buffer_kwargs: as in SAC
    :param optimize_memory_usage: as in SAC
    :param n_steps: as in SAC; imagined rows are single steps
    :param ent_coef: as in SAC
    :param target_update_interval: as in SAC
    :param target_entropy: as in SAC
    :param use_sde: as in SAC
    :param sde_sample_freq: as in SAC
    :param use_sde_at_warmup: as in SAC
    :param stats_window_size: as in SAC
    :param tensorboard_log: as in SAC
    :param policy_kwargs: as in SAC
    :param verbose: as in SAC
    :param seed: as in SAC; it seeds the world model's random stream too
    :param device: as in SAC; it is the world model's device too
    :param _init_setup_model: as in SAC
    :param world_model: the world model: a name (``"ensemble"``, ``"mlp"``, a plugin's), ``"package.module:Class"``, a class, a
        factory or an instance; ``"auto"``: the best built-in that takes the spaces; ``None``: off, the class then is SAC to
        the last bit
    :param world_model_kwargs: keyword arguments for the world model's constructor
    :param imagination: the rule that makes rollouts, chosen in the same ways
    :param imagination_kwargs: keyword arguments for the imagination's constructor
        (:class:`~sb3_mbrl.imagination.BranchedRollouts`: ``horizon``, ``starts_per_step``, ``freq``, ``max_age``)
    :param real_ratio: the share of real rows in a batch (``int(batch_size * real_ratio)`` of them); 1 turns the model off
    :param fit_freq: the number of real steps between two fits of the world model; it is fitted earlier when the data has
        doubled
    :param fit_kwargs: keyword arguments for :class:`~sb3_mbrl.contracts.FitBudget` (``max_epochs``, ``max_batches``,
        ``patience``, ``batch_size``, ...)
    :param reward_fn: a known reward ``(obs, action, next_obs) -> (B,)`` instead of a learned one; ``"auto"``: the known one of
        the environment, if any; ``None``: learned
    :param termination_fn: a known termination, likewise; it is checked against the real data before every fit
    :param plugins: plugins for this agent alone: modules or objects with hooks
    """

    policy: SACPolicy

    def __init__(
        self,
        policy: str | type[SACPolicy],
        env: GymEnv | str,
        learning_rate: float | Schedule = 3e-4,
        buffer_size: int = 1_000_000,
        learning_starts: int = 200,
        batch_size: int = 256,
        tau: float = 0.005,
        gamma: float = 0.99,
        train_freq: int | tuple[int, str] = 1,
        gradient_steps: int = 10,
        action_noise: ActionNoise | None = None,
        replay_buffer_class: type[ReplayBuffer] | None = None,
        replay_buffer_kwargs: dict[str, Any] | None = None,
        optimize_memory_usage: bool = False,
        n_steps: int = 1,
        ent_coef: str | float = "auto",
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
        world_model: str | type[WorldModel] | WorldModel | Any | None = "auto",
        world_model_kwargs: dict[str, Any] | None = None,
        imagination: str | type[Imagination] | Imagination | Any = "branched",
        imagination_kwargs: dict[str, Any] | None = None,
        real_ratio: float = 0.5,
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
            world_model_kwargs=world_model_kwargs,
            imagination=imagination,
            imagination_kwargs=imagination_kwargs,
            real_ratio=real_ratio,
            fit_freq=fit_freq,
            fit_kwargs=fit_kwargs,
            reward_fn=reward_fn,
            termination_fn=termination_fn,
            plugins=plugins,
            _init_setup_model=_init_setup_model,
        )

    def learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 4,
        tb_log_name: str = "MBPO",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> "MBPO":
        """Train as in SAC. Only steps of the real environment count."""
        return super().learn(total_timesteps, callback, log_interval, tb_log_name, reset_num_timesteps, progress_bar)

    preset_file: ClassVar[str | None] = "mbpo"
    model_free_class = SAC
