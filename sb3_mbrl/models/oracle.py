"""The true environment as a world model, for planning and imagination without model errors.

It is slow, since environments are stepped one row at a time, and it uses knowledge that a learner does not have. It gives an
upper bound for planners, and the control experiment that tells whether the model's errors are to blame.
"""

import copy
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.preprocessing import is_image_space, is_image_space_channels_first
from stable_baselines3.common.vec_env import VecEnv, VecTransposeImage

from sb3_mbrl.contracts import Obs, Prediction, RewardFn, TerminationFn, UnsupportedSpace, WorldModel
from sb3_mbrl.envs.snapshots import MujocoSnapshots, OwnSnapshots, Snapshots, snapshots_of
from sb3_mbrl.envs.wrappers import effective_stack, is_neutral
from sb3_mbrl.spaces import ActionCodec, torch_dtype
from sb3_mbrl.trees import State, batch_size, tree_map


class OracleModel(WorldModel):
    """
    A world model that steps a private copy of the environment: for every row, the copy is set to the row's state, stepped, and
    read.

    A state is ``{"snapshot": (B, S), "obs": (B, ...), "ended": (B,)}``. Snapshots are made by :meth:`capture` and
    :meth:`capture_vec`. The way to make them is determined, and tested on the environment, when the model is created (see
    :mod:`sb3_mbrl.envs.snapshots`). Rows that have terminated keep their state, with reward 0; rows whose action is not finite
    keep it with reward NaN.

    * Wrappers that change observations, actions, rewards or steps are part of the model. Time limits, monitors and the like
      are not: a rollout is not cut off by a time limit. Wrappers of a ``VecEnv`` are not part of it either, except the
      transposition of images; rewards and observations are raw.
    * If the environment draws random numbers in ``step``, its generator is part of the snapshot: the oracle knows the noise to
      come, which is the same in repeated rows. ``deterministic`` and ``generator`` therefore have no effect.
    * Where the environment has ``action_masks()``, states have ``"mask"`` ``(B, n_actions)`` too: the legal actions.
    * An environment that knows more of itself may have two further methods: ``snapshot_of(obs)``, which finds the snapshot in
      an observation, so that nothing has to be captured; and ``step_many(snapshots, actions)``, which steps all rows in one
      call (:class:`~sb3_mbrl.envs.boards.BoardEnv` has both).
    * Steps have no gradient.

    :param observation_space: the observation space of the real environment
    :param action_space: the action space of the real environment
    :param env: the environment (which is copied and not changed), its id, or a function that makes one; options, physics and
        wrappers are taken from it
    :param reward_fn: a known reward that replaces the environment's
    :param termination_fn: a known termination that replaces the environment's
    :param device: the device of states, as in SB3; the environment itself runs on the CPU
    :param max_snapshot_bytes: the largest size of a snapshot of an environment that has to be pickled (``None``: twice the
        size at the beginnings of a few episodes); the error for larger ones says which size is needed
    :raises UnsupportedSpace: if ``env`` does not have the given spaces
    :raises ValueError: if the state of ``env`` cannot be captured or copied
    """

    fitted = True
    needs_snapshot: ClassVar[bool] = True
    """Whether the agent stores a snapshot with every row of the replay buffer"""

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        *,
        env: gym.Env | str | Callable[[], gym.Env],
        reward_fn: RewardFn | None = None,
        termination_fn: TerminationFn | None = None,
        device: th.device | str = "auto",
        max_snapshot_bytes: int | None = None,
    ) -> None:
        super().__init__(observation_space, action_space, reward_fn=reward_fn, termination_fn=termination_fn, device=device)
        self._env = _private_env(env)
        self._layers = effective_stack(self._env)
        self._transposed = _transposed(self._env.observation_space, observation_space)
        if self._env.action_space != action_space:
            raise UnsupportedSpace(f"The oracle's environment acts in {self._env.action_space}, the agent in {action_space}")
        self._actions = ActionCodec(action_space)
        self._snapshots: Snapshots = snapshots_of(self._env, max_bytes=max_snapshot_bytes)
        own = isinstance(self._snapshots, OwnSnapshots)  # no wrappers, so what the environment says of itself is all there is
        self._snapshot_of: Any = getattr(self._env, "snapshot_of", None) if own else None
        self._step_many: Any = getattr(self._env, "step_many", None) if own else None
        self._has_masks = self._env.has_wrapper_attr("action_masks")

    # ---- snapshots

    @property
    def snapshot_size(self) -> int:
        """The number of columns of a snapshot, ``S``"""
        return self._snapshots.size

    @property
    def snapshot_dtype(self) -> th.dtype:
        """The type of snapshots, which side stores must keep: float64 for numbers, uint8 for pickled environments"""
        return th.float64 if self._snapshots.dtype == np.float64 else th.uint8

    def capture(self, env: gym.Env) -> th.Tensor:
        """
        Make a snapshot of an environment, ``(S,)``.

        :param env: an environment of the same kind as the model's, with the same wrappers; it is only read
        :raises ValueError: for another kind of environment
        """
        wrapped = effective_stack(env)
        if [type(layer) for layer in wrapped] != [type(layer) for layer in self._layers]:
            raise ValueError(f"The oracle is a {_names(self._layers)}, the environment to capture is a {_names(wrapped)}")
        return th.as_tensor(self._snapshots.save(wrapped))

    def capture_vec(self, vec_env: VecEnv) -> th.Tensor:
        """
        Make snapshots of all environments of a ``DummyVecEnv``, with any ``VecEnv`` wrappers around it, ``(n_envs, S)``.

        :raises ValueError: if the environments are in other processes
        """
        envs = getattr(vec_env.unwrapped, "envs", None)
        if envs is None:
            raise ValueError(
                f"The environments of {type(vec_env.unwrapped).__name__} cannot be reached from here, so their states cannot "
                "be captured. Use DummyVecEnv: make_vec_env(..., vec_env_cls=DummyVecEnv), which is its default."
            )
        return th.stack([self.capture(env) for env in envs])

    # ---- the world model

    def initial(self, obs: Obs, snapshot: th.Tensor | None = None) -> State:
        """
        Return the states of environments that were captured when ``obs`` was observed.

        :param obs: ``(B, ...)``
        :param snapshot: ``(B, S)``, from :meth:`capture` or :meth:`capture_vec`; it may be left out where the environment has
            ``snapshot_of``
        :raises ValueError: without snapshots, or for snapshots of another environment
        """
        if snapshot is None and self._snapshot_of is not None:
            rows: Any = tree_map(lambda leaf: leaf.cpu().numpy(), obs)
            snapshot = th.as_tensor(np.stack([self._snapshot_of(row) for row in rows]))
        if snapshot is None:
            raise ValueError(
                "An oracle cannot tell the environment's state from an observation: give snapshot=oracle.capture_vec(vec_env) "
                "(or capture(env)), taken when obs was observed. For rows of a replay buffer, an agent keeps them in its side "
                "store."
            )
        if snapshot.dim() != 2 or snapshot.shape[1] != self.snapshot_size or snapshot.dtype != self.snapshot_dtype:
            raise ValueError(
                f"Snapshots of this environment are (B, {self.snapshot_size}) {self.snapshot_dtype}, "
                f"got {tuple(snapshot.shape)} {snapshot.dtype}"
            )
        state = {
            "snapshot": snapshot.to(self.device),
            "obs": tree_map(lambda leaf: leaf.to(self.device), obs),
            "ended": th.zeros(len(snapshot), dtype=th.bool, device=self.device),
        }
        batch_size(state)
        return self._with_masks(state)

    def step(
        self, state: State, action: th.Tensor, *, deterministic: bool = False, generator: th.Generator | None = None
    ) -> Prediction:
        """Step the true environment in every row that has not terminated; see :meth:`WorldModel.step`."""
        env_action = self._actions.to_env(action.detach())
        snapshot, obs = state["snapshot"].clone(), tree_map(th.clone, state["obs"])
        reward = th.zeros(len(snapshot), device=self.device)
        terminated = state["ended"].clone()
        unknown = ~env_action.flatten(1).isfinite().all(1) & ~terminated
        rows = (~terminated & ~unknown).nonzero()[:, 0]
        step = self._step_each if self._step_many is None else self._step_together
        step(rows, env_action, snapshot, obs, reward, terminated)
        if self.reward_fn is not None:
            reward = self.reward_fn(state["obs"], env_action, obs)
        if self.termination_fn is not None:
            terminated = state["ended"] | self.termination_fn(state["obs"], env_action, obs)
        reward = reward.masked_fill(state["ended"], 0.0).masked_fill(unknown, th.nan)
        following = self._with_masks({"snapshot": snapshot, "obs": obs, "ended": terminated})
        return Prediction(following, reward, terminated.float())

    def _step_each(
        self,
        rows: th.Tensor,
        action: th.Tensor,
        snapshot: th.Tensor,
        obs: State,
        reward: th.Tensor,
        terminated: th.Tensor,
    ) -> None:
        """Step the given rows, one after the other, and write what follows into the tensors."""
        for row in rows.tolist():
            self._snapshots.load(self._layers, snapshot[row].cpu().numpy())
            next_obs, row_reward, ended, _, _ = self._env.step(self._env_units(action[row]))
            snapshot[row] = th.as_tensor(self._snapshots.save(self._layers))
            tree_map(lambda leaf, value, row=row: leaf[row].copy_(value), obs, self._as_sb3(next_obs))
            reward[row], terminated[row] = float(row_reward), bool(ended)

    def _step_together(
        self,
        rows: th.Tensor,
        action: th.Tensor,
        snapshot: th.Tensor,
        obs: State,
        reward: th.Tensor,
        terminated: th.Tensor,
    ) -> None:
        """As :meth:`_step_each`, in one call of the environment."""
        if not len(rows):
            return
        following = self._step_many(snapshot[rows].cpu().numpy(), action[rows, 0].cpu().numpy())
        for whole, part in zip((snapshot, obs, reward, terminated), following, strict=True):
            whole[rows] = th.as_tensor(part).to(whole)

    def _with_masks(self, state: dict[str, Any]) -> State:
        """Add the legal actions, where the environment knows them. Behind the end of an episode all are, since none counts."""
        if not self._has_masks:
            return state
        actions: Any = self.action_space
        masks = np.ones((len(state["ended"]), int(actions.n)), dtype=bool)
        rows = (~state["ended"]).nonzero()[:, 0].cpu().numpy()
        snapshots = state["snapshot"].cpu().numpy()
        if self._step_many is not None:
            masks[rows] = self._env.unwrapped.action_masks_many(snapshots[rows])  # type: ignore[attr-defined]
        else:
            for row in rows:
                self._snapshots.load(self._layers, snapshots[row])
                masks[row] = self._env.get_wrapper_attr("action_masks")()
        return {**state, "mask": th.as_tensor(masks, device=self.device)}

    def decode(self, state: State) -> Obs:
        """Return the environment's observations."""
        return state["obs"]

    def features(self, state: State) -> th.Tensor:
        """Return the flattened observations, ``(B, F)``."""
        return super().features(state["obs"])

    def extra_state(self) -> dict[str, Any]:
        return {**super().extra_state(), "snapshots": self._snapshots.extra_state()}

    def load_extra_state(self, extra: Mapping[str, Any]) -> None:
        super().load_extra_state(extra)
        self._snapshots.load_extra_state(extra["snapshots"])

    # ---- the environment

    def _env_units(self, action: th.Tensor) -> Any:
        """Convert one action to a member of the environment's action space."""
        space, value = self._env.action_space, action.cpu().numpy()
        if isinstance(space, spaces.Discrete):
            return int(value[0])
        if isinstance(space, spaces.Box):
            value = np.clip(value, space.low, space.high)
        return value.astype(space.dtype).reshape(space.shape)

    def _as_sb3(self, obs: Any) -> Obs:
        """Convert one observation to the layout of SB3's replay buffer, without the batch axis."""
        if isinstance(self.observation_space, spaces.Dict):
            return {key: self._leaf(key, child, obs[key]) for key, child in self.observation_space.spaces.items()}
        return self._leaf("", self.observation_space, obs)

    def _leaf(self, key: str, space: spaces.Space, obs: Any) -> th.Tensor:
        array = np.asarray(obs)
        if key in self._transposed:
            array = np.moveaxis(array, -1, 0)
        return th.as_tensor(np.atleast_1d(array).copy()).to(self.device, torch_dtype(space.dtype))  # type: ignore[arg-type]


