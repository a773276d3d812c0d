"""``Dyna``: DQN on real and imagined transitions."""

from collections.abc import Iterable
from typing import Any

import torch as th
from stable_baselines3 import DQN
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, Schedule
from stable_baselines3.dqn.policies import DQNPolicy

from sb3_mbrl.algorithms.base import ModelBasedMixin
from sb3_mbrl.contracts import Imagination, RewardFn, TerminationFn, WorldModel


class Dyna(ModelBasedMixin, DQN):
    """
    Dyna (Sutton 1991) with neural networks: DQN whose batches mix real transitions with short rollouts of its
    epsilon-greedy policy in a learned world model, branched off real states.

    Every argument of :class:`stable_baselines3.DQN` is accepted, in its order, with its meaning; two defaults differ:
    ``learning_starts`` and ``gradient_steps``. ``docs/dyna.md`` has the method, its sources and results. For finite state
    spaces there is the tabular :class:`~sb3_mbrl.DynaQ`.

    :param policy: as in DQN
    :param env: as in DQN; actions are ``Discrete``
    :param learning_rate: as in DQN
    :param buffer_size: as in DQN
    :param learning_starts: the number of real steps before the first fit and the first update
    :param batch_size: the number of real and imagined rows together
    :param tau: as in DQN
    :param gamma: as in DQN
    :param train_freq: as in DQN
    :param gradient_steps: the number of updates per ``train_freq``, as in DQN; no other argument sets it
    :param replay_buffer_class: as in DQN
    :param replay_buffer_kwargs: as in DQN
    :param optimize_memory_usage: as in DQN
    :param n_steps: as in DQN; imagined rows are single steps
    :param target_update_interval: as in DQN, in real steps
    :param exploration_fraction: as in DQN
    :param exploration_initial_eps: as in DQN
    :param exploration_final_eps: as in DQN; imagined rows explore at the current rate, independently
    :param max_grad_norm: as in DQN
    :param stats_window_size: as in DQN
    :param tensorboard_log: as in DQN
    :param policy_kwargs: as in DQN
    :param verbose: as in DQN
    :param seed: as in DQN; it seeds the world model's random stream too
    :param device: as in DQN; it is the world model's device too
    :param _init_setup_model: as in DQN
    :param world_model: the world model, as in :class:`~sb3_mbrl.MBPO`, which explains the arguments below too
    :param world_model_kwargs: keyword arguments for the world model's constructor
    :param imagination: the rule that makes rollouts
    :param imagination_kwargs: keyword arguments for the imagination's constructor
    :param real_ratio: the share of real rows in a batch; 1 turns the model off
    :param fit_freq: the number of real steps between two fits of the world model
    :param fit_kwargs: keyword arguments for :class:`~sb3_mbrl.contracts.FitBudget`
    :param reward_fn: a known reward instead of a learned one
    :param termination_fn: a known termination, likewise
    :param plugins: plugins for this agent alone: modules or objects with hooks
    """

    policy: DQNPolicy

    def __init__(
        self,
        policy: str | type[DQNPolicy],
        env: GymEnv | str,
        learning_rate: float | Schedule = 1e-4,
        buffer_size: int = 1_000_000,
        learning_starts: int = 1_000,
        batch_size: int = 32,
        tau: float = 1.0,
        gamma: float = 0.99,
        train_freq: int | tuple[int, str] = 4,
        gradient_steps: int = 10,
        replay_buffer_class: type[ReplayBuffer] | None = None,
        replay_buffer_kwargs: dict[str, Any] | None = None,
        optimize_memory_usage: bool = False,
        n_steps: int = 1,
        target_update_interval: int = 10_000,
        exploration_fraction: float = 0.1,
        exploration_initial_eps: float = 1.0,
        exploration_final_eps: float = 0.05,
        max_grad_norm: float = 10,
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
            replay_buffer_class=replay_buffer_class,
            replay_buffer_kwargs=replay_buffer_kwargs,
            optimize_memory_usage=optimize_memory_usage,
            n_steps=n_steps,
            target_update_interval=target_update_interval,
            exploration_fraction=exploration_fraction,
            exploration_initial_eps=exploration_initial_eps,
            exploration_final_eps=exploration_final_eps,
            max_grad_norm=max_grad_norm,
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
        tb_log_name: str = "Dyna",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> "Dyna":
        """Train as in DQN. Only steps of the real environment count."""
        return super().learn(total_timesteps, callback, log_interval, tb_log_name, reset_num_timesteps, progress_bar)

    model_free_class = DQN
