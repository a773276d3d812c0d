"""The state of an environment as a row of numbers, so that it can be stored, copied and restored.

Gymnasium cannot save environments. There are four methods here, tried in this order; the first that demonstrably works is
used:

* environments that save themselves: by their methods ``snapshot()`` and ``restore(snapshot)``, in float64;
* MuJoCo: the simulator's integration state, and the positions of bodies and sites, which lag behind it by one inner step;
* classic control: the ``state`` vector;
* any other environment: the attributes of the environment and its wrappers, pickled and compressed.

A method works if an environment that is restored from a snapshot, after other episodes have begun, repeats observations,
rewards and terminations to the last bit, over the first steps of a few episodes. So noise, goals or counters that a snapshot
misses lead to the next method, or to an error, but not to a wrong model.
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
    """A method to save and restore environments of one kind."""

    dtype: ClassVar[type[np.generic]]
    """The type of a snapshot's numbers"""
    size: int
    """``S``, the length of a snapshot"""

    @abstractmethod
    def save(self, stack: list[gym.Env]) -> np.ndarray:
        """
        Return the state of an environment as a snapshot ``(S,)``.

        :param stack: the environment's :func:`~sb3_mbrl.envs.wrappers.effective_stack`
        """

    @abstractmethod
    def load(self, stack: list[gym.Env], snapshot: np.ndarray) -> None:
        """
        Restore an environment from a snapshot.

        :param stack: the environment's :func:`~sb3_mbrl.envs.wrappers.effective_stack`
        :param snapshot: ``(S,)``
        """

    def extra_state(self) -> dict[str, Any]:
        """Return what another process needs to read these snapshots: JSON values and tensors."""
        return {}

    def load_extra_state(self, extra: Mapping[str, Any]) -> None:  # noqa: B027 (most have nothing to restore)
        """Restore the result of :meth:`extra_state`."""


def snapshots_of(env: gym.Env, *, max_bytes: int | None = None) -> Snapshots:
    """
    Choose the method to save and restore an environment.

    :param env: a private environment without neutral wrappers; it is reset and stepped to try the methods
    :param max_bytes: the length of snapshots of a pickled environment (``None``: measured)
    :return: the first method that works
    :raises ValueError: if none works, with the reason for each
    """
    reasons = []
    cause: Exception | None = None
    for kind in (OwnSnapshots, MujocoSnapshots, ClassicControlSnapshots, PickledSnapshots):
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


class OwnSnapshots(Snapshots):
    """What an environment without wrappers returns from its own ``snapshot()``, in float64."""

    dtype = np.float64

    def __init__(self, env: gym.Env) -> None:
        env.reset(seed=0)
        self.size = len(self.save([env]))

    @staticmethod
    def fits(env: gym.Env) -> bool:
        """Whether the environment has ``snapshot()`` and ``restore(snapshot)``, and no wrappers, which may have more state"""
        return env is env.unwrapped and hasattr(env, "snapshot") and hasattr(env, "restore")

    def save(self, stack: list[gym.Env]) -> np.ndarray:
        raw: Any = stack[-1]
        return np.asarray(raw.snapshot(), np.float64)

    def load(self, stack: list[gym.Env], snapshot: np.ndarray) -> None:
        raw: Any = stack[-1]
        raw.restore(snapshot)