def _names(wrapped: list[gym.Env]) -> str:
    """Name an environment and its wrappers, for messages."""
    return " of ".join(type(layer).__name__ for layer in wrapped)


def _private_env(env: gym.Env | str | Callable[[], gym.Env]) -> gym.Env:
    """Make or copy the environment, without wrappers that change nothing."""
    if isinstance(env, gym.Env):
        try:
            return _copy(env, {})
        except Exception as error:  # any exception: attributes may define __deepcopy__
            raise ValueError(
                f"{env} cannot be copied for the oracle ({type(error).__name__}: {error}). Give its id or a function that "
                f"makes one: env='{env.spec.id if env.spec else 'Name-v0'}', or env=lambda: MyEnv(...)."
            ) from error
    return _without_neutral(gym.make(env) if isinstance(env, str) else env())


def _without_neutral(env: gym.Env) -> gym.Env:
    """Remove the wrappers that change nothing."""
    if not isinstance(env, gym.Wrapper):
        return env
    inner = _without_neutral(env.env)
    if is_neutral(env):
        return inner
    env.env = inner
    return env


def _copy(env: gym.Env, memo: dict[int, Any]) -> gym.Env:
    """Copy an environment deeply, from the inside out, without neutral wrappers (which may hold open files)."""
    if not isinstance(env, gym.Wrapper):
        made = copy.deepcopy(env, memo)
        _copy_physics(env, made)
        return made
    inner = _copy(env.env, memo)
    memo[id(env.env)] = inner
    return inner if is_neutral(env) else copy.deepcopy(env, memo)


def _copy_physics(env: Any, made: Any) -> None:
    """Copy the physics of a MuJoCo environment: Gymnasium's copy is a new environment with default physics."""
    if MujocoSnapshots.fits(env):
        made.model = copy.deepcopy(env.model)
        made.data = type(env.data)(made.model)


def _transposed(own: spaces.Space, given: spaces.Space) -> frozenset[str]:
    """
    Return the keys of images that SB3 shows channel-first (``""`` for a space that is an image).

    :raises UnsupportedSpace: if the spaces differ in another way
    """
    own_children, children = ({**s.spaces} if isinstance(s, spaces.Dict) else {"": s} for s in (own, given))
    keys = frozenset(key for key, child in children.items() if child != own_children.get(key))
    for key in keys:
        child = own_children.get(key)
        last = isinstance(child, spaces.Box) and is_image_space(child) and not is_image_space_channels_first(child)
        if not last or VecTransposeImage.transpose_space(child) != children[key]:  # type: ignore[arg-type]
            raise UnsupportedSpace(
                f"The oracle's environment shows {own}, the agent sees {given}. Wrappers of a VecEnv (frame stacks, ...) are "
                "not part of an oracle: use Gymnasium's wrappers instead, and give env= with them."
            )
    return keys
