"""What the Dreamers share: a latent world model, an actor and a critic that learn together. A glossary of the loop::

learn                                           SB3's
  collect_rollouts                              SB3's: steps of the real environment
    predict                                     sees the observation with the memory of the episode so far, and acts
    _store_transition                           keeps the latent state beside the step
  train                                         once per collect_rollouts, gradient_steps times:
    sample                                      sequences of real steps, with the latent state before each
    _losses                                     of the world model, the actor and the critic
    one step of one optimiser
    update                                      the sequences' latent states are replaced by the new ones
"""

import uuid
from abc import abstractmethod
from collections.abc import Iterable
from typing import Any, ClassVar, Literal, NoReturn, Self

import torch as th
from gymnasium import spaces
from stable_baselines3 import HerReplayBuffer
from stable_baselines3.common.buffers import NStepReplayBuffer
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, Schedule

from sb3_mbrl.agent.agent import AgentMixin
from sb3_mbrl.agent.cuda_graph import (
    Compile,
    Update,
    chosen_update,
    explained_out_of_memory,
    precision,
    set_rate,
)
from sb3_mbrl.agent.stateful import RememberingMixin
from sb3_mbrl.agent.zip_file import saved_attributes
from sb3_mbrl.algorithms.dreamer.policy import DreamerPolicy
from sb3_mbrl.algorithms.dreamer.replay import LatentReplayMixin
from sb3_mbrl.checks import number, whole
from sb3_mbrl.contracts import EnvFunctions, Timesteps, WorldModel
from sb3_mbrl.models.rssm.model import RSSM, Filtered
from sb3_mbrl.models.rssm.observations import has_image
from sb3_mbrl.optim import LaProp
from sb3_mbrl.rng import RandomStream, derive_seed, on_device
from sb3_mbrl.trees import State

OPTIMIZERS: dict[str, type[th.optim.Optimizer]] = {"laprop": LaProp, "adam": th.optim.Adam}


