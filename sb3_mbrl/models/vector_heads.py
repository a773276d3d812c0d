"""The heads of vector world models: next observation, reward and termination from one output vector, and their losses.

Continuous columns and the reward have Gaussian distributions (or are plain regressions), and each is standardised on its own.
Categories have categorical, bits and the termination Bernoulli distributions. A raw output is
``[means | log-variances | category and bit logits | termination logit]``.
"""

import math
from typing import Literal, NamedTuple

import torch as th
from torch import nn
from torch.nn import functional as F

from sb3_mbrl.contracts import Loss
from sb3_mbrl.networks.ensemble import Standardiser, take
from sb3_mbrl.rng import on_device
from sb3_mbrl.spaces import Group, SpaceCodec

Target = Literal["delta", "next"]
Noise = Literal["input", "constant"]


MIN_LOG_STD = math.log(1e-3)
"""The smallest log standard deviation of constant noise, in units of standardised targets (DHMBPO's code)"""


class Targets(NamedTuple):
    """The targets of the heads, ``N`` rows."""

    numbers: th.Tensor
    """``(N, C)``: continuous columns (change or next value), and last the reward if it is learned"""
    labels: th.Tensor
    """``(N, L)``: one-hot categories and bits of the next observation"""
    terminated: th.Tensor
    """``(N,)`` floats, 0 or 1"""

    def rows(self, index: th.Tensor) -> "Targets":
        """Select rows by an index of any shape, which becomes the leading axes."""
        return Targets(take(self.numbers, index), take(self.labels, index), take(self.terminated, index))


class Outcome(NamedTuple):
    """A predicted step, in the units of encoded observations."""

    obs: th.Tensor
    """``(B, D)``: the next observation; numbers are not clipped to their bounds, categories are one-hot"""
    reward: th.Tensor
    """``(B,)``"""
    terminated: th.Tensor
    """``(B,)``: the probability of termination"""


