"""Random spaces as hypothesis strategies, an environment of any spaces that checks its actions, and tiny agents for it."""

import io
import warnings
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from hypothesis import strategies as st
from stable_baselines3.common.logger import HumanOutputFormat, Logger

from sb3_mbrl import MBPO, PETS, DreamerV3, Dyna, DynaQ
from sb3_mbrl.spaces import channels_first
from sb3_mbrl.trees import tree_leaves

# ------------------------------------------------------------------------------------------------------------- the spaces

SHAPES = [(), (1,), (2,), (3,), (2, 2), (1, 2, 2), (0,), (2, 0)]
INTEGERS = [np.int8, np.int16, np.int32, np.int64, np.uint8, np.uint16, np.uint32, np.uint64]
FLOATS = [np.float16, np.float32, np.float64]
STARTS = [0, 0, 0, 1, -1, -3, 7, 2**40, np.int64(2)]
KEYS = [
    "a",
    "b",
    "obs",
    "x.y",
    ".",
    "",
    "keys",
    "training",
    "forward",
    "ü",
    "a b",
    "loss",
    "observation of the first sensor " * 3,
]
LONG = ["a key that begins as many others do, and is longer than a line of the log: number " + digit for digit in "123"]


def shapes(empty: bool = True) -> st.SearchStrategy[tuple[int, ...]]:
    return st.sampled_from([shape for shape in SHAPES if empty or 0 not in shape])


@st.composite
def boxes(draw: Any, finite: bool = False, empty: bool = True) -> spaces.Box:
    """A ``Box`` of any data type: integers of their whole range and of a few values, floats with and without bounds."""
    shape = draw(shapes(empty))
    kind = draw(st.sampled_from(["float", "float", "integer", "bool"]))
    if kind == "bool":
        return spaces.Box(0, 1, shape, np.bool_)
    if kind == "integer":
        dtype = draw(st.sampled_from(INTEGERS))
        info = np.iinfo(dtype)
        low, high = draw(st.sampled_from([(info.min, info.max), (0, 1), (0, 4), (1, 3), (max(-3, info.min), 3), (2, 2)]))
        return spaces.Box(np.full(shape, low, dtype), np.full(shape, high, dtype), shape, dtype)
    dtype = draw(st.sampled_from(FLOATS))
    infinite = [] if finite else [(-np.inf, np.inf), (0, np.inf), (-np.inf, 1)]
    if dtype != np.float16:
        infinite = [*infinite, (-3e38, 3e38)]
    low, high = draw(st.sampled_from([(-1, 1), (0, 3), (-0.1, 0.7), (1000, 1001), (1, 1), (-3e4, 3e4), *infinite]))
    return spaces.Box(low, high, shape, dtype)


@st.composite
def discretes(draw: Any) -> spaces.Discrete:
    return spaces.Discrete(draw(st.sampled_from([1, 2, 3, 5])), start=draw(st.sampled_from(STARTS)))


@st.composite
def multi_discretes(draw: Any) -> spaces.MultiDiscrete:
    nvec = np.array(draw(st.sampled_from([[2], [3, 2], [1, 4], [2, 2, 2], [[2, 3], [3, 2]]])))
    start = draw(st.sampled_from([None, 1, -2]))
    dtype = draw(st.sampled_from([np.int64, np.int32, np.int8]))
    return spaces.MultiDiscrete(nvec, dtype=dtype, start=None if start is None else np.full_like(nvec, start))


@st.composite
def multi_binaries(draw: Any) -> spaces.MultiBinary:
    return spaces.MultiBinary(draw(st.sampled_from([1, 3, (2, 2), [3]])))


OTHERS = [
    spaces.Text(3),
    spaces.Tuple([spaces.Discrete(2)]),
    spaces.Dict({"inner": spaces.Discrete(2)}),
    spaces.Sequence(spaces.Discrete(2)),
    spaces.Graph(spaces.Discrete(2), None),
    spaces.OneOf([spaces.Discrete(2)]),
    spaces.Box(0, 255, (8, 8, 3), np.uint8),
    spaces.Box(0, 255, (1, 40, 40), np.uint8),
]
"""Spaces that few take: text, nested ones, images"""


def leaves() -> st.SearchStrategy[spaces.Space]:
    return st.one_of(boxes(), discretes(), multi_discretes(), multi_binaries())


@st.composite
def dictionaries(draw: Any) -> spaces.Dict:
    keys = draw(st.one_of(st.lists(st.sampled_from(KEYS), max_size=3, unique=True), st.just(LONG)))
    if draw(st.integers(0, 19)) == 0:
        return spaces.Dict({7: draw(leaves())})
    return spaces.Dict([(key, draw(st.one_of(leaves(), leaves(), leaves(), st.sampled_from(OTHERS)))) for key in keys])


