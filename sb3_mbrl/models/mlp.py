"""``mlp``: one network that predicts next observation, reward and termination, deterministic or Gaussian."""

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from numbers import Integral
from typing import Any, Literal

import torch as th
from gymnasium import spaces

from sb3_mbrl.checks import number, whole
from sb3_mbrl.contracts import (
    Data,
    FitBudget,
    Loss,
    Prediction,
    RewardFn,
    Sequences,
    TerminationFn,
    Transitions,
)
from sb3_mbrl.fitting import (
    BestWeights,
    StatisticalBestWeights,
    holdout_mask,
    index_transitions,
    split_rows,
    train_epochs,
)
from sb3_mbrl.models.correction import OwnPredictions, disturbed
from sb3_mbrl.models.vector import VectorModel
from sb3_mbrl.models.vector_heads import Noise, Outcome, Target, Targets, VectorHeads
from sb3_mbrl.networks.ensemble import EnsembleMLP, Standardiser, keep_freed_memory, take
from sb3_mbrl.rng import RandomStream
from sb3_mbrl.trees import State

LARGE = 2**21
"""The number of values (rows times columns) from which on one-hot categories are encoded batch by batch"""

PAPER_WEIGHT_DECAY = (2.5e-5, 5e-5, 7.5e-5, 7.5e-5, 1e-4)
"""The weight decay of each layer of a network with four hidden layers (MBPO's code, ``mbpo/models/constructor.py``)"""


def layer_weight_decay(weight_decay: float | Sequence[float] | None, layers: int) -> list[float]:
    """
    Return the weight decay of each layer.

    :param weight_decay: one number for all layers, a list with one for each, or ``None`` for the paper's values (interpolated
        for other depths)
    :param layers: the number of linear layers
    """
    given = [] if weight_decay is None else [weight_decay] if isinstance(weight_decay, (int, float)) else list(weight_decay)
    if not all(0.0 <= value < math.inf for value in given):
        raise ValueError(f"weight_decay={weight_decay!r}: give finite numbers from 0 on")
    if weight_decay is None:
        if layers == len(PAPER_WEIGHT_DECAY):
            return list(PAPER_WEIGHT_DECAY)
        return th.linspace(PAPER_WEIGHT_DECAY[0], PAPER_WEIGHT_DECAY[-1], layers).tolist()
    if isinstance(weight_decay, (int, float)):
        return [float(weight_decay)] * layers
    if len(weight_decay) != layers:
        raise ValueError(
            f"weight_decay has {len(weight_decay)} entries, but the network has {layers} linear layers: "
            "give one for each (hidden layers + 1), a single number, or None"
        )
    return [float(value) for value in weight_decay]


def per_layer(name: str, given: float | Sequence[float], layers: int, below: float) -> list[float]:
    """
    Return a setting of each hidden layer.

    :param name: the name of the setting, for errors
    :param given: one number for all layers, or a list with one for each
    :param layers: the number of hidden layers
    :param below: the limit that no number may reach
    """
    values = [given] * layers if isinstance(given, (int, float)) else list(given)
    if len(values) != layers:
        raise ValueError(
            f"{name}={given!r} has {len(values)} entries for {layers} hidden layers: give one for each, or one number"
        )
    if not all(isinstance(value, (int, float)) and 0.0 <= value < below for value in values):
        raise ValueError(f"{name}={given!r}: give numbers from 0 to below {below}")
    return [float(value) for value in values]


