"""``rssm``: the recurrent state-space model (PlaNet, Hafner et al. 2019; DreamerV3, Hafner et al. 2025)."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch as th
from gymnasium import spaces
from torch import nn
from torch.nn import functional as F

from sb3_mbrl.checks import whole
from sb3_mbrl.contracts import (
    LatentModel,
    LatentTrajectory,
    Loss,
    Obs,
    Prediction,
    RewardFn,
    Sequences,
    TerminationFn,
    Timesteps,
    Transitions,
)
from sb3_mbrl.models.rssm.divergences import KLParts, balanced_kl, joint_kl, kl_parts, split_kl
from sb3_mbrl.models.rssm.observations import Decoder, Encoder, Layout
from sb3_mbrl.models.rssm.settings import make_settings
from sb3_mbrl.networks.heads import Head
from sb3_mbrl.networks.layers import ACTIVATIONS, MLP, NORMS, Linear
from sb3_mbrl.networks.outputs import BernoulliOutput, Output
from sb3_mbrl.optim import LaProp
from sb3_mbrl.spaces import ActionCodec
from sb3_mbrl.timesteps import to_timesteps
from sb3_mbrl.trees import State, batch_size, tree_map


def _name_of_loss(key: str) -> str:
    """Name the loss term of a key of the observation."""
    return key if key == "obs" else f"obs_{key}"


class Posterior(nn.Module):
    """
    A network from deterministic state and encoded observation to the parameters of the posterior.

    Plainly: ``rest(first(cat([deter, tokens], -1)))``. The first layer is linear, so its two halves are computed apart and
    added: that of the observations by :meth:`prepare`, for a whole sequence at once, that of the states step by step.

    :param deter: the size of the deterministic state
    :param tokens: the number of columns of an encoded observation
    :param hidden: the units of every layer
    :param layers: the number of hidden layers
    :param outputs: the number of parameters of the posterior
    :param style: ``norm`` and ``activation`` of the layers
    """

    def __init__(self, deter: int, tokens: int, hidden: int, layers: int, outputs: int, **style: str) -> None:
        super().__init__()
        self.deter = deter
        self.first = Linear(deter + tokens, hidden if layers else outputs)
        self.rest = nn.Sequential()
        if layers:
            norm, activation = NORMS[style.get("norm", "rms")](hidden), ACTIVATIONS[style.get("activation", "silu")]()
            more = MLP(hidden, hidden, layers - 1, **style)
            self.rest = nn.Sequential(norm, activation, more, Linear(hidden, outputs))

    def prepare(self, tokens: th.Tensor) -> th.Tensor:
        """Compute the observations' half of the first layer, from ``(..., tokens)`` to ``(..., hidden)``."""
        return F.linear(tokens, self.first.weight[:, self.deter :], self.first.bias)

    def forward(self, deter: th.Tensor, prepared: th.Tensor) -> th.Tensor:
        """
        Compute the posterior's parameters ``(B, outputs)``.

        :param deter: ``(B, deter)``
        :param prepared: ``(B, hidden)``: the result of :meth:`prepare`
        """
        return self.rest(th.addmm(prepared, deter, self.first.weight[:, : self.deter].t()))