def observation_spaces() -> st.SearchStrategy[spaces.Space]:
    return st.one_of(
        boxes(), boxes(), discretes(), multi_discretes(), multi_binaries(), dictionaries(), st.sampled_from(OTHERS)
    )


def action_spaces(name: str) -> st.SearchStrategy[spaces.Space]:
    """Spaces of actions, mostly of the kind that a class takes."""
    anything = st.one_of(boxes(), discretes(), multi_discretes(), multi_binaries(), st.sampled_from(OTHERS))
    mostly = {"MBPO": boxes(finite=True), "Dyna": discretes(), "DynaQ": discretes()}.get(name, anything)
    return st.one_of(mostly, mostly, mostly, anything)


def space_pairs(name: str) -> st.SearchStrategy[tuple[spaces.Space, spaces.Space]]:
    """Pairs of an observation space and an action space for a class, odd ones among them."""
    observations = st.one_of(discretes(), discretes(), observation_spaces()) if name == "DynaQ" else observation_spaces()
    return st.tuples(observations, action_spaces(name))


def likely_pairs(name: str) -> st.SearchStrategy[tuple[spaces.Space, spaces.Space]]:
    """Pairs of which a class takes most: every data type and kind, without the commonest reasons to be refused."""
    shifted = name not in ("MBPO", "Dyna")
    box = boxes().filter(lambda space: 0 not in space.shape and (shifted or space.shape != ()))
    category = discretes().filter(lambda space: shifted or space.start == 0)
    several = multi_discretes().filter(lambda space: space.nvec.ndim == 1 and (shifted or not space.start.any()))
    leaf = st.one_of(box, box, category, several, multi_binaries())
    keys = st.one_of(
        st.just(LONG), st.lists(st.sampled_from([key for key in KEYS if shifted or key.isalpha()]), min_size=1, unique=True)
    )
    dictionary = keys.flatmap(
        lambda names: st.tuples(*[leaf for _ in names]).map(lambda parts: spaces.Dict(dict(zip(names, parts, strict=True))))
    )
    choosable = boxes(finite=True, empty=False).filter(
        lambda space: space.dtype != np.bool_ and (space.low != space.high).all()
    )
    actions = {"MBPO": choosable, "Dyna": category, "DynaQ": category}.get(
        name, st.one_of(choosable, category, several, multi_binaries())
    )
    return st.tuples(category if name == "DynaQ" else st.one_of(leaf, leaf, dictionary), actions)


# ---------------------------------------------------------------------------------------------------------- the environment


class AnyEnv(gym.Env):
    """An environment of any spaces: random observations, and a list of the actions that were not in the space."""

    def __init__(self, observation_space: spaces.Space, action_space: spaces.Space) -> None:
        self.observation_space, self.action_space = observation_space, action_space
        self.foreign: list[Any] = []
        observation_space.seed(0)

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[Any, dict]:
        super().reset(seed=0)
        self.t = 0
        return self._observe(), {}

    def _observe(self) -> Any:
        return moderate(self.observation_space, self.observation_space.sample())

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
        if not member(self.action_space, action):
            self.foreign.append(action)
        self.t += 1
        ended = self.t % 7 == 0
        return self._observe(), float(self.t % 3), ended and self.t % 2 == 0, ended or self.t % 5 == 0, {}


def moderate(space: spaces.Space, value: Any) -> Any:
    """Clip floats to 10,000, as far as their bounds allow: a space may be wide, but no network survives values of 1e38."""
    if isinstance(space, spaces.Dict):
        return {key: moderate(child, value[key]) for key, child in space.spaces.items()}
    if not isinstance(space, spaces.Box) or not np.issubdtype(space.dtype, np.floating):
        return value
    return np.clip(value, np.maximum(space.low, -1e4), np.minimum(space.high, 1e4)).astype(space.dtype)


def member(space: spaces.Space, value: Any) -> bool:
    """Tell whether a value is in a space, whatever its floats' precision: SB3 gives float32 where another is meant."""
    if isinstance(space, spaces.Box) and np.issubdtype(space.dtype, np.floating):
        value = np.asarray(value)
        low, high = space.low.astype(np.float64), space.high.astype(np.float64)
        slack = max(1e-6, np.finfo(space.dtype).eps) * np.maximum(1, np.abs(value))  # rounding of SB3's own arithmetic
        return value.shape == space.shape and bool(((value >= low - slack) & (value <= high + slack)).all())
    if isinstance(space, spaces.Discrete):
        return bool(space.start <= value < space.start + space.n) and float(value) == int(value)
    return space.contains(np.asarray(value).astype(space.dtype)) and bool((np.asarray(value) % 1 == 0).all())


