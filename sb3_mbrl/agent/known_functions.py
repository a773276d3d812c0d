"""Known reward and termination functions: choosing them, comparing them with real data, and saving them."""

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from gymnasium.envs.registration import load_env_creator
from stable_baselines3.common.vec_env import VecEnv

from sb3_mbrl.contracts import EnvFunctions, Obs, Transitions, WorldModel, call_known
from sb3_mbrl.envs.known_functions.saving import from_plain, is_plain, to_plain
from sb3_mbrl.envs.wrappers import is_neutral
from sb3_mbrl.plugins import Registry
from sb3_mbrl.rng import streams_kept
from sb3_mbrl.spaces import ActionCodec, as_stored, as_tensor, sample_actions

FUNCTIONS = ("reward_fn", "termination_fn")

TRIED = 7
"""The number of random rows on which known functions are tried: a number that observations seldom have as columns"""


def check_function_choice(name: str, choice: Any) -> None:
    """:raises ValueError: for anything but a function, ``"auto"`` or ``None``"""
    if not (choice is None or callable(choice) or (isinstance(choice, str) and choice == "auto")):
        raise ValueError(
            f"{name}={choice!r}: give a function, 'auto' (known for this environment, else learned) or None (learned)"
        )


def find_functions(
    choices: Mapping[str, Any],
    registry: Registry,
    env: VecEnv | None,
    observation_space: spaces.Space,
    action_space: spaces.Space,
    verbose: int,
) -> EnvFunctions:
    """
    Return the functions that the user gave, and for ``"auto"`` the known ones of this environment, if plug-ins or the library
    have any.

    :param choices: ``reward_fn`` and ``termination_fn`` as the user gave them
    """
    known = EnvFunctions()
    if "auto" in choices.values() and env is not None:
        with _gym_env(env) as one:
            # A VecEnvWrapper that stacks or cuts observations: the function would read the wrong columns.
            if one is not None and (one.observation_space, one.action_space) == (observation_space, action_space):
                known = registry.env_functions(one)
    if choices["reward_fn"] == "auto" and known.reward_fn is None and verbose >= 1:
        print("reward_fn='auto': nothing is known of this environment's reward, so it is learned")
    return EnvFunctions(**{name: getattr(known, name) if choices[name] == "auto" else choices[name] for name in FUNCTIONS})


def functions_of_instance(choices: Mapping[str, Any], model: WorldModel, owner: str) -> EnvFunctions:
    """
    Return the functions of a world model that the user gave as an instance.

    :param owner: the name of the agent's class, for the error
    :raises ValueError: when the agent was given others
    """
    for name in FUNCTIONS:
        if callable(choices[name]) and choices[name] is not getattr(model, name):
            raise ValueError(
                f"{name} was given to {owner}, but the world model is an instance that was built without "
                f"it: give {name} to {type(model).__name__}(...), or the class instead of an instance"
            )
    return EnvFunctions(model.reward_fn, model.termination_fn)


def saved_functions(choices: Mapping[str, Any], saved: EnvFunctions | None) -> EnvFunctions:
    """
    Return the functions of a checkpoint. A function given to ``load`` may replace a known one, for which no head was learned.

    :param choices: as they are after ``load``
    :param saved: the functions in the checkpoint; ``None`` where they could not be unpickled
    :raises ValueError: for a choice that the saved heads do not allow
    """
    functions = {name: choice for name, choice in choices.items() if callable(choice)}
    if saved is None:
        if not functions:
            raise ValueError(
                "The known reward or termination function of this checkpoint could not be unpickled (see the warning above). "
                "Give it again: load(..., reward_fn=...) or load(..., termination_fn=...)."
            )
        return EnvFunctions(**functions)
    for name, choice in choices.items():
        known = getattr(saved, name)
        if callable(choice) and known is None:
            raise ValueError(
                f"This agent was saved with a learned {name}: load(..., {name}=...) cannot replace it. Start a new agent."
            )
        if choice is None and known is not None:
            raise ValueError(
                f"This agent was saved with a known {name}: load(..., {name}=None) cannot learn it. Start a new agent."
            )
    return replace(saved, **functions)


def try_functions(known: EnvFunctions, observation_space: spaces.Space, action_space: spaces.Space) -> None:
    """
    Call known functions once, on random members of the spaces, so that a wrong result is not noticed first after thousands of
    steps. No random stream is touched.

    :raises ValueError: for a result of the wrong shape or type; errors of the functions themselves have a note
    """
    if known == EnvFunctions():
        return
    generator = th.Generator().manual_seed(0)
    action = ActionCodec(action_space).to_env(sample_actions(action_space, TRIED, generator, th.device("cpu")))
    arguments = (_sampled(observation_space, 1), action, _sampled(observation_space, 2))
    with streams_kept():
        if known.termination_fn is not None:
            ended = call_known("termination_fn", known.termination_fn, arguments, TRIED)
            if ended.is_complex() or not bool(((ended == 0) | (ended == 1)).all()):
                raise ValueError(
                    f"termination_fn must return booleans, and returned {ended[(ended != 0) & (ended != 1)][0].item()}"
                )
        if known.reward_fn is not None:
            reward = call_known("reward_fn", known.reward_fn, arguments, TRIED)
            if reward.is_complex():
                raise ValueError(f"reward_fn must return real numbers, and returned a tensor of {reward.dtype}")


