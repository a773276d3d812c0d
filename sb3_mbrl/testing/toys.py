"""Small world models with known results, for tests of the kit itself, of planners and of imaginations.

=====================  ==============================================================================================
:class:`LinearToy`     exact linear-Gaussian system: predictions, returns and the best action in closed form
:class:`EnsembleToy`   the same with members, whose disagreement and noise are known
:class:`TwoPlayerToy`  exact Nim: signed discounts, a known game value
:class:`NeighbourToy`  nearest neighbours: it learns by storing data, which is no parameter
:class:`RewardToy`     a network without ``decode`` that predicts rewards and terminations, learned by ``loss`` over rows
:class:`RecurrentToy`  a recurrent network: a context, a nested state, no ``decode``, learned by ``loss`` over sequences
:class:`WeightedToy`   the same, with the weights of its rows from the side store
=====================  ==============================================================================================
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch as th
from gymnasium import spaces
from torch import nn

from sb3_mbrl.contracts import (
    Data,
    FitBudget,
    Loss,
    MemberPrediction,
    Obs,
    Prediction,
    Sequences,
    Transitions,
    UnsupportedSpace,
    WorldModel,
)
from sb3_mbrl.models.vector import VectorModel
from sb3_mbrl.rng import on_device
from sb3_mbrl.trees import State, tree_map


class LinearToy(VectorModel):
    """
    A linear system: ``x' = decay * x + B a + noise * e``, reward ``sum(x')``, no termination unless one is given. The state is
    ``x``.

    ``a`` is the encoded action (scaled numbers, categories one-hot) and ``B`` has ``+1 / dim`` and ``-1 / dim`` in alternating
    columns, so that the best action is the same everywhere (:meth:`best_action`).

    :param observation_space: a ``Box`` vector; unbounded, or decoding clips
    :param action_space: ``Box`` or ``Discrete``
    :param noise: the standard deviation of every value at every step
    :param decay: the share of the state that stays
    """

    fitted = True

    transition: th.Tensor

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        *,
        noise: float = 0.0,
        decay: float = 0.9,
        **kwargs: Any,
    ) -> None:
        super().__init__(observation_space, action_space, **kwargs)
        if not isinstance(observation_space, spaces.Box) or not isinstance(action_space, (spaces.Box, spaces.Discrete)):
            raise UnsupportedSpace(
                "LinearToy takes Box observations, and Box or Discrete actions. NeighbourToy takes any vector."
            )
        self.noise, self.decay = noise, decay
        signs = 1.0 - 2.0 * (th.arange(self.action_codec.dim) % 2)
        self.register_buffer("transition", signs.expand(self.codec.dim, -1) / self.codec.dim)
        self.to(self.device)

    def initial(self, obs: Obs, snapshot: th.Tensor | None = None) -> State:
        return self.codec.encode(self.to_device(obs))

    def step(
        self, state: State, action: th.Tensor, *, deterministic: bool = False, generator: th.Generator | None = None
    ) -> Prediction:
        following = self.mean(state, action)
        if self.noise and not deterministic:
            draw = th.randn(following.shape, generator=on_device(generator, following.device), device=following.device)
            following = following + self.noise * draw
        reward, terminated = self.known(state, action, following, following.sum(1), th.zeros_like(following[:, 0]))
        return Prediction(following, reward, terminated)

    def decode(self, state: State) -> Obs:
        return self.codec.decode(state)

    def policy_value(self, state: State) -> tuple[th.Tensor, th.Tensor]:
        """Return equal logits and a value of zero: no opinion."""
        return state.new_zeros(len(state), self.action_codec.dim), state.new_zeros(len(state))

    # ---- known results

    def mean(self, state: th.Tensor, action: th.Tensor, steps: int = 1) -> th.Tensor:
        """Return the expected state after repeating an action, ``(B, D)``."""
        push = self.action_codec.encode(action.to(state.device)) @ self.transition.T
        for _ in range(steps):
            state = self.decay * state + push
        return state

    def variance(self, steps: int = 1) -> float:
        """Return the variance of every value after ``steps`` steps from a known state: ``noise^2 * sum_k decay^(2k)``."""
        return self.noise**2 * sum(self.decay ** (2 * k) for k in range(steps))

    def best_action(self, n: int = 1) -> th.Tensor:
        """Return the best action, scaled, in every state and for every horizon, ``(n, A)``."""
        gain = self.transition.sum(0)
        space = self.action_space
        best = gain.argmax().reshape(1, 1) + int(space.start) if isinstance(space, spaces.Discrete) else gain.sign()[None]
        return best.expand(n, -1).clone()

    def best_return(self, state: th.Tensor, horizon: int) -> th.Tensor:
        """Return the expected undiscounted return of the best action over ``horizon`` steps, ``(B,)``."""
        best = self.best_action(len(state))
        return th.stack([self.mean(state, best, steps).sum(1) for steps in range(1, horizon + 1)]).sum(0)


class EnsembleToy(LinearToy):
    """
    A :class:`LinearToy` with members: member ``e`` of ``E`` adds ``spread * (2 e / (E - 1) - 1) * |x|`` to the next state, so
    that members disagree in proportion to the state, and their mean is the linear system.

    :param n_members: ``E``, at least 2
    :param spread: the disagreement
    :param member_noise: the standard deviation of every value that each member predicts; :meth:`step` itself has ``noise``
    """

    def __init__(self, *args: Any, n_members: int = 2, spread: float = 0.05, member_noise: float = 0.1, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.n_members, self.spread, self.member_noise = n_members, spread, member_noise

    @property
    def n_choices(self) -> int:
        return self.n_members

    def members(self, state: State, action: th.Tensor) -> MemberPrediction:
        places = th.linspace(-1.0, 1.0, self.n_members, device=self.device)[:, None, None]
        mean = self.mean(state, action) + self.spread * places * state.abs()
        reward, terminated = mean.sum(2), th.zeros_like(mean[..., 0])
        known = [self.known(state, action, *row) for row in zip(mean, reward, terminated, strict=True)]
        rewards, ends = (th.stack(parts) for parts in zip(*known, strict=True))
        return MemberPrediction(mean, th.full_like(mean, self.member_noise**2), rewards, ends)

    def member_step(
        self,
        state: State,
        action: th.Tensor,
        member: th.Tensor,
        *,
        deterministic: bool = False,
        generator: th.Generator | None = None,
    ) -> Prediction:
        """Predict a step by given members, with the noise of :meth:`step`."""
        prediction = self.step(state, action, deterministic=deterministic, generator=generator)
        place = 2.0 * member.to(self.device)[:, None] / (self.n_members - 1) - 1.0
        following = prediction.state + self.spread * place * state.abs()
        reward, terminated = self.known(state, action, following, following.sum(1), th.zeros_like(following[:, 0]))
        return Prediction(following, reward, terminated)


class TwoPlayerToy(VectorModel):
    """
    The game of Nim: players take turns to remove 1 to ``k`` stones; the player who takes the last one wins. The state is the
    number of stones, ``(B, 1)``.

    The reward is 1 for the player who just won. ``discount`` is ``-gamma`` (the gain of one player is the loss of the
    other) and 0 at the end, so the value of a state to the player to move is ``max_a reward + discount * value'``.
    Taking more stones than there are takes them all.

    :param observation_space: ``Discrete(n + 1)``: up to ``n`` stones
    :param action_space: ``Discrete(k)``: action ``i`` takes ``i + 1`` stones
    :param gamma: the discount of one move
    """

    fitted = True

    def __init__(
        self, observation_space: spaces.Space, action_space: spaces.Space, *, gamma: float = 1.0, **kwargs: Any
    ) -> None:
        super().__init__(observation_space, action_space, **kwargs)
        if not isinstance(observation_space, spaces.Discrete) or not isinstance(action_space, spaces.Discrete):
            raise UnsupportedSpace("TwoPlayerToy takes Discrete observations and actions. NeighbourToy takes any vector.")
        self.gamma = gamma

    def initial(self, obs: Obs, snapshot: th.Tensor | None = None) -> State:
        return self.to_device(obs).reshape(-1, 1).long()

    def step(
        self, state: State, action: th.Tensor, *, deterministic: bool = False, generator: th.Generator | None = None
    ) -> Prediction:
        following = (state - (action.to(state.device).reshape(-1, 1) + 1)).clamp(min=0)
        over = (following == 0).squeeze(1).float()
        won = over * (state > 0).squeeze(1)
        reward, terminated = self.known(*(self.codec.encode(state), action, self.codec.encode(following)), won, over)
        return Prediction(following, reward, terminated, -self.gamma * (1 - terminated))

    def decode(self, state: State) -> Obs:
        return self.codec.decode(self.codec.encode(state))

    def policy_value(self, state: State) -> tuple[th.Tensor, th.Tensor]:
        """Return equal logits and a value of zero: no opinion."""
        return th.zeros(len(state), self.action_codec.dim, device=state.device), th.zeros(len(state), device=state.device)

    def value(self, state: th.Tensor) -> th.Tensor:
        """
        Return the game's value to the player to move under perfect play, ``(B,)``.

        With piles of ``q (k + 1) + r`` stones: the mover wins after ``2 q`` further moves if ``r > 0``, and loses otherwise.
        """
        stones, group = state.squeeze(1), self.action_codec.dim + 1
        quotient, rest = stones // group, stones % group
        won, lost = self.gamma ** (2.0 * quotient), -(self.gamma ** (2.0 * quotient - 1))
        return th.where(stones == 0, 0.0, th.where(rest > 0, won, lost))


class NeighbourToy(VectorModel):
    """
    A model that predicts the mean change over the ``k`` nearest stored transitions (or that of one of them, drawn). The state
    is ``{"obs": (B, D)}``.

    It learns by storing the data, which is kept in :meth:`extra_state`.

    :param observation_space: any vector space
    :param action_space: any action space of SB3
    :param k: the number of neighbours
    :param capacity: the number of stored transitions, the newest ones
    """

    def __init__(
        self, observation_space: spaces.Space, action_space: spaces.Space, *, k: int = 4, capacity: int = 1000, **kwargs: Any
    ) -> None:
        super().__init__(observation_space, action_space, **kwargs)
        self.k, self.capacity = k, capacity
        inputs, outputs = self.codec.dim + self.action_codec.dim, self.codec.dim + 2
        self._inputs = th.zeros(0, inputs, device=self.device)
        self._outputs = th.zeros(0, outputs, device=self.device)

    def fit(self, data: Data, budget: FitBudget | None = None, *, generator: th.Generator | None = None) -> dict[str, float]:
        """Keep the newest transitions."""
        rows = self.to_device(data.transitions())
        obs = self.codec.encode(rows.obs)
        outputs = [self.codec.encode(rows.next_obs) - obs, rows.reward[:, None], rows.terminated[:, None]]
        self._inputs = th.cat([obs, self.action_codec.encode(rows.action)], dim=1)[-self.capacity :]
        self._outputs = th.cat(outputs, dim=1).float()[-self.capacity :]
        self.fitted = True
        return {"rows": float(len(self._inputs))}

    def step(
        self, state: State, action: th.Tensor, *, deterministic: bool = False, generator: th.Generator | None = None
    ) -> Prediction:
        obs, action = state["obs"], action.to(self.device)
        query = th.cat([obs, self.action_codec.encode(action)], dim=1)
        # Not by matrix products: their rounding depends on the batch, and could change the nearest neighbour.
        distances = th.cdist(query, self._inputs, compute_mode="donot_use_mm_for_euclid_dist")
        nearest = distances.topk(min(self.k, len(self._inputs)), largest=False).indices
        if not deterministic:
            draw = th.rand((len(obs), 1), generator=on_device(generator, obs.device), device=obs.device)
            nearest = nearest.gather(1, (draw * nearest.shape[1]).long())
        outcome = self._outputs[nearest].mean(1)
        following = self.codec.project(obs + outcome[:, :-2])
        reward, terminated = self.known(obs, action, following, outcome[:, -2], outcome[:, -1])
        return Prediction({"obs": following}, reward, terminated)

    def extra_state(self) -> dict[str, Any]:
        return {**super().extra_state(), "inputs": self._inputs.cpu(), "outputs": self._outputs.cpu()}

    def load_extra_state(self, extra: Mapping[str, Any]) -> None:
        super().load_extra_state(extra)
        self._inputs, self._outputs = extra["inputs"].to(self.device), extra["outputs"].to(self.device)


class RewardToy(VectorModel):
    """
    A network that predicts reward and termination, and no observations. The state is a latent vector, ``(B, H)``.

    It is trained one step ahead, so predictions further ahead are guesses.

    :param observation_space: any vector space
    :param action_space: any action space of SB3
    :param hidden: ``H``
    :param learning_rate: the step size of Adam
    """

    decode = WorldModel.decode

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        *,
        hidden: int = 32,
        learning_rate: float = 3e-3,
        **kwargs: Any,
    ) -> None:
        super().__init__(observation_space, action_space, **kwargs)
        _refuse_known(self)
        dim, actions = self.codec.dim, self.action_codec.dim
        self.encoder = nn.Sequential(nn.Linear(dim, hidden), nn.Tanh())
        self.transition = nn.Sequential(nn.Linear(hidden + actions, 2 * hidden), nn.SiLU(), nn.Linear(2 * hidden, hidden + 2))
        self.to(self.device)
        self.optimizer = th.optim.Adam(self.parameters(), lr=learning_rate)

    def loss(
        self, batch: Transitions | Sequences, start: State | None = None, *, generator: th.Generator | None = None
    ) -> Loss:
        """Compute the squared error of the reward and the cross-entropy of the termination."""
        if not isinstance(batch, Transitions):
            raise TypeError("RewardToy learns from single steps: data.transitions(n)")
        batch = self.to_device(batch)
        output = self._output(self.initial(batch.obs), batch.action)
        rows = {
            "reward_loss": (output[:, -2] - batch.reward).square(),
            "termination_loss": _cross_entropy(output[:, -1], batch.terminated),
        }
        return Loss(rows, weights={"termination_loss": 0.1})

    def initial(self, obs: Obs, snapshot: th.Tensor | None = None) -> State:
        return self.encoder(self.codec.encode(self.to_device(obs)))

    def step(
        self, state: State, action: th.Tensor, *, deterministic: bool = False, generator: th.Generator | None = None
    ) -> Prediction:
        """Predict one step; there is no noise to draw."""
        output = self._output(state, action)
        return Prediction(output[:, :-2].tanh(), output[:, -2], output[:, -1].sigmoid())

    def _output(self, state: th.Tensor, action: th.Tensor) -> th.Tensor:
        """Return the next state before squashing, the reward and the logit of the termination, ``(B, H + 2)``."""
        return self.transition(th.cat([state, self.action_codec.encode(action.to(self.device))], dim=1))


def _refuse_known(model: WorldModel) -> None:
    if model.reward_fn is not None or model.termination_fn is not None:
        raise ValueError(
            f"{type(model).__name__} does not decode the observations that a known reward or termination would need."
        )


def _cross_entropy(logits: th.Tensor, terminated: th.Tensor) -> th.Tensor:
    return nn.functional.binary_cross_entropy_with_logits(logits, terminated.float(), reduction="none")


class RecurrentToy(VectorModel):
    """
    A GRU that reads observations and previous actions; in imagination it reads the observations that it predicts.

    The state is ``{"belief": (h, x)}`` with the hidden vector and the last observation, ``(B, H)`` and ``(B, D)``. It does not
    decode.

    :param observation_space: any vector space
    :param action_space: any action space of SB3
    :param hidden: ``H``
    :param learning_rate: the step size of Adam
    """

    context = 4
    decode = WorldModel.decode

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        *,
        hidden: int = 32,
        learning_rate: float = 3e-3,
        **kwargs: Any,
    ) -> None:
        super().__init__(observation_space, action_space, **kwargs)
        _refuse_known(self)
        self.hidden = hidden
        dim, actions = self.codec.dim, self.action_codec.dim
        self.cell = nn.GRUCell(dim + actions, hidden)
        self.head = nn.Sequential(nn.Linear(hidden + dim + actions, 64), nn.SiLU(), nn.Linear(64, dim + 2))
        self.to(self.device)
        self.optimizer = th.optim.Adam(self.parameters(), lr=learning_rate)

    # ---- learning

    def loss(
        self, batch: Transitions | Sequences, start: State | None = None, *, generator: th.Generator | None = None
    ) -> Loss:
        """Compute squared errors of next observation and reward, and the cross-entropy of the termination, one step ahead."""
        if not isinstance(batch, Sequences):
            raise ValueError("RecurrentToy learns from sequences: data.sequences(n, length)")
        batch = Sequences(*self.to_device(batch))
        shape = batch.reward.shape
        obs = self._encode_windows(batch.obs)
        next_obs = self._encode_windows(batch.next_obs)
        action = self.action_codec.encode(batch.action.flatten(0, 1)).view(*shape, -1)
        beliefs = self._read(obs, action, batch.is_first, None if start is None else start["belief"][0])
        output = self.head(th.cat([beliefs, obs, action], dim=2))
        rows = {
            "obs_loss": (obs + output[..., :-2] - next_obs).square().mean(2),
            "reward_loss": (output[..., -2] - batch.reward).square(),
            "termination_loss": _cross_entropy(output[..., -1], batch.terminated),
        }
        return Loss(rows, states={"belief": (beliefs, obs)})

    def _encode_windows(self, obs: Obs) -> th.Tensor:
        """Encode windows of observations, ``(B, T, ...)`` to ``(B, T, D)``."""
        n, length = next(iter(obs.values())).shape[:2] if isinstance(obs, dict) else obs.shape[:2]
        return self.codec.encode(tree_map(lambda leaf: leaf.flatten(0, 1), obs)).view(n, length, -1)

    def _read(self, obs: th.Tensor, action: th.Tensor, is_first: th.Tensor, belief: th.Tensor | None = None) -> th.Tensor:
        """Return the hidden vector after every observation, ``(B, T, H)``."""
        belief = obs.new_zeros(len(obs), self.hidden) if belief is None else belief
        before = th.zeros_like(action[:, 0])
        beliefs = []
        for t in range(obs.shape[1]):
            belief = self._update(belief, before, obs[:, t], is_first[:, t])
            before = action[:, t]
            beliefs.append(belief)
        return th.stack(beliefs, dim=1)

    def _update(self, belief: th.Tensor, action: th.Tensor, obs: th.Tensor, is_first: th.Tensor) -> th.Tensor:
        """Update the hidden vector with one observation and the encoded action that led to it."""
        fresh = is_first[:, None]
        inputs = th.cat([obs, th.where(fresh, 0.0, action)], dim=1)
        return self.cell(inputs, th.where(fresh, 0.0, belief))

    # ---- states

    def initial(self, obs: Obs, snapshot: th.Tensor | None = None) -> State:
        flat = self.codec.encode(self.to_device(obs))
        belief, action = flat.new_zeros(len(flat), self.hidden), flat.new_zeros(len(flat), self.action_codec.dim)
        return {"belief": (self._update(belief, action, flat, flat.new_ones(len(flat), dtype=th.bool)), flat)}

    def filter(self, obs: Obs, actions: th.Tensor, is_first: th.Tensor) -> State:
        obs, actions, is_first = self.to_device((obs, actions, is_first))
        flat = self._encode_windows(obs)
        # The last action is not known yet: zeros stand in for it, and are not read.
        encoded = self.action_codec.encode(actions[:, :-1].flatten(0, 1)).view(len(flat), flat.shape[1] - 1, -1)
        encoded = th.cat([encoded, encoded.new_zeros(len(flat), 1, self.action_codec.dim)], dim=1)
        return {"belief": (self._read(flat, encoded, is_first)[:, -1], flat[:, -1])}

    def observe(self, state: State, action: th.Tensor, obs: Obs, is_first: th.Tensor) -> State:
        flat = self.codec.encode(self.to_device(obs))
        action, is_first = self.to_device((action, is_first))
        return {"belief": (self._update(state["belief"][0], self.action_codec.encode(action), flat, is_first), flat)}

    def step(
        self, state: State, action: th.Tensor, *, deterministic: bool = False, generator: th.Generator | None = None
    ) -> Prediction:
        """Predict one step; there is no noise to draw."""
        belief, obs = state["belief"]
        encoded = self.action_codec.encode(action.to(self.device))
        output = self.head(th.cat([belief, obs, encoded], dim=1))
        following = obs + output[:, :-2]
        same_episode = th.zeros(len(obs), dtype=th.bool, device=obs.device)
        belief = self._update(belief, encoded, following, same_episode)
        return Prediction({"belief": (belief, following)}, output[:, -2], output[:, -1].sigmoid())


class WeightedToy(RecurrentToy):
    """A :class:`RecurrentToy` that multiplies the loss of each row by its ``weight`` in the side store."""

    extra: ClassVar[Mapping[str, tuple[int, ...]]] = {"weight": ()}

    def loss(
        self, batch: Transitions | Sequences, start: State | None = None, *, generator: th.Generator | None = None
    ) -> Loss:
        """Compute the loss of :class:`RecurrentToy`, every row times its weight."""
        loss = super().loss(batch, start, generator=generator)
        assert isinstance(batch, Sequences)
        weight = batch.extra["weight"].to(self.device)
        return loss._replace(rows={name: weight * value for name, value in loss.rows.items()})
