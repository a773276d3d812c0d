"""What an agent expects, held against what then happens: the numbers behind ``sb3-mbrl plot plan``."""

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

Act = Callable[[int, State], th.Tensor]
"""From the step of a rollout and ``n`` states to scaled actions ``(n, A)``"""


class Fan(NamedTuple):
    """``n`` rollouts of a world model from one state, ``H`` steps each."""

    obs: np.ndarray
    """``(n, H + 1, D)``: encoded observations, the present one first; NaN once a rollout has ended or is not finite"""
    reward: np.ndarray
    """``(n, H)``; NaN likewise"""


class Foresight(NamedTuple):
    """One moment of an episode: what was expected of the steps to come, and what they brought."""

    step: int
    """Of the episode, from 0"""
    imagined: Fan
    obs: np.ndarray
    """``(h + 1, D)``, ``h <= H``: what was observed, the present first; shorter where the episode ended"""
    reward: np.ndarray
    """``(h,)``: what was earned"""
    value: float | None
    """What the planner thought its plan worth"""


@th.no_grad()
def fan_out(
    model: WorldModel,
    state: State,
    act: Act,
    horizon: int,
    n: int,
    generator: th.Generator | None = None,
    *,
    keep: bool = True,
) -> Fan:
    """
    Roll a model out ``n`` times. An ensemble's members are dealt out evenly and kept (trajectory sampling TSinf), so that the
    spread shows what they disagree about; a rollout is over when it has probably ended.

    :param model: fitted, with ``decode``
    :param state: one row
    :param act: chooses actions
    :param horizon: steps
    :param n: rollouts
    :param generator: of the model's randomness
    :param keep: whether a rollout keeps its member (``False``: draws one at every step, TS1)
    """
    codec = SpaceCodec(model.observation_space)
    state = tree_repeat(state, n)
    member = th.arange(n, device=model.device) % model.n_choices
    by_member = keep and type(model).member_step is not WorldModel.member_step
    alive, nothing = th.ones(n, device=model.device), th.tensor(float("nan"), device=model.device)
    observed, rewards = [codec.encode(model.decode(state))], []
    for t in range(horizon):
        action = act(t, state)
        if by_member:
            prediction = model.member_step(state, action, member, generator=generator)
        else:
            prediction = model.step(state, action, generator=generator)
        rewards.append(th.where(alive >= 0.5, prediction.reward, nothing))
        # The state in which a rollout ends is still shown, what would follow it is not.
        shown = codec.encode(model.decode(prediction.state))
        observed.append(th.where((alive >= 0.5)[:, None], shown, nothing))
        alive = alive * (1 - prediction.terminated).nan_to_num(0.0)
        state = prediction.state
    both = (th.stack(observed, dim=1), th.stack(rewards, dim=1))
    return Fan(*(value.masked_fill(~value.isfinite(), float("nan")).cpu().numpy() for value in both))


