"""``PlannerPolicy``: an SB3 policy that plans at every decision."""

import warnings
from typing import Any, NoReturn, TypedDict

import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import BaseModel, BasePolicy
from stable_baselines3.common.type_aliases import PyTorchObs

from sb3_mbrl.contracts import Plan, Planner, WorldModel
from sb3_mbrl.planners.base import FIXED_SEED, check_action_mask
from sb3_mbrl.planners.priors import as_prior, as_value
from sb3_mbrl.planners.rollout import Prior, StateValue
from sb3_mbrl.policies import StatefulPolicy
from sb3_mbrl.rng import RandomStream
from sb3_mbrl.spaces import ActionCodec, sample_actions
from sb3_mbrl.trees import State, batch_size, describe, tree_map, tree_where


class PlannerState(TypedDict):
    """The policy state of a :class:`PlannerPolicy`, one row per environment. It belongs to the caller of ``predict``."""

    latent: State
    """The state of the world model"""
    plan: State
    """The planner's carry, from which the next plan starts"""
    action: th.Tensor
    """``(B, A)``: the action taken, scaled"""


class PlannerPolicy(StatefulPolicy):
    """
    A policy that acts by planning in a world model (model-predictive control).

    ``predict`` works as that of any SB3 policy, in ``evaluate_policy`` too. Give its second result back as ``state``, and the
    next plan starts from the last one.

    A trained agent can plan with its own policy and critic::

        PlannerPolicy(CEM(env.action_space), agent.world_model, prior=agent.policy, value=agent.critic)

    :param planner: the planner
    :param world_model: a fitted world model; :class:`~sb3_mbrl.models.particles.Particles` of it carry its uncertainty
    :param prior: a policy whose sequences of actions are tried as well: an SB3 policy that acts on the model's observations,
        or a function ``prior(state, generator)`` to scaled actions ``(B, A)``
    :param value: the value function of the last state of a plan: a critic of SB3 or sb3-contrib (at the prior's action), the
        network of a :class:`~stable_baselines3.DQN` (at the best action), or a function from states to ``(B,)``
    :param seed: the seed of the private random stream; acting draws from no other, and with ``deterministic=True`` from none
    :raises ValueError: for parts with different spaces, a critic of actions without a prior, or an oracle, which cannot start
        from an observation
    """

    def __init__(
        self,
        planner: Planner,
        world_model: WorldModel,
        prior: BasePolicy | Prior | None = None,
        value: BaseModel | StateValue | None = None,
        *,
        seed: int | None = None,
    ) -> None:
        super().__init__(
            world_model.observation_space, world_model.action_space, squash_output=_scaled(world_model.action_space)
        )
        self.attach(planner, world_model, prior, value)
        if not world_model.fitted:
            warnings.warn("The world model has not been fitted yet: until it is, actions are random", stacklevel=2)
        self.set_seed(seed)

    def attach(self, planner: Planner, world_model: WorldModel, prior: Any = None, value: Any = None) -> None:
        """Plan with the given parts from now on."""
        if not isinstance(planner, Planner):
            raise TypeError(f"planner={planner!r}: give one of sb3_mbrl.planners, e.g. CEM(env.action_space)")
        if planner.action_space != world_model.action_space:
            raise ValueError(
                f"The planner was built for the actions {planner.action_space}, and the world model's are "
                f"{world_model.action_space}: build the planner for the world model's action space"
            )
        if world_model.needs_snapshot:
            raise ValueError(
                "An oracle starts from a snapshot of the true environment, and a planner has only observations: plan in "
                "a model that is learned ('ensemble'), or in a twin of the environment ('pendulum')"
            )
        # A tuple hides the model from nn.Module: its weights are saved by the agent that owns it, not with this policy.
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
        state: PlannerState | None,
        is_first: th.Tensor,
        *,
        deterministic: bool = False,
        action_mask: th.Tensor | None = None,
        generator: th.Generator | None = None,
    ) -> tuple[th.Tensor, PlannerState | None, Plan]:
        """
        Plan, and return the first action. Actions are random until the model is fitted.

        :param obs: raw observations, ``(B, ...)``
        :param state: the policy state that the last call returned, or ``None``
        :param is_first: ``(B,)`` booleans: whether an episode begins
        :param deterministic: whether to return the same plan for the same observation and state; no random stream moves then
        :param action_mask: ``(B, n_actions)``, true where an action is allowed; for Discrete actions
        :param generator: the source of randomness; ``None``: the policy's own
        :return: scaled actions ``(B, A)``, the policy state for the next call, and the plan
        """
        if generator is None:
            # Critics of SB3 and models may draw from torch's global stream; inside the scope it continues the policy's own.
            stream = RandomStream(FIXED_SEED) if deterministic else RandomStream.of(self.generator)
            options: dict[str, Any] = {"deterministic": deterministic, "action_mask": action_mask}
            with stream.scope(self.world_model.device):
                return self.act(obs, state, is_first, generator=stream.generator, **options)
        planner, model, prior, value = self._parts
        if not model.fitted:
            random = Plan(self._random_actions(len(is_first), generator, action_mask), carry=None)
            return random.action, None, random
        # Plans are in single precision, but some models keep the precision of the observation.
        obs = tree_map(lambda leaf: leaf.float() if leaf.dtype == th.float64 else leaf, obs)
        latent = model.initial(obs)
        if state is not None:
            self._check_state(state, latent)
            filtered = model.observe(state["latent"], state["action"], obs, is_first)
            latent = tree_where(is_first.to(model.device), latent, filtered)
        carry = None if state is None else state["plan"]
        plan = planner.plan(
            model,
            latent,
            carry,
            is_first=is_first if state is not None else th.ones_like(is_first),
            action_mask=action_mask,
            prior=prior,
            value=value,
            deterministic=deterministic,
            generator=generator,
        )
        return plan.action, {"latent": latent, "plan": plan.carry, "action": plan.action}, plan

    def _random_actions(self, rows: int, generator: th.Generator, action_mask: th.Tensor | None) -> th.Tensor:
        device = self.world_model.device
        if action_mask is None:
            return sample_actions(self.action_space, rows, generator, device)
        mask = check_action_mask(action_mask, rows, self.action_space).float()
        assert isinstance(self.action_space, spaces.Discrete)  # checked with the mask
        drawn = th.multinomial(mask, 1, generator=generator) + int(self.action_space.start)
        return drawn.to(device)

    def _check_state(self, state: Any, latent: State) -> None:
        """Refuse a ``state`` that the last ``predict`` of this policy did not return."""
        if not isinstance(state, dict) or state.keys() != PlannerState.__annotations__.keys():
            raise TypeError(
                f"state is {type(state).__name__}: give back what the last predict of this policy returned, or None"
            )
        before, now = batch_size(state["latent"]), batch_size(latent)
        if before != now:
            raise ValueError(f"state is of {before} environments, and there are {now} observations: begin with state=None")
        if describe(state["latent"]) != describe(latent):
            raise ValueError("state is that of another world model: begin the episode with state=None")

    def decide(
        self,
        obs: PyTorchObs,
        state: Any,
        is_first: th.Tensor,
        *,
        deterministic: bool = False,
        action_mask: th.Tensor | None = None,
    ) -> tuple[th.Tensor, PlannerState | None]:
        scaled, new_state, _ = self.act(obs, state, is_first, deterministic=deterministic, action_mask=action_mask)
        return scaled, new_state

    def save(self, path: Any) -> NoReturn:
        """Refuse to save: a policy has no weights but those of its world model, which the agent saves."""
        raise NotImplementedError(
            f"{type(self).__name__} is made of a planner and a world model, and cannot be saved: save the agent (agent.save), "
            "and make the policy from the loaded agent's parts, or give planner=... to the agent"
        )


class AgentPlannerPolicy(PlannerPolicy):
    """The policy of an agent that plans, which SB3 creates first; the agent attaches planner and world model afterwards."""

    def __init__(self, observation_space: spaces.Space, action_space: spaces.Space, lr_schedule: Any = None) -> None:
        BasePolicy.__init__(self, observation_space, action_space, squash_output=_scaled(action_space))
        self._codec = ActionCodec(action_space)
        self.set_seed(None)


def _scaled(action_space: spaces.Space) -> bool:
    return isinstance(action_space, spaces.Box)
