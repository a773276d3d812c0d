"""The base class of all Dreamers: a latent world model, an actor and a critic that learn together. The loop::

learn                                           SB3's
  collect_rollouts                              SB3's: steps of the real environment
    predict                                     filters the observation with the policy state, and acts
    _store_transition                           stores the latent state beside the step; every eighth step is first predicted
  train                                         once per collect_rollouts, gradient_steps times:
    sequences.sample                            sequences of real steps, with the latent state before each
    update                                      the losses of world model, actor and critic; one step of one optimiser
    sequences.update                            the sequences' latent states are replaced by the new ones
"""

from abc import abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3 import HerReplayBuffer
from stable_baselines3.common.buffers import NStepReplayBuffer
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, Schedule

from sb3_mbrl.agent.agent import OffPolicyAgent
from sb3_mbrl.agent.cuda_graph import Compile
from sb3_mbrl.agent.fresh_steps import FreshSteps
from sb3_mbrl.agent.joint_update import JointUpdate, Learner
from sb3_mbrl.agent.stateful import StatefulActing
from sb3_mbrl.agent.zip_file import saved_attributes
from sb3_mbrl.algorithms.dreamer.policy import DreamerPolicy
from sb3_mbrl.buffers.sequences import SequenceReplay, compact
from sb3_mbrl.checks import number, whole
from sb3_mbrl.contracts import LatentModel, Timesteps, WorldModel
from sb3_mbrl.rng import on_device
from sb3_mbrl.spaces import has_image
from sb3_mbrl.trees import State, tree_map