class VectorHeads(nn.Module):
    """
    The heads of one network or several: their targets, losses and predictions.

    :param codec: the codec of the observation space
    :param members: the number of networks, each of which has log-variance bounds of its own
    :param probabilistic: whether numbers have a Gaussian distribution; ``False``: a plain regression
    :param noise: ``"input"``: a Gaussian's variance depends on the input; ``"constant"``: each member learns one for every
        number
    :param target: ``"delta"`` for the change of an observation, ``"next"`` for the next observation
    :param normalize_targets: whether to standardise every number on its own
    :param nll_beta: the exponent of the variance in the weights of the likelihood (:meth:`terms`)
    :param learn_reward: whether the reward is learned; ``False`` if it is known
    :param learn_termination: whether the termination is learned; ``False`` if it is known
    """

    def __init__(
        self,
        codec: SpaceCodec,
        *,
        members: int,
        probabilistic: bool,
        target: Target,
        normalize_targets: bool,
        nll_beta: float,
        learn_reward: bool,
        learn_termination: bool,
        noise: Noise = "input",
    ) -> None:
        super().__init__()
        self.codec, self.probabilistic, self.target = codec, probabilistic, target
        self.nll_beta = nll_beta
        self.normalize_targets, self.learn_reward, self.learn_termination = normalize_targets, learn_reward, learn_termination
        self.number_columns = codec.mask("continuous").nonzero().flatten()
        self.label_columns = (~codec.mask("continuous")).nonzero().flatten()
        self.numbers = len(self.number_columns) + int(learn_reward)
        self.variance_of_input = probabilistic and noise == "input"
        self.out_features = self.numbers * (1 + self.variance_of_input) + len(self.label_columns) + int(learn_termination)
        self.standardiser = Standardiser(self.numbers)
        # Every group of labels with its slice of the label columns.
        self.label_groups: list[tuple[Group, slice]] = []
        stop = 0
        for group in codec.groups:
            if group.kind != "continuous":
                self.label_groups.append((group, slice(stop, stop + group.stop - group.start)))
                stop += group.stop - group.start
        if self.variance_of_input:
            # Soft bounds on the log-variance, PETS appendix A.1; initial values as in MBPO's code.
            self.max_logvar = nn.Parameter(th.full((members, 1, self.numbers), 0.5))
            self.min_logvar = nn.Parameter(th.full((members, 1, self.numbers), -10.0))
        elif probabilistic:
            self.log_std = nn.Parameter(th.zeros(members, 1, self.numbers))
        # 1 if the data of the last fit had any termination, else 0. A buffer, so that it is saved with the weights.
        self.register_buffer("saw_termination", th.tensor(1.0))

    saw_termination: th.Tensor

    @property
    def can_terminate(self) -> bool:
        """Whether termination is learned, and the data of the last fit had any"""
        return self.learn_termination and bool(self.saw_termination)

    # ---- data

    def _continuous(self, obs: th.Tensor) -> th.Tensor:
        """Return the continuous columns of encoded observations, without a copy if there are no others."""
        return obs[..., self.number_columns] if self.label_groups else obs

    def targets(self, obs: th.Tensor, next_obs: th.Tensor, reward: th.Tensor, terminated: th.Tensor) -> Targets:
        """Return the targets of ``N`` rows of encoded observations, not yet standardised."""
        numbers = self._continuous(next_obs)
        if self.target == "delta":
            numbers = numbers - self._continuous(obs)
        if self.learn_reward:
            numbers = th.cat([numbers, reward[:, None]], dim=1)
        return Targets(numbers, next_obs[:, self.label_columns], terminated)

    def fit_normaliser(self, targets: Targets) -> Targets:
        """Fit the standardiser to the targets of the training rows, and return them standardised."""
        if self.normalize_targets and self.numbers:
            # A column that never varied is predicted to be constant (scale 0), for a planner would exploit a network's errors.
            self.standardiser.fit(targets.numbers, constant=0.0)
        self.saw_termination.fill_(float(targets.terminated.any()))
        return self.standardised(targets)

    def standardised(self, targets: Targets) -> Targets:
        """Standardise targets by mean and standard deviation of the training rows."""
        return targets._replace(numbers=self.standardiser(targets.numbers))

    # ---- raw outputs

    def split(
        self, raw: th.Tensor, member: th.Tensor | int | None = None
    ) -> tuple[th.Tensor, th.Tensor | None, th.Tensor, th.Tensor]:
        """
        Split raw outputs into their parts.

        Log-variances are bounded softly (PETS, appendix A.1), with the learned bounds ``u`` and ``l``::

            v <- u - softplus(u - v)        at most u
            v <- l + softplus(v - l)        at least l

        With constant noise it is ``2 (m + softplus(log_std - m))`` with ``m = log(0.001)``: nearly ``2 log_std``,
        and a standard deviation of at least 0.001. (A hard limit has no gradient: a column that was certain for a while, as a
        reward that has not come yet, would stay certain for ever.)

        :param raw: ``(E, B, out)``, or ``(B, out)`` with ``member``
        :param member: the member that computed the rows, one for all or one for each, ``(B,)``
        :return: means, bounded log-variances (``None`` for regressions), label logits, termination logits
        """
        n = self.numbers
        mean, logvar = raw[..., :n], None
        start = n
        if self.probabilistic and not self.variance_of_input:
            log_std = _of_members(self.log_std, member)
            logvar = 2 * (MIN_LOG_STD + F.softplus(log_std - MIN_LOG_STD)).expand_as(mean)
        elif self.probabilistic:
            upper, lower = _of_members(self.max_logvar, member), _of_members(self.min_logvar, member)
            logvar = upper - F.softplus(upper - raw[..., n : 2 * n])
            logvar = lower + F.softplus(logvar - lower)
            start = 2 * n
        stop = start + len(self.label_columns)
        terminated = raw[..., stop] if self.learn_termination else raw.new_zeros(raw.shape[:-1])
        return mean, logvar, raw[..., start:stop], terminated

    def loss(
        self, raw: th.Tensor, targets: Targets, weight: th.Tensor | None = None, *, means_alone: bool = False
    ) -> th.Tensor:
        """
        Compute the training loss, summed over members. It is ``terms(raw, targets).total()`` with fewer operations.

        :param raw: ``(E, B, out)``
        :param targets: ``(E, B, ...)``
        :param weight: the weight of every row, ``(E, B)``; ``None``: 1
        :param means_alone: whether variances are left as they are, and weigh errors only
        """

        def summed(rows: th.Tensor) -> th.Tensor:
            return (rows if weight is None else rows * weight).mean(1).sum()

        mean, logvar, logits, termination = self.split(raw)
        loss = raw.new_zeros(())
        if self.numbers:
            errors = self._number_loss(mean, None if logvar is None else logvar.detach() if means_alone else logvar, targets)
            if self.variance_of_input and not means_alone:
                loss = self._spread()
            loss = loss + (errors.mean((1, 2)).sum() if weight is None else summed(errors.mean(2)))
        if self.label_groups:
            loss = loss + summed(self._label_loss(logits, targets.labels))
        if self.learn_termination:
            loss = loss + summed(self._termination_loss(termination, targets))
        return loss

    def terms(self, raw: th.Tensor, targets: Targets) -> Loss:
        """
        Compute the training loss term by term, one value per row, summed over members.

        With the prediction ``mu`` and ``var`` of a target ``y``, as in MBPO's code::

            numbers = mean over columns of ((mu - y)^2 / var + log var) * stop_gradient(var)^nll_beta
            bounds  = 0.01 * mean over columns of (max_logvar - min_logvar)

        The reference sums ``bounds`` over columns, although it averages the likelihood: with many columns the sum drives the
        bounds past each other, and the variance becomes constant. Here both are means.

        The likelihood (``nll_beta`` = 0) weighs errors by the inverse of the predicted variance: outcomes that are hard to
        predict at first (rare rewards, fast turns) are taken for noise and never learned. The factor ``var^nll_beta`` (Seitzer
        et al. 2022, arXiv 2203.09168, equation 5) makes up for it; with 1, means are learned as from squared errors.

        ``labels`` is the mean cross-entropy of category groups and bits, ``termination`` the cross-entropy of the termination.

        :param raw: ``(E, B, out)``
        :param targets: ``(E, B, ...)``
        """
        mean, logvar, logits, termination = self.split(raw)
        rows: dict[str, th.Tensor] = {}
        if self.numbers:
            rows["numbers"] = self._number_loss(mean, logvar, targets).mean(2).sum(0)
        if self.label_groups:
            rows["labels"] = self._label_loss(logits, targets.labels).sum(0)
        if self.learn_termination:
            rows["termination"] = self._termination_loss(termination, targets).sum(0)
        return Loss(rows, {"bounds": self._spread()} if self.numbers and self.variance_of_input else {})

    def _number_loss(self, mean: th.Tensor, logvar: th.Tensor | None, targets: Targets) -> th.Tensor:
        """
        Compute ``((mu - y)^2 / var + log var) * var^nll_beta``, or the squared error of a regression.

        :return: ``(E, B, columns)``
        """
        errors = (mean - targets.numbers).square()
        if logvar is not None:
            precision = (-logvar).exp()
            errors = errors * precision + logvar
            if self.nll_beta:
                errors = errors * precision.detach().pow(-self.nll_beta)  # var^beta = (1 / var)^-beta
        return errors

    def _spread(self) -> th.Tensor:
        """Compute the penalty on the distance between the bounds of the log-variances."""
        return 0.01 * (self.max_logvar - self.min_logvar).mean(-1).sum()

    def score(self, raw: th.Tensor, targets: Targets) -> th.Tensor:
        """
        Compute the holdout error of every member: the mean squared error of the standardised numbers, plus the cross-entropies
        of the labels and of a learned termination. (Without the latter, early stopping would discard epochs in which only the
        termination improved.)

        :param raw: ``(E, B, out)``
        :param targets: ``(B, ...)``, the same for all members
        :return: ``(E,)``
        """
        mean, _, logits, termination = self.split(raw)
        score = raw.new_zeros(raw.shape[0])
        if self.numbers:
            score = score + (mean - targets.numbers).square().mean((1, 2))
        if self.label_groups:
            score = score + self._label_loss(logits, targets.labels.expand_as(logits)).mean(1)
        if self.can_terminate:
            score = score + self._termination_loss(termination, targets).mean(1)
        return score

    def row_scores(self, raw: th.Tensor, targets: Targets) -> th.Tensor:
        """
        Compute the holdout error of every row, for all members together: the negative log-likelihood of the numbers under the
        normal distribution with the members' mean ``mu`` and variance (mean of variances + variance of means)::

            sum over columns of (mu - y)^2 / (2 var) + log(var) / 2

        (for regressions the squared error of the mean), plus the cross-entropies of :meth:`score`, averaged over members.

        :param raw: ``(E, B, out)``
        :param targets: ``(B, ...)``, the same for all members
        :return: ``(B,)``
        """
        mean, logvar, logits, termination = self.split(raw)
        score = raw.new_zeros(raw.shape[1])
        if self.numbers:
            errors = (mean.mean(0) - targets.numbers).square()
            if logvar is not None:
                variance = logvar.exp().mean(0) + mean.var(0, correction=0)
                errors = 0.5 * (errors / variance + variance.log())
            score = score + errors.sum(1)
        if self.label_groups:
            score = score + self._label_loss(logits, targets.labels.expand_as(logits)).mean(0)
        if self.can_terminate:
            score = score + self._termination_loss(termination, targets).mean(0)
        return score

    def _label_loss(self, logits: th.Tensor, labels: th.Tensor) -> th.Tensor:
        """Compute the mean cross-entropy over category groups and bits, ``(E, B)``."""
        losses = []
        for group, columns in self.label_groups:
            if group.kind == "categorical":
                losses.append(-(labels[..., columns] * logits[..., columns].log_softmax(-1)).sum(-1))
            else:
                bits = F.binary_cross_entropy_with_logits(logits[..., columns], labels[..., columns], reduction="none")
                losses.append(bits.mean(-1))
        return th.stack(losses).mean(0)

    @staticmethod
    def _termination_loss(logits: th.Tensor, targets: Targets) -> th.Tensor:
        """Compute the cross-entropy of the termination, ``(E, B)``."""
        return F.binary_cross_entropy_with_logits(logits, targets.terminated.expand_as(logits), reduction="none")

    # ---- predictions

    def predict(
        self,
        raw: th.Tensor,
        obs: th.Tensor,
        *,
        member: th.Tensor | int | None,
        deterministic: bool,
        generator: th.Generator | None,
    ) -> Outcome:
        """
        Draw the outcome of a step, or return its mode.

        :param raw: ``(..., out)``
        :param obs: encoded observations, ``(..., D)``
        :param member: the member that computed the rows, one for all or one for each
        :param deterministic: whether to return the mode
        :param generator: the source of randomness
        """
        mean, logvar, logits, termination = self.split(raw, member)
        generator = on_device(generator, raw.device)
        if logvar is not None and not deterministic:
            noise = th.randn(mean.shape, generator=generator, device=mean.device, dtype=mean.dtype)
            mean = th.addcmul(mean, (0.5 * logvar).exp(), noise)  # mean + std * noise
        numbers = self.standardiser.inverse(mean)
        reward = numbers[..., -1] if self.learn_reward else numbers.new_zeros(numbers.shape[:-1])
        columns = numbers[..., : len(self.number_columns)]
        if self.target == "delta":
            columns = self._continuous(obs) + columns
        if not self.label_groups:
            next_obs = columns
        else:
            next_obs = th.empty_like(obs)
            next_obs[..., self.number_columns] = columns
            next_obs[..., self.label_columns] = self._labels(logits, deterministic, generator)
        return Outcome(next_obs, reward, self.termination_probability(termination))

    def termination_probability(self, logits: th.Tensor) -> th.Tensor:
        """Return the probabilities of termination; 0 if the data of the last fit had no termination."""
        # The plain version: `logits.sigmoid() if self.saw_termination else zeros`. The product avoids waiting for the device.
        return logits.sigmoid() * self.saw_termination if self.learn_termination else th.zeros_like(logits)

    def _labels(self, logits: th.Tensor, deterministic: bool, generator: th.Generator | None) -> th.Tensor:
        """Draw categories (one-hot) and bits, or return the most likely ones."""
        labels = th.empty_like(logits)
        for group, columns in self.label_groups:
            part = logits[..., columns]
            if not deterministic:
                uniform = th.rand(part.shape, generator=generator, device=part.device).clamp(1e-9, 1 - 1e-7)
            if group.kind == "categorical":
                if not deterministic:
                    part = part - (-uniform.log()).log()  # Gumbel-max: an exact draw from the softmax
                labels[..., columns] = F.one_hot(part.argmax(-1), part.shape[-1]).to(part.dtype)
            else:
                labels[..., columns] = (part.sigmoid() > (0.5 if deterministic else uniform)).to(part.dtype)
        return labels

    def numbers_in_units(
        self, raw: th.Tensor, obs: th.Tensor, member: th.Tensor | int | None = None
    ) -> tuple[th.Tensor, th.Tensor]:
        """Return mean and variance of the next encoded observation, ``(..., D)``; a label's mean is its probability."""
        mean, logvar, logits, _ = self.split(raw, member)
        n = len(self.number_columns)
        in_units = self.standardiser.inverse(mean)[..., :n]
        next_mean = obs.new_zeros(*raw.shape[:-1], self.codec.dim)
        next_var = th.zeros_like(next_mean)
        next_mean[..., self.number_columns] = in_units + (self._continuous(obs) if self.target == "delta" else 0.0)
        if logvar is not None:
            # Outputs are standardised: the variance in units is that of the output times the square of the target's scale.
            next_var[..., self.number_columns] = (logvar.exp() * self.standardiser.std.square())[..., :n]
        for group, columns in self.label_groups:
            part = logits[..., columns]
            probability = part.softmax(-1) if group.kind == "categorical" else part.sigmoid()
            next_mean[..., group.columns] = probability
            next_var[..., group.columns] = probability * (1 - probability)
        return next_mean, next_var


def _of_members(bound: th.Tensor, member: th.Tensor | int | None) -> th.Tensor:
    """Select what belongs to each row's member, ``(B, C)``, or to one, ``(C,)``, from ``(E, 1, C)``; ``None``: all of it."""
    if isinstance(member, th.Tensor):
        return bound.flatten(1).index_select(0, member)
    return bound if member is None else bound[member].squeeze(-2)