class MujocoSnapshots(Snapshots):
    """
    MuJoCo's integration state (time, positions, velocities, actuators, warm start, applied forces, ...) in float64.

    Some rewards compare body positions before and after a step. MuJoCo computes these at the beginning of an inner step, so
    those that the environment reads are older than the state; therefore they are saved too.
    """

    dtype = np.float64
    _lagging = ("xpos", "xipos", "site_xpos")

    def __init__(self, env: gym.Env) -> None:
        import mujoco

        self._mujoco: Any = mujoco
        self._signature = mujoco.mjtState.mjSTATE_INTEGRATION
        raw: Any = env.unwrapped
        self._n_state = mujoco.mj_stateSize(raw.model, self._signature)
        self.size = self._n_state + sum(getattr(raw.data, name).size for name in self._lagging)

    @staticmethod
    def fits(env: gym.Env) -> bool:
        """Whether the environment has MuJoCo's ``model`` and ``data``. MuJoCo is not imported for other environments."""
        data_type = getattr(sys.modules.get("mujoco"), "MjData", None)
        return (
            data_type is not None
            and isinstance(getattr(env.unwrapped, "data", None), data_type)
            and hasattr(env.unwrapped, "model")
        )

    def save(self, stack: list[gym.Env]) -> np.ndarray:
        raw: Any = stack[-1]
        state = np.empty(self._mujoco.mj_stateSize(raw.model, self._signature))
        self._mujoco.mj_getState(raw.model, raw.data, state, self._signature)
        return np.concatenate([state, *(getattr(raw.data, name).ravel() for name in self._lagging)])

    def load(self, stack: list[gym.Env], snapshot: np.ndarray) -> None:
        raw: Any = stack[-1]
        state, rest = np.split(snapshot, [self._n_state])
        self._mujoco.mj_setState(raw.model, raw.data, state, self._signature)
        self._mujoco.mj_forward(raw.model, raw.data)  # computes everything that is derived from the state
        self._mujoco.mj_setState(raw.model, raw.data, state, self._signature)  # forward() may move the solver's warm start
        for name in self._lagging:
            array = getattr(raw.data, name)
            values, rest = np.split(rest, [array.size])
            array[:] = values.reshape(array.shape)


class ClassicControlSnapshots(Snapshots):
    """The ``state`` vector, the counter of steps after termination (-1: none), and the item size of ``state``, in float64."""

    dtype = np.float64

    def __init__(self, env: gym.Env) -> None:
        env.reset(seed=0)
        self.size = len(self.save([env.unwrapped]))

    @staticmethod
    def fits(env: gym.Env) -> bool:
        """Whether this is one of Gymnasium's own classic control environments (a subclass may have more state)."""
        return type(env.unwrapped).__module__.startswith("gymnasium.envs.classic_control.")

    def save(self, stack: list[gym.Env]) -> np.ndarray:
        raw: Any = stack[-1]
        if raw.state is None:
            raise ValueError(f"{raw} has no state before its first reset(): capture it after that")
        beyond = getattr(raw, "steps_beyond_terminated", None)
        state = np.asarray(raw.state)
        return np.array([*state, -1 if beyond is None else beyond, state.dtype.itemsize], np.float64)

    def load(self, stack: list[gym.Env], snapshot: np.ndarray) -> None:
        raw: Any = stack[-1]
        *state, beyond, itemsize = snapshot.tolist()
        raw.state = np.array(state, np.dtype(f"f{int(itemsize)}"))
        if hasattr(raw, "steps_beyond_terminated"):
            raw.steps_beyond_terminated = None if beyond < 0 else int(beyond)


class PicklingFailedError(Exception):
    """Raised when an environment cannot be pickled. The message says why."""


