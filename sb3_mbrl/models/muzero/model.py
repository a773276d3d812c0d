"""``muzero``: a value-equivalent world model, which predicts rewards, values and policies, and no observations."""

from collections.abc import Callable, Mapping
from typing import Any

import torch as th
import torch.nn.functional as F
from gymnasium import spaces

from sb3_mbrl.checks import number, whole
from sb3_mbrl.contracts import (
    LatentModel,
    LatentTrajectory,
    Loss,
    MissingCapability,
    Obs,
    Prediction,
    RewardFn,
    Sequences,
    TerminationFn,
    Timesteps,
    Transitions,
)
from sb3_mbrl.models.muzero.networks import Chance, Dynamics, Predictions, Projection, Representation
from sb3_mbrl.models.rssm.observations import Layout
from sb3_mbrl.networks.actions import action_output
from sb3_mbrl.networks.outputs import Output, ScaledOutput
from sb3_mbrl.rng import on_device
from sb3_mbrl.spaces import ActionCodec
from sb3_mbrl.trees import State, tree_map


class MuZeroModel(LatentModel):
    """
    The model of MuZero (Schrittwieser et al. 2020): a latent state that is worth as much as what really happens::

        s_0           = h(obs)              representation
        s_k+1, r_k, e = g(s_k, a_k)         dynamics, with the reward and the termination of the step
        pi_k, v_k     = f(s_k)              predictions

    Nothing is decoded: states are trained by what they predict. The state is ``{"latent": (B, latent)}``, its columns between
    0 and 1 (appendix G).

    :param observation_space: ``Box`` vectors, images (channels first), ``Discrete``, ``MultiDiscrete``, ``MultiBinary``, or a
        ``Dict`` of these
    :param action_space: any of SB3's
    :param gamma: the discount of a step
    :param players: 1, or 2 who move in turn, where what is good for one is bad for the other: the discount of a step is then
        ``-gamma``, and rewards and values are those of the player to move
    :param latent: the number of columns of a latent state
    :param units: the units of all layers
    :param layers: the number of layers of each network
    :param depth: the depth of the convolutions on images
    :param norm: the norm of the layers: ``"layer"``, ``"rms"`` or ``"none"``
    :param bins: the number of bins of values and rewards (:class:`~sb3_mbrl.networks.outputs.ScaledOutput`)
    :param value_range: the largest value, and reward, that the bins can stand for
    :param consistency: the weight of the consistency loss (EfficientZero; 0: off)
    :param value_weight: the weight of the value's loss (0.25 in the paper's reanalysis)
    :param chance_codes: the number of outcomes that a step may have, for random environments (Stochastic MuZero; 0: the model
        is deterministic)
    :param gradient_scale: the share of the gradient that flows from a step of the dynamics into the one before (appendix G)
    :param lr: the learning rate of Adam, where the model is fitted by itself
    :param reward_fn: not taken: there are no observations to compute it from
    :param termination_fn: not taken either
    :param device: as in SB3
    :raises ValueError: for a known function, or a setting that makes no sense
    """

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        *,
        gamma: float = 0.997,
        players: int = 1,
        latent: int = 64,
        units: int = 64,
        layers: int = 1,
        depth: int = 16,
        norm: str = "layer",
        bins: int = 51,
        value_range: float = 300.0,
        consistency: float = 2.0,
        value_weight: float = 0.25,
        chance_codes: int = 0,
        gradient_scale: float = 0.5,
        lr: float = 1e-3,
        reward_fn: RewardFn | None = None,
        termination_fn: TerminationFn | None = None,
        device: th.device | str = "auto",
    ) -> None:
        super().__init__(observation_space, action_space, reward_fn=reward_fn, termination_fn=termination_fn, device=device)
        if reward_fn is not None or termination_fn is not None:
            raise ValueError(
                "muzero predicts no observations, so a known reward_fn or termination_fn has nothing to be computed from: "
                "leave it out"
            )
        if players not in (1, 2):
            raise ValueError(f"players={players!r}: give 1 or 2")
        sizes_given = (("latent", latent), ("units", units), ("layers", layers), ("depth", depth))
        latent, units, layers, depth = (whole(name, value, 1) for name, value in sizes_given)
        chance_codes = whole("chance_codes", chance_codes, 0)
        if norm not in ("rms", "layer", "none"):
            raise ValueError(f"norm={norm!r}: choose 'rms', 'layer' or 'none'")
        self.discount, self.players = number("gamma", gamma, 0.0, 1.0), players
        number("value_range", value_range, 0.0, 1e9, open_low=True)
        self.value_weight = number("value_weight", value_weight, 0.0)
        self.consistency = number("consistency", consistency, 0.0)
        self.gradient_scale = number("gradient_scale", gradient_scale, 0.0, 1.0)
        self.n_features, self.units, self.norm = latent, units, norm
        self.actions, self.policy_output = ActionCodec(action_space), action_output(action_space, unimix=0.0)
        self.output = ScaledOutput(bins, value_range)
        layout = Layout(observation_space)
        self.representation = Representation(layout, latent, units, layers, depth, norm)
        self.chance: Chance | None = None
        if chance_codes:
            sizes = (latent, self.actions.dim, units, layers, depth, self.output.size, norm)
            self.chance = Chance(layout, whole("chance_codes", chance_codes, 2), *sizes)
        inputs = chance_codes or self.actions.dim
        self.dynamics = Dynamics(latent, inputs, units, layers, self.output.size, norm)
        self.predictions = Predictions(latent, units, layers, self.policy_output.size, self.output.size, norm)
        self.projection = Projection(latent, units) if self.consistency > 0.0 else None
        self.to(self.device)
        self.optimizer = th.optim.Adam(self.parameters(), lr=lr)

    @property
    def step_discount(self) -> float:
        """The discount of a step for who moves in it: negative where the other player moves next"""
        return self.discount if self.players == 1 else -self.discount

    # ---- states

    def initial(self, obs: Obs, snapshot: th.Tensor | None = None) -> State:
        return {"latent": self.representation(tree_map(lambda leaf: leaf.to(self.device), obs))}

    def observe_step(
        self,
        state: State | None,
        action: th.Tensor,
        obs: Obs,
        is_first: th.Tensor,
        generator: th.Generator | None = None,
        deterministic: bool = False,
    ) -> State:
        """Represent the new observation: the state of before adds nothing to it."""
        return self.initial(obs)

    def step(
        self, state: State, action: th.Tensor, *, deterministic: bool = False, generator: th.Generator | None = None
    ) -> Prediction:
        """Predict one step. Only the outcomes of ``chance_codes`` are random; ``deterministic``: the likeliest one."""
        latent, inputs = state["latent"], self.actions.encode(action.to(self.device))
        if self.chance is not None:
            latent = self.chance.afterstate(latent, inputs)[0]
            inputs = self._outcome(self.chance.predictions(latent)[0], deterministic, generator)
        latent, reward, ended = self.dynamics(latent, inputs)
        terminated = th.sigmoid(ended)
        return Prediction({"latent": latent}, self.output.mean(reward), terminated, self.step_discount * (1 - terminated))

    def _outcome(self, logits: th.Tensor, deterministic: bool, generator: th.Generator | None) -> th.Tensor:
        """Draw outcomes, one-hot, ``(B, codes)``."""
        if deterministic:
            code = logits.argmax(-1)
        else:
            source = on_device(generator, logits.device)
            code = th.multinomial(logits.float().softmax(-1), 1, generator=source)[:, 0]
        return F.one_hot(code, logits.shape[-1]).to(logits)

    def predict_afterstate(self, latent: th.Tensor, action: th.Tensor) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
        """
        Predict what follows from an action before chance has its turn.

        :param latent: ``(B, latent)``
        :param action: scaled, ``(B, A)``
        :return: the afterstates ``(B, latent)``, the logits of the outcomes ``(B, codes)``, and values ``(B,)``
        """
        assert self.chance is not None  # only asked for where there is chance
        after = self.chance.afterstate(latent, self.actions.encode(action))[0]
        outcomes, value = self.chance.predictions(after)
        return after, outcomes, self.output.mean(value)

    def predict_outcome(self, after: th.Tensor, code: th.Tensor) -> tuple[th.Tensor, th.Tensor, th.Tensor, th.Tensor]:
        """
        Step from afterstates by the numbers of outcomes ``(B,)``; the result is that of :meth:`predict_step`.
        """
        return self._with_predictions(after, F.one_hot(code, self.chance.codes if self.chance else 0).to(after))

    def predict_step(self, latent: th.Tensor, action: th.Tensor) -> tuple[th.Tensor, th.Tensor, th.Tensor, th.Tensor]:
        """
        Step, and predict what the new states are worth: the one network call of a simulation.

        :param latent: ``(B, latent)``
        :param action: scaled, ``(B, A)``
        :return: the next latent states, rewards ``(B,)``, the parameters of their policies, and values ``(B,)``
        """
        return self._with_predictions(latent, self.actions.encode(action))

    def _with_predictions(self, latent: th.Tensor, inputs: th.Tensor) -> tuple[th.Tensor, th.Tensor, th.Tensor, th.Tensor]:
        following, reward, _ = self.dynamics(latent, inputs)
        policy, value = self.predictions(following)
        both = self.output.mean(th.stack([reward, value]))  # one inverse transform for both
        return following, both[0], policy, both[1]

    def policy_value(self, state: State) -> tuple[th.Tensor, th.Tensor]:
        """
        Return policy logits ``(B, n_actions)`` and values ``(B,)``.

        :raises MissingCapability: for other than ``Discrete`` actions, of which there is no list
        """
        if not isinstance(self.action_space, spaces.Discrete):
            raise MissingCapability(f"{self.action_space} has no list of actions: search among sampled ones")
        policy, value = self.predictions(state["latent"])
        return policy, self.output.mean(value)

    def imagine(
        self,
        state: State,
        act: Callable[[th.Tensor], th.Tensor],
        horizon: int,
        *,
        deterministic: bool = False,
        generator: th.Generator | None = None,
    ) -> LatentTrajectory:
        whole("horizon", horizon, 1)
        latents, actions = [state["latent"]], []
        rewards, discounts = (
            [th.zeros(len(latents[0]), device=self.device)],
            [th.full((len(latents[0]),), self.discount, device=self.device)],
        )
        for _ in range(horizon):
            actions.append(act(latents[-1]))
            prediction = self.step({"latent": latents[-1]}, actions[-1])
            latents.append(prediction.state["latent"])
            rewards.append(prediction.reward)
            discounts.append(self.step_discount * (1 - prediction.terminated))
        features = th.stack(latents, 1)
        return LatentTrajectory(
            features, {"latent": features}, th.stack(actions, 1), th.stack(rewards, 1), th.stack(discounts, 1)
        )

    def features(self, state: State) -> th.Tensor:
        return state["latent"]

    def pack(self, state: State) -> dict[str, th.Tensor]:
        return {"latent": state["latent"]}

    def unpack(self, packed: Mapping[str, th.Tensor]) -> State:
        return {"latent": packed["latent"]}

    @property
    def state_layout(self) -> list[Any]:
        return ["muzero", self.n_features]

    def head_defaults(self) -> dict[str, Any]:
        return {"units": self.units, "norm": self.norm, "activation": "silu"}

    def value_output(self, **settings: Any) -> Output:
        return ScaledOutput(settings.get("bins", self.output.n_bins), settings.get("reward_range", self.output.value_range))

    # ---- learning

    def loss(
        self, batch: Transitions | Sequences | Timesteps, start: State | None = None, *, generator: th.Generator | None = None
    ) -> Loss:
        """
        Compute the loss of unrolled steps (MuZero, equation 1)::

            sum_k  l^r(u_k, r_k) + value_weight l^v(z_k, v_k) + l^p(pi_k, p_k)  + consistency (1 - cos(s_k, h(o_k)))

        The terms of all steps but the first are divided by their number ``K`` (appendix G).

        :param batch: windows of ``K`` steps, or single transitions. The ``extra`` of windows may hold ``known`` ``(B, K)``,
            whether a step is known (by default, those of the first episode of a window are), and ``real`` ``(B, K)``, whether
            it was really taken (a step after a termination is known, and was not); and the targets of the ``K + 1`` states:
            ``policy`` ``(B, K + 1, n)``, a distribution over the actions, or over ``edges`` ``(B, K + 1, n, A)``;
            ``policy_weight`` ``(B, K + 1)``; ``value`` and ``value_weight`` ``(B, K + 1)``; and, for afterstates,
            ``action_value`` ``(B, K)`` (by default ``value``, from which it differs where actions were random). Without
            targets, rewards, terminations and consistency are learned
        :param start: not used: windows begin with an observation
        :return: ``rows``: one value per window and term; ``states``: ``{"value": (B,)}``, the predicted value of the first
            state, from which priorities are computed
        """
        if isinstance(batch, Transitions):  # windows of one step
            one, none = tree_map(lambda leaf: leaf[:, None], batch), th.zeros(len(batch.reward), 1, dtype=th.bool)
            batch = Sequences(one.obs, one.action, one.next_obs, one.reward, one.terminated, none, none)
        if not isinstance(batch, Sequences):
            raise TypeError(f"MuZeroModel.loss takes Sequences, not {type(batch).__name__}: draw windows of steps")
        rows = Sequences(*(tree_map(lambda leaf: leaf.to(self.device), part) for part in batch))
        extra, steps = rows.extra, rows.reward.shape[1]
        known = extra["known"].float() if "known" in extra else _first_episode(rows.is_last)
        real = extra["real"].float() if "real" in extra else known
        scale = th.full((steps + 1,), 1.0 / steps, device=self.device)
        scale[0] = 1.0
        latents, rewards, endings, chance = self._unroll(rows)
        policies, values = self.predictions(latents)
        terms = {
            "reward": (self.output.loss(rewards, rows.reward) * known * scale[1:]).sum(1),
            "termination": (
                F.binary_cross_entropy_with_logits(endings, rows.terminated.float(), reduction="none") * known * scale[1:]
            ).sum(1),
        }
        value_errors: dict[str, th.Tensor] = {}
        if "value" in extra:
            value_errors = _errors("value", 0, self.output.mean(values), extra["value"], extra["value_weight"])
            losses = self.output.loss(values, extra["value"])
            terms["value"] = (losses * extra["value_weight"] * scale).sum(1)
            if chance:
                losses = self.output.loss(chance["value"], extra.get("action_value", extra["value"][:, :-1]))
                terms["afterstate_value"] = (losses * extra["value_weight"][:, :-1] * scale[1:]).sum(1)
        if chance:
            # The distribution learns the codes; the scores of a code are drawn to the code itself.
            terms["chance"] = -((chance["code"].detach() * chance["outcomes"].log_softmax(-1)).sum(-1) * real * scale[1:]).sum(
                1
            )
            distance = (chance["scores"] - chance["code"].detach()).square().sum(-1)
            terms["commitment"] = (distance * real * scale[1:]).sum(1)
        if "policy" in extra:
            losses = self.policy_loss(policies, extra["policy"], extra.get("edges"))
            terms["policy"] = (losses * extra["policy_weight"] * scale).sum(1)
        if self.projection is not None:
            flat: Any = tree_map(lambda leaf: leaf.flatten(0, 1), rows.next_obs)
            with th.no_grad():
                true = self.representation(flat).view(*known.shape, -1)
            terms["consistency"] = (self.projection.distance(latents[:, 1:], true) * real * scale[1:]).sum(1)
        weights = {name: self.value_weight for name in ("value", "afterstate_value")} | {"consistency": self.consistency}
        return Loss(
            rows=terms,
            weights={name: weight for name, weight in weights.items() if name in terms},
            states={"value": self.output.mean(values[:, 0]).detach()},
            metrics={**_errors("reward", 1, self.output.mean(rewards), rows.reward, known), **value_errors},
        )

    def _unroll(self, batch: Sequences) -> tuple[th.Tensor, th.Tensor, th.Tensor, dict[str, th.Tensor]]:
        """
        Follow the actions of windows from their first observations.

        :return: the latent states ``(B, K + 1, latent)``, the parameters of rewards ``(B, K, n)`` and terminations ``(B, K)``;
            and, where there is chance, the ``code`` of each step, its ``scores``, the logits of the ``outcomes``
            (``(B, K, codes)`` each) and the parameters of the afterstates' ``value`` ``(B, K, n)``
        """
        first: Any = tree_map(lambda leaf: leaf[:, 0], batch.obs)
        latent = self.representation(first)
        latents, rewards, endings = [latent], [], []
        chance: dict[str, list[th.Tensor]] = {}
        for k in range(batch.reward.shape[1]):
            scaled = _scale_gradient(latent, self.gradient_scale) if k else latent
            inputs = self.actions.encode(batch.action[:, k])
            if self.chance is not None:
                scaled = self.chance.afterstate(scaled, inputs)[0]
                following: Any = tree_map(lambda leaf, k=k: leaf[:, k], batch.next_obs)
                inputs, scores = self.chance.encode(following)
                outcomes, value = self.chance.predictions(scaled)
                for name, part in (("code", inputs), ("scores", scores), ("outcomes", outcomes), ("value", value)):
                    chance.setdefault(name, []).append(part)
            latent, reward, ended = self.dynamics(scaled, inputs)
            latents.append(latent)
            rewards.append(reward)
            endings.append(ended)
        stacked = {name: th.stack(parts, 1) for name, parts in chance.items()}
        return th.stack(latents, 1), th.stack(rewards, 1), th.stack(endings, 1), stacked

    def policy_loss(self, out: th.Tensor, target: th.Tensor, edges: th.Tensor | None = None) -> th.Tensor:
        """
        Compute the cross-entropy of a policy with a target distribution.

        :param out: the parameters of the policies, ``(..., size)``
        :param target: the probabilities ``(..., n)`` of all actions of a ``Discrete`` space, or of ``edges``
        :param edges: the actions that were sampled, ``(..., n, A)`` (Sampled MuZero, section 4)
        :return: ``(...)``
        """
        if edges is None:
            return -(target * out.float().log_softmax(-1)).sum(-1)
        log_prob = self.policy_output.log_prob(out[..., None, :].expand(*edges.shape[:-1], out.shape[-1]), edges)
        return -(target * log_prob).sum(-1)


def _scale_gradient(x: th.Tensor, scale: float) -> th.Tensor:
    """Return ``x``, whose gradient is multiplied by ``scale``."""
    return x * scale + x.detach() * (1 - scale)


def _first_episode(is_last: th.Tensor) -> th.Tensor:
    """Return 1 for the steps of a window until its first episode ends, and 0 for the others, ``(B, K)``."""
    ended = is_last.float().cumsum(1) - is_last.float()
    return (ended == 0).float()


def _errors(name: str, first: int, predicted: th.Tensor, true: th.Tensor, known: th.Tensor) -> dict[str, th.Tensor]:
    """
    Compute mean absolute errors by the number of unrolled steps.

    :param name: the name of what is predicted
    :param first: the number of unrolled steps that the first column stands for
    :param predicted: ``(B, n)``
    :param true: ``(B, n)``
    :param known: ``(B, n)``, 1 where ``true`` counts
    :return: ``name_error_k`` for each column
    """
    means = ((predicted - true).abs() * known).sum(0).detach() / known.sum(0).clamp(min=1.0)
    return {f"{name}_error_{k}": mean for k, mean in enumerate(means.unbind(), start=first)}
