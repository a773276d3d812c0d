"""Steps of the real environment: refusing bad ones, storing data beside them, and ending episodes that were cut off."""

import copy
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3 import HerReplayBuffer
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from sb3_mbrl.agent.objects import AgentObject
from sb3_mbrl.buffers import RowCount, SideStore
from sb3_mbrl.checks import user_stacklevel
from sb3_mbrl.contracts import WorldModel
from sb3_mbrl.spaces import outside


class RealSteps(AgentObject):
    """
    The check of every step of the real environment, and the owner of the replay buffer's side store.

    :param observation_space: the observation space of the environment
    """

    def __init__(self, observation_space: spaces.Space) -> None:
        self.observation_space = observation_space
        self.side: SideStore | None = None
        """Data stored beside the rows of the replay buffer: an oracle's snapshots, replay latents"""
        self.stepping = False
        """Whether the environment has taken a step that is not stored yet, as it has while callbacks run"""
        self._count: RowCount | None = None
        self._next: dict[str, np.ndarray] = {}
        """By name, the values that belong to the next row"""
        self._statistics: dict[str, Any] | None = None
        """The statistics of ``VecNormalize`` after the last good step"""
        self._warned = False
        self._saved_returns: np.ndarray | None = None
        """The discounted returns of the saved run's episodes so far, ``(n_envs,)``"""

    # ---- refusing

    def check(
        self,
        new_obs: Any,
        reward: np.ndarray,
        dones: np.ndarray,
        infos: list[dict[str, Any]],
        normalising: VecNormalize | None,
        num_timesteps: int,
    ) -> None:
        """
        Refuse a step with NaN, infinity, a category outside the space, or rewards that are not one number each.

        :raises ValueError: and puts running statistics back to their values before the step
        """
        self._warn_of_missing_ends(dones, infos)
        fault = fault_of_step(self.observation_space, new_obs, reward, dones, infos)
        if fault is None and normalising is not None:
            # Clipping hides infinity; the original is stored.
            original = normalising.get_original_obs(), normalising.get_original_reward()
            fault = fault_of_step(self.observation_space, *original, dones, [{} for _ in infos])
        if fault is None:
            self.note_statistics(normalising)
            return
        if normalising is not None and self._statistics is not None:
            normalising.__dict__.update(self._statistics)
        raise ValueError(
            f"{fault} at real step {num_timesteps}. The transition was not stored; everything before it is intact, and "
            "the agent can be saved. Mend the environment (stable_baselines3's VecCheckNan finds the action that led there)."
        )

    def _warn_of_missing_ends(self, dones: np.ndarray, infos: list[dict[str, Any]]) -> None:
        """Warn once where the last observation of an episode is missing: the first one of the next is learned instead."""
        if self._warned:
            return
        env = next((env for env in np.flatnonzero(dones) if infos[env].get("terminal_observation") is None), None)
        if env is None:
            return
        self._warned = True
        warnings.warn(
            f"Environment {env} ended an episode without infos[{env}]['terminal_observation'], so the first observation of "
            "its next episode is taken for the last of this one. Vectorised environments of Stable-Baselines3 give it; let "
            "yours (or the wrapper that drops it) give it too.",
            stacklevel=user_stacklevel(),
        )

    def check_reset(self, obs: Any, n_envs: int, num_timesteps: int) -> None:
        """:raises ValueError: for NaN, infinity or a category outside the space in the first observations"""
        nothing = np.zeros(n_envs)
        fault = fault_of_step(self.observation_space, obs, nothing, nothing, [{} for _ in nothing])
        if fault is not None:
            raise ValueError(f"{fault} when it was reset, after {num_timesteps} real steps. Mend the environment.")

    def note_statistics(self, normalising: VecNormalize | None) -> None:
        """Copy the running statistics, so that a refused step leaves no trace in them."""
        if normalising is not None:
            names = ("obs_rms", "ret_rms", "returns")
            kept = {name: copy.deepcopy(vars(normalising)[name]) for name in names if name in vars(normalising)}
            self._statistics = kept

    def counted_once(self, normalising: VecNormalize, last: Any) -> Any:
        """
        After the reset at the beginning of a resumed run: where it gave the observations with which the saved run would have
        continued, these are in the saved statistics already, and the statistics of before the reset are put back.

        :param last: the raw observations that the saved run would have continued with
        :return: the first observations, normalised
        """
        first = normalising.get_original_obs()
        if self._statistics is not None and last is not None and _same(first, last):
            normalising.obs_rms = self._statistics["obs_rms"]
            self.note_statistics(normalising)
        return normalising.normalize_obs(first)

    def continue_returns(self, normalising: VecNormalize) -> None:
        """
        Where a resumed run continues the saved episodes: put back their discounted returns, by which rewards are scaled
        (``VecNormalize`` does not save them).
        """
        if self._saved_returns is not None and len(self._saved_returns) == normalising.num_envs:
            normalising.returns = self._saved_returns

    # ---- counting

    def rows(self, buffer: ReplayBuffer) -> int:
        """Return the number of transitions that a world model can learn from, as asked for after every step."""
        if self._count is None or self._count.buffer is not buffer:
            self._count = RowCount(buffer)
        return self._count()

    # ---- storing beside the replay buffer

    def side_of(self, buffer: ReplayBuffer) -> SideStore:
        """Return the side store of a replay buffer; a new one if the buffer is another one than before."""
        if self.side is None or self.side.buffer is not buffer:
            self.side = SideStore(buffer)
        return self.side

    def keep(self, name: str, value: np.ndarray) -> None:
        """
        Store a value with the next row.

        :param name: the name of the value
        :param value: ``(n_envs, ...)``
        """
        self._next[name] = value

    def store_kept(self, buffer: ReplayBuffer) -> None:
        """Write the kept values beside the row that is about to be added."""
        for name, value in self._next.items():
            self.side_of(buffer).put(name, buffer.pos, value)

    def take_snapshot(self, model: WorldModel, env: VecEnv | None, buffer: ReplayBuffer) -> None:
        """Keep snapshots of the environments for an oracle, with the next row, which starts from them."""
        if model.needs_snapshot and env is not None:
            self.side_of(buffer)
            oracle: Any = model
            self.keep("snapshot", oracle.capture_vec(env).numpy())

    @property
    def were_normalised(self) -> bool:
        """Whether the environments of the loaded run were wrapped in ``VecNormalize``"""
        return self._saved_returns is not None

    # ---- saving

    def state_dict(self) -> dict[str, Any]:
        # Loaded, and saved again before any training: those of the saved run.
        return {"returns": self._saved_returns if self._statistics is None else self._statistics["returns"]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        returns = state["returns"]
        self._saved_returns = None if returns is None else np.asarray(returns, dtype=np.float64)


def cut_off_episodes(buffer: ReplayBuffer) -> None:
    """Mark the newest rows as cut off by a time limit, since the next rows will not follow from them."""
    if buffer.size() == 0:
        return
    newest = (buffer.pos - 1) % buffer.buffer_size
    running = buffer.dones[newest] == 0
    if isinstance(buffer, HerReplayBuffer):
        buffer.truncate_last_trajectory()
    else:
        buffer.dones[newest] = 1
    # Without stored last observations there is nothing to bootstrap from.
    if not buffer.optimize_memory_usage:
        buffer.timeouts[newest] = np.where(running, 1, buffer.timeouts[newest])


# ---- faults of a step


def fault_of_step(
    space: spaces.Space, new_obs: Any, reward: np.ndarray, dones: np.ndarray, infos: list[dict[str, Any]]
) -> str | None:
    """
    Describe the fault of a step of the real environments, or of a reset (given zeros for the rest); ``None`` where all is
    well.

    One bad row would spoil the replay buffer, every fit and every value.

    :param space: the observation space
    :param new_obs: ``(n_envs, ...)``, or a dictionary of these
    :param reward: ``(n_envs,)``
    :param dones: ``(n_envs,)``
    :param infos: one per environment, with the terminal observations
    """
    if np.shape(reward) != (len(infos),):
        return f"The environments returned rewards of the shape {np.shape(reward)}, and not one number each, ({len(infos)},),"
    for env, info in enumerate(infos):
        truncated = info.get("TimeLimit.truncated", False)
        if not isinstance(truncated, (bool, int, float, np.bool_, np.number)):
            return f"Environment {env} returned truncated={truncated!r}, which is neither True nor False,"
    if nonfinite := nonfinite_fault(new_obs, reward, dones, infos):
        return f"Environment {nonfinite[1]} returned NaN or infinity in its {nonfinite[0]}"
    if foreign := outside_fault(space, new_obs, dones, infos):
        name, env, value, child = foreign
        return f"Environment {env} returned the {name} {value}, which is not in {child},"
    return None


def nonfinite_fault(
    new_obs: Any, reward: np.ndarray, dones: np.ndarray, infos: list[dict[str, Any]]
) -> tuple[str, int] | None:
    """Return the name of the first value that is not finite, and its environment; ``None`` if all are finite."""
    for name, value in [*_named("observation", new_obs), ("reward", reward)]:
        if value.dtype.kind == "f" and not _finite(value).all():
            return name, int(np.argmin(_finite(value.reshape(len(value), -1)).all(1)))
    for env in np.flatnonzero(dones):
        terminal = infos[env].get("terminal_observation")
        if terminal is None:
            continue
        for name, value in _named("terminal observation", terminal):
            if not _finite(np.asarray(value)).all():
                return name, int(env)
    return None


def outside_fault(
    space: spaces.Space, new_obs: Any, dones: np.ndarray, infos: list[dict[str, Any]]
) -> tuple[str, int, Any, spaces.Space] | None:
    """Return name, environment, value and space of the first category outside its space; ``None`` if there is none."""
    children = space.spaces.items() if isinstance(space, spaces.Dict) else [(None, space)]
    for key, child in children:
        if not isinstance(child, (spaces.Discrete, spaces.MultiDiscrete)):
            continue
        name = "observation" if key is None else f"observation[{key!r}]"
        values = [(name, env, value) for env, value in enumerate(new_obs if key is None else new_obs[key])]
        for env in np.flatnonzero(dones).tolist():
            terminal = infos[env].get("terminal_observation")
            if terminal is not None:
                values.append((f"terminal {name}", env, terminal if key is None else terminal[key]))
        for what, env, value in values:
            if outside(child, np.asarray(value)[None])[0]:
                return what, env, value, child
    return None


def _finite(value: np.ndarray) -> np.ndarray:
    """Tell which values are finite in float32, as the networks will see them."""
    with np.errstate(over="ignore"):
        return np.isfinite(value.astype(np.float32))


def _same(obs: Any, other: Any) -> bool:
    if isinstance(obs, Mapping):
        return isinstance(other, Mapping) and all(np.array_equal(value, other[key]) for key, value in obs.items())
    return np.array_equal(obs, other)


def _named(name: str, obs: Any) -> list[tuple[str, Any]]:
    if isinstance(obs, Mapping):
        return [(f"{name}[{key!r}]", value) for key, value in obs.items()]
    return [(name, obs)]
