"""What every agent with a world model has: its parts, their random stream, and how it starts and resumes."""

import warnings
from collections.abc import Iterable
from typing import Any, ClassVar

from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.type_aliases import MaybeCallback

from sb3_mbrl.agent.checkpoint import CheckpointMixin
from sb3_mbrl.agent.model_trainer import ModelPhaseMixin
from sb3_mbrl.agent.parts import PartsMixin, make_budget
from sb3_mbrl.agent.real_steps import RealDataMixin
from sb3_mbrl.agent.recorder import ReportingMixin
from sb3_mbrl.hyperparams import load_preset
from sb3_mbrl.rng import RandomStream


class AgentMixin(ReportingMixin, PartsMixin, RealDataMixin, CheckpointMixin):
    """
    Left of an off-policy class of SB3, whose ``_setup_model`` has not been called when ``_choose_parts`` is.
    """

    _preset_name: ClassVar[str | None] = None
    """The file of presets, where there is one"""

    @classmethod
    def preset(cls, name: str) -> dict[str, Any]:
        """
        Settings by name, as keyword arguments: ``MBPO("MlpPolicy", "Hopper-v5", **MBPO.preset("Hopper-v5"))``.

        :param name: a Gymnasium id, or another name that there are settings for
        :raises KeyError: when there are none; the message names those there are
        """
        if cls._preset_name is None:
            raise KeyError(f"There are no presets of {cls.__name__}")
        return load_preset(cls._preset_name, name).kwargs

    # ------------------------------------------------------------------------------------------------ setup

    def _setup_model(self) -> None:
        saved = self.__dict__.get("_random")
        super()._setup_model()
        self._random = RandomStream(self.seed) if saved is None else saved
        self._side, self._snapshot, self._progress_bar = None, None, None
        self._after_parts(self._setup_parts())
        self._restore_extra()
        self.registry.hook.sb3_mbrl_on_setup(agent=self)

    def _after_parts(self, random: RandomStream) -> None:
        """
        What is to be built on top of the parts, before saved weights are put back.

        :param random: the source of initial weights
        """

    def set_random_seed(self, seed: int | None = None) -> None:
        """As SB3's; the world model's random stream starts anew too."""
        super().set_random_seed(seed)
        if seed is not None:
            self._random = RandomStream(seed)

    def _setup_learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        reset_num_timesteps: bool = True,
        tb_log_name: str = "run",
        progress_bar: bool = False,
    ) -> tuple[int, BaseCallback]:
        if self.world_model is not None and (reset_num_timesteps or self._last_obs is None):
            # SB3 is about to reset the environment: what comes next does not follow from the newest rows.
            self._cut_off_episodes()
        result = super()._setup_learn(total_timesteps, callback, reset_num_timesteps, tb_log_name, progress_bar)
        if reset_num_timesteps:
            self._start_clock()
        if self.world_model is not None:
            self._refuse_faulty_start()
            self._take_snapshot()
        return result

    def _start_clock(self) -> None:
        """Real steps are counted anew; what was learned stays."""


class WorldModelMixin(ModelPhaseMixin, AgentMixin):
    """Of agents that fit their world model from time to time, apart from what else they learn."""

    def _take_choices(
        self,
        *,
        world_model: Any,
        world_model_kwargs: dict[str, Any] | None,
        partner: Any,
        partner_kwargs: dict[str, Any] | None,
        fit_freq: int,
        fit_kwargs: dict[str, Any] | None,
        reward_fn: Any,
        termination_fn: Any,
        plugins: Iterable[Any] | None,
    ) -> None:
        """Of the constructor; see :class:`~sb3_mbrl.MBPO` for the parameters."""
        self._choose_parts(
            world_model=world_model,
            world_model_kwargs=world_model_kwargs,
            partner=partner,
            partner_kwargs=partner_kwargs,
            reward_fn=reward_fn,
            termination_fn=termination_fn,
            plugins=plugins,
        )
        self.fit_freq = fit_freq
        self.fit_budget = make_budget(fit_kwargs)
        # Schedule and verdicts; saved.
        self._fit_at, self._fit_rows = -1, 0
        self._trusted = False
        self._judge_again = False
        self._warned = False
        self.phase_seconds = {"fit": 0.0}

    def _setup_model(self) -> None:
        self._validated = False
        super()._setup_model()

    def _setup_learn(self, total_timesteps: int, *args: Any, **kwargs: Any) -> tuple[int, BaseCallback]:
        result = super()._setup_learn(total_timesteps, *args, **kwargs)
        if self.world_model is not None:
            if self.num_timesteps > 0 and len(self.model_data) == 0:
                warnings.warn(
                    "The replay buffer is empty (see load_replay_buffer): the world model waits for new real rows",
                    stacklevel=4,
                )
            if not self.world_model.fitted and len(self.model_data) >= max(self.learning_starts, 1):
                self.fit_world_model()
        return result

    def _start_clock(self) -> None:
        super()._start_clock()
        self._fit_at = min(self._fit_at, 0)