def foresee(
    agent: OffPolicyAlgorithm,
    env: gym.Env,
    *,
    horizon: int | None = None,
    particles: int = 20,
    moments: int = 3,
    every: int | None = None,
    replan: bool = False,
    seed: int = 0,
) -> list[Foresight]:
    """
    Play one episode and hold, at several moments, what the agent expected against what then happened.

    An agent that plans is held to its plans: each is carried out to its end, so imagination and reality see the same actions
    and the difference is the model's error. With ``replan`` it acts as it always does, and its changes of mind are part of the
    difference. An agent with a policy follows that in imagination as in reality.

    :param agent: with a fitted world model
    :param env: one environment of the kind that the agent was trained in; reset here, and stepped
    :param horizon: steps to look ahead (default: the planner's, else 25)
    :param particles: rollouts per moment
    :param moments: how many there are at most, fewer where the episode ends before
    :param every: steps between two moments (default: the horizon)
    :param replan: plan anew at every step
    :param seed: of the environment and of the rollouts
    :raises ValueError: for an agent without a fitted world model, or numbers below 1
    :raises MissingCapability: for a planner that makes no sequence of actions, or a model that does not decode observations
    """
    actor = _actor(agent, replan)
    ahead = actor.horizon if horizon is None else whole("horizon", horizon, 1)
    every = ahead if every is None else whole("every", every, 1)
    particles, moments = whole("particles", particles, 1), whole("moments", moments, 1)
    if isinstance(env, VecEnv):
        raise TypeError("foresee plays in one environment of Gymnasium, not in a VecEnv: give gymnasium.make(...)")
    generator = th.Generator(device=actor.model.device).manual_seed(seed)
    obs, _ = env.reset(seed=seed)
    seen, earned = [actor.columns(obs)], []
    expected: list[tuple[int, Fan, float | None]] = []
    done, step = False, 0
    last = (moments - 1) * every + ahead
    while not done and step < last:
        if step % every == 0 and len(expected) < moments:
            expected.append((step, *actor.expect(obs, ahead, particles, generator)))
        obs, reward, terminated, truncated, _ = env.step(actor.act(obs))
        seen.append(actor.columns(obs))
        earned.append(float(reward))
        done, step = terminated or truncated, step + 1
    truth, rewards = np.stack(seen), np.asarray(earned)
    return [Foresight(at, fan, truth[at : at + ahead + 1], rewards[at : at + ahead], value) for at, fan, value in expected]


def coverage(found: list[Foresight], share: float = 0.9) -> np.ndarray:
    """
    ``(D,)``: how often what happened lies between the imagined quantiles that hold ``share`` of the rollouts; ``share`` for a
    model that knows what it does not know, less for one that is too sure of itself. A thousandth of what a column ranges over
    is rounding, as of exact models, whose rollouts are all alike.
    """
    inside = []
    slack = 1e-3 * np.ptp(np.concatenate([one.obs for one in found]), axis=0) if found else 0.0
    for one in found:
        steps = len(one.reward)
        rollouts = one.imagined.obs[:, 1 : steps + 1]
        there = np.isfinite(rollouts).all(axis=(0, 2))
        if there.any():
            low, high = np.quantile(rollouts[:, there], [(1 - share) / 2, (1 + share) / 2], axis=0)
            truth = one.obs[1:][there]
            inside.append((low - slack <= truth) & (truth <= high + slack))
    return np.concatenate(inside).mean(0) if inside else np.full(found[0].obs.shape[1] if found else 0, np.nan)


# -------------------------------------------------------------------------------------------------------------------- actors


def _actor(agent: Any, replan: bool) -> "_Actor":
    model = getattr(agent, "world_model", None)
    if model is None:
        raise ValueError(f"{type(agent).__name__} has no world model, so there is nothing that it expects")
    if not model.fitted:
        raise ValueError("the world model has not been fitted yet: train the agent for longer than learning_starts")
    return _Planning(agent, replan) if getattr(agent, "planner", None) is not None else _Following(agent)


class _Actor(ABC):
    """What :func:`foresee` wants of an agent."""

    horizon = 25

    def __init__(self, agent: Any) -> None:
        self.agent, self.model = agent, agent.world_model
        self.codec, self.actions = SpaceCodec(self.model.observation_space), ActionCodec(self.model.action_space)

    def columns(self, obs: Any) -> np.ndarray:
        """``(D,)``: one observation of the environment, encoded."""
        tensors, _ = self.agent.policy.obs_to_tensor(obs)
        return self.codec.encode(as_stored(tensors))[0].cpu().numpy()

    @abstractmethod
    def expect(self, obs: Any, horizon: int, n: int, generator: th.Generator) -> tuple[Fan, float | None]:
        """What the next steps are thought to bring, and the plan's value."""

    @abstractmethod
    def act(self, obs: Any) -> Any:
        """What is really done, in the environment's units."""


