"""Rollouts of an agent's plans in its world model, compared with what then happens: the data of ``sb3-mbrl plot plan``."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.vec_env import VecEnv

from sb3_mbrl.checks import whole
from sb3_mbrl.contracts import MissingCapability, Plan, WorldModel
from sb3_mbrl.models.particles import Particles
from sb3_mbrl.spaces import ActionCodec, SpaceCodec, as_stored
from sb3_mbrl.trees import State, batch_size, tree_map, tree_repeat

ChooseAction = Callable[[int, State], th.Tensor]
"""A function from the step of a rollout and ``n`` states to scaled actions ``(n, A)``"""


class Rollouts(NamedTuple):
    """``n`` rollouts of a world model from one state, ``H`` steps each."""

    obs: np.ndarray
    """``(n, H + 1, D)``: encoded observations, the present one first; NaN after a rollout has ended or is not finite"""
    reward: np.ndarray
    """``(n, H)``; NaN likewise"""


class PlanRollouts(NamedTuple):
    """One moment of an episode: what the agent expected of the next steps, and what then happened."""

    step: int
    """The step of the episode, from 0"""
    imagined: Rollouts
    obs: np.ndarray
    """``(h + 1, D)``, ``h <= H``: the real observations, the present one first; fewer if the episode ended earlier"""
    reward: np.ndarray
    """``(h,)``: the real rewards"""
    value: float | None
    """The return that the planner expected of its plan; ``None`` for agents without a planner, or if it gives none"""


@th.no_grad()
def sample_rollouts(
    model: WorldModel,
    state: State,
    act: ChooseAction,
    horizon: int,
    n: int,
    generator: th.Generator | None = None,
    *,
    keep: bool = True,
) -> Rollouts:
    """
    Roll a model out ``n`` times. An ensemble's members are shared out evenly among the rollouts, and each rollout keeps its
    member (trajectory sampling TSinf), so that the spread shows where members disagree. A rollout is over when the probability
    that it has survived falls below one half.

    :param model: a fitted world model with ``decode``
    :param state: the start, one row
    :param act: chooses actions
    :param horizon: the number of steps
    :param n: the number of rollouts
    :param generator: the source of the model's randomness
    :param keep: whether a rollout keeps its member (``False``: it draws one at every step, TS1)
    """
    codec = SpaceCodec(model.observation_space)
    state = tree_repeat(state, n)
    member = th.arange(n, device=model.device) % model.n_choices
    by_member = keep and type(model).member_step is not WorldModel.member_step
    # alive_t = prod_{i < t} (1 - terminated_i): the probability that a rollout has not terminated before step t.
    alive, nan = th.ones(n, device=model.device), th.tensor(float("nan"), device=model.device)
    obs, rewards = [codec.encode(model.decode(state))], []
    for t in range(horizon):
        action = act(t, state)
        if by_member:
            prediction = model.member_step(state, action, member, generator=generator)
        else:
            prediction = model.step(state, action, generator=generator)
        rewards.append(th.where(alive >= 0.5, prediction.reward, nan))
        # `alive` is updated after the observation: the state in which a rollout ends is shown, and nothing after it.
        next_obs = codec.encode(model.decode(prediction.state))
        obs.append(th.where((alive >= 0.5)[:, None], next_obs, nan))
        alive = alive * (1 - prediction.terminated).nan_to_num(0.0)
        state = prediction.state
    both = (th.stack(obs, dim=1), th.stack(rewards, dim=1))
    return Rollouts(*(value.masked_fill(~value.isfinite(), float("nan")).cpu().numpy() for value in both))


def roll_out_plans(
    agent: OffPolicyAlgorithm,
    env: gym.Env,
    *,
    horizon: int | None = None,
    particles: int = 20,
    moments: int = 3,
    every: int | None = None,
    replan: bool = False,
    seed: int = 0,
    on_step: Callable[[], None] | None = None,
) -> list[PlanRollouts]:
    """
    Play one episode; at several moments, imagine the next steps, and compare them with what then happens.

    A planning agent carries each plan out to its end, so imagination and reality see the same actions, and the difference is
    the model's error. With ``replan`` it plans at every step, as it does in training and evaluation, and its changes of plan
    are part of the difference. An agent with a policy follows the policy in imagination as in reality.

    :param agent: an agent with a fitted world model
    :param env: one environment of the kind that the agent was trained in; it is reset and stepped
    :param horizon: the number of steps to look ahead (default: the planner's, or 25)
    :param particles: the number of rollouts per moment
    :param moments: the largest number of moments; there are fewer if the episode ends earlier
    :param every: the number of steps between two moments (default: the horizon)
    :param replan: whether to plan at every step
    :param seed: the seed of the environment and of the rollouts
    :param on_step: a function that is called after every step, to show progress
    :raises ValueError: for an agent without a fitted world model, or numbers below 1
    :raises TypeError: for a ``VecEnv``
    :raises MissingCapability: for a planner without action sequences, or a model that does not decode observations
    """
    player = _make_player(agent, replan)
    horizon = player.horizon if horizon is None else whole("horizon", horizon, 1)
    every = horizon if every is None else whole("every", every, 1)
    particles, moments = whole("particles", particles, 1), whole("moments", moments, 1)
    if isinstance(env, VecEnv):
        raise TypeError("roll_out_plans plays in one environment of Gymnasium, not in a VecEnv: give gymnasium.make(...)")
    generator = th.Generator(device=player.model.device).manual_seed(seed)
    obs, _ = env.reset(seed=seed)
    real_obs, real_rewards = [player.encode(obs)], []
    imagined: list[tuple[int, Rollouts, float | None]] = []
    done, step = False, 0
    last = (moments - 1) * every + horizon
    while not done and step < last:
        if step % every == 0 and len(imagined) < moments:
            imagined.append((step, *player.imagine(obs, horizon, particles, generator)))
        obs, reward, terminated, truncated, _ = env.step(player.act(obs))
        real_obs.append(player.encode(obs))
        real_rewards.append(float(reward))
        done, step = terminated or truncated, step + 1
        if on_step is not None:
            on_step()
    all_obs, all_rewards = np.stack(real_obs), np.asarray(real_rewards)
    return [
        PlanRollouts(at, rollouts, all_obs[at : at + horizon + 1], all_rewards[at : at + horizon], value)
        for at, rollouts, value in imagined
    ]


def coverage(moments: list[PlanRollouts], share: float = 0.9) -> np.ndarray:
    """
    Compute how often reality lies within the central ``share`` of the rollouts, per column of the observation. A calibrated
    model has ``share``, an overconfident one less.

    Deviations of a thousandth of a column's range count as rounding errors: the rollouts of an exact model are all alike, so
    their band has no width.

    :param moments: the result of :func:`roll_out_plans`
    :param share: the share of the rollouts that the band holds
    :return: ``(D,)``; NaN where there is nothing to compare
    """
    inside = []
    slack = 1e-3 * np.ptp(np.concatenate([moment.obs for moment in moments]), axis=0) if moments else 0.0
    for moment in moments:
        steps = len(moment.reward)
        rollouts = moment.imagined.obs[:, 1 : steps + 1]
        complete = np.isfinite(rollouts).all(axis=(0, 2))
        if complete.any():
            low, high = np.quantile(rollouts[:, complete], [(1 - share) / 2, (1 + share) / 2], axis=0)
            real = moment.obs[1:][complete]
            inside.append((low - slack <= real) & (real <= high + slack))
    return np.concatenate(inside).mean(0) if inside else np.full(moments[0].obs.shape[1] if moments else 0, np.nan)


# ------------------------------------------------------------------------------------------------------------------- players


def _make_player(agent: Any, replan: bool) -> "_Player":
    model = getattr(agent, "world_model", None)
    if model is None:
        raise ValueError(f"{type(agent).__name__} has no world model to roll out: give an agent with one, such as MBPO")
    if not model.fitted:
        raise ValueError("the world model has not been fitted yet: train the agent for longer than learning_starts")
    return _PlanPlayer(agent, replan) if getattr(agent, "planner", None) is not None else _PolicyPlayer(agent)


class _Player(ABC):
    """An agent as :func:`roll_out_plans` needs it: it acts in the environment, and imagines what comes next."""

    horizon = 25

    def __init__(self, agent: Any) -> None:
        self.agent, self.model = agent, agent.world_model
        self.codec, self.actions = SpaceCodec(self.model.observation_space), ActionCodec(self.model.action_space)

    def encode(self, obs: Any) -> np.ndarray:
        """Encode one observation of the environment, ``(D,)``."""
        tensors, _ = self.agent.policy.obs_to_tensor(obs)
        return self.codec.encode(as_stored(tensors))[0].cpu().numpy()

    @abstractmethod
    def imagine(self, obs: Any, horizon: int, n: int, generator: th.Generator) -> tuple[Rollouts, float | None]:
        """Roll the next steps out; return the rollouts and the plan's value."""

    @abstractmethod
    def act(self, obs: Any) -> Any:
        """Choose the action to take, in the environment's units."""


class _PolicyPlayer(_Player):
    """An agent with a policy."""

    def imagine(self, obs: Any, horizon: int, n: int, generator: th.Generator) -> tuple[Rollouts, float | None]:
        if self.model.context > 1 or self.model.needs_snapshot:
            raise MissingCapability(
                f"{type(self.model).__name__} cannot be rolled out from one observation: give an agent with a planner, such "
                "as PETS"
            )
        tensors, _ = self.agent.policy.obs_to_tensor(obs)

        def act(step: int, state: State) -> th.Tensor:
            action, _ = self.agent.predict(self._normalize(self._as_env_obs(self.model.decode(state))), deterministic=True)
            return self.actions.from_env(th.as_tensor(action, device=self.model.device))

        return sample_rollouts(self.model, self.model.initial(as_stored(tensors)), act, horizon, n, generator), None

    def act(self, obs: Any) -> Any:
        action = self.agent.predict(self._normalize(obs), deterministic=True)[0]
        return action.item() if isinstance(self.model.action_space, spaces.Discrete) else action

    def _as_env_obs(self, obs: Any) -> Any:
        """Convert decoded observations to the layout of environments, where a ``Discrete`` one has no column axis."""
        space = self.model.observation_space
        if isinstance(space, spaces.Dict):
            return {key: _reshape(obs[key], child) for key, child in space.spaces.items()}
        return _reshape(obs, space)

    def _normalize(self, obs: Any) -> Any:
        vec_normalize = self.agent.get_vec_normalize_env()
        return obs if vec_normalize is None else vec_normalize.normalize_obs(obs)


def _reshape(value: th.Tensor, space: spaces.Space) -> np.ndarray:
    return value.cpu().numpy().reshape(len(value), *(space.shape or ()))


class _PlanPlayer(_Player):
    """An agent with a planner."""

    def __init__(self, agent: Any, replan: bool) -> None:
        super().__init__(agent)
        self.horizon = agent.planner.horizon
        self.replan = replan
        self.state: Any = None
        """The state of the agent's policy"""
        self.queue: list[th.Tensor] = []
        """The actions of the current plan that are still to be taken"""
        self.planned: tuple[th.Tensor, Plan] | None = None
        """The decision of :meth:`imagine`, so that :meth:`act` does not plan for the same observation again"""
        self.planned_at: Any = None
        """The observation of the last plan"""

    def imagine(self, obs: Any, horizon: int, n: int, generator: th.Generator) -> tuple[Rollouts, float | None]:
        self.planned = self._plan(obs)
        plan = self.planned[1]
        if plan.sequence is None:
            raise MissingCapability(f"{type(self.agent.planner).__name__} does not plan a sequence of actions")
        sequence = plan.sequence[0]
        if horizon > len(sequence):
            raise ValueError(
                f"horizon={horizon}: the plans of {type(self.agent.planner).__name__} are {len(sequence)} steps long"
            )
        state = self.state["latent"]
        policy_model = self.agent.policy.world_model
        keep = True
        if isinstance(policy_model, Particles):
            # At the start of a plan all particles are the same state: the first one stands for them.
            state, keep = tree_map(lambda leaf: leaf[:, 0], state["particles"]), policy_model.propagation != "ts1"
        rollouts = sample_rollouts(
            self.model, state, lambda t, rows: sequence[t].expand(batch_size(rows), -1), horizon, n, generator, keep=keep
        )
        if not self.replan:
            self.queue = list(sequence[:, None])
        return rollouts, None if plan.value is None else float(plan.value[0])

    def act(self, obs: Any) -> np.ndarray:
        if self.queue:
            scaled, self.planned = self.queue.pop(0), None
            self._skip_planning(obs, scaled)
        else:
            (scaled, _), self.planned = self.planned or self._plan(obs), None
        return self.agent.policy.in_units(scaled)[0]

    def _plan(self, obs: Any) -> tuple[th.Tensor, Plan]:
        tensors, _ = self.agent.policy.obs_to_tensor(obs)
        first = th.tensor([self.state is None])
        action, self.state, plan = self.agent.policy.act(tensors, self.state, first, deterministic=True)
        self.planned_at = obs
        return action, plan

    def _skip_planning(self, obs: Any, scaled: th.Tensor) -> None:
        """Update the policy's state by a step that was planned before. The next plan begins without a warm start."""
        state = self.state["latent"]
        if obs is not self.planned_at:
            tensors, _ = self.agent.policy.obs_to_tensor(obs)
            state = self.agent.policy.world_model.observe(state, self.state["action"], tensors, th.tensor([False]))
        self.state = {"latent": state, "plan": None, "action": scaled}