class DreamerBase(OffPolicyAgent, OffPolicyAlgorithm):
    """
    The base class of Dreamers: the loop, the data and the joint update. Subclasses define the losses (:meth:`_losses`).

    See :class:`~sb3_mbrl.DreamerV3` for the parameters.
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = dict.fromkeys(
        ("MlpPolicy", "CnnPolicy", "MultiInputPolicy"), DreamerPolicy
    )
    loads_optimizer_kwargs = True
    needs_latent_model = True
    fits_model = False
    object_names = (*OffPolicyAgent.object_names, "update", "sequences", "fresh")
    model_free_class = OffPolicyAlgorithm
    policy: DreamerPolicy
    acting: StatefulActing
    update: JointUpdate
    sequences: SequenceReplay
    fresh: FreshSteps

    def __init__(
        self,
        policy: str | type[DreamerPolicy],
        env: GymEnv | str,
        learning_rate: float | Schedule,
        buffer_size: int,
        learning_starts: int | None,
        batch_size: int,
        gamma: float,
        train_freq: int | tuple[int, str],
        gradient_steps: int,
        *,
        size: str,
        batch_length: int,
        online: bool,
        replay_context: bool,
        world_model: Any,
        world_model_kwargs: dict[str, Any] | None,
        optimizer_class: str | type[th.optim.Optimizer],
        optimizer_kwargs: dict[str, Any] | None,
        behaviour_rate: float,
        max_grad_norm: tuple[float, float] | None,
        compile: Compile,
        mixed_precision: bool | Literal["auto"],
        plugins: Iterable[Any] | None,
        **kwargs: Any,
    ) -> None:
        if kwargs.get("optimize_memory_usage"):
            raise ValueError(
                f"optimize_memory_usage=True: {type(self).__name__} cannot do without the last observations of episodes, "
                "which such a replay buffer does not keep. A smaller buffer_size takes less memory."
            )
        super().__init__(
            policy=policy,
            env=env,
            learning_rate=learning_rate,
            buffer_size=buffer_size,
            learning_starts=batch_size * batch_length if learning_starts is None else learning_starts,
            batch_size=batch_size,
            gamma=gamma,
            train_freq=train_freq,
            gradient_steps=gradient_steps,
            support_multi_env=True,
            sde_support=False,
            supported_action_spaces=(spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary),
            **kwargs,
        )
        if policy == "CnnPolicy" and self.observation_space is not None and not has_image(self.observation_space):
            raise ValueError(
                f"CnnPolicy, and there is no image in {self.observation_space}: images are Box(0, 255, ..., uint8) of three "
                "axes. MlpPolicy takes the same numbers as a vector."
            )
        self.world_model_class, self.world_model_kwargs = world_model, world_model_kwargs
        self.reward_fn, self.termination_fn, self.plugins = None, None, plugins
        self.size, self.batch_length, self.online = size, batch_length, online
        self.replay_context, self.behaviour_rate, self.max_grad_norm = replay_context, behaviour_rate, max_grad_norm
        self.optimizer_class, self.optimizer_kwargs = optimizer_class, dict(optimizer_kwargs or {})
        self.compile, self.mixed_precision = compile, mixed_precision
        self._n_updates = 0

    # ------------------------------------------------------------------------------------------------ setup

    def _setup_model(self) -> None:
        # SB3 builds the replay buffer before hyperparameters are checked.
        kind = self.replay_buffer_class
        if isinstance(kind, type) and issubclass(kind, (HerReplayBuffer, NStepReplayBuffer)):
            raise ValueError(
                f"{type(self).__name__} learns from sequences of single steps as they were; it cannot use {kind.__name__}"
            )
        super()._setup_model()

    def _check_hyperparameters(self) -> None:
        super()._check_hyperparameters()
        if isinstance(self.world_model_kwargs, dict) and not isinstance(self.world_model_class, WorldModel):
            own = {"size": self.size, "gamma": self.gamma}
            for name, value in own.items():
                other = self.world_model_kwargs.get(name, value)
                if other != value:
                    raise ValueError(
                        f"{name}={value!r}, and world_model_kwargs has {name}={other!r}: give {name} to {type(self).__name__} "
                        "alone. (The world model of a saved agent keeps what it was built with.)"
                    )
            self.world_model_kwargs = {**own, **self.world_model_kwargs}
        for name, given in (("compile", self.compile), ("mixed_precision", self.mixed_precision)):
            if given != "auto" and not isinstance(given, bool):
                raise ValueError(f"{name}={given!r}: choose 'auto', True or False")
        for name in ("batch_size", "batch_length"):
            setattr(self, name, whole(name, getattr(self, name), 1))
        number("behaviour_rate", self.behaviour_rate, 0.0)
        number("tau", self.tau, 0.0, 1.0)
        if self.max_grad_norm is not None:
            if not isinstance(self.max_grad_norm, (tuple, list)) or len(self.max_grad_norm) != 2:
                raise ValueError(
                    f"max_grad_norm={self.max_grad_norm!r}: give two numbers, for the world model, and for actor and critic"
                )
            for norm in self.max_grad_norm:
                number("max_grad_norm", norm, 0.0, open_low=True)

    @property
    def latent_model(self) -> LatentModel:
        """The world model, in whose latent states actor and critic learn"""
        assert isinstance(self.world_model, LatentModel)  # ensured by needs_latent_model
        return self.world_model

    @property
    def optimizer(self) -> th.optim.Optimizer:
        """The optimiser of world model, actor and critic"""
        return self.update.optimizer

    def _build(self) -> None:
        model = self.latent_model
        if model.discount != self.gamma:
            raise ValueError(
                f"The world model was built with gamma={model.discount}, and this agent has gamma={self.gamma}: the discount "
                "is part of what the model learns. Give both the same."
            )
        with self.random.scope(self.device):
            self.policy.attach(model)
        model.optimizer = None  # the joint update trains it
        self.update = self._make_update()
        self.sequences = self._make_sequences()
        self.fresh = FreshSteps(self.observation_space, self.recorder)
        self._act_by(self.policy)

    def _make_update(self) -> JointUpdate:
        model_norm, behaviour_norm = self.max_grad_norm or (None, None)
        learners = [
            Learner(self.latent_model, 1.0, model_norm),
            Learner(self.policy.actor, self.behaviour_rate, behaviour_norm),
            Learner(self.policy.critic, self.behaviour_rate, behaviour_norm),
        ]
        return JointUpdate(
            learners,
            self._losses_and_states,
            self._after_update,
            optimizer_class=self.optimizer_class,
            optimizer_kwargs=self.optimizer_kwargs,
            learning_rate=self.lr_schedule(1.0),
            random=self.random,
            device=self.device,
            compile=self.compile,
            mixed_precision=self.mixed_precision,
            name=type(self).__name__,
            verbose=self.verbose,
        )

    def _make_sequences(self) -> SequenceReplay:
        buffer = self._buffer
        sequences = SequenceReplay(
            buffer,
            self.real.side_of(buffer),
            self.latent_model,
            self.batch_length,
            online=self.online,
            context=self.replay_context,
        )
        if "sequences" in vars(self):
            sequences.model_id = self.sequences.model_id
        return sequences

    def _follow_buffer(self) -> None:
        """Renew the sequences if the user has given the agent another replay buffer: each buffer has its own latent states."""
        if self.sequences.buffer is not self.replay_buffer:
            self.sequences = self._make_sequences()

    # ------------------------------------------------------------------------------------------------ saving

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        state_dicts, variables = super()._get_torch_save_params()
        return [*state_dicts, "optimizer"], variables

    @classmethod
    def load(cls, path: Any, env: Any = None, *args: Any, **kwargs: Any) -> Self:
        """Load an agent as in SB3; ``optimizer_kwargs`` may differ from the saved ones, ``optimizer_class`` may not."""
        if "optimizer_class" in kwargs and kwargs["optimizer_class"] != (saved := saved_attributes(path)["optimizer_class"]):
            raise ValueError(
                f"load(..., optimizer_class={kwargs['optimizer_class']!r}): the saved state of the optimizer is of {saved!r}. "
                "Leave it out; a new agent can have another."
            )
        if isinstance(given := kwargs.get("world_model_kwargs"), dict):
            own = saved_attributes(path)["world_model_kwargs"]  # as given by the user, with the agent's own additions
            kwargs["world_model_kwargs"] = {**{name: own[name] for name in ("size", "gamma") if name in own}, **given}
        agent = super().load(path, env, *args, **kwargs)
        for group in agent.optimizer.param_groups:  # SB3 has restored the saved ones
            group.update(kwargs.get("optimizer_kwargs") or {})
        return agent

    def set_parameters(self, *args: Any, **kwargs: Any) -> None:
        """Set parameters as in SB3; the joint update starts anew with them."""
        super().set_parameters(*args, **kwargs)
        self.update.reset()

    def _side_state(self) -> dict[str, Any]:
        self._follow_buffer()
        return {**super()._side_state(), "sequences": self.sequences.buffer_state()}

    def take_replay_buffer(self, buffer: Any) -> None:
        """
        Take over a replay buffer as in the base class. Sequences of steps without latent states, or with those of another
        world model, begin with an empty one.
        """
        previous, side, sequences = vars(self).get("replay_buffer"), self.real.side, self.sequences
        try:
            super().take_replay_buffer(buffer)
        except ValueError:
            self.replay_buffer, self.real.side, self.sequences = previous, side, sequences
            raise

    def _restore_side(self, state: Mapping[str, Any]) -> None:
        self.sequences = self._make_sequences()
        if self.sequences.restore_buffer_state(state.get("sequences", {})):
            super()._restore_side(state)

    # ------------------------------------------------------------------------------------------------ acting

    def _decide(self, obs: Any, state: Any, is_first: th.Tensor, deterministic: bool) -> tuple[th.Tensor, Any]:
        with self.recorder.phase("act"):
            stream = on_device(self.random.generator, self.device)
            new = self.policy.act(obs, state, is_first, deterministic=deterministic, generator=stream)
        return new["action"], new

    def _random_until(self, learning_starts: int) -> int:
        return 0  # the untrained actor's actions are random enough, and its latent states are stored

    def _store_transition(
        self, replay_buffer: Any, buffer_action: np.ndarray, new_obs: Any, reward: np.ndarray, dones: np.ndarray, infos: list
    ) -> None:
        latent = self.acting.state["latent"]
        for name, value in self.sequences.packed(latent).items():
            self.real.keep(name, value)
        position = replay_buffer.pos
        super()._store_transition(replay_buffer, buffer_action, new_obs, reward, dones, infos)
        self.sequences.added(position)
        if self.latent_model.fitted and self.fresh.due():
            rows = self.model_data.transitions_at(np.full(self.n_envs, position), np.arange(self.n_envs))
            self.fresh.evaluate(self.latent_model, latent, rows)

    def _setup_learn(self, *args: Any, **kwargs: Any) -> Any:
        result = super()._setup_learn(*args, **kwargs)
        self._follow_buffer()
        return result

    # ------------------------------------------------------------------------------------------------ learning

    @abstractmethod
    def _losses(
        self, rows: Timesteps, start: State | None, generator: th.Generator | None
    ) -> tuple[th.Tensor, State, dict[str, th.Tensor]]:
        """
        Compute the losses of a batch.

        :param rows: sequences, ``(B, T, ...)``, on the device
        :param start: the latent states before the sequences, ``(B, ...)``; ``None``: not known
        :param generator: the source of randomness
        :return: the total loss, the latent states ``(B, T, ...)``, and metrics to log
        """

    def _losses_and_states(
        self, rows: Timesteps, start: State | None, generator: th.Generator | None
    ) -> tuple[th.Tensor, State, dict[str, th.Tensor]]:
        """Compute :meth:`_losses`, with the states packed for the side store."""
        loss, states, metrics = self._losses(rows, start, generator)
        return loss, self.latent_model.pack(tree_map(th.Tensor.detach, states)), metrics

    def _after_update(self) -> None:
        """Update whatever follows the trained networks; called after every step of the optimiser."""

    def train(self, gradient_steps: int, batch_size: int = 16) -> None:
        """
        Train world model, actor and critic together. Nothing happens while there are too few steps for a sequence.

        :param gradient_steps: the number of updates
        :param batch_size: the number of sequences in a batch
        """
        self._follow_buffer()
        if not self._enough_for(batch_size):
            return
        self.registry.hook.sb3_mbrl_before_policy_update(agent=self, gradient_steps=gradient_steps, batch_size=batch_size)
        self.latent_model.train()
        self.policy.set_training_mode(True)
        rate = self.lr_schedule(self._current_progress_remaining)
        self.update.set_learning_rate(rate)
        self.recorder.record("train/learning_rate", rate)
        metrics: dict[str, th.Tensor] = {}
        with self.recorder.phase("update"):
            for _ in range(gradient_steps):
                metrics = self._update_once(batch_size)
        self.latent_model.eval()
        self.policy.set_training_mode(False)
        self.latent_model.fitted = True
        if metrics:
            self._record(metrics)
        self.recorder.record("train/n_updates", self._n_updates)
        self.registry.hook.sb3_mbrl_after_policy_update(agent=self, gradient_steps=gradient_steps, batch_size=batch_size)

    def trial_update(self, batch_size: int) -> None:
        """Make one update on the copy of a trial."""
        self.latent_model.train()
        self.policy.set_training_mode(True)
        self._update_once(batch_size)

    def side_row_bytes(self) -> int:
        """The bytes of the latent states of a step."""
        stored: Any = self._buffer.observations
        arrays = stored if isinstance(stored, dict) else {"": stored}
        one = {key: th.as_tensor(value[0, :1], device=self.device) for key, value in arrays.items()}
        with th.no_grad():
            state = self.latent_model.initial(one if isinstance(stored, dict) else one[""])
            return sum(compact(value).nbytes for value in self.latent_model.pack(state).values())

    def _update_once(self, batch_size: int) -> dict[str, th.Tensor]:
        batch = self.sequences.sample(batch_size, generator=self.random.generator)
        self.update.n_updates = self._n_updates
        states, metrics = self.update(self.sequences.on_device(batch, self.device), **self._memory_settings(batch_size))
        self.sequences.update(batch, states)
        self._n_updates += 1
        return metrics

    def _memory_settings(self, batch_size: int) -> dict[str, Any]:
        """Return the settings that decide about the memory of an update, the first to lower first."""
        return {"batch_size": batch_size, "batch_length": self.batch_length, "size": self.size}

    def _record(self, metrics: dict[str, th.Tensor]) -> None:
        values = th.stack([value.float() for value in metrics.values()])
        if self.device.type != "cpu":  # on a CPU every update checks this itself
            self.update.refuse_not_finite(dict(zip(metrics, values, strict=True)))
        for name, value in zip(metrics, values.tolist(), strict=True):
            self.recorder.record(name, value)

    def _enough_for(self, batch_size: int) -> bool:
        """
        Tell whether there are enough steps to learn from. After ``load`` without the replay buffer, updates on a few new steps
        would make an agent forget its skills; a buffer from the user is learned from at any size.
        """
        steps = self._buffer.size() * self.n_envs
        wanted = min(self.learning_starts, batch_size * self.batch_length) if self.num_timesteps else 0
        return self.sequences.enough() and (steps >= wanted or self._buffer.full)