# --------------------------------------------------------------------------------------------------------------- the agents

_FIT = {"world_model_kwargs": {"members": 2, "elites": 1, "hidden": [8]}, "fit_kwargs": {"max_batches": 2}, "fit_freq": 20}
_LEARNER = {
    "policy_kwargs": {"net_arch": [8]},
    "learning_starts": 20,
    "batch_size": 8,
    "gradient_steps": 1,
    "buffer_size": 100,
}
_IMAGINE = {"imagination_kwargs": {"starts_per_step": 2, "freq": 5, "max_age": 40}}
_RSSM = {"deter": 8, "units": 8, "stoch": 2, "classes": 2, "hidden": 8, "blocks": 2, "depth": 2, "bins": 7}

CLASSES: dict[str, tuple[type, dict[str, Any]]] = {
    "MBPO": (MBPO, {**_FIT, **_LEARNER, **_IMAGINE}),
    "Dyna": (Dyna, {**_FIT, **_LEARNER, **_IMAGINE, "train_freq": 1}),
    "PETS": (
        PETS,
        {
            **_FIT,
            "learning_starts": 20,
            "buffer_size": 100,
            "n_particles": 2,
            "planner_kwargs": {"horizon": 2, "population": 4, "elites": 2, "iterations": 1},
        },
    ),
    "DynaQ": (DynaQ, {"buffer_size": 100}),
    "DreamerV3": (
        DreamerV3,
        {
            "world_model_kwargs": _RSSM,
            "policy_kwargs": {"layers": 1, "bins": 7},
            "batch_size": 2,
            "batch_length": 4,
            "horizon": 2,
            "train_freq": 10,
            "learning_starts": 10,
            "buffer_size": 100,
        },
    ),
}
"""Every class with the settings of a tiny agent"""

REFUSALS = (ValueError, TypeError, NotImplementedError, AssertionError)
"""The errors with which a space may be refused at construction: ours, and those of Stable-Baselines3"""


def construct(name: str, observation_space: spaces.Space, action_space: spaces.Space) -> Any:
    """
    Construct a tiny agent.

    :return: the agent; ``None`` where the spaces were refused by an error that names one of them
    """
    cls, settings = CLASSES[name]
    policy = "MultiInputPolicy" if isinstance(observation_space, spaces.Dict) else "MlpPolicy"
    if name == "DynaQ":
        policy = "QTablePolicy"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return cls(policy, AnyEnv(observation_space, action_space), seed=0, device="cpu", **settings)
        except REFUSALS as error:
            if not names_space(str(error), observation_space, action_space):
                raise AssertionError("a refusal that names no space") from error
            return None


def names_space(message: str, observation_space: spaces.Space, action_space: spaces.Space) -> bool:
    """Tell whether a message names one of the spaces, or a part of one with its key."""
    parts = list(observation_space.spaces.items()) if isinstance(observation_space, spaces.Dict) else []
    whole = any(str(space) in message for space in (observation_space, channels_first(observation_space), action_space))
    return whole or any(str(part) in message and repr(key) in message for key, part in parts)


def train(agent: Any, steps: int = 45) -> None:
    """Train an agent for a few steps with a log that refuses equal names, and check everything that it gave away."""
    agent.set_logger(Logger(None, [HumanOutputFormat(io.StringIO())]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        agent.learn(steps, log_interval=1)
    env = agent.get_env().envs[0].unwrapped
    assert agent.num_timesteps >= steps
    assert env.foreign == [], "actions of training that are not in the space"
    for deterministic in (True, False):
        observation = moderate(agent.observation_space, agent.observation_space.sample())
        action, _ = agent.predict(observation, deterministic=deterministic)
        assert member(env.action_space, action), "predict returned an action that is not in the space"
    imagined = getattr(agent, "imagined", None)
    if imagined is not None and len(imagined):
        check_members(agent.observation_space, imagined.draw(8)["next_obs"])
    assert all(bool(value.isfinite().all()) for value in agent.policy.state_dict().values() if value.is_floating_point())
    if agent.world_model is not None:
        assert all(bool(leaf.isfinite().all()) for leaf in tree_leaves(dict(agent.world_model.state_dict())))


def check_members(space: spaces.Space, obs: Any) -> None:
    """Check that stored observations are members of a space, of the type in which SB3's buffer stores them."""
    if isinstance(space, spaces.Dict):
        for key, child in space.spaces.items():
            check_members(child, obs[key])
        return
    assert isinstance(obs, th.Tensor)
    for row in obs.cpu().numpy().reshape(len(obs), *(space.shape or ())):
        assert member(space, row), f"the imagined observation {row} is not in {space}"
