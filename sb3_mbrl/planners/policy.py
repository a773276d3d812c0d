"""``PlannerPolicy``: an SB3 policy that plans at every decision."""

from collections.abc import Callable
from typing import Any, TypedDict

import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import BasePolicy, ContinuousCritic
from stable_baselines3.common.type_aliases import PyTorchObs
from stable_baselines3.dqn.policies import QNetwork

from sb3_mbrl.contracts import Plan, Planner, WorldModel
from sb3_mbrl.imagination.exploration import random_actions
from sb3_mbrl.models.particles import Particles
from sb3_mbrl.planners.rollout import Prior, StateValue
from sb3_mbrl.policies import RememberingPolicy
from sb3_mbrl.rng import RandomStream
from sb3_mbrl.spaces import ActionCodec
from sb3_mbrl.states import State, batch_size, state_map, state_where


class Memory(TypedDict):
    """What is carried from one decision to the next, one row per environment. It belongs to whoever calls ``predict``."""

    belief: State
    """Where the environment is, in the world model's terms"""
    plan: State
    """The planner's warm start"""
    action: th.Tensor
    """``(B, A)``: what was done, scaled"""


class PlannerPolicy(RememberingPolicy):
    """
    Acts by planning in a world model (model-predictive control). ``predict`` works as of any policy of SB3, in
    ``evaluate_policy`` too; give its second result back as ``state``, and the next plan starts from the last one.

    A trained agent plans at decision time by its own policy and critic::

        PlannerPolicy(CEM(env.action_space), agent.world_model, prior=agent.policy, value=agent.critic)

    :param planner: chooses actions
    :param world_model: fitted; a :class:`~sb3_mbrl.models.particles.Particles` for one that is uncertain
    :param prior: suggests actions: a policy of SB3 that acts on the model's observations, or a function from states to scaled
        actions ``(B, A)``
    :param value: of the last state of a plan: a critic of SB3 (the smallest of its values; of the prior's action), a
        :class:`~stable_baselines3.dqn.policies.QNetwork` (its largest value), or a function from states to ``(B,)``
    :param seed: of the private random stream; acting draws from no other
    :raises ValueError: for a critic without a prior
    """

    def __init__(
        self,
        planner: Planner,
        world_model: WorldModel,
        prior: BasePolicy | Prior | None = None,
        value: ContinuousCritic | QNetwork | StateValue | None = None,
        *,
        seed: int | None = None,
    ) -> None:
        super().__init__(
            world_model.observation_space, world_model.action_space, squash_output=_scaled(world_model.action_space)
        )
        self.attach(planner, world_model, prior, value)
        self.set_seed(seed)

    def attach(self, planner: Planner, world_model: WorldModel, prior: Any = None, value: Any = None) -> None:
        """Plan with these from now on."""
        # In a tuple: the model's weights are its owner's to save.
        self._parts = (planner, world_model, as_prior(prior, world_model), as_value(value, prior, world_model))
        self._codec = ActionCodec(self.action_space)

    @property
    def planner(self) -> Planner:
        return self._parts[0]

    @property
    def world_model(self) -> WorldModel:
        return self._parts[1]

    @th.no_grad()
    def act(
        self,
        obs: PyTorchObs,
        memory: Memory | None,
        is_first: th.Tensor,
        *,
        deterministic: bool = False,
        generator: th.Generator | None = None,
    ) -> tuple[th.Tensor, Memory | None, Plan]:
        """
        Before the model is fitted there is nothing to plan with: actions are random.

        :param obs: raw, ``(B, ...)``
        :param memory: of the last call, or ``None``
        :param is_first: ``(B,)``: where an episode begins
        :return: scaled actions ``(B, A)``, the memory for the next call, and the plan
        """
        if generator is None:
            # Priors and critics of SB3 draw from torch's global stream.
            stream = RandomStream.of(self.generator)
            with stream.scope(self.world_model.device):
                return self.act(obs, memory, is_first, deterministic=deterministic, generator=self.generator)
        planner, model, prior, value = self._parts
        if not model.fitted:
            chance = Plan(random_actions(self.action_space, len(is_first), generator, model.device), carry=None)
            return chance.action, None, chance
        belief = model.initial(obs)
        if memory is not None and batch_size(memory["belief"]) == len(is_first):
            seen = model.observe(memory["belief"], memory["action"], obs, is_first)
            belief = state_where(is_first.to(model.device), belief, seen)
        elif memory is not None:
            raise ValueError(
                f"state is of {batch_size(memory['belief'])} environments, and there are {len(is_first)} observations"
            )
        carry = None if memory is None else memory["plan"]
        plan = planner.plan(
            model,
            belief,
            carry,
            is_first=is_first if memory is not None else th.ones_like(is_first),
            prior=prior,
            value=value,
            deterministic=deterministic,
            generator=generator,
        )
        return plan.action, {"belief": belief, "plan": plan.carry, "action": plan.action}, plan

    def decide(
        self, obs: PyTorchObs, memory: Any, is_first: th.Tensor, *, deterministic: bool = False
    ) -> tuple[th.Tensor, Memory | None]:
        scaled, memory, _ = self.act(obs, memory, is_first, deterministic=deterministic)
        return scaled, memory


class AgentPlannerPolicy(PlannerPolicy):
    """Built by SB3 before there is anything to plan with; the agent attaches it."""

    def __init__(self, observation_space: spaces.Space, action_space: spaces.Space, lr_schedule: Any = None) -> None:
        BasePolicy.__init__(self, observation_space, action_space, squash_output=_scaled(action_space))
        self._codec = ActionCodec(action_space)
        self.set_seed(None)


def _scaled(action_space: spaces.Space) -> bool:
    return isinstance(action_space, spaces.Box)


def as_prior(prior: BasePolicy | Prior | None, model: WorldModel, deterministic: bool = False) -> Prior | None:
    """
    A policy of SB3 as a function of the model's states, to scaled actions. It sees observations as the model decodes them: one
    that was trained behind ``VecNormalize`` has to be given as a function that normalises them.
    """
    if not isinstance(prior, BasePolicy):
        if prior is None or not isinstance(model, Particles):
            return prior
        # As a value does, it sees the states of the model itself.
        return lambda state: prior(state_map(lambda leaf: leaf[:, 0], state["particles"]))

    codec = ActionCodec(model.action_space)
    in_units = isinstance(model.action_space, spaces.Box) and not prior.squash_output

    def act(state: State) -> th.Tensor:
        action = prior._predict(model.decode(state), deterministic=deterministic)
        # Policies that do not squash (PPO's) speak in the environment's units.
        return codec.from_env(action.reshape(len(action), *space.shape)) if in_units else action.reshape(len(action), -1)

    space: Any = model.action_space
    return act


def as_value(value: Any, prior: BasePolicy | Prior | None, model: WorldModel) -> StateValue | None:
    """A critic of SB3 as a function of the model's states; of particles, the mean over those whose episode goes on."""
    if isinstance(model, Particles):
        inner = as_value(value, prior, model.model)
        return None if inner is None else lambda state: model.mean_value(state, inner)
    if isinstance(value, QNetwork):
        return lambda state: value(model.decode(state)).max(1).values
    if not isinstance(value, ContinuousCritic):
        return value
    act: Callable[[State], th.Tensor] | None = as_prior(prior, model, deterministic=True)
    if act is None:
        raise ValueError("A critic judges actions: give the policy that chooses them as prior=, e.g. prior=agent.policy")

    def judge(state: State) -> th.Tensor:
        return th.cat(value(model.decode(state), act(state)), dim=1).min(1).values

    return judge
