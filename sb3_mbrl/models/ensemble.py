"""
``ensemble``: bootstrapped Gaussian MLPs, computed as batched matrix products (PETS, Chua et al. 2018; in the form that MBPO
uses, Janner et al. 2019).
"""

from collections.abc import Sequence
from typing import Any, Literal

import torch as th
from gymnasium import spaces

from sb3_mbrl.checks import whole
from sb3_mbrl.contracts import Data, FitBudget, MemberPrediction, Prediction
from sb3_mbrl.fitting import bootstrap_weights, training_ids
from sb3_mbrl.models.mlp import MLPModel
from sb3_mbrl.models.vector_heads import Outcome
from sb3_mbrl.trees import State


class EnsembleModel(MLPModel):
    """
    An ensemble of networks, each trained on its own bootstrap sample. Those with the lowest holdout errors (the elites) are
    used for predictions.

    At every step, each row draws an elite (trajectory sampling TS1, PETS section 5), then a sample from its Gaussian. With
    ``deterministic=True`` a step is the mean over the elites. While gradients are computed, elites are drawn in equal numbers.

    :param members: the number of networks
    :param elites: the number of networks in use, those with the lowest holdout errors
    :param bootstrap: what makes members differ: ``"rows"``, a bootstrap sample of the training rows, drawn at every fit (PETS,
        MBPO); ``"weights"``, a weight of every row, drawn from the exponential distribution with mean 1 once and for all
        (DHMBPO)
    :param kwargs: keyword arguments of :class:`~sb3_mbrl.models.mlp.MLPModel`
    """

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        *,
        members: int = 7,
        elites: int = 5,
        bootstrap: Literal["rows", "weights"] = "rows",
        **kwargs: Any,
    ) -> None:
        members, elites = whole("members", members, 1), whole("elites", elites, 1)
        if elites > members:
            raise ValueError(f"elites={elites} of members={members}: give 1 <= elites <= members")
        super().__init__(observation_space, action_space, _members=members, **kwargs)
        if bootstrap not in ("rows", "weights"):
            raise ValueError(f"bootstrap={bootstrap!r}: choose 'rows' or 'weights'")
        self.n_elites, self.bootstrap = elites, bootstrap
        # A buffer, so that the choice of members is copied together with the weights. It holds floats because SB3's tests fill
        # all entries of a state_dict with floats.
        self.register_buffer("_elites", th.arange(float(elites), device=self.device))

    _elites: th.Tensor

    @property
    def elites(self) -> list[int]:
        """The members in use, the best first."""
        return self._elites.long().tolist()

    @elites.setter
    def elites(self, members: Sequence[int]) -> None:
        self._elites.copy_(th.tensor(members))

    def _training_rows(self, train: th.Tensor, generator: th.Generator | None) -> th.Tensor:
        """Return every member's bootstrap sample, ``(E, N)``: ``N`` rows drawn with replacement, the same in every epoch."""
        if self.bootstrap == "weights":
            return super()._training_rows(train, generator)
        if self._bootstrap is None or self._bootstrap.shape[1] != len(train):
            draw = th.randint(len(train), (self.n_members, len(train)), generator=generator)
            self._bootstrap = draw.to(train.device)
        return train[self._bootstrap]

    _bootstrap: th.Tensor | None = None
    """``(E, N)``: the positions of the bootstrap samples, drawn once per fit"""

    def _row_weights(self, data: Data, budget: FitBudget) -> th.Tensor | None:
        if self.bootstrap != "weights":
            return None
        return bootstrap_weights(training_ids(data, budget), self.n_members).to(self.device)

    def _after_fit(self) -> None:
        self._bootstrap = None
        self.elites = th.tensor(self.holdout_scores).argsort()[: self.n_elites].tolist()

    def _error_in_use(self) -> float:
        return float(th.tensor(self.holdout_scores)[self.elites].mean())

    def _outcome(self, inputs: th.Tensor, obs: th.Tensor, deterministic: bool, generator: th.Generator | None) -> Outcome:
        if deterministic:
            # The mean over the elites of their means (and of their termination probabilities).
            raw = self.network(inputs.expand(self.n_members, -1, -1))
            everyone = [self.heads.predict(raw[e], obs, member=e, deterministic=True, generator=None) for e in self.elites]
            return Outcome(*(th.stack(parts).mean(0) for parts in zip(*everyone, strict=True)))
        device = generator.device if generator else None
        if th.is_grad_enabled():
            # In equal numbers, so that a step and its gradient are one batched product (EnsembleMLP.rows). Every row's member
            # is uniform all the same.
            first = th.randint(self.n_choices, (1,), generator=generator, device=device)
            member = (th.randperm(len(inputs), generator=generator, device=device) + first) % self.n_choices
        else:
            member = th.randint(self.n_choices, (len(inputs),), generator=generator, device=device)
        return self._outcome_by(member, inputs, obs, False, generator)

    def _outcome_by(
        self, member: th.Tensor, inputs: th.Tensor, obs: th.Tensor, deterministic: bool, generator: th.Generator | None
    ) -> Outcome:
        """Predict the outcome of a step, every row by its own member; ``member`` counts the elites, 0 is the best."""
        member = self._elites.long()[member.to(self.device)]
        raw = self.network.rows(inputs, member)
        return self.heads.predict(raw, obs, member=member, deterministic=deterministic, generator=generator)

    @property
    def n_choices(self) -> int:
        return self.n_elites

    def member_step(
        self,
        state: State,
        action: th.Tensor,
        member: th.Tensor,
        *,
        deterministic: bool = False,
        generator: th.Generator | None = None,
    ) -> Prediction:
        """Predict a step, every row by its own elite (0 is the best)."""

        def outcome(inputs: th.Tensor, obs: th.Tensor) -> Outcome:
            return self._outcome_by(member, inputs, obs, deterministic, generator)

        return self._predict(state, action, outcome)

    def members(self, state: State, action: th.Tensor) -> MemberPrediction:
        """Return every elite's Gaussian, whose means are not clipped to the bounds of the observation space."""
        obs, action = state["obs"], action.to(self.device)
        inputs = self.standardiser(self.inputs(obs, action))
        raw = self.network(inputs.expand(self.n_members, -1, -1))[self.elites]
        means, variances, rewards, terminations = [], [], [], []
        for row, e in zip(raw, self.elites, strict=True):
            outcome = self.heads.predict(row, obs, member=e, deterministic=True, generator=None)
            # Known functions see members of the observation space.
            reward, terminated = self.known(obs, action, self.codec.project(outcome.obs), outcome.reward, outcome.terminated)
            mean, variance = self.heads.numbers_in_units(row, obs, e)
            means.append(mean)
            variances.append(variance)
            rewards.append(reward)
            terminations.append(terminated)
        return MemberPrediction(th.stack(means), th.stack(variances), th.stack(rewards), th.stack(terminations))
