"""The state of an environment as a row of numbers, so that it can be kept, copied and gone back to.

Gymnasium has no way to save an environment. There are three here, tried in this order; the first that demonstrably works is
taken:

* MuJoCo: the simulator's integration state, and the positions of bodies and sites, which lag behind it by one inner step;
* classic control: the ``state`` vector;
* anything else: the attributes of the environment and its wrappers, pickled and compressed against those of a fresh copy.

"Works" means: set back to a snapshot after other episodes were begun, the environment repeats observations, rewards and
terminations to the last bit, over the first steps of a few episodes. So noise, goals or counters that a snapshot misses lead
to the next way, or to an error, not to a wrong model.
"""

import copy
import io
import pickle
import sys
import types
import zlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium.utils.env_checker import data_equivalence

from sb3_mbrl.envs.wrappers import effective_stack


class Snapshots(ABC):
    """One way to save and restore environments of one kind."""

    dtype: ClassVar[type[np.generic]]
    size: int
    """``S``: how many numbers"""

    @abstractmethod
    def save(self, found: list[gym.Env]) -> np.ndarray:
        """``(S,)``: the state of an environment, given as its :func:`~sb3_mbrl.envs.wrappers.effective_stack`."""

    @abstractmethod
    def load(self, found: list[gym.Env], snapshot: np.ndarray) -> None:
        """Set the environment to a snapshot ``(S,)``."""

    def extra_state(self) -> dict[str, Any]:
        """Return what another process needs to read these snapshots: JSON values and tensors."""
        return {}

    def load_extra_state(self, extra: Mapping[str, Any]) -> None:  # noqa: B027 (most have nothing to take back)
        """Take back what :meth:`extra_state` gave."""


def snapshots_of(env: gym.Env, *, max_bytes: int | None = None) -> Snapshots:
    """
    The way to save and restore an environment.

    :param env: a private environment without neutral wrappers; it is reset and stepped to try the ways
    :param max_bytes: room for a pickled environment (``None``: measured)
    :raises ValueError: when none works, with what went wrong in each
    """
    reasons = []
    cause: Exception | None = None
    for kind in (MujocoSnapshots, ClassicControlSnapshots, PickledSnapshots):
        if not kind.fits(env):
            continue
        try:
            snapshots = PickledSnapshots(env, max_bytes) if kind is PickledSnapshots else kind(env)
            difference = _difference(snapshots, env)
        except PicklingFailedError as error:
            difference, cause = str(error), error
        if difference is None:
            return snapshots
        reasons.append(f"{kind.__name__}: {difference}")
    raise ValueError(
        f"The state of {env} cannot be saved and restored ({'; '.join(reasons)}). An oracle needs an environment whose whole "
        "state is in picklable attributes; use a learned world model for this one."
    ) from cause


class MujocoSnapshots(Snapshots):
    """
    MuJoCo's integration state (time, positions, velocities, actuators, warm start, applied forces, ...) in float64.

    Some rewards compare body positions before and after a step. These are computed at the beginning of an inner step, so that
    what the environment reads is older than the state; therefore they are saved too.
    """

    dtype = np.float64
    _lagging = ("xpos", "xipos", "site_xpos")

    def __init__(self, env: gym.Env) -> None:
        import mujoco

        self._mujoco: Any = mujoco
        self._what = mujoco.mjtState.mjSTATE_INTEGRATION
        raw: Any = env.unwrapped
        self._n_state = mujoco.mj_stateSize(raw.model, self._what)
        self.size = self._n_state + sum(getattr(raw.data, name).size for name in self._lagging)

    @staticmethod
    def fits(env: gym.Env) -> bool:
        """Whether the environment has MuJoCo's ``model`` and ``data``. MuJoCo is not imported unless the environment has."""
        data_type = getattr(sys.modules.get("mujoco"), "MjData", None)
        return (
            data_type is not None
            and isinstance(getattr(env.unwrapped, "data", None), data_type)
            and hasattr(env.unwrapped, "model")
        )

    def save(self, found: list[gym.Env]) -> np.ndarray:
        raw: Any = found[-1]
        state = np.empty(self._mujoco.mj_stateSize(raw.model, self._what))
        self._mujoco.mj_getState(raw.model, raw.data, state, self._what)
        return np.concatenate([state, *(getattr(raw.data, name).ravel() for name in self._lagging)])

    def load(self, found: list[gym.Env], snapshot: np.ndarray) -> None:
        raw: Any = found[-1]
        state, rest = np.split(snapshot, [self._n_state])
        self._mujoco.mj_setState(raw.model, raw.data, state, self._what)
        self._mujoco.mj_forward(raw.model, raw.data)  # whatever else is derived from the state
        self._mujoco.mj_setState(raw.model, raw.data, state, self._what)  # forward() may move the solver's warm start
        for name in self._lagging:
            array = getattr(raw.data, name)
            values, rest = np.split(rest, [array.size])
            array[:] = values.reshape(array.shape)