class MLPModel(VectorModel):
    """
    A multi-layer perceptron that predicts the next observation, the reward and the termination from observation and action.

    The state is ``{"obs": (B, D)}``, an encoded observation. Inputs are standardised by the training data's mean and
    standard deviation.

    :param observation_space: ``Box`` (vector), ``Discrete``, ``MultiDiscrete``, ``MultiBinary`` or a ``Dict`` of these
    :param action_space: any action space that SB3 supports
    :param hidden: the numbers of units of the hidden layers
    :param probabilistic: whether to predict a Gaussian for every number; ``False``: a plain regression
    :param target: ``"delta"`` to learn the change of an observation, ``"next"`` to learn the next observation
    :param normalize_targets: whether to standardise every target on its own, so that neither rewards nor single columns
        dominate the loss (arXiv 2510.01457); the MBPO paper does not
    :param nll_beta: the weight of errors where the predicted variance is large
        (:meth:`~sb3_mbrl.models.vector_heads.VectorHeads.terms`); 0, the likelihood, as in PETS and MBPO, learns deterministic
        dynamics and rare rewards badly
    :param learning_rate: the learning rate of Adam
    :param weight_decay: the L2 penalty of the weights, not of the biases (:func:`layer_weight_decay`)
    :param noise: of a Gaussian: ``"input"``, a variance that depends on the input, or ``"constant"``, one for each number and
        member, which is learned ten times as fast as the weights
    :param layer_norm: the epsilon of layer norms (without parameters) after hidden layers, one for all or a list; ``None``:
        none. DHMBPO has ``[1.0, 0.1, 0.01]``
    :param dropout: the probability of dropout after hidden layers while the network is fitted, one for all or a list
    :param early_stopping: ``"improvement"``: each member keeps its best weights, and the error must fall by the budget's
        ``min_improvement``; ``"statistical"``: all members together, by a paired t test on the held-out rows
        (:class:`~sb3_mbrl.fitting.StatisticalBestWeights`)
    :param multi_step: with a number ``k`` above 1, half of the rows of a fit are steps of rollouts of the model along ``k``
        real actions, with the real outcomes as targets (:mod:`sb3_mbrl.models.correction`)
    :param multi_step_gradient: whether gradients flow through these rollouts; ``False``: data as demonstrator
    :param input_noise: the standard deviation of the noise that a fit adds to observations, in units of their own standard
        deviation; targets are the undisturbed next observations
    :param reward_fn: see :class:`~sb3_mbrl.contracts.WorldModel`
    :param termination_fn: see :class:`~sb3_mbrl.contracts.WorldModel`
    :param device: as in SB3
    :raises UnsupportedSpace: for other spaces, images among them
    """

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        *,
        hidden: Sequence[int] = (200, 200, 200, 200),
        probabilistic: bool = True,
        target: Target = "delta",
        normalize_targets: bool = True,
        nll_beta: float = 0.5,
        learning_rate: float = 1e-3,
        weight_decay: float | Sequence[float] | None = None,
        noise: Noise = "input",
        layer_norm: float | Sequence[float] | None = None,
        dropout: float | Sequence[float] = 0.0,
        early_stopping: Literal["improvement", "statistical"] = "improvement",
        multi_step: int = 1,
        multi_step_gradient: bool = True,
        input_noise: float = 0.0,
        reward_fn: RewardFn | None = None,
        termination_fn: TerminationFn | None = None,
        device: th.device | str = "auto",
        _members: int = 1,
    ) -> None:
        super().__init__(observation_space, action_space, reward_fn=reward_fn, termination_fn=termination_fn, device=device)
        if target not in ("delta", "next"):
            raise ValueError(f"target={target!r}: choose 'delta' or 'next'")
        if not isinstance(hidden, Sequence) or not all(isinstance(units, Integral) and units >= 1 for units in hidden):
            raise ValueError(f"hidden={hidden!r}: give the units of each hidden layer as a list, e.g. [200, 200]")
        if noise not in ("input", "constant"):
            raise ValueError(f"noise={noise!r}: choose 'input' or 'constant'")
        if noise == "constant" and not probabilistic:
            raise ValueError("noise='constant' belongs to probabilistic=True: a regression has no noise")
        if early_stopping not in ("improvement", "statistical"):
            raise ValueError(f"early_stopping={early_stopping!r}: choose 'improvement' or 'statistical'")
        switches = {"multi_step_gradient": multi_step_gradient, "normalize_targets": normalize_targets}
        for name, value in {**switches, "probabilistic": probabilistic}.items():
            if not isinstance(value, bool):
                raise ValueError(f"{name}={value!r}: give True or False")
        self.early_stopping = early_stopping
        self.multi_step, self.multi_step_gradient = whole("multi_step", multi_step, 1), multi_step_gradient
        self.input_noise = number("input_noise", input_noise, 0.0)
        self.n_members = _members
        inputs = self.codec.dim + self.action_codec.dim
        self.standardiser = Standardiser(inputs)
        self.heads = VectorHeads(
            self.codec,
            members=_members,
            probabilistic=probabilistic,
            target=target,
            normalize_targets=normalize_targets,
            nll_beta=number("nll_beta", nll_beta, 0.0, 1.0),
            learn_reward=reward_fn is None,
            learn_termination=termination_fn is None,
            noise=noise,
        )
        keep_freed_memory()
        self.network = EnsembleMLP(
            _members,
            inputs,
            hidden,
            self.heads.out_features,
            layer_norm=None if layer_norm is None else per_layer("layer_norm", layer_norm, len(hidden), math.inf),
            dropout=per_layer("dropout", dropout, len(hidden), 1.0) if dropout else None,
        )
        self.to(self.device)
        decays = layer_weight_decay(weight_decay, len(self.network.layers))
        groups = [{"params": [layer.weight], "weight_decay": d} for layer, d in zip(self.network.layers, decays, strict=True)]
        groups.append({"params": [layer.bias for layer in self.network.layers], "weight_decay": 0.0})
        if self.heads.variance_of_input:
            groups.append({"params": [self.heads.max_logvar, self.heads.min_logvar], "weight_decay": 0.0})
        elif probabilistic:
            groups.append({"params": [self.heads.log_std], "weight_decay": 0.0, "lr": 10 * learning_rate})
        # Adam's weight_decay adds w * decay to the gradient: the L2 penalty decay / 2 * |w|^2 of the reference.
        self.optimizer = th.optim.Adam(groups, lr=learning_rate, fused=True)
        self.n_fits = 0
        self.holdout_scores: list[float] = []
        """The error of every member on the holdout data of the last fit"""

    # ---- learning

    def encode_rows(self, rows: Transitions) -> tuple[th.Tensor, Targets]:
        """Return raw inputs ``(N, D + A)`` and raw targets of real transitions, on the model's device."""
        obs = self.codec.encode(self.to_device(rows.obs))
        next_obs = self.codec.encode(self.to_device(rows.next_obs))
        reward, terminated = rows.reward.to(self.device).float(), rows.terminated.to(self.device).float()
        targets = self.heads.targets(obs, next_obs, reward, terminated)
        return self.inputs(obs, rows.action), targets

    def loss(
        self, batch: Transitions | Sequences, start: State | None = None, *, generator: th.Generator | None = None
    ) -> Loss:
        """Compute the loss of a batch, summed over members, which all see the same rows (see :meth:`VectorHeads.terms`)."""
        if not isinstance(batch, Transitions):
            raise TypeError(f"{type(self).__name__} learns from single steps: data.transitions(n), not {type(batch).__name__}")
        inputs, targets = self.encode_rows(batch)
        targets = self.heads.standardised(targets)
        everyone = Targets(*(value.expand(self.n_members, *value.shape) for value in targets))
        raw = self.network(self.standardiser(inputs).expand(self.n_members, -1, -1))
        return self.heads.terms(raw, everyone)

    def fit(self, data: Data, budget: FitBudget | None = None, *, generator: th.Generator | None = None) -> dict[str, float]:
        """
        Fit the network, beginning with the weights of the last fit; see :mod:`sb3_mbrl.fitting` for holdout and early
        stopping.

        :return: ``loss``, ``epochs``, ``batches``, ``holdout_error`` (of standardised targets, the mean over the members in
            use) and ``rows`` (held-out ones included)
        """
        if len(data) == 0:
            return {}
        budget = budget or FitBudget()
        rows, held_out = split_rows(data, budget)
        train = FitRows(self, rows, learn_scales=True)
        holdout = train if held_out is None else FitRows(self, held_out)
        index = th.arange(len(train), device=self.device)
        train.weight = self._row_weights(data, budget)
        own = None
        if self.multi_step > 1:
            held = None if data.held_out() is not None else data.row_ids()[holdout_mask(data.row_ids(), budget)]
            own = OwnPredictions(self, data, self.multi_step, self.multi_step_gradient, held)
        statistical = self.early_stopping == "statistical"
        best = (
            StatisticalBestWeights(self.parameters())
            if statistical
            else BestWeights(self.parameters(), self.n_members, budget.min_improvement)
        )

        def steps() -> Iterator[float]:
            yield from self._epoch(train, self._training_rows(index, generator), budget.batch_size, generator, own)

        def evaluate() -> th.Tensor:
            return self._row_scores(holdout) if statistical else self._holdout_scores(holdout)

        # Dropout draws from torch's global generators; inside the scope these continue the stream of ``generator``.
        drops = self.network.dropout is not None
        random = contextlib.nullcontext() if generator is None or not drops else RandomStream.of(generator).scope(self.device)
        self.train()
        try:
            with random:
                metrics = train_epochs(steps, evaluate, best, budget, self.on_progress)
        finally:
            self.eval()
            scores = self._holdout_scores(holdout) if statistical else best.scores
            self.holdout_scores = scores.tolist()
            self._after_fit()
            self.fitted = True
            self.n_fits += 1
        n_rows = len(train) + (0 if held_out is None else len(holdout))
        return {**metrics, "holdout_error": self._error_in_use(), "rows": float(n_rows)}

    def _training_rows(self, train: th.Tensor, generator: th.Generator | None) -> th.Tensor:
        """Return every member's training rows, ``(E, N)``."""
        return train.expand(self.n_members, -1)

    def _row_weights(self, data: Data, budget: FitBudget) -> th.Tensor | None:
        """Return the weight of every training row for every member, ``(E, N)``; ``None``: 1."""
        return None

    def _after_fit(self) -> None:
        """Choose among members by the new :attr:`holdout_scores`."""

    def _error_in_use(self) -> float:
        """Return the mean holdout error of the members in use."""
        return float(th.tensor(self.holdout_scores).mean())

    def _epoch(
        self,
        data: "FitRows",
        rows: th.Tensor,
        size: int,
        generator: th.Generator | None,
        own: OwnPredictions | None = None,
    ) -> Iterator[float]:
        """
        Train for one epoch, and yield the loss of every batch.

        :param data: ``N`` rows
        :param rows: every member's training rows, ``(E, N)``
        :param size: the number of rows in a batch
        :param generator: the source of the rows' order, and of the noise of inputs
        :param own: the members' rollouts; a batch then has half as many real rows, and as many steps of rollouts
        """
        assert self.optimizer is not None
        # Every member sees its rows in an order of its own: the ranks of random numbers are a random permutation.
        order = th.rand(rows.shape, generator=generator).argsort(1).to(rows.device)
        windows = None if own is None else own.draw(len(data), generator)
        size = size if windows is None else max(1, size // 2)
        for i, index in enumerate(rows.gather(1, order).split(size, dim=1)):
            self.optimizer.zero_grad()
            inputs, targets = data.batch(index)
            weight = None if data.weight is None else data.weight.gather(1, index)
            if self.input_noise:
                inputs, targets = disturbed(inputs, targets, self.input_noise, self.heads, self.standardiser, generator)
            loss = self.heads.loss(self.network(inputs), targets, weight)
            if own is not None and windows is not None:
                rollouts = max(1, size // self.multi_step)
                loss = loss + own.loss(windows.part(i * rollouts, rollouts))
            loss.backward()
            self.optimizer.step()
            yield float(loss.detach())

    @th.no_grad()
    def _holdout_scores(self, data: "FitRows") -> th.Tensor:
        """Return the holdout error of every member, ``(E,)``."""
        scores = [
            self.heads.score(self.network(inputs.expand(self.n_members, -1, -1)), targets) * (len(inputs) / len(data))
            for inputs, targets in data.parts()
        ]
        return th.stack(scores).sum(0)

    @th.no_grad()
    def _row_scores(self, data: "FitRows") -> th.Tensor:
        """Return the holdout error of every row, of all members together, ``(N,)``."""
        parts = data.parts()
        return th.cat(
            [self.heads.row_scores(self.network(inputs.expand(self.n_members, -1, -1)), targets) for inputs, targets in parts]
        )

    # ---- rollouts

    def step(
        self, state: State, action: th.Tensor, *, deterministic: bool = False, generator: th.Generator | None = None
    ) -> Prediction:
        return self._predict(state, action, lambda inputs, obs: self._outcome(inputs, obs, deterministic, generator))

    def _predict(self, state: State, action: th.Tensor, predict: Callable[[th.Tensor, th.Tensor], Outcome]) -> Prediction:
        """
        Predict a step, with known functions instead of learned heads if there are any.

        :param predict: a function from standardised inputs and encoded observations to an outcome
        """
        obs, action = state["obs"], action.to(self.device)
        outcome = predict(self.standardiser(self.inputs(obs, action)), obs)
        next_obs = self.codec.project(outcome.obs)
        reward, terminated = self.known(obs, action, next_obs, outcome.reward, outcome.terminated)
        return Prediction({"obs": next_obs}, reward, terminated)

    def _outcome(self, inputs: th.Tensor, obs: th.Tensor, deterministic: bool, generator: th.Generator | None) -> Outcome:
        """
        Predict the outcome of a step.

        :param inputs: standardised inputs, ``(B, D + A)``
        :param obs: encoded observations, ``(B, D)``
        :param deterministic: whether to return the mean instead of a sample
        :param generator: the source of randomness
        """
        raw = self.network(inputs[None])[0]
        return self.heads.predict(raw, obs, member=0, deterministic=deterministic, generator=generator)

    # ---- saving

    def extra_state(self) -> dict[str, Any]:
        return {
            **super().extra_state(),
            "n_fits": self.n_fits,
            "holdout_scores": self.holdout_scores,
        }

    def load_extra_state(self, extra: Mapping[str, Any]) -> None:
        super().load_extra_state(extra)
        self.n_fits = extra["n_fits"]
        self.holdout_scores = list(extra["holdout_scores"])


class FitRows:
    """
    The rows of a fit as a model's standardised inputs and targets. They are encoded once, or, where one-hot categories would
    make them much larger than the data itself, batch by batch.

    :param model: the model
    :param rows: real transitions, ``N``
    :param learn_scales: whether the model's standardisers are fitted to these rows
    """

    def __init__(self, model: MLPModel, rows: Transitions, learn_scales: bool = False) -> None:
        self.model, self.rows = model, rows
        self.weight: th.Tensor | None = None
        """The weight of every row for every member, ``(E, N)``; ``None``: 1"""
        self.encoded: tuple[th.Tensor, Targets] | None = None
        """The standardised inputs ``(N, D + A)`` and targets; ``None`` where they are made batch by batch"""
        categories = any(group.kind == "categorical" for group in model.codec.groups)
        if categories and len(self) * model.codec.dim > LARGE:
            if learn_scales:
                self._learn_scales_by_parts()
            return
        inputs, targets = model.encode_rows(rows)
        if learn_scales:
            model.standardiser.fit(inputs)
            targets = model.heads.fit_normaliser(targets)
        else:
            targets = model.heads.standardised(targets)
        self.encoded = model.standardiser(inputs), targets

    def __len__(self) -> int:
        return len(self.rows.reward)

    def batch(self, index: th.Tensor) -> tuple[th.Tensor, Targets]:
        """Return inputs and targets of rows, by an index of any shape, which becomes the leading axes."""
        if self.encoded is not None:
            inputs, targets = self.encoded
            return take(inputs, index), targets.rows(index)
        inputs, targets = self.model.encode_rows(index_transitions(self.rows, index.flatten().to(self.rows.reward.device)))
        targets = self.model.heads.standardised(targets)
        parts = (value.view(*index.shape, *value.shape[1:]) for value in (self.model.standardiser(inputs), *targets))
        first, *others = parts
        return first, Targets(*others)

    def parts(self) -> Iterator[tuple[th.Tensor, Targets]]:
        """Iterate over all rows, in parts that take little memory."""
        if self.encoded is not None:
            yield self.encoded
            return
        for index in th.arange(len(self)).split(max(1, LARGE // (4 * self.model.n_members * self.model.codec.dim))):
            yield self.batch(index)

    def _learn_scales_by_parts(self) -> None:
        """Fit the standardisers as from all rows at once: to the means and standard deviations of inputs and targets."""
        model = self.model
        encoded = (model.encode_rows(index_transitions(self.rows, index)) for index in self._pieces())
        total, numbers = th.zeros((), dtype=th.float64, device=model.device), []
        for inputs, targets in encoded:
            total = total + inputs.double().sum(0)
            numbers.append(targets.numbers)
        mean = total / len(self)
        variance = th.zeros_like(mean)
        for index in self._pieces():
            inputs, _ = model.encode_rows(index_transitions(self.rows, index))
            variance = variance + (inputs.double() - mean).square().sum(0) / len(self)
        model.standardiser.set(mean.float(), variance.sqrt().float())
        all_numbers, terminated = th.cat(numbers), self.rows.terminated.to(model.device).float()
        model.heads.fit_normaliser(Targets(all_numbers, all_numbers.new_zeros(len(self), 0), terminated))

    def _pieces(self) -> tuple[th.Tensor, ...]:
        return th.arange(len(self)).split(max(1, LARGE // (4 * self.model.codec.dim)))
