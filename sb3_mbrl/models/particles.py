"""``Particles``: the propagation of a world model's uncertainty over several steps (trajectory sampling, PETS, section 5)."""

import math
from collections.abc import Callable
from typing import Any, Literal

import torch as th

from sb3_mbrl.checks import number, whole
from sb3_mbrl.contracts import MemberPrediction, MissingCapability, Obs, Prediction, WorldModel
from sb3_mbrl.rng import on_device
from sb3_mbrl.spaces import ActionCodec, numbers_alone
from sb3_mbrl.trees import State, batch_size, tree_map, tree_repeat, tree_where

Propagation = Literal["ts1", "tsinf", "mean", "moment"]


class Particles(WorldModel):
    """
    A world model whose states are sets of ``n`` particles, each of which is a state of another model.

    With the weight ``w_i`` of a particle (the probability that its episode has not ended yet), its reward ``r_i`` and its
    probability of termination ``d_i``, a step predicts::

        reward = sum_i w_i r_i / sum_i w_i        termination = 1 - sum_i w_i (1 - d_i) / sum_i w_i

    and then ``w_i <- w_i (1 - d_i)``. So the return that a planner computes from these predictions is the mean of the
    particles' returns, terminations included. If the model predicts discounts, they replace ``1 - d_i`` in the weights, and
    the predicted discount is their weighted mean.

    ``propagation`` (PETS, section 5):

    * ``"ts1"``: every particle draws a new member at every step;
    * ``"tsinf"``: every particle keeps its first member; members are assigned in turn, hence evenly if ``n`` is a multiple of
      their number;
    * ``"mean"``: one particle follows the model's mean ("E" in PETS);
    * ``"moment"``: after every step all particles are drawn from one Gaussian with independent columns, which has the mean and
      the variance of all members' predictions for all particles ("MM").

    :param model: the world model; ``"tsinf"`` needs its :meth:`~sb3_mbrl.contracts.WorldModel.member_step`, ``"moment"`` and a
        ``penalty`` its :meth:`~sb3_mbrl.contracts.WorldModel.members`
    :param n: the number of particles per state
    :param propagation: the rule by which particles are propagated
    :param aleatoric: whether steps are drawn from a member's distribution, as in the paper; ``False``: they follow its mean
        (for ``"moment"``: its variance is left out), so that particles differ only by the members' disagreement, and no plan
        wins by luck. For a model without members, ``"ts1"`` always draws from the model's distribution.
    :param penalty: the weight of the members' disagreement, which is subtracted from every reward: the standard deviation over
        members of the mean next observation, as root mean square over columns, in the observation's units. Above 0 plans avoid
        states that the model does not know (pessimism), below 0 they seek them (optimism)
    """

    def __init__(
        self,
        model: WorldModel,
        n: int = 20,
        propagation: Propagation = "tsinf",
        penalty: float = 0.0,
        *,
        aleatoric: bool = True,
    ) -> None:
        super().__init__(model.observation_space, model.action_space, device=model.device)
        if propagation not in ("ts1", "tsinf", "mean", "moment"):
            raise ValueError(f"propagation={propagation!r}: choose 'ts1', 'tsinf', 'mean' or 'moment'")
        n, penalty = whole("n", n, 1), number("penalty", penalty, -math.inf)
        self.model, self.propagation, self.penalty, self.aleatoric = model, propagation, penalty, aleatoric
        self.n = 1 if propagation == "mean" else n
        if propagation == "tsinf" and type(model).member_step is WorldModel.member_step:
            raise MissingCapability(
                f"propagation='tsinf' needs members to keep to, and {type(model).__name__} has none: take 'ts1'"
            )
        if (propagation == "moment" or penalty) and type(model).members is WorldModel.members:
            what = "propagation='moment'" if propagation == "moment" else f"penalty={penalty}"
            raise MissingCapability(f"{what} needs several members, and {type(model).__name__} has none: choose an ensemble")
        numbers = (
            numbers_alone(model.observation_space, "propagation='moment'", "'ts1' or 'tsinf'")
            if propagation == "moment"
            else None
        )
        self._codec = numbers
        self._actions = ActionCodec(model.action_space)
        self.context, self.needs_snapshot = model.context, model.needs_snapshot  # type: ignore[misc]
        self.discount = model.discount

    @property
    def fitted(self) -> bool:  # type: ignore[override]
        return self.model.fitted

    # ---- states: {"particles": (B, n, ...), "alive": (B, n), the weights, "member": (B, n)}

    def initial(self, obs: Obs, snapshot: th.Tensor | None = None) -> State:
        return self.spread(self.model.initial(obs, snapshot))

    def filter(self, obs: Obs, actions: th.Tensor, is_first: th.Tensor) -> State:
        return self.spread(self.model.filter(obs, actions, is_first))

    def observe(self, state: State, action: th.Tensor, obs: Obs, is_first: th.Tensor) -> State:
        """Filter the first particle by the observation, and put all particles at the result."""
        first = tree_map(lambda leaf: leaf[:, 0], state["particles"])
        return self.spread(self.model.observe(first, action, obs, is_first))

    def spread(self, state: State) -> State:
        """
        Put ``n`` particles at every state.

        :param state: states of the model, ``(B, ...)``
        :return: states of this model
        """
        rows = batch_size(state)
        member = th.arange(self.n, device=self.device).expand(rows, -1) % self.model.n_choices
        particles = self._grouped(tree_repeat(state, self.n))
        return {"particles": particles, "alive": th.ones(rows, self.n, device=self.device), "member": member}

    @property
    def decodes(self) -> bool:
        return self.model.decodes

    def decode(self, state: State) -> Obs:
        """Return the observation of the first particle, which stands for all."""
        return self.model.decode(tree_map(lambda leaf: leaf[:, 0], state["particles"]))

    def features(self, state: State) -> th.Tensor:
        """Return the mean features of the particles."""
        return self.model.features(self._flat(state["particles"])).unflatten(0, (-1, self.n)).mean(1)

    def mean_value(self, state: State, value: Callable[[State], th.Tensor]) -> th.Tensor:
        """
        Return the weighted mean of the values of the particles, ``sum_i w_i V(s_i) / sum_i w_i``, ``(B,)``.

        :param state: states of this model
        :param value: a value function of the inner model's states, ``(B * n,)``
        """
        alive = state["alive"]
        values = value(self._flat(state["particles"])).unflatten(0, (-1, self.n))
        total = th.where(alive > 0, alive * values, 0.0).sum(1)
        return total / alive.sum(1).clamp(min=1e-12)

    def policy_value(self, state: State) -> tuple[th.Tensor, th.Tensor]:
        """Return the logits of the weighted mean of the particles' policies, and the weighted mean of their values."""
        alive = state["alive"]
        logits, _ = self.model.policy_value(self._flat(state["particles"]))
        weight = alive / alive.sum(1, keepdim=True).clamp(min=1e-12)
        policy = (weight[..., None] * self._grouped(logits.softmax(1))).sum(1)
        return policy.log(), self.mean_value(state, lambda inner: self.model.policy_value(inner)[1])

    # ---- one step

    def step(
        self, state: State, action: th.Tensor, *, deterministic: bool = False, generator: th.Generator | None = None
    ) -> Prediction:
        particles, alive = self._flat(state["particles"]), state["alive"]
        actions = action.repeat_interleave(self.n, dim=0)
        prediction = self._each(particles, actions, state["member"].flatten(), deterministic, generator)
        following, reward, survival = prediction.state, prediction.reward, 1 - prediction.terminated
        if prediction.discount is not None:
            survival = prediction.discount
            if bool((survival < 0).any()):
                raise MissingCapability(
                    f"{type(self.model).__name__} predicts negative discounts (the other player moves next), which particles "
                    "cannot average: plan in the model itself"
                )
        if self.propagation == "moment" or self.penalty:
            members = self.model.members(particles, actions)
            # Disagreement: sqrt(mean over columns of (variance over members of the mean next observation)).
            reward = reward - self.penalty * members.mean.var(0, correction=0).mean(-1).sqrt()
            if self.propagation == "moment":
                following = self._matched(members, alive.flatten(), generator)
                survival = 1 - members.terminated.mean(0) if prediction.discount is None else survival
                # The reward of the step to the new particles, drawn from the Gaussian, replaces that of the model's own step.
                matched, _ = self.model.with_known(
                    lambda: (self.model.decode(particles), self._actions.to_env(actions), self.model.decode(following)),
                    members.reward.mean(0),
                    prediction.terminated,
                )
                reward = reward - prediction.reward + matched
        # Particles whose episode has ended for certain keep their state, so that values that are not finite have no effect.
        following = tree_where(alive.flatten() > 0, following, particles)
        reward, survival = self._grouped(reward), self._grouped(survival)
        before = alive.sum(1)
        mean_reward = th.where(alive > 0, alive * reward, 0.0).sum(1) / before.clamp(min=1e-12)
        after = th.where(alive > 0, alive * survival, 0.0)
        if self.propagation == "moment":
            # New particles were drawn from one distribution, so none is more likely to continue than another: all get the mean
            # weight.
            after = after.mean(1, keepdim=True).expand_as(alive)
        share = after.sum(1) / before.clamp(min=1e-12)
        next_state = {"particles": self._grouped(following), "alive": after, "member": state["member"]}
        if prediction.discount is None:
            ended = th.where(before > 0, (1 - share).clamp(0.0, 1.0), 1.0)
            return Prediction(next_state, mean_reward, ended)
        weight = alive / before.clamp(min=1e-12)[:, None]
        # With discounts, the weights are products of discounts; termination is the weighted mean of the particles' own.
        ended = 1 - (weight * (1 - self._grouped(prediction.terminated))).sum(1)
        return Prediction(next_state, mean_reward, th.where(before > 0, ended.clamp(0.0, 1.0), 1.0), share)

    def _each(
        self, particles: State, actions: th.Tensor, member: th.Tensor, deterministic: bool, generator: th.Generator | None
    ) -> Prediction:
        """Predict a step for every particle separately."""
        if self.propagation == "tsinf":
            certain = deterministic or not self.aleatoric
            return self.model.member_step(particles, actions, member, deterministic=certain, generator=generator)
        chooses = type(self.model).member_step is not WorldModel.member_step
        if self.propagation == "ts1" and chooses and not (deterministic or self.aleatoric):
            device = member.device
            drawn = th.randint(self.model.n_choices, member.shape, generator=on_device(generator, device), device=device)
            return self.model.member_step(particles, actions, drawn, deterministic=True, generator=generator)
        certain = deterministic or self.propagation == "mean"
        return self.model.step(particles, actions, deterministic=certain, generator=generator)

    def _matched(self, members: MemberPrediction, alive: th.Tensor, generator: th.Generator | None) -> State:
        """
        Draw particles from the Gaussian with the moments of all members' predictions for all particles.

        With weights ``w``, means ``m`` and variances ``v`` over members and particles (the law of total variance)::

            mean = sum w m        variance = sum w (v + (m - mean)^2)        sum w = 1
        """
        assert self._codec is not None
        mean, variance = (part.unflatten(1, (-1, self.n)) for part in (members.mean, members.variance))
        survival = 1 - members.terminated.unflatten(1, (-1, self.n))[..., None]
        weight = alive.view(1, -1, self.n, 1) * survival
        weight = weight / weight.sum((0, 2), keepdim=True).clamp(min=1e-12)
        centre = (weight * mean).sum((0, 2), keepdim=True)
        spread = (weight * (variance * self.aleatoric + (mean - centre).square())).sum((0, 2))
        noise = th.randn(mean.shape[1:], generator=on_device(generator, mean.device), device=mean.device)
        drawn = centre[0] + spread.sqrt()[:, None] * noise
        return self.model.initial(self._codec.decode(drawn.flatten(0, 1)))

    def _flat(self, grouped: Any) -> Any:
        """Turn ``(B, n, ...)`` into ``(B * n, ...)``."""
        return tree_map(lambda leaf: leaf.flatten(0, 1), grouped)

    def _grouped(self, flat: Any) -> Any:
        """Turn ``(B * n, ...)`` into ``(B, n, ...)``."""
        return tree_map(lambda leaf: leaf.unflatten(0, (-1, self.n)), flat)