class ClassicControlSnapshots(Snapshots):
    """``state``, the counter of steps after the end where there is one, and the precision of ``state``, in float64."""

    dtype = np.float64

    def __init__(self, env: gym.Env) -> None:
        env.reset(seed=0)
        self.size = len(self.save([env.unwrapped]))

    @staticmethod
    def fits(env: gym.Env) -> bool:
        """Whether this is one of Gymnasium's own classic control environments (a subclass may have more state)."""
        return type(env.unwrapped).__module__.startswith("gymnasium.envs.classic_control.")

    def save(self, found: list[gym.Env]) -> np.ndarray:
        raw: Any = found[-1]
        if raw.state is None:
            raise ValueError(f"{raw} has no state before its first reset(): capture it after that")
        beyond = getattr(raw, "steps_beyond_terminated", None)
        state = np.asarray(raw.state)
        return np.array([*state, -1 if beyond is None else beyond, state.dtype.itemsize], np.float64)

    def load(self, found: list[gym.Env], snapshot: np.ndarray) -> None:
        raw: Any = found[-1]
        *state, beyond, itemsize = snapshot.tolist()
        raw.state = np.array(state, np.dtype(f"f{int(itemsize)}"))
        if hasattr(raw, "steps_beyond_terminated"):
            raw.steps_beyond_terminated = None if beyond < 0 else int(beyond)


class PicklingFailedError(Exception):
    """An environment cannot be pickled. The message says why."""


