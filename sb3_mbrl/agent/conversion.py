"""From a model-free agent to a model-based one, and back."""

import inspect
import io
from typing import Any

import torch as th
from stable_baselines3.common.base_class import BaseAlgorithm, maybe_make_env
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm

from sb3_mbrl.agent.agent import ModelBasedAgent
from sb3_mbrl.agent.checkpoint import keeping_new_model
from sb3_mbrl.agent.zip_file import check_names


def from_model_free(cls: Any, agent: OffPolicyAlgorithm, env: Any, replay_buffer: Any, kwargs: dict[str, Any]) -> Any:
    """
    Make a model-based agent that continues a model-free one. See
    :meth:`~sb3_mbrl.algorithms.base.ModelBasedMixin.from_model_free`.

    :param cls: the model-based class
    """
    base, given = cls.model_free_class, type(agent).__name__
    if isinstance(agent, ModelBasedAgent):
        raise TypeError(f"{given} is model-based already: continue with it as it is")
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
    choices = {kind: f"{kind}_class" for kind in cls.part_kinds}
    saved = io.BytesIO()
    agent.save(saved)
    saved.seek(0)
    with keeping_new_model():
        load: Any = BaseAlgorithm.load
        new = load.__func__(  # SB3's own: there is no checkpoint of ours to read
            cls,
            saved,
            env=agent.get_env() if env is None else maybe_make_env(env, agent.verbose),
            device=agent.device,
            # In its own environment the agent continues in the middle of the episode.
            force_reset=env is not None,
            **{choices.get(name, name): value for name, value in kwargs.items()},
        )
    if replay_buffer is None:
        if agent.replay_buffer is not None and agent.replay_buffer.size() > 0:
            new.take_replay_buffer(agent.replay_buffer)
    elif isinstance(replay_buffer, ReplayBuffer):
        new.take_replay_buffer(replay_buffer)
    else:
        new.load_replay_buffer(replay_buffer)
    return new


def to_model_free(agent: Any) -> Any:
    """
    Make an instance of an agent's model-free class, which shares its environment and replay buffer. See
    :meth:`~sb3_mbrl.algorithms.base.ModelBasedMixin.to_model_free`.
    """
    base, added = agent.model_free_class, added_attributes(type(agent))
    plain = base.__new__(base)
    plain.__dict__.update({name: value for name, value in vars(agent).items() if name not in added})
    plain.seed = None  # with a seed, load would seed Python's, NumPy's and torch's global streams, and the environment
    saved = io.BytesIO()
    plain.save(saved)
    saved.seek(0)
    with th.random.fork_rng(devices=[]):  # load draws initial weights before it restores the saved ones
        new = base.load(saved, env=agent.get_env(), device=agent.device, force_reset=False)
    new.seed = agent.seed
    new.replay_buffer = agent.replay_buffer
    return new


def added_attributes(cls: Any) -> set[str]:
    """
    Return the names of the attributes that a model-based class adds to its model-free class: its objects, and the arguments of
    the constructor that the model-free class does not take.
    """
    own, base = (inspect.signature(kind.__init__).parameters for kind in (cls, cls.model_free_class))
    arguments = {name for name in own if name not in base and not name.startswith("_")}
    return {*cls.object_names, *arguments, *(f"{kind}_class" for kind in cls.part_kinds)}
