"""A world model as an environment, in which any SB3 algorithm can train.

::

    data = ReplayData(agent.replay_buffer)
    fit_world_model(world_model, data)
    env = ModelVecEnv(world_model, agent.replay_buffer, n_envs=16, horizon=50)
    PPO("MlpPolicy", VecMonitor(env)).learn(10_000)

Nothing here counts as a step of the real environment.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, cast

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvObs, VecEnvStepReturn

from sb3_mbrl.buffers import ReplayData
from sb3_mbrl.checks import whole
from sb3_mbrl.contracts import Data, MissingCapability, Obs, WorldModel
from sb3_mbrl.imagination.starts import StartStates, buffer_starts, observation_starts
from sb3_mbrl.rng import RandomStream
from sb3_mbrl.spaces import ActionCodec, outside
from sb3_mbrl.trees import State, batch_size, finite_rows, tree_cat, tree_index, tree_where

Starts = ReplayBuffer | Data | StartStates | np.ndarray | th.Tensor | Mapping[str, np.ndarray | th.Tensor]
"""The types of ``starts``"""

ActionMasks = Callable[[VecEnvObs], np.ndarray]
"""``action_masks(observations)``: which actions are allowed, ``(n_envs, n_actions)`` booleans"""


class ModelVecEnv(VecEnv):
    """
    A fitted world model as an SB3 ``VecEnv``. All environments are rows of one batch.

    * Episodes that the model does not terminate are truncated after ``horizon`` steps, in SB3's way:
      ``infos[i]["TimeLimit.truncated"]`` is true and ``infos[i]["terminal_observation"]`` is the last observation, so that
      value targets bootstrap.
    * A prediction that is not finite is never shown to the learner: the episode is truncated there, with reward 0 and the last
      finite observation as ``terminal_observation``. Such rows have ``infos[i]["imagination_nonfinite"]`` = 1 and are counted
      in :attr:`nonfinite`.
    * A ``VecEnv`` has no place for the discount that some models predict. It is reported as ``infos[i]["discount"]``, and the
      learner uses rewards and terminations as in any environment. A *negative* discount (the other player moves next) changes
      the meaning of rewards, so such a model is refused at its first step: it needs a planner that uses discounts.
    * Starts, predictions and terminations are drawn from a private random stream; those of torch, NumPy and Python are not
      touched. As in SB3, a seed takes effect at the next ``reset``. The batch shares one stream, so a run depends on
      ``n_envs``.

    The model is used in evaluation mode, and not changed. For statistics of imagined episodes wrap this environment in SB3's
    ``VecMonitor``.

    :param world_model: a fitted (or known) world model
    :param starts: the source of start states: an SB3 replay buffer (or a view on one), observations as SB3's buffers store
        them, or a function ``starts(n, generator) -> State``
    :param n_envs: the number of environments
    :param horizon: the number of steps after which an episode is truncated (default: SimPLe's 50); the attribute may be
        changed between steps
    :param observation: ``"decoded"``: observations of the real environment's space; ``"features"``: the model's features,
        ``Box(F,)``
    :param deterministic: whether to use the model's mean (or mode) instead of samples; an episode then terminates when the
        probability of termination is above one half
    :param action_masks: the actions that are allowed, as a function of the observations ``(n_envs, ...)`` that are shown to
        the learner: booleans ``(n_envs, n_actions)``, true where an action is allowed. With it, MaskablePPO of sb3-contrib can
        train here. Columns are as it has them: ``n`` for ``Discrete``, ``sum(nvec)`` for ``MultiDiscrete``, two (off, on) for
        each bit of ``MultiBinary``
    :param seed: the seed of the private random stream (``None``: from the operating system)
    :raises ValueError: for a model that is not fitted, impossible numbers, or starts that do not fit the model
    :raises MissingCapability: for a model that cannot decode with ``observation="decoded"``
    """

    render_mode: str | None = None
    _actions: th.Tensor
    _state: State
    _obs: Obs

    def __init__(
        self,
        world_model: WorldModel,
        starts: Starts,
        n_envs: int = 1,
        horizon: int = 50,
        observation: Literal["decoded", "features"] = "decoded",
        *,
        deterministic: bool = False,
        seed: int | None = None,
        action_masks: ActionMasks | None = None,
    ) -> None:
        n_envs, horizon = whole("n_envs", n_envs, 1), whole("horizon", horizon, 1)
        if not isinstance(world_model, WorldModel):
            raise TypeError(
                f"ModelVecEnv({world_model!r}, ...): give a fitted world model, such as agent.world_model of a trained agent"
            )
        if observation not in ("decoded", "features"):
            raise ValueError(f"ModelVecEnv(observation={observation!r}): choose 'decoded' or 'features'")
        if not world_model.fitted:
            raise ValueError(
                f"ModelVecEnv: {type(world_model).__name__} has not been fitted. "
                "Call fit_world_model(world_model, ReplayData(replay_buffer)) of sb3_mbrl.fitting first, or load a fitted one."
            )
        self.world_model = world_model
        self.horizon = horizon
        self.observation = observation
        self.deterministic = deterministic
        self._action_masks = action_masks
        self._mask_sizes = () if action_masks is None else _mask_sizes(world_model.action_space)
        if action_masks is not None and not callable(action_masks):
            raise TypeError(f"ModelVecEnv(action_masks={action_masks!r}): give a function from observations to masks")
        self.nonfinite = 0
        """The number of predictions so far that were not finite"""
        self._starts = _as_start_states(world_model, starts)
        self._codec = ActionCodec(world_model.action_space)
        self._random = RandomStream(seed)
        self._steps = np.zeros(n_envs, dtype=np.int64)
        self._started = False
        super().__init__(n_envs, self._find_observation_space(), world_model.action_space)
        if seed is not None:
            self.seed(seed)

    def _find_observation_space(self) -> spaces.Space:
        """Find the observation space. One start state is drawn, so that parts that do not fit together fail early."""
        with th.no_grad(), _evaluating(self.world_model):
            state = self._draw_starts(1)
            if self.observation == "features":
                return spaces.Box(-np.inf, np.inf, (self.world_model.features(state).shape[1],), np.float32)
            try:
                self.world_model.decode(state)
            except MissingCapability as error:
                raise MissingCapability(
                    f"ModelVecEnv(observation='decoded') shows observations, which {type(self.world_model).__name__} does not "
                    "decode. Use observation='features', or a model that decodes, such as 'ensemble'."
                ) from error
        return self.world_model.observation_space

    # ---- VecEnv

    def seed(self, seed: int | None = None) -> Sequence[int | None]:
        """
        Seed the private random stream at the next ``reset``.

        :param seed: the seed (``None``: one from the operating system)
        """
        return super().seed(int(np.random.SeedSequence().generate_state(1)[0]) if seed is None else seed)

    def reset(self) -> VecEnvObs:
        if any(self._options):
            raise ValueError(f"ModelVecEnv takes no reset options, got {self._options}")
        if self._seeds[0] is not None:
            self._random = RandomStream(self._seeds[0])
        self._reset_seeds()
        with th.no_grad(), _evaluating(self.world_model):
            self._state = self._draw_starts(self.num_envs)
            self._obs = self._observe(self._state)
        self._steps[:] = 0
        self._started = True
        self.reset_infos = [{} for _ in range(self.num_envs)]
        return _members(self.observation_space, self._obs)

    def step_async(self, actions: np.ndarray) -> None:
        if not self._started:
            raise RuntimeError("ModelVecEnv: call reset() before step()")
        dtype = th.float32 if self._codec.continuous else th.int64
        action = th.as_tensor(np.asarray(actions), dtype=dtype, device=self.world_model.device)
        expected = (self.num_envs, *(self.action_space.shape or ()))
        if tuple(action.shape) != expected:
            raise ValueError(f"ModelVecEnv: expected actions of shape {expected}, got {tuple(action.shape)}")
        if not action.isfinite().all():
            raise ValueError("ModelVecEnv: an action is not finite")
        if (wrong := outside(self.action_space, np.asarray(actions))).any():
            raise ValueError(f"ModelVecEnv: the action {np.asarray(actions)[wrong][0]} is not in {self.action_space}")
        self._actions = self._codec.from_env(action)

    def step_wait(self) -> VecEnvStepReturn:
        with th.no_grad(), _evaluating(self.world_model):
            prediction = self.world_model.step(
                self._state, self._actions, deterministic=self.deterministic, generator=self._random.generator
            )
            # A row that is not finite keeps its last state and observation, so that there is no NaN from here on.
            finite = finite_rows(prediction)
            self._state = tree_where(finite, prediction.state, self._state)
            obs_now = self._observe(self._state)
            finite = finite & finite_rows(obs_now)
            self._obs = tree_where(finite, obs_now, self._obs)
        reward = th.where(finite, prediction.reward, 0.0).cpu().numpy().astype(np.float32)
        finite, probability = finite.cpu(), prediction.terminated.cpu()
        # Drawn in deterministic mode too, so that both modes advance the stream by the same amount.
        uniform = th.rand(self.num_envs, generator=self._random.generator)
        terminated = (finite & (probability > 0.5 if self.deterministic else uniform < probability)).numpy()
        self._steps += 1
        truncated = ~terminated & ((self._steps >= self.horizon) | ~finite.numpy())
        infos: list[dict[str, Any]] = [{"TimeLimit.truncated": bool(flag)} for flag in truncated]
        self._report(infos, prediction.discount, finite)
        obs = _members(self.observation_space, self._obs)
        done = terminated | truncated
        if done.any():
            for i in np.flatnonzero(done).tolist():
                infos[i]["terminal_observation"] = _row(obs, i)
            self._restart(done)
            obs = _members(self.observation_space, self._obs)
        return obs, reward, done, infos

    def close(self) -> None:
        """Do nothing: the model belongs to the caller."""

    def get_images(self) -> Sequence[np.ndarray | None]:
        return [None] * self.num_envs

    # The environments are rows of one batch and share every attribute.

    def has_attr(self, attr_name: str) -> bool:
        # MaskablePPO asks in this way whether there are masks.
        return hasattr(self, attr_name) and (attr_name != "action_masks" or self._action_masks is not None)

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        if not self.has_attr(attr_name):
            hint = ": give action_masks=..., a function of the observations" if attr_name == "action_masks" else ""
            raise AttributeError(f"ModelVecEnv has no {attr_name!r}{hint}")
        value = getattr(self, attr_name)
        return [value for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        if set(self._get_indices(indices)) != set(range(self.num_envs)):
            raise ValueError(f"ModelVecEnv: its environments share {attr_name!r}, so it cannot be set for {indices} only")
        setattr(self, attr_name, value)

    def env_method(
        self, method_name: str, *method_args: Any, indices: VecEnvIndices = None, **method_kwargs: Any
    ) -> list[Any]:
        """Call a method of this object once, and return its result for every environment; of masks, each its own row."""
        if method_name == "action_masks":
            return list(self.action_masks(*method_args, **method_kwargs)[list(self._get_indices(indices))])
        result = getattr(self, method_name)(*method_args, **method_kwargs)
        return [result for _ in self._get_indices(indices)]

    def env_is_wrapped(self, wrapper_class: type[gym.Wrapper], indices: VecEnvIndices = None) -> list[bool]:
        return [False for _ in self._get_indices(indices)]

    def action_masks(self) -> np.ndarray:
        """
        Compute which actions are allowed in the present observations.

        :return: ``(n_envs, n_actions)`` booleans
        :raises ValueError: without ``action_masks``, before ``reset``, or for masks of another shape or without a choice
        """
        if self._action_masks is None:
            raise ValueError("ModelVecEnv has no action masks: give action_masks=..., a function of the observations")
        if not self._started:
            raise RuntimeError("ModelVecEnv: call reset() before action_masks()")
        masks = np.asarray(self._action_masks(_members(self.observation_space, self._obs)))
        expected = (self.num_envs, sum(self._mask_sizes))
        if masks.shape != expected or not (masks.dtype == bool or np.isin(masks, (0, 1)).all()):
            raise ValueError(
                f"ModelVecEnv: action_masks returned {masks.dtype} of shape {masks.shape}, expected booleans of shape "
                f"{expected}"
            )
        masks = masks.astype(bool)
        # One choice per component: each needs an action that is allowed.
        for part in np.split(masks, np.cumsum(self._mask_sizes)[:-1], axis=1):
            if not part.any(1).all():
                row = int(np.flatnonzero(~part.any(1))[0])
                raise ValueError(f"ModelVecEnv: action_masks allows no action in environment {row}, {masks[row].astype(int)}")
        return masks

    # ---- parts

    def _observe(self, state: State) -> Obs:
        return self.world_model.features(state) if self.observation == "features" else self.world_model.decode(state)

    def _draw_starts(self, n: int) -> State:
        state = self._starts(n, self._random.generator)
        if batch_size(state) != n:
            raise ValueError(f"ModelVecEnv: starts({n}, generator) returned a state of {batch_size(state)} rows")
        if not finite_rows(state).all():
            raise ValueError("ModelVecEnv: a start state is not finite; look for non-finite observations in the real data")
        return state

    def _restart(self, done: np.ndarray) -> None:
        """Replace the rows ``done`` by fresh start states."""
        # Fresh rows are appended to the batch as rows n_envs, n_envs + 1, ...; the index then puts each into its place.
        rows = np.flatnonzero(done)
        index = th.arange(self.num_envs)
        index[rows] = self.num_envs + th.arange(len(rows))
        index = index.to(self.world_model.device)
        with th.no_grad(), _evaluating(self.world_model):
            fresh = self._draw_starts(len(rows))
            self._obs = tree_index(tree_cat([self._obs, self._observe(fresh)]), index)
            self._state = tree_index(tree_cat([self._state, fresh]), index)
        self._steps[done] = 0
        for i in rows:
            self.reset_infos[i] = {}

    def _report(self, infos: list[dict[str, Any]], discount: th.Tensor | None, finite: th.Tensor) -> None:
        """Report in ``infos`` predictions that are not finite, and discounts."""
        for i in (~finite).nonzero().flatten().tolist():
            infos[i]["imagination_nonfinite"] = 1
        self.nonfinite += int((~finite).sum())
        if discount is None:
            return
        if (discount < 0).any():
            raise MissingCapability(
                f"ModelVecEnv: {type(self.world_model).__name__} predicts a negative discount (the other player moves next), "
                "which a VecEnv cannot express: its learner would help the opponent. Use a planner that searches with the "
                "model's discounts."
            )
        for i in finite.nonzero().flatten().tolist():
            infos[i]["discount"] = float(discount[i])


def _as_start_states(world_model: WorldModel, starts: Starts) -> StartStates:
    if isinstance(starts, ReplayBuffer):
        if starts.observation_space != world_model.observation_space or starts.action_space != world_model.action_space:
            raise ValueError(
                f"ModelVecEnv: the replay buffer is for {starts.observation_space} and {starts.action_space}, "
                f"the world model for {world_model.observation_space} and {world_model.action_space}"
            )
        return buffer_starts(world_model, ReplayData(starts))
    if hasattr(starts, "contexts"):
        return buffer_starts(world_model, cast(Data, starts))
    if isinstance(starts, (np.ndarray, th.Tensor, Mapping)):
        return observation_starts(world_model, starts)
    if callable(starts):
        return starts
    raise TypeError(f"ModelVecEnv(starts=...): a replay buffer, observations or a function, not {type(starts).__name__}")


def _mask_sizes(space: spaces.Space) -> tuple[int, ...]:
    """
    Return the number of columns of an action mask for each component of an action, in MaskablePPO's layout.

    :raises ValueError: for actions that are not discrete
    """
    if isinstance(space, spaces.Discrete):
        return (int(space.n),)
    if isinstance(space, spaces.MultiDiscrete):
        return tuple(int(n) for n in space.nvec.flatten())
    if isinstance(space, spaces.MultiBinary):
        return (2,) * int(np.prod(space.shape))
    raise ValueError(f"ModelVecEnv(action_masks=...): the actions {space} cannot be masked; only discrete ones can")


@contextmanager
def _evaluating(world_model: WorldModel) -> Iterator[None]:
    """Put the model into evaluation mode, and afterwards back into the mode that it was in."""
    training = world_model.training
    if training:
        world_model.eval()
    try:
        yield
    finally:
        if training:
            world_model.train()


def _members(space: spaces.Space, obs: Any) -> Any:
    """
    Convert tensors in the layout of replay buffers to valid members of ``space`` in the layout of a ``VecEnv``, as new arrays.
    """
    if isinstance(space, spaces.Dict):
        return {key: _members(child, obs[key]) for key, child in space.spaces.items()}
    assert isinstance(obs, th.Tensor)
    array = obs.cpu().numpy().reshape(len(obs), *(space.shape or ()))
    if isinstance(space, spaces.Box):
        array = np.clip(array, space.low, space.high)
    return array.astype(space.dtype)


def _row(obs: VecEnvObs, index: int) -> Any:
    """Copy the observation of one environment."""
    if isinstance(obs, dict):
        return {key: value[index].copy() for key, value in obs.items()}
    assert isinstance(obs, np.ndarray)
    return obs[index].copy()