class PickledSnapshots(Snapshots):
    """
    Pickled attributes of the environment and its wrappers, with their random generators: bytes, padded to a fixed length.

    Spaces, the specification and functions are not state and are left out. Compression starts from the attributes of a fresh
    copy (the reference), so that only what changes takes room.

    :param env: a private environment
    :param max_bytes: the fixed length (``None``: twice the longest of a few short episodes)
    :raises PicklingFailedError: when an attribute cannot be pickled
    """

    dtype = np.uint8
    _not_state = frozenset(
        {"env", "spec", "action_space", "observation_space", "metadata", "render_mode"}
        | {"_action_space", "_observation_space", "_metadata", "_cached_spec"}
    )
    _header = 4

    def __init__(self, env: gym.Env, max_bytes: int | None = None) -> None:
        found = effective_stack(env)
        env.reset(seed=0)
        self._reference = self._dump(found)
        self.size = max_bytes or 2 * self._longest(env)

    @staticmethod
    def fits(env: gym.Env) -> bool:
        """Any may; pickling it tells."""
        return True

    def save(self, found: list[gym.Env]) -> np.ndarray:
        packed = self._compress(found)
        length = self._header + len(packed)
        if length > self.size:
            raise ValueError(
                f"A snapshot of {found[0]} takes {length} bytes, more than the {self.size} that snapshots "
                f"of it were given: its state has grown. Make the oracle with max_snapshot_bytes={2 * length}."
            )
        content = len(packed).to_bytes(self._header, "little") + packed
        return np.frombuffer(content.ljust(self.size, b"\0"), np.uint8).copy()

    def load(self, found: list[gym.Env], snapshot: np.ndarray) -> None:
        content = snapshot.tobytes()
        length = int.from_bytes(content[: self._header], "little")
        try:
            plain = zlib.decompressobj(zdict=self._reference).decompress(content[self._header : self._header + length])
        except zlib.error as error:
            raise ValueError(
                f"This is not a snapshot of {found[0]} that this oracle made ({error}). Snapshots are read by the oracle that "
                "made them, or by one that was given its extra_state (as when an agent is loaded)."
            ) from error
        for layer, attributes in zip(found, _Unpickler(plain, found).load(), strict=True):
            for name in self._state(layer):
                del layer.__dict__[name]
            layer.__dict__.update(attributes)

    def extra_state(self) -> dict[str, Any]:
        reference = th.from_numpy(np.frombuffer(self._reference, np.uint8).copy())
        return {"reference": reference, "size": self.size}

    def load_extra_state(self, extra: Mapping[str, Any]) -> None:
        self._reference, self.size = extra["reference"].cpu().numpy().tobytes(), extra["size"]

    def _longest(self, env: gym.Env) -> int:
        lengths = []
        actions = _action_source(env)
        for seed in range(4):
            env.reset(seed=seed)
            for _ in range(8):
                lengths.append(self._header + len(self._compress(effective_stack(env))))
                if env.step(actions.sample())[2]:
                    break
        return max(lengths)

    def _state(self, layer: gym.Env) -> dict[str, Any]:
        return {
            name: value
            for name, value in vars(layer).items()
            if name not in self._not_state and not isinstance(value, types.FunctionType)
        }

    def _dump(self, found: list[gym.Env]) -> bytes:
        file = io.BytesIO()
        try:
            _Pickler(file, found).dump([self._state(layer) for layer in found])
        except Exception as error:  # whatever an attribute's own __reduce__ raises
            raise PicklingFailedError(f"{type(error).__name__}: {error}") from error
        return file.getvalue()

    def _compress(self, found: list[gym.Env]) -> bytes:
        compressor = zlib.compressobj(zdict=self._reference)
        return compressor.compress(self._dump(found)) + compressor.flush()


class _Pickler(pickle.Pickler):
    """Attributes may refer to their environment, which is not copied with them."""

    def __init__(self, file: io.BytesIO, found: list[gym.Env]) -> None:
        super().__init__(file, protocol=5)
        self._indices = {id(layer): index for index, layer in enumerate(found)}

    def persistent_id(self, obj: Any) -> int | None:
        return self._indices.get(id(obj))


class _Unpickler(pickle.Unpickler):
    def __init__(self, content: bytes, found: list[gym.Env]) -> None:
        super().__init__(io.BytesIO(content))
        self._found = found

    def persistent_load(self, index: int) -> gym.Env:
        return self._found[index]


def _action_source(env: gym.Env) -> gym.Space:
    space = copy.deepcopy(env.action_space)
    space.seed(0)
    return space


def _difference(snapshots: Snapshots, env: gym.Env) -> str | None:
    """
    Play a few steps, disturb the environment, go back to the snapshot and play them again.

    :return: what differed, in words; ``None`` when nothing did
    """
    found, actions = effective_stack(env), _action_source(env)
    for seed in range(2):
        env.reset(seed=seed)
        for _ in range(3):
            if env.step(actions.sample())[2]:
                env.reset()
        snapshot, played = snapshots.save(found), []
        for _ in range(8):
            action = actions.sample()
            played.append((action, copy.deepcopy(env.step(action)[:3])))
            if played[-1][1][2]:
                break
        for number, (action, outcome) in enumerate(played, start=1):
            env.reset(seed=100 + seed)
            env.step(actions.sample())
            snapshots.load(found, snapshot)
            again = env.step(action)[:3]
            snapshot = snapshots.save(found)
            for what, first, second in zip(("observation", "reward", "termination"), outcome, again, strict=True):
                if not data_equivalence(first, second, exact=True):
                    return f"after {number} steps from a restored state the {what} is {second} instead of {first}"
    return None