class PickledSnapshots(Snapshots):
    """
    Pickled attributes of the environment and its wrappers, with their random generators: bytes, padded to a fixed length.

    Spaces, the specification and functions are not state and are left out. The attributes after a first reset (the reference)
    are the dictionary of the compression, so that only changes take space. A snapshot is its length in 4 bytes, the compressed
    pickle, and zeros.

    :param env: a private environment
    :param max_bytes: the fixed length (``None``: twice the length of the longest snapshot in a few short episodes)
    :raises PicklingFailedError: if an attribute cannot be pickled
    """

    dtype = np.uint8
    _not_state = frozenset(
        {"env", "spec", "action_space", "observation_space", "metadata", "render_mode"}
        | {"_action_space", "_observation_space", "_metadata", "_cached_spec"}
    )
    _header = 4

    def __init__(self, env: gym.Env, max_bytes: int | None = None) -> None:
        stack = effective_stack(env)
        env.reset(seed=0)
        self._reference = self._dump(stack)
        self.size = max_bytes or 2 * self._longest(env)

    @staticmethod
    def fits(env: gym.Env) -> bool:
        """Always: whether it can be pickled turns out in the constructor."""
        return True

    def save(self, stack: list[gym.Env]) -> np.ndarray:
        packed = self._compress(stack)
        length = self._header + len(packed)
        if length > self.size:
            raise ValueError(
                f"A snapshot of {stack[0]} takes {length} bytes, and snapshots of it have {self.size}: "
                f"its state has grown. Make the oracle with max_snapshot_bytes={2 * length}."
            )
        content = len(packed).to_bytes(self._header, "little") + packed
        return np.frombuffer(content.ljust(self.size, b"\0"), np.uint8).copy()

    def load(self, stack: list[gym.Env], snapshot: np.ndarray) -> None:
        content = snapshot.tobytes()
        length = int.from_bytes(content[: self._header], "little")
        try:
            plain = zlib.decompressobj(zdict=self._reference).decompress(content[self._header : self._header + length])
        except zlib.error as error:
            raise ValueError(
                f"This is not a snapshot of {stack[0]} that this oracle made ({error}). Snapshots are read by the oracle that "
                "made them, or by one that was given its extra_state (as when an agent is loaded)."
            ) from error
        for layer, attributes in zip(stack, _Unpickler(plain, stack).load(), strict=True):
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

    def _dump(self, stack: list[gym.Env]) -> bytes:
        file = io.BytesIO()
        try:
            _Pickler(file, stack).dump([self._state(layer) for layer in stack])
        except Exception as error:  # whatever an attribute's own __reduce__ raises
            raise PicklingFailedError(f"{type(error).__name__}: {error}") from error
        return file.getvalue()

    def _compress(self, stack: list[gym.Env]) -> bytes:
        compressor = zlib.compressobj(zdict=self._reference)
        return compressor.compress(self._dump(stack)) + compressor.flush()


class _Pickler(pickle.Pickler):
    """A pickler for attributes that may refer to their environment, which is not pickled with them."""

    def __init__(self, file: io.BytesIO, stack: list[gym.Env]) -> None:
        super().__init__(file, protocol=5)
        self._indices = {id(layer): index for index, layer in enumerate(stack)}

    def persistent_id(self, obj: Any) -> int | None:
        return self._indices.get(id(obj))


class _Unpickler(pickle.Unpickler):
    """The counterpart of :class:`_Pickler`, which lets attributes refer to the environments of a stack."""

    def __init__(self, content: bytes, stack: list[gym.Env]) -> None:
        super().__init__(io.BytesIO(content))
        self._stack = stack

    def persistent_load(self, index: int) -> gym.Env:
        return self._stack[index]


def _action_source(env: gym.Env) -> gym.Space:
    space = copy.deepcopy(env.action_space)
    space.seed(0)
    return space


def _difference(snapshots: Snapshots, env: gym.Env) -> str | None:
    """
    Play a few steps, disturb the environment, restore the snapshot and play the steps again.

    :return: the first difference, in words; ``None`` if there is none
    """
    stack, actions = effective_stack(env), _action_source(env)
    for seed in range(2):
        env.reset(seed=seed)
        for _ in range(3):
            if env.step(actions.sample())[2]:
                env.reset()
        snapshot, played = snapshots.save(stack), []
        for _ in range(8):
            action = actions.sample()
            played.append((action, copy.deepcopy(env.step(action)[:3])))
            if played[-1][1][2]:
                break
        for number, (action, outcome) in enumerate(played, start=1):
            env.reset(seed=100 + seed)
            env.step(actions.sample())
            snapshots.load(stack, snapshot)
            again = env.step(action)[:3]
            snapshot = snapshots.save(stack)
            for name, first, second in zip(("observation", "reward", "termination"), outcome, again, strict=True):
                if not data_equivalence(first, second, exact=True):
                    return f"after {number} steps from a restored state the {name} is {second} instead of {first}"
    return None