def _sampled(space: spaces.Space, seed: int) -> Obs:
    """Draw random members of a space, in the layout of the replay buffer, without drawing from the space's own stream."""
    drawn = copy.deepcopy(space)
    drawn.seed(seed)
    members = [drawn.sample() for _ in range(TRIED)]
    if isinstance(space, spaces.Dict):
        return as_stored({key: as_tensor(np.stack([member[key] for member in members])) for key in space.spaces})
    return as_stored(as_tensor(np.stack(members)))


def disagreements(
    known: EnvFunctions, rows: Transitions, action_space: spaces.Space, given: Callable[[str], bool], verbose: int
) -> list[str]:
    """
    Compare known functions with real data.

    A function from ``"auto"`` that disagrees (a wrapper may have changed the task) is learned instead, and a line is printed;
    for a function from the user this is an error.

    :param given: whether the user gave the function of this name
    :return: the names of the functions to learn instead
    :raises ValueError: when a function that the user gave disagrees with the data
    """
    action = ActionCodec(action_space).to_env(rows.action)
    arguments, count = (rows.obs, action, rows.next_obs), len(action)
    wrong: dict[str, tuple[th.Tensor, th.Tensor, th.Tensor]] = {}
    if known.termination_fn is not None:
        predicted = call_known("termination_fn", known.termination_fn, arguments, count).float()
        bad = predicted != rows.terminated  # also where it is not a boolean
        # A few rows may lie on a threshold, where the data's float32 and the simulator's float64 disagree.
        if int(bad.sum()) > max(2, 0.1 * float(rows.terminated.sum())):
            wrong["termination_fn"] = bad, predicted, rows.terminated
    if known.reward_fn is not None:
        predicted = call_known("reward_fn", known.reward_fn, arguments, count).float()
        bad = ~((predicted - rows.reward).abs() <= 1e-3 * (1 + rows.reward.abs()))
        if int(bad.sum()) > max(2, 0.01 * len(bad)):
            wrong["reward_fn"] = bad, predicted, rows.reward
    for name, (bad, predicted, real) in wrong.items():
        first = int(bad.nonzero()[0])
        message = (
            f"{name} disagrees with {int(bad.sum())} of {len(bad)} real transitions (the first: row {first}, where it is "
            f"{float(predicted[first]):.6g} and the environment's {float(real[first]):.6g})"
        )
        if given(name):
            raise ValueError(
                f"{message}. It must return what the environment does, for observations as the agent sees them (after "
                f"wrappers) and actions in the environment's units. Mend it, or pass {name}=None to learn it."
            )
        if verbose >= 1:
            print(f"{message}: it is learned instead")
    return list(wrong)


# ---- saving: the library's own functions as plain values, those of users pickled by SB3


def plain_function(function: Any) -> Any:
    """Turn a function of the library into plain values; return anything else unchanged."""
    return to_plain(function) if is_plain(function) else function


def restored_function(value: Any) -> Any:
    """Undo :func:`plain_function`."""
    return from_plain(value) if isinstance(value, dict) and "function" in value else value


@contextmanager
def _gym_env(env: VecEnv) -> Iterator[gym.Env | None]:
    """
    Return the first environment of a ``VecEnv`` if it lives in this process, else one made from its specification; ``None`` if
    it is not one of Gymnasium's, is not registered in this process, or has wrappers that change what it does.
    """
    envs = getattr(env.unwrapped, "envs", None)
    if envs:
        yield envs[0]
        return
    try:
        spec = env.get_attr("spec", indices=0)[0]
    except (AttributeError, NotImplementedError):  # a VecEnv that is not made of Gymnasium's environments
        spec = None
    # Most wrappers cannot be made again from a specification (SB3's Monitor is one), but need not be where they change
    # nothing.
    if spec is None or not all(
        isinstance(wrapper, type) and is_neutral(wrapper)
        for wrapper in (load_env_creator(wrapper.entry_point) for wrapper in spec.additional_wrappers)
    ):
        yield None
        return
    try:
        made = gym.make(replace(spec, additional_wrappers=()), render_mode=None)
    except Exception:  # it runs in another process, so training need not fail: no function is known
        yield None
        return
    try:
        yield made
    finally:
        made.close()
