"""``PETS``: planning with a probabilistic ensemble and trajectory sampling (Chua et al. 2018)."""

from collections.abc import Iterable
from typing import Any, ClassVar, Self

import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback

from sb3_mbrl.agent.agent import OffPolicyAgent
from sb3_mbrl.agent.stateful import StatefulActing
from sb3_mbrl.checks import whole
from sb3_mbrl.contracts import Planner, RewardFn, TerminationFn, WorldModel
from sb3_mbrl.models.particles import Particles
from sb3_mbrl.planners.policy import AgentPlannerPolicy


class PETS(OffPolicyAgent, OffPolicyAlgorithm):
    """
    An agent that learns a world model and acts by planning in it at every step (model-predictive control), without a policy
    network.

    ``docs/pets.md`` has every difference from the paper, and results. ``PETS.preset("published")`` are the paper's settings,
    ``PETS.preset("random-shooting")`` is in the manner of Nagabandi et al. (2018).

    :param policy: ``"MlpPolicy"`` (or ``"MultiInputPolicy"`` for ``Dict`` observations)
    :param env: as in SB3
    :param buffer_size: the number of real transitions that are kept
    :param learning_starts: the number of real steps with random actions before the first fit
    :param train_freq: the interval, as in SB3, at which to check whether the world model is due for a fit
    :param action_noise: as in SB3, added to planned actions
    :param replay_buffer_class: as in SB3
    :param replay_buffer_kwargs: as in SB3
    :param optimize_memory_usage: as in SB3
    :param stats_window_size: as in SB3
    :param tensorboard_log: as in SB3
    :param policy_kwargs: no keyword arguments so far
    :param verbose: as in SB3
    :param seed: as in SB3
    :param device: as in SB3
    :param _init_setup_model: as in SB3
    :param world_model: the world model, as in :class:`~sb3_mbrl.MBPO`; it is required
    :param world_model_kwargs: keyword arguments for the world model's constructor
    :param planner: the planner: ``"icem"``, ``"cem"``, ``"mppi"``, ``"random"``, ``"gradient"``, ``"ilqr"``, the name of a
        plug-in's, a class or an instance
    :param planner_kwargs: keyword arguments for the planner's constructor
    :param n_particles: the number of particles that carry the model's uncertainty through a plan
    :param propagation: the propagation of the particles (:class:`~sb3_mbrl.models.particles.Particles`); ``"auto"``:
        ``"tsinf"`` if the model has members, else ``"ts1"`` if ``aleatoric``, else ``"mean"``
    :param aleatoric: whether particles are drawn from a member's distribution, as in the paper, or follow its mean: with few
        particles, noise decides which plan looks best
    :param penalty: the weight of a penalty on the members' disagreement, per step of a plan (below 0: optimism)
    :param fit_freq: the number of real steps between two fits
    :param fit_kwargs: keyword arguments for :class:`~sb3_mbrl.contracts.FitBudget`
    :param reward_fn: a known reward instead of a learned one; ``"auto"``: that of the environment, if known (the paper's are)
    :param termination_fn: a known termination, likewise
    :param plugins: plugins for this agent alone: modules or objects with hooks
    :raises ValueError: when there is no world model to plan with
    """

    when_untrusted: ClassVar[str] = "The planner plans with it all the same."
    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MlpPolicy": AgentPlannerPolicy,
        "MultiInputPolicy": AgentPlannerPolicy,
    }
    part_kinds = ("world_model", "planner")
    makes_updates = False  # there is nothing to train but the model
    preset_file = "pets"
    model_free_class = OffPolicyAlgorithm
    policy: AgentPlannerPolicy
    acting: StatefulActing
    planner_class: Any
    planner_kwargs: Any

    def __init__(
        self,
        policy: str | type[AgentPlannerPolicy],
        env: GymEnv | str,
        buffer_size: int = 100_000,
        learning_starts: int = 200,
        train_freq: int | tuple[int, str] = 1,
        action_noise: ActionNoise | None = None,
        replay_buffer_class: type[ReplayBuffer] | None = None,
        replay_buffer_kwargs: dict[str, Any] | None = None,
        optimize_memory_usage: bool = False,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: th.device | str = "auto",
        _init_setup_model: bool = True,
        *,
        world_model: str | type[WorldModel] | WorldModel | Any = "auto",
        world_model_kwargs: dict[str, Any] | None = None,
        planner: str | type[Planner] | Planner | Any = "icem",
        planner_kwargs: dict[str, Any] | None = None,
        n_particles: int = 5,
        propagation: str = "auto",
        aleatoric: bool = False,
        penalty: float = 0.0,
        fit_freq: int = 50,
        fit_kwargs: dict[str, Any] | None = None,
        reward_fn: RewardFn | str | None = None,
        termination_fn: TerminationFn | str | None = "auto",
        plugins: Iterable[Any] | None = None,
    ) -> None:
        super().__init__(
            policy=policy,
            env=env,
            learning_rate=0.0,
            buffer_size=buffer_size,
            learning_starts=learning_starts,
            train_freq=train_freq,
            gradient_steps=1,
            action_noise=action_noise,
            replay_buffer_class=replay_buffer_class,
            replay_buffer_kwargs=replay_buffer_kwargs,
            optimize_memory_usage=optimize_memory_usage,
            policy_kwargs=policy_kwargs,
            stats_window_size=stats_window_size,
            tensorboard_log=tensorboard_log,
            verbose=verbose,
            device=device,
            support_multi_env=True,
            seed=seed,
            sde_support=False,
            supported_action_spaces=(spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary),
        )
        self.world_model_class, self.world_model_kwargs = world_model, world_model_kwargs
        self.planner_class, self.planner_kwargs = planner, planner_kwargs
        self.fit_freq, self.fit_kwargs = fit_freq, fit_kwargs
        self.reward_fn, self.termination_fn, self.plugins = reward_fn, termination_fn, plugins
        self.n_particles, self.propagation, self.penalty = n_particles, propagation, penalty
        self.aleatoric = aleatoric
        if _init_setup_model:
            self._setup_model()

    # ---- parts

    @property
    def planner(self) -> Planner:
        """The planner that chooses actions"""
        assert self.parts.planner is not None  # there is no PETS without one
        return self.parts.planner

    def _build(self) -> None:
        if self.world_model is None:
            tried = "none was given" if self.world_model_class is None else "no built-in one takes these spaces"
            raise ValueError(
                f"PETS plans in a world model, and {tried} (observations {self.observation_space}, actions "
                f"{self.action_space}): give world_model=..."
            )
        self._attach_planner(self.world_model)
        self._act_by(self.policy)

    def _attach_planner(self, model: WorldModel) -> None:
        """Let the policy plan in a world model: in its mean, or with particles that carry its uncertainty."""
        if not isinstance(self.aleatoric, bool):
            raise ValueError(f"aleatoric={self.aleatoric!r}: give True or False")
        if self.planner.follows_mean:
            wrong = [f"propagation={self.propagation!r}"] if self.propagation not in ("auto", "mean") else []
            wrong += [f"penalty={self.penalty}"] if self.penalty else []
            if wrong:
                raise ValueError(
                    f"planner={self.planner_class!r} follows the model's mean: it has no particles for {' and '.join(wrong)}. "
                    "Leave that out, or choose 'icem'."
                )
            self.policy.attach(self.planner, model)
            return
        particles = Particles(
            model,
            whole("n_particles", self.n_particles, 1),
            self._propagation(model),  # type: ignore[arg-type]
            self.penalty,
            aleatoric=self.aleatoric,
        )
        self.policy.attach(self.planner, particles)

    def _propagation(self, model: WorldModel) -> str:
        """Return the propagation of particles through a model: the given one, or the choice of ``"auto"``."""
        if self.propagation != "auto":
            return self.propagation
        if type(model).member_step is not WorldModel.member_step:
            return "tsinf"
        return "ts1" if model.learns and self.aleatoric else "mean"

    def _on_new_model(self) -> None:
        self.acting.state = None
        self._attach_planner(self._model)

    def _horizon(self) -> int:
        return self.planner.horizon

    # ---- acting

    def _decide(self, obs: Any, state: Any, is_first: th.Tensor, deterministic: bool) -> tuple[th.Tensor, Any]:
        with self.recorder.phase("plan"), self.random.scope(self.device) as generator:
            action, state, plan = self.policy.act(obs, state, is_first, deterministic=deterministic, generator=generator)
        self.recorder.record_all("planner", plan.info)
        if plan.value is not None:
            self.recorder.record("planner/value", float(plan.value.mean()))
        return action, state

    def _random_until(self, learning_starts: int) -> int:
        # Random actions until the model is fitted, at any number of steps (e.g. after a load without the replay buffer).
        return learning_starts if self._model.fitted else self.num_timesteps + 1

    # ---- learning

    def train(self, gradient_steps: int, batch_size: int = 256) -> None:
        """
        Fit the world model if it is due. There is nothing else to train.

        :param gradient_steps: not used
        :param batch_size: not used
        """
        self.policy.set_training_mode(False)
        if self._fit_is_due():
            self.fit_world_model()

    def learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 4,
        tb_log_name: str = "PETS",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> Self:
        """Train as in SB3."""
        return super().learn(total_timesteps, callback, log_interval, tb_log_name, reset_num_timesteps, progress_bar)