class RSSM(LatentModel):
    """
    A recurrent state-space model: a deterministic state that remembers, and a stochastic one that is drawn at every step::

        deter_t = cell(deter_(t-1), stoch_(t-1), action_(t-1))
        stoch_t ~ posterior(deter_t, obs_t)        where there is an observation
        stoch_t ~ prior(deter_t)                   in imagination

    Observation, reward and discount are predicted from both. The state is
    ``{"deter": (B, deter), "stoch": (B, stoch, classes)}``. A state's reward is the reward of arriving in it. The discount
    ``gamma`` is part of what the continue head learns, and of :attr:`~sb3_mbrl.contracts.Prediction.discount`.

    :param observation_space: ``Box`` vectors, images (channels first), ``Discrete``, ``MultiDiscrete``, ``MultiBinary``, or a
        ``Dict`` of these
    :param action_space: any of SB3's
    :param size: ``"size1m"`` to ``"size400m"`` (the authors' names) or ``"tiny"``
    :param gamma: the discount of a step
    :param context: the number of steps from which a start state is filtered; fits see windows of twice as many
    :param lr: the learning rate of :class:`~sb3_mbrl.optim.LaProp`, where the model is fitted by itself
    :param warmup: the number of steps in which the learning rate grows to ``lr``
    :param reward_fn: a known reward function, of decoded observations, which replaces the head
    :param termination_fn: a known termination function, of decoded observations, which replaces the head
    :param device: as in SB3
    :param settings: settings that replace those of the size and the defaults
        (:class:`~sb3_mbrl.models.rssm.settings.Settings`)
    """

    neutral_action: th.Tensor
    """``(A,)``: the action before the first observation of an episode, whose encoding is then set to 0"""

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        *,
        size: str = "size1m",
        gamma: float = 1 - 1 / 333,
        context: int = 16,
        lr: float = 4e-5,
        warmup: int = 1000,
        reward_fn: RewardFn | None = None,
        termination_fn: TerminationFn | None = None,
        device: th.device | str = "auto",
        **settings: Any,
    ) -> None:
        super().__init__(observation_space, action_space, reward_fn=reward_fn, termination_fn=termination_fn, device=device)
        self.settings = chosen = make_settings(size, {"gamma": gamma, **settings})
        self.context, self.discount, self._learned_discount = context, chosen.gamma, chosen.gamma
        self.latent, self.layout = chosen.make_latent(), Layout(observation_space)
        self.actions = ActionCodec(action_space)
        self.register_buffer("neutral_action", self.actions.neutral(), persistent=False)
        deter, units, flat, style = chosen.deter, chosen.units, self.latent.flat, chosen.style
        self.n_features = deter + flat
        squash = chosen.vectors == "symlog"
        self.encoder = Encoder(self.layout, units, chosen.layers, chosen.depth, squash=squash, **style)
        self.cell = chosen.make_cell(flat, self.actions.dim)
        body = MLP(deter, chosen.hidden, chosen.prior_layers, **style)
        self.prior_head = nn.Sequential(body, Linear(body.outputs, self.latent.size))
        tokens = self.encoder.outputs
        self.post_head = Posterior(deter, tokens, chosen.hidden, chosen.post_layers, self.latent.size, **style)
        layers, depth, output = chosen.layers, chosen.depth, chosen.vector_output
        self.decoder = Decoder(self.layout, deter, flat, units, layers, depth, chosen.blocks, output=output, **style)
        self.reward_head = Head(self.n_features, units, chosen.head_layers, chosen.make_reward(), **style)
        self.continue_head = Head(self.n_features, units, chosen.head_layers, BernoulliOutput(), **style)
        self.to(self.device)
        self.optimizer = LaProp(self.parameters(), lr=lr, warmup=warmup)

    # ---- states

    def _zero_state(self, rows: int) -> State:
        deter = th.zeros(rows, self.settings.deter, device=self.device)
        return {"deter": deter, "stoch": th.zeros(rows, *self.latent.shape, device=self.device)}

    def initial(self, obs: Obs, snapshot: th.Tensor | None = None) -> State:
        rows = batch_size(obs)
        first = th.ones(rows, dtype=th.bool, device=self.device)
        return self.observe_step(None, self.neutral_action.expand(rows, -1), obs, first, deterministic=True)

    def observe(self, state: State, action: th.Tensor, obs: Obs, is_first: th.Tensor) -> State:
        """Filter one step with the most likely sample: the contract gives filtering no source of randomness."""
        return self.observe_step(state, action, obs, is_first.to(self.device), deterministic=True)

    def filter(self, obs: Obs, actions: th.Tensor, is_first: th.Tensor) -> State:
        # observe_sequence takes the action before each observation; that before the first one is not known.
        before = th.cat([th.zeros_like(actions[:, :1]), actions[:, :-1]], 1)
        first = is_first.clone()
        first[:, 0] = True
        states, _ = self.observe_sequence(self._moved(obs), before.to(self.device), first.to(self.device), deterministic=True)
        return tree_map(lambda leaf: leaf[:, -1], states)

    def observe_step(
        self,
        state: State | None,
        action: th.Tensor,
        obs: Obs,
        is_first: th.Tensor,
        generator: th.Generator | None = None,
        deterministic: bool = False,
    ) -> State:
        """
        Filter one step, with a sample of the posterior.

        :param state: the state before, ``(B, ...)``; ``None`` where nothing is known
        :param action: ``(B, A)``: the action that led to the observation
        :param obs: ``(B, ...)``
        :param is_first: ``(B,)``: rows that begin a new episode and forget the state before
        :param generator: the source of randomness
        :param deterministic: the most likely sample instead
        """
        sequence: Any = tree_map(lambda leaf: leaf[:, None], self._moved(obs))
        action = action.to(self.device)[:, None]
        states, _ = self.observe_sequence(sequence, action, is_first[:, None], state, generator, deterministic)
        return tree_map(lambda leaf: leaf[:, 0], states)

    def observe_sequence(
        self,
        obs: Obs,
        action: th.Tensor,
        is_first: th.Tensor,
        start: State | None = None,
        generator: th.Generator | None = None,
        deterministic: bool = False,
    ) -> tuple[State, th.Tensor]:
        """
        Filter sequences, in which new episodes may begin.

        Only the recurrence itself runs step by step. All that depends on observations, actions and noise alone is computed for
        the whole sequence before.

        :param obs: ``(B, T, ...)``
        :param action: ``(B, T, A)``: the action that led to each observation
        :param is_first: ``(B, T)``: rows that begin a new episode and forget the state before
        :param start: the state before the first row; ``None`` where nothing is known
        :param generator: the source of randomness
        :param deterministic: the most likely samples instead
        :return: the states ``(B, T, ...)``, and the parameters ``(B, T, size)`` of the posteriors that they were drawn from
        """
        rows, steps = is_first.shape
        flat_obs: Any = tree_map(lambda leaf: leaf.flatten(0, 1), obs)
        observed = self.post_head.prepare(self.encoder(flat_obs)).unflatten(0, (rows, steps)).unbind(1)
        # Where an episode begins, state and encoded action are multiplied by 0. The stored action may be any value there, so
        # it is replaced by a valid one first.
        keep = (~is_first).float()
        valid = th.where(is_first[..., None], self.neutral_action.to(action.dtype), action)
        encoded = self.actions.encode(valid.flatten(0, 1)).unflatten(0, (rows, steps)) * keep[..., None]
        prepared, kept = self.cell.prepare(encoded).unbind(1), keep[..., None].unbind(1)
        noise = None if deterministic else self.latent.noise((steps, rows), self.device, generator)
        state = self._zero_state(rows) if start is None else start
        deter, stoch = state["deter"], state["stoch"]
        deters, stochs, posteriors = [], [], []
        weights = self.cell.step_weights()
        for t in range(steps):
            deter = self.cell(deter * kept[t], stoch.flatten(1) * kept[t], prepared[t], weights)
            posterior = self.post_head(deter, observed[t])
            stoch = self.latent.mode(posterior) if noise is None else self.latent.draw(posterior, noise[t])
            deters.append(deter)
            stochs.append(stoch)
            posteriors.append(posterior)
        return {"deter": th.stack(deters, 1), "stoch": th.stack(stochs, 1)}, th.stack(posteriors, 1)

    def step(
        self, state: State, action: th.Tensor, *, deterministic: bool = False, generator: th.Generator | None = None
    ) -> Prediction:
        deter = self.cell(state["deter"], state["stoch"].flatten(1), self.cell.prepare(self.actions.encode(action)))
        prior = self.prior_head(deter)
        stoch = self.latent.mode(prior) if deterministic else self.latent.sample(prior, generator)
        following: State = {"deter": deter, "stoch": stoch}
        features = self.features(following)
        reward, discount = self.reward_head.mean(features), self._discounts(features)
        reward, terminated = self.with_known(
            lambda: (self.decode(state), self.actions.to_env(action), self.decode(following)),
            reward,
            (1 - discount / self._learned_discount).clamp(0.0, 1.0),
        )
        return Prediction(following, reward, terminated, (1 - terminated) * self.discount)

    def imagine(
        self,
        state: State,
        act: Callable[[th.Tensor], th.Tensor],
        horizon: int,
        *,
        deterministic: bool = False,
        generator: th.Generator | None = None,
    ) -> LatentTrajectory:
        """
        Follow a policy in latent space; nothing is decoded.

        Rewards and discounts are those of the heads, computed for all states at once.

        :param state: the first states, ``(B, ...)``
        :param act: a policy, from features ``(B, F)`` to actions ``(B, A)``
        :param horizon: the number of steps
        :param deterministic: the most likely samples instead
        :param generator: the source of randomness
        """
        whole("horizon", horizon, 1)
        noise = None if deterministic else self.latent.noise((horizon, len(state["deter"])), self.device, generator)
        deter, features, weights = state["deter"], [self.features(state)], self.cell.step_weights()
        actions: list[th.Tensor] = []
        # Plainly: all_features = th.stack(features), (H + 1, B, F). The steps are the first axis in memory, so that all states
        # but the last are one piece of it. Where no gradients flow through the states, each step writes its features into that
        # tensor at once, which saves the copy. (`.data` gives each row a version counter of its own: an actor may keep its
        # features for gradients while later rows are written.)
        all_features = None if th.is_grad_enabled() else features[0].new_empty((horizon + 1, *features[0].shape))
        if all_features is not None:
            all_features[0] = features[0]
        for t in range(horizon):
            actions.append(act(features[-1]))
            stoch = features[-1][:, deter.shape[1] :]
            deter = self.cell(deter, stoch, self.cell.prepare(self.actions.encode(actions[-1])), weights)
            prior = self.prior_head(deter)
            drawn = self.latent.mode(prior) if noise is None else self.latent.draw(prior, noise[t])
            features.append(
                th.cat([deter, drawn.flatten(1)], -1, out=None if all_features is None else all_features.data[t + 1])
            )
        all_features = th.stack(features) if all_features is None else all_features
        parts = all_features.split([self.settings.deter, self.latent.flat], -1)
        states = {"deter": parts[0], "stoch": parts[1].unflatten(-1, self.latent.shape)}
        steps_first = (
            all_features,
            states,
            th.stack(actions),
            self.reward_head.mean(all_features),
            self._discounts(all_features),
        )
        return LatentTrajectory(*(tree_map(lambda leaf: leaf.transpose(0, 1), part) for part in steps_first))

    def _discounts(self, features: th.Tensor) -> th.Tensor:
        """
        Predict the discount of each state, 0 where an episode is over.

        With a loss of scale 0 the continue head learns nothing, so the discount is constant.
        """
        if self.settings.continue_scale == 0.0:
            return th.full_like(features[..., 0], self._learned_discount)
        return self.continue_head.mean(features)

    def decode(self, state: State) -> Obs:
        return self.decoder(state["deter"], state["stoch"].flatten(1))

    def features(self, state: State) -> th.Tensor:
        return th.cat([state["deter"], state["stoch"].flatten(1)], -1)

    # ---- stored states

    def pack(self, state: State) -> dict[str, th.Tensor]:
        return {"deter": state["deter"], "stoch": self.latent.pack(state["stoch"])}

    def unpack(self, packed: Mapping[str, th.Tensor]) -> State:
        return {"deter": packed["deter"], "stoch": self.latent.unpack(packed["stoch"])}

    @property
    def state_layout(self) -> list[Any]:
        chosen = self.settings
        return [chosen.deter, chosen.latent, chosen.stoch, chosen.classes]

    # ---- actor and critic on its features

    def head_defaults(self) -> dict[str, Any]:
        return {"units": self.settings.units, **self.settings.style}

    def value_output(self, **settings: Any) -> Output:
        return replace(self.settings, **settings).make_reward()

    # ---- saving: loaded with another discount, the continue head means what it has learned

    def extra_state(self) -> dict[str, Any]:
        return {**super().extra_state(), "gamma": self._learned_discount}

    def load_extra_state(self, extra: Mapping[str, Any]) -> None:
        super().load_extra_state(extra)
        self._learned_discount = extra.get("gamma", self._learned_discount)

    # ---- learning

    def loss(
        self, batch: Transitions | Sequences | Timesteps, start: State | None = None, *, generator: th.Generator | None = None
    ) -> Loss:
        """
        Compute the terms of the world model's loss, with the scales of the settings as weights.

        The terms are a reconstruction error for each key of the observation (``obs``, or ``obs_<key>``), ``reward``,
        ``continue``, and the divergence between posteriors and priors: ``dynamics`` and ``representation`` (``kl="split"``),
        else ``kl``. The metric ``kl`` is the mean divergence in nats, without free nats.

        :param batch: timesteps, or sequences, which are converted (:func:`~sb3_mbrl.timesteps.to_timesteps`)
        :param start: the states before the first rows, ``(B, ...)``; ``None`` where nothing is known
        :param generator: the source of randomness
        :raises TypeError: for single transitions
        """
        if isinstance(batch, Timesteps):
            return self._loss(batch, start, generator)
        if not isinstance(batch, Sequences):
            raise TypeError(f"RSSM.loss takes Sequences or Timesteps, not {type(batch).__name__}: draw windows of steps")
        rows, _ = to_timesteps(tree_map(lambda leaf: leaf.to(self.device), batch))
        loss = self._loss(rows, start, generator)
        steps = rows.reward.shape[1]
        if steps == 1:
            return loss
        # The reward that led to the first observation of a window is not known. Plainly: the mean of the term is taken over
        # the other steps alone. Since the term has one value per step like all others, the first one is 0 instead, and the
        # others are scaled up, so that the mean over all steps is the same.
        reward = F.pad(loss.rows["reward"][:, 1:] * (steps / (steps - 1)), (1, 0))
        return loss._replace(rows={**loss.rows, "reward": reward})

    def _loss(self, rows: Timesteps, start: State | None, generator: th.Generator | None) -> Loss:
        states, post = self.observe_sequence(rows.obs, rows.action, rows.is_first, start, generator)
        shape = rows.reward.shape
        flat: Any = tree_map(lambda leaf: leaf.flatten(0, 1), rows.obs)
        deter, stoch = states["deter"].flatten(0, 1), states["stoch"].flatten(0, 1).flatten(1)
        features = th.cat([deter, stoch], -1)
        divergences = kl_parts(self.latent, post.flatten(0, 1), self.prior_head(deter))
        reconstruction = self.decoder.losses(deter, stoch, flat)
        # The continue head learns the discount itself: gamma where the episode continues, 0 where it has terminated.
        discount = (1 - rows.terminated.flatten()) * self._learned_discount
        terms = {
            **{_name_of_loss(key): value for key, value in reconstruction.items()},
            "reward": self.reward_head.loss(features, rows.reward.flatten()),
            "continue": self.continue_head.loss(features, discount),
            **self._kl_terms(divergences),
        }
        return Loss(
            rows={name: value.view(shape) for name, value in terms.items() if value.dim()},
            scalars={name: value for name, value in terms.items() if not value.dim()},
            weights={name: weight for name, weight in self._loss_weights().items() if name in terms},
            states=states,
            metrics={"kl": divergences.dynamics.detach().mean()},
        )

    def _kl_terms(self, parts: KLParts) -> dict[str, th.Tensor]:
        """Compute the terms of the divergence by name: one value per row for ``"split"``, else a scalar."""
        kind, free = self.settings.kl, self.settings.free_nats
        if kind == "split":
            return split_kl(parts, free=free)._asdict()
        if kind == "balanced":
            return {"kl": balanced_kl(parts, balance=self.settings.kl_balance, free=free)}
        return {"kl": joint_kl(parts, free=free, per_step=kind == "per_step")}

    def _loss_weights(self) -> dict[str, float]:
        chosen = self.settings
        return {
            "dynamics": chosen.dynamics_scale,
            "representation": chosen.representation_scale,
            "kl": chosen.kl_scale,
            "reward": chosen.reward_scale,
            "continue": chosen.continue_scale,
            **{_name_of_loss(key): chosen.vector_scale for key in self.layout.vectors},
        }

    def _moved(self, obs: Obs) -> Obs:
        return tree_map(lambda leaf: leaf.to(self.device), obs)