class _Following(_Actor):
    """An agent with a policy."""

    def expect(self, obs: Any, horizon: int, n: int, generator: th.Generator) -> tuple[Fan, float | None]:
        if self.model.context > 1 or self.model.needs_snapshot:
            raise MissingCapability(
                f"{type(self.model).__name__} needs more than one observation to know where it is; look at an agent that plans"
            )
        tensors, _ = self.agent.policy.obs_to_tensor(obs)

        def act(step: int, state: State) -> th.Tensor:
            chosen, _ = self.agent.predict(self._seen(self._as_shown(self.model.decode(state))), deterministic=True)
            return self.actions.from_env(th.as_tensor(chosen, device=self.model.device))

        return fan_out(self.model, self.model.initial(as_stored(tensors)), act, horizon, n, generator), None

    def _as_shown(self, obs: Any) -> Any:
        """As environments show observations: a Discrete one is no column."""
        space = self.model.observation_space
        if isinstance(space, spaces.Dict):
            return {key: _shaped(obs[key], child) for key, child in space.spaces.items()}
        return _shaped(obs, space)

    def act(self, obs: Any) -> Any:
        action = self.agent.predict(self._seen(obs), deterministic=True)[0]
        return action.item() if isinstance(self.model.action_space, spaces.Discrete) else action

    def _seen(self, obs: Any) -> Any:
        normalising = self.agent.get_vec_normalize_env()
        return obs if normalising is None else normalising.normalize_obs(obs)


def _shaped(value: th.Tensor, space: spaces.Space) -> np.ndarray:
    return value.cpu().numpy().reshape(len(value), *(space.shape or ()))


class _Planning(_Actor):
    """An agent with a planner."""

    def __init__(self, agent: Any, replan: bool) -> None:
        super().__init__(agent)
        self.horizon = int(getattr(agent.planner, "horizon", super().horizon))
        self.replan = replan
        self.memory: Any = None
        self.queue: list[th.Tensor] = []
        self.ready: tuple[th.Tensor, Plan] | None = None
        self.seen_at: Any = None

    def expect(self, obs: Any, horizon: int, n: int, generator: th.Generator) -> tuple[Fan, float | None]:
        self.ready = self._plan(obs)
        plan = self.ready[1]
        if plan.sequence is None:
            raise MissingCapability(f"{type(self.agent.planner).__name__} does not plan a sequence of actions")
        sequence = plan.sequence[0]
        if horizon > len(sequence):
            raise ValueError(
                f"horizon={horizon}: the plans of {type(self.agent.planner).__name__} are {len(sequence)} steps long"
            )
        belief = self.memory["belief"]
        seen_by = self.agent.policy.world_model
        keep = True
        if isinstance(seen_by, Particles):
            belief, keep = tree_map(lambda leaf: leaf[:, 0], belief["particles"]), seen_by.propagation != "ts1"
        fan = fan_out(
            self.model, belief, lambda t, state: sequence[t].expand(batch_size(state), -1), horizon, n, generator, keep=keep
        )
        if not self.replan:
            self.queue = list(sequence[:, None])
        return fan, None if plan.value is None else float(plan.value[0])

    def act(self, obs: Any) -> np.ndarray:
        if self.queue:
            scaled, self.ready = self.queue.pop(0), None
            self._remember(obs, scaled)
        else:
            (scaled, _), self.ready = self.ready or self._plan(obs), None
        return self.agent.policy.in_units(scaled)[0]

    def _plan(self, obs: Any) -> tuple[th.Tensor, Plan]:
        tensors, _ = self.agent.policy.obs_to_tensor(obs)
        first = th.tensor([self.memory is None])
        action, self.memory, plan = self.agent.policy.act(tensors, self.memory, first, deterministic=True)
        self.seen_at = obs
        return action, plan

    def _remember(self, obs: Any, scaled: th.Tensor) -> None:
        """What a model with a memory has to know of a step planned before; the next plan has no warm start."""
        belief = self.memory["belief"]
        if obs is not self.seen_at:
            tensors, _ = self.agent.policy.obs_to_tensor(obs)
            belief = self.agent.policy.world_model.observe(belief, self.memory["action"], tensors, th.tensor([False]))
        self.memory = {"belief": belief, "plan": None, "action": scaled}
