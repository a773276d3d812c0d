"""From a model-free agent to a model-based one, and back."""

import io
from typing import Any, Self

import torch as th
from stable_baselines3.common.base_class import maybe_make_env
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm

from sb3_mbrl.agent.checkpoint import EXTRA, NOT_SAVED, CheckpointMixin
from sb3_mbrl.agent.real_steps import RealDataMixin
from sb3_mbrl.agent.zip_file import check_names

CHOICES = {"world_model": "world_model_class", "imagination": "imagination_class"}
"""Constructor arguments that are kept under another name"""

OWN = {
    *NOT_SAVED,
    *EXTRA,
    *CHOICES.values(),
    *("world_model_kwargs", "imagination_kwargs", "reward_fn", "termination_fn", "real_ratio", "fit_freq", "fit_kwargs"),
    *("fit_budget", "part_references", "phase_seconds", "_known", "_random", "_validated"),
    *(
        "_fit_at",
        "_fit_rows",
        "_imagined_at",
        "_trusted",
        "_judge_again",
        "_warned",
        "_warned_of_lost_ends",
        "_warned_of_bounds",
    ),
}
"""Attributes that a model-free agent has not"""


class UpgradeMixin(CheckpointMixin):
    """``from_model_free`` and ``to_model_free``."""

    @classmethod
    def from_model_free(cls, agent: OffPolicyAlgorithm, env: Any = None, replay_buffer: Any = None, **kwargs: Any) -> Self:
        """
        Go on with a trained model-free agent: ``MBPO.from_model_free(SAC.load("old.zip"), env, "old_buffer.pkl")``.

        Networks, optimisers, step and update counters, hyperparameters and the replay buffer are taken over, so that the new
        agent acts like the old one until it trains. The world model is fitted on the replay buffer at the start of
        ``learn(..., reset_num_timesteps=False)``.

        :param agent: an instance of this class's base, such as :class:`~stable_baselines3.SAC` for MBPO
        :param env: as in the constructor; ``None``: the agent's
        :param replay_buffer: a :class:`~stable_baselines3.common.buffers.ReplayBuffer` or the path of a saved one; ``None``:
            the agent's, which both agents then share (one for goals relabels by the new environment from then on)
        :param kwargs: what the constructor takes for the model (``world_model=...``, ``real_ratio=...``), and SB3's arguments
            that may change in ``load``, such as ``gradient_steps``
        :raises TypeError: for an agent of another class; the message names the class to use
        :raises ValueError: when environment or replay buffer do not fit
        """
        base = cls._model_free_class
        given = type(agent).__name__
        if isinstance(agent, RealDataMixin):
            raise TypeError(f"{given} is model-based already: go on with it as it is")
        if isinstance(agent, OnPolicyAlgorithm):
            raise TypeError(
                f"{cls.__name__}.from_model_free takes a {base.__name__} agent, not {given}, which learns from its own "
                "rollouts and has no replay buffer. Train it in a learned model: ModelVecEnv."
            )
        if type(agent) is not base:
            remedy = f"use model_based({given}).from_model_free(agent)"
            if not isinstance(agent, OffPolicyAlgorithm):
                remedy = f"load it first, {base.__name__}.load(path)"
            raise TypeError(f"{cls.__name__}.from_model_free takes a {base.__name__} agent, not {given}: {remedy}")
        check_names(cls, "from_model_free", kwargs, vars(agent))
        saved = io.BytesIO()
        agent.save(saved)
        saved.seek(0)
        attributes = {CHOICES.get(name, name): value for name, value in kwargs.items()}
        new = super(CheckpointMixin, cls).load(
            saved,
            env=agent.get_env() if env is None else maybe_make_env(env, agent.verbose),
            device=agent.device,
            # In its own environment the agent goes on in the middle of the episode.
            force_reset=env is not None,
            _without_model=True,
            **attributes,
        )
        if replay_buffer is None:
            if agent.replay_buffer is not None and agent.replay_buffer.size() > 0:
                new._take_replay_buffer(agent.replay_buffer)
        elif isinstance(replay_buffer, ReplayBuffer):
            new._take_replay_buffer(replay_buffer)
        else:
            new.load_replay_buffer(replay_buffer)
        return new

    def to_model_free(self) -> Any:
        """
        This agent without its model: an instance of the base class, whose ``save`` makes a plain SB3 zip.

        Networks, optimisers, counters and the replay buffer (shared, not copied) go with it. No random stream is touched, so
        that a callback may do this in the middle of training.
        """
        base = self._model_free_class
        plain = base.__new__(base)
        plain.__dict__.update({name: value for name, value in vars(self).items() if name not in OWN})
        plain.seed = None  # loading would seed Python's, NumPy's and torch's global streams, and the environment
        saved = io.BytesIO()
        plain.save(saved)
        saved.seek(0)
        with th.random.fork_rng(devices=[]):  # new networks are drawn, before the weights are put in
            agent = base.load(saved, env=self.get_env(), device=self.device, force_reset=False)
        agent.seed = self.seed
        agent.replay_buffer = self.replay_buffer
        return agent