class DreamerBase(LatentReplayMixin, RememberingMixin, AgentMixin, OffPolicyAlgorithm):
    """
    The loop, the data and the one update of everything. Subclasses say what is learned (:meth:`_losses`).

    See :class:`~sb3_mbrl.DreamerV3` for the parameters.
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = dict.fromkeys(
        ("MlpPolicy", "CnnPolicy", "MultiInputPolicy"), DreamerPolicy
    )
    partner = None
    _model_free_class = OffPolicyAlgorithm
    policy: DreamerPolicy
    world_model: RSSM
    optimizer: th.optim.Optimizer
    """Of everything that learns"""

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
        self._choose_parts(
            world_model=world_model,
            world_model_kwargs=world_model_kwargs,
            reward_fn=None,
            termination_fn=None,
            plugins=plugins,
        )
        self.size, self.batch_length, self.online = size, batch_length, online
        self.replay_context, self.behaviour_rate, self.max_grad_norm = replay_context, behaviour_rate, max_grad_norm
        self.optimizer_class, self.optimizer_kwargs = optimizer_class, dict(optimizer_kwargs or {})
        self.compile, self.mixed_precision = compile, mixed_precision
        self._n_updates = 0
        self.phase_seconds = {"act": 0.0, "update": 0.0}

    # ------------------------------------------------------------------------------------------------ setup

    def _check_choices(self) -> None:
        super()._check_choices()
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
            for most in self.max_grad_norm:
                number("max_grad_norm", most, 0.0, open_low=True)

    def _setup_model(self) -> None:
        name = type(self).__name__
        kind = self.replay_buffer_class
        if kind is not None and issubclass(kind, (HerReplayBuffer, NStepReplayBuffer)):
            raise ValueError(f"{name} learns from sequences of single steps as they were; it cannot use {kind.__name__}")
        super()._setup_model()
        self.policy.set_seed(derive_seed(self.seed))

    def _build_world_model(self, random: RandomStream, known: EnvFunctions) -> RSSM:
        selection = self._world_model_selection
        known_class = selection is not None and selection.instance is None and isinstance(selection.factory, type)
        if selection is None or (known_class and not issubclass(selection.factory, RSSM)):  # type: ignore[arg-type]
            self._refuse_world_model()
        model = super()._build_world_model(random, known)
        if not isinstance(model, RSSM):
            self._refuse_world_model()
        elif model.discount != self.gamma:
            raise ValueError(
                f"The world model was built with gamma={model.discount}, and this agent has gamma={self.gamma}: the discount "
                "is part of what the model learns. Give both the same."
            )
        return model

    def _refuse_world_model(self) -> NoReturn:
        raise ValueError(
            f"{type(self).__name__} learns in the latent states of a recurrent state-space model: world_model='rssm', or a "
            f"subclass of RSSM, not {self.world_model_class!r}"
        )

    def _after_parts(self, random: RandomStream) -> None:
        if "_model_id" not in self.__dict__:  # else it came with a checkpoint
            self._model_id = uuid.uuid4().hex
        with random.scope(self.device):
            self.policy.attach(self.world_model)
        self.world_model.optimizer = None  # it is trained here
        self.optimizer = self._make_optimizer()
        self._play: Update | None = None
        self._noise = self._random.generator
        self._new_sampler()

    def _make_optimizer(self) -> th.optim.Optimizer:
        rate, chosen = self.lr_schedule(1.0), self.optimizer_class
        if isinstance(chosen, str):
            if chosen not in OPTIMIZERS:
                raise ValueError(f"optimizer_class={chosen!r}: choose one of {', '.join(map(repr, OPTIMIZERS))}, or a class")
            chosen = OPTIMIZERS[chosen]
        groups = [
            {"params": list(module.parameters()), "lr": rate * scale}
            for module, scale in zip(self._learners(), self._rates(), strict=True)
        ]
        return chosen(groups, **self.optimizer_kwargs)

    def _learners(self) -> tuple[th.nn.Module, ...]:
        """What learns, a group of the optimiser each."""
        return self.world_model, self.policy.actor, self.policy.critic

    def _rates(self) -> tuple[float, ...]:
        """Their learning rates, relative to the world model's."""
        return 1.0, self.behaviour_rate, self.behaviour_rate

    # ------------------------------------------------------------------------------------------------ saving

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "_sampler", "_play", "_noise"]

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        state_dicts, variables = super()._get_torch_save_params()
        return [*state_dicts, "optimizer"], variables

    @classmethod
    def load(cls, path: Any, env: Any = None, *args: Any, **kwargs: Any) -> Self:
        """As SB3's; ``optimizer_kwargs`` may be others than those that were saved, another ``optimizer_class`` may not."""
        if "optimizer_class" in kwargs and kwargs["optimizer_class"] != (saved := saved_attributes(path)["optimizer_class"]):
            raise ValueError(
                f"load(..., optimizer_class={kwargs['optimizer_class']!r}): the saved state of the optimizer is of {saved!r}. "
                "Leave it out; a new agent can have another."
            )
        if isinstance(given := kwargs.get("world_model_kwargs"), dict):
            own = saved_attributes(path)["world_model_kwargs"]  # as given, with what the agent has added
            kwargs["world_model_kwargs"] = {**{name: own[name] for name in ("size", "gamma") if name in own}, **given}
        agent = super().load(path, env, *args, **kwargs)
        for group in agent.optimizer.param_groups:  # SB3 has put the saved ones back
            group.update(kwargs.get("optimizer_kwargs") or {})
        return agent

    # ------------------------------------------------------------------------------------------------ acting

    def _stream(self) -> th.Generator | None:
        return on_device(self._random.generator, self.device)

    def _act(self, obs: Any, deterministic: bool) -> th.Tensor:
        with self._phase("act"):
            is_first = th.as_tensor(self._is_first)
            self._memory = self.policy.act(obs, self._memory, is_first, deterministic=deterministic, generator=self._stream())
        return self._memory["action"]

    def _random_until(self, learning_starts: int) -> int:
        return 0  # the untrained actor is as good a source of random actions as any, and its latent states are kept

    # ------------------------------------------------------------------------------------------------ learning

    @abstractmethod
    def _losses(self, rows: Timesteps, start: State) -> tuple[th.Tensor, Filtered, dict[str, th.Tensor]]:
        """
        :param rows: sequences ``(B, T)``, on the device
        :param start: the latent states before them; nothing where they begin with nothing
        :return: the loss of everything, the latent states of the batch, and figures to log
        """

    def _after_update(self) -> None:
        """What follows every step of the optimiser."""

    def train(self, gradient_steps: int, batch_size: int = 16) -> None:
        """
        Improve world model, actor and critic together. Nothing happens while there are too few steps for a sequence.

        :param gradient_steps: updates
        :param batch_size: sequences in a batch
        """
        self._follow_buffer()
        if not self._enough(batch_size):
            return
        self.registry.hook.sb3_mbrl_before_policy_update(agent=self, gradient_steps=gradient_steps, batch_size=batch_size)
        self.world_model.train()
        self.policy.set_training_mode(True)
        self._set_learning_rate()
        figures: dict[str, th.Tensor] = {}
        with self._phase("update"):
            for _ in range(gradient_steps):
                figures = self._update(batch_size)
        self.world_model.eval()
        self.policy.set_training_mode(False)
        self.world_model.fitted = True
        if figures:
            values = th.stack([value.float() for value in figures.values()])
            if self.device.type != "cpu":  # else every update has looked
                self._refuse_not_finite(dict(zip(figures, values, strict=True)))
            for name, figure in zip(figures, values.tolist(), strict=True):
                self._record(name, figure)
        self._record("train/n_updates", self._n_updates)
        self.registry.hook.sb3_mbrl_after_policy_update(agent=self, gradient_steps=gradient_steps, batch_size=batch_size)

    def set_parameters(self, *args: Any, **kwargs: Any) -> None:
        """As SB3's."""
        super().set_parameters(*args, **kwargs)
        self._play = None  # a captured graph goes on with the optimiser's old state

    def _set_learning_rate(self) -> None:
        """As SB3's, and without a logger too: a replay buffer alone can be learned from."""
        rate = self.lr_schedule(self._current_progress_remaining)
        for group, scale in zip(self.optimizer.param_groups, self._rates(), strict=True):
            set_rate(group, rate * scale)
        self._record("train/learning_rate", rate)

    def _update(self, batch_size: int) -> dict[str, th.Tensor]:
        stream = self._random.generator
        if self.device.type == stream.device.type:
            self._noise = stream
        else:  # always the same generator, which a captured graph knows
            if self._noise.device.type != self.device.type:
                self._noise = th.Generator(self.device)
            self._noise.manual_seed(int(th.randint(2**62, (1,), generator=stream)))
        if self._play is None:
            self._play = chosen_update(self)
        batch = self._sampler.sample(batch_size, self.batch_length, generator=stream)
        told = {"imagine_last": getattr(self, "imagine_last", None), "batch_size": batch_size, "size": self.size}
        with explained_out_of_memory(**told, batch_length=self.batch_length):
            latent, figures = self._play(self._on_device(batch))
            self._sampler.update(batch, latent)
        self._n_updates += 1
        return figures

    def _renew_noise(self) -> None:
        """Another generator: one that a failed capture has seen may refuse to go on."""
        self._noise = th.Generator(self.device)
        self._noise.manual_seed(int(th.randint(2**62, (1,), generator=self._random.generator)))

    def _learn_from(self, batch: State) -> State:
        """One update: rows and latent states before them, to new latent states and figures. Nothing but tensors is changed."""
        with precision(self.mixed_precision, self.device):
            loss, found, figures = self._losses(*batch)
        if self.device.type == "cpu":  # where nothing has to be waited for; else train() looks afterwards
            self._refuse_not_finite({**figures, "the loss": loss.detach()})
        self.optimizer.zero_grad()
        loss.backward()
        if self.max_grad_norm is not None:
            of_model, of_behaviour = self.max_grad_norm
            for module, most in zip(self._learners(), (of_model, of_behaviour, of_behaviour), strict=True):
                th.nn.utils.clip_grad_norm_(module.parameters(), most)
        self.optimizer.step()
        self._after_update()
        return self._packed(found.deter.detach(), found.stoch.detach()), figures

    def _refuse_not_finite(self, figures: dict[str, th.Tensor]) -> None:
        """
        :raises ValueError: before weights are lost on a processor, after that on a GPU
        """
        finite = th.stack([value.isfinite() for value in figures.values()]).tolist()
        if wrong := [name for name, fine in zip(figures, finite, strict=True) if not fine]:
            raise ValueError(
                f"{type(self).__name__} after {self._n_updates} updates: {', '.join(wrong)} not finite. Lower learning_rate, "
                "and look for rewards or observations that are very large; go on from the last checkpoint."
            )
