"""The real environment, seen through a world model, to deploy an agent that was trained on features.

::

    dream = ModelVecEnv(world_model, replay_buffer, n_envs=16, observation="features")
    agent = PPO("MlpPolicy", dream).learn(100_000)
    evaluate_policy(agent, LatentVecEnv(make_vec_env("Pendulum-v1"), world_model))
"""

from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs, VecEnvStepReturn

from sb3_mbrl.contracts import Obs, WorldModel
from sb3_mbrl.spaces import ActionCodec, as_stored
from sb3_mbrl.trees import State, tree_index, tree_map


class LatentVecEnv(VecEnvWrapper):
    """
    A wrapper whose observations are a world model's features. The model filters real observations and actions, episode by
    episode; it is not changed.

    :param venv: the real environments, with the model's spaces (images channels first: ``VecTransposeImage``)
    :param world_model: a fitted world model
    :raises ValueError: for other spaces than the model's, or a model that is not fitted or needs snapshots
    """

    def __init__(self, venv: VecEnv, world_model: WorldModel) -> None:
        for name in ("observation_space", "action_space"):
            of_env, of_model = getattr(venv, name), getattr(world_model, name)
            if of_env != of_model:
                raise ValueError(
                    f"LatentVecEnv: the environment's {name} is {of_env}, and the world model's is {of_model}: wrap the "
                    "environment as it was when the model was fitted"
                )
        if not world_model.fitted:
            raise ValueError(f"LatentVecEnv: {type(world_model).__name__} has not been fitted: fit or load it first")
        if world_model.needs_snapshot:
            raise ValueError(f"LatentVecEnv: {type(world_model).__name__} cannot filter observations: it needs snapshots")
        self.world_model = world_model
        self._codec = ActionCodec(venv.action_space)
        self._state: State = None
        self._actions = np.empty(0)
        example = self._features(self._initial(self._sample(venv.observation_space)))
        space = spaces.Box(-np.inf, np.inf, (example.shape[1],), np.float32)
        super().__init__(venv, observation_space=space)

    def reset(self) -> np.ndarray:
        """Reset the environments; return the features of their first observations, ``(n_envs, F)``."""
        self._state = self._initial(self._tensors(self.venv.reset()))
        return self._features(self._state)

    def step_async(self, actions: np.ndarray) -> None:
        self._actions = np.asarray(actions)
        self.venv.step_async(actions)

    def step_wait(self) -> VecEnvStepReturn:
        obs, rewards, dones, infos = self.venv.step_wait()
        action = self._codec.from_env(th.as_tensor(self._actions, device=self.world_model.device))
        for i in np.flatnonzero(dones).tolist():
            self._replace_terminal_observation(i, action, infos[i])
        self._state = self._observe(self._state, action, self._tensors(obs), th.as_tensor(dones, dtype=th.bool))
        return self._features(self._state), rewards, dones, infos

    def _replace_terminal_observation(self, i: int, action: th.Tensor, info: dict[str, Any]) -> None:
        """
        Replace the last observation of an episode by its features. Its state follows from the one before the step; the state
        after it is already that of the next episode.
        """
        row = slice(i, i + 1)
        last = self._tensors(_batch_of_one(info["terminal_observation"]))
        state = self._observe(tree_index(self._state, row), action[row], last, th.zeros(1, dtype=th.bool))
        info["terminal_observation"] = self._features(state)[0]

    # ---- the model, in evaluation mode and without gradients

    @th.no_grad()
    def _initial(self, obs: Obs) -> State:
        return self.world_model.initial(obs)

    @th.no_grad()
    def _observe(self, state: State, action: th.Tensor, obs: Obs, is_first: th.Tensor) -> State:
        return self.world_model.observe(state, action, obs, is_first.to(self.world_model.device))

    @th.no_grad()
    def _features(self, state: State) -> np.ndarray:
        return self.world_model.features(state).float().cpu().numpy()

    def _tensors(self, obs: VecEnvObs) -> Obs:
        arrays: Any = {key: th.as_tensor(value) for key, value in obs.items()} if isinstance(obs, dict) else th.as_tensor(obs)
        return as_stored(tree_map(self._leaf, arrays))

    def _leaf(self, value: th.Tensor) -> th.Tensor:
        value = value.to(self.world_model.device)
        return value.float() if value.is_floating_point() else value

    def _sample(self, space: spaces.Space) -> Obs:
        return self._tensors(_batch_of_one(space.sample()))


def _batch_of_one(obs: Any) -> Any:
    """Add a batch axis to one observation."""
    return {key: np.asarray(value)[None] for key, value in obs.items()} if isinstance(obs, dict) else np.asarray(obs)[None]
