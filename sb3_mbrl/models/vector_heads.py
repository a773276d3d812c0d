"""The heads of a vector world model: next observation, reward and termination from one output vector, and their losses.

Continuous columns and the reward are Gaussian (or plain regressions), each target standardised on its own; categories are
classified, bits and termination are Bernoulli. A raw output is
``[means | log-variances | category and bit logits | termination logit]``.
"""

from typing import Literal, NamedTuple

import torch as th
from torch import nn
from torch.nn import functional as F

from sb3_mbrl.contracts import Loss
from sb3_mbrl.networks.ensemble import Standardiser, take
from sb3_mbrl.rng import on_device
from sb3_mbrl.spaces import Group, SpaceCodec

Target = Literal["delta", "next"]


class Targets(NamedTuple):
    """The targets of the heads, ``N`` rows."""

    numbers: th.Tensor
    """``(N, C)`` continuous columns (change or next value), and the reward last where it is learned; standardised"""
    labels: th.Tensor
    """``(N, L)`` one-hot categories and bits of the next observation"""
    terminated: th.Tensor
    """``(N,)``"""

    def rows(self, index: th.Tensor) -> "Targets":
        """Select rows by an index of any shape, which becomes the leading axes."""
        return Targets(take(self.numbers, index), take(self.labels, index), take(self.terminated, index))


class Outcome(NamedTuple):
    """A predicted step, in the units of encoded observations."""

    obs: th.Tensor
    """``(B, D)``: numbers unclipped, categories one-hot"""
    reward: th.Tensor
    terminated: th.Tensor


class Heads(nn.Module):
    """
    The heads of one network or of several, and how their raw outputs are read.

    :param codec: the codec of the observation space
    :param members: the number of networks (for the log-variance bounds)
    :param probabilistic: Gaussian numbers instead of plain regression
    :param target: whether the change of an observation or the next one is learned
    :param normalize_targets: standardise every number on its own
    :param nll_beta: see :meth:`terms`
    :param learn_reward: ``False`` when the reward is known
    :param learn_termination: ``False`` when the termination is known
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
    ) -> None:
        super().__init__()
        self.codec, self.probabilistic, self.target = codec, probabilistic, target
        self.nll_beta = nll_beta
        self.normalize_targets, self.learn_reward, self.learn_termination = normalize_targets, learn_reward, learn_termination
        self.number_columns = codec.mask("continuous").nonzero().flatten()
        self.label_columns = (~codec.mask("continuous")).nonzero().flatten()
        self.numbers = len(self.number_columns) + int(learn_reward)
        self.out_features = self.numbers * (1 + int(probabilistic)) + len(self.label_columns) + int(learn_termination)
        self.standardiser = Standardiser(self.numbers)
        # Position of every category group among the label columns.
        self.label_groups: list[tuple[Group, slice]] = []
        stop = 0
        for group in codec.groups:
            if group.kind != "continuous":
                self.label_groups.append((group, slice(stop, stop + group.stop - group.start)))
                stop += group.stop - group.start
        if probabilistic:
            # Soft bounds on the log-variance, PETS appendix A.1; initial values as in MBPO's code.
            self.max_logvar = nn.Parameter(th.full((members, 1, self.numbers), 0.5))
            self.min_logvar = nn.Parameter(th.full((members, 1, self.numbers), -10.0))
        # Of the data of the last fit; a buffer, so that it goes with the weights.
        self.register_buffer("saw_termination", th.tensor(1.0))

    saw_termination: th.Tensor

    @property
    def can_terminate(self) -> bool:
        """Whether the learned head has seen any termination; without one it has learned nothing."""
        return self.learn_termination and bool(self.saw_termination)

    # ---- data

    def _continuous(self, obs: th.Tensor) -> th.Tensor:
        """Return the continuous columns of encoded observations; no copy where there are no others."""
        return obs[..., self.number_columns] if self.label_groups else obs

    def targets(self, obs: th.Tensor, next_obs: th.Tensor, reward: th.Tensor, terminated: th.Tensor) -> Targets:
        """Return raw (not yet standardised) targets of ``N`` rows of encoded observations."""
        numbers = self._continuous(next_obs)
        if self.target == "delta":
            numbers = numbers - self._continuous(obs)
        if self.learn_reward:
            numbers = th.cat([numbers, reward[:, None]], dim=1)
        return Targets(numbers, next_obs[:, self.label_columns], terminated)

    def fit_normaliser(self, targets: Targets) -> Targets:
        """Take the scale from the training rows, and return them standardised."""
        if self.normalize_targets and self.numbers:
            # What never varied is predicted not to vary. A planner would go for the errors of a network there.
            self.standardiser.fit(targets.numbers, constant=0.0)
        self.saw_termination.fill_(float(targets.terminated.any()))
        return self.standardised(targets)

    def standardised(self, targets: Targets) -> Targets:
        """Standardise targets by the scale of the training rows."""
        return targets._replace(numbers=self.standardiser(targets.numbers))

    # ---- raw outputs

    def split(
        self, raw: th.Tensor, member: th.Tensor | int | None = None
    ) -> tuple[th.Tensor, th.Tensor | None, th.Tensor, th.Tensor]:
        """
        :param raw: ``(E, B, out)``, or ``(B, out)`` when ``member`` says whose rows they are
        :return: means, bounded log-variances (``None`` for regressions), label logits, termination logits
        """
        n = self.numbers
        mean, logvar = raw[..., :n], None
        start = n
        if self.probabilistic:
            upper: th.Tensor = self.max_logvar
            lower: th.Tensor = self.min_logvar
            if isinstance(member, th.Tensor):
                upper, lower = (bound.flatten(1).index_select(0, member) for bound in (upper, lower))
            elif member is not None:
                upper, lower = upper[member].squeeze(-2), lower[member].squeeze(-2)
            logvar = upper - F.softplus(upper - raw[..., n : 2 * n])
            logvar = lower + F.softplus(logvar - lower)
            start = 2 * n
        stop = start + len(self.label_columns)
        terminated = raw[..., stop] if self.learn_termination else raw.new_zeros(raw.shape[:-1])
        return mean, logvar, raw[..., start:stop], terminated

    def loss(self, raw: th.Tensor, targets: Targets) -> th.Tensor:
        """
        Compute the training loss, summed over members: the total of :meth:`terms`, computed with fewer operations.

        :param raw: ``(E, B, out)``
        :param targets: ``(E, B, ...)``
        """
        mean, logvar, logits, termination = self.split(raw)
        loss = raw.new_zeros(())
        if self.numbers:
            errors = self._number_loss(mean, logvar, targets)
            if logvar is not None:
                loss = self._spread()
            loss = loss + errors.mean((1, 2)).sum()
        if self.label_groups:
            loss = loss + self._label_loss(logits, targets.labels).mean(1).sum()
        if self.learn_termination:
            loss = loss + self._termination_loss(termination, targets).mean(1).sum()
        return loss

    def terms(self, raw: th.Tensor, targets: Targets) -> Loss:
        """
        Compute the training loss term by term, one value per row, summed over members.

        ``numbers``, as in MBPO's code: ``(mu - y)^2 / var + log var``, mean over columns; and ``bounds``, 0.01 times the
        spread of the log-variance bounds. The spread is a mean over columns here, where the reference has a sum: likelihoods
        are means over columns, and against many of them a sum drives the bounds past each other, to one constant variance.

        A likelihood weighs every error by the inverse of the predicted variance: what is hard to predict at first (rare
        rewards, fast turns) is taken for noise and never learned. ``nll_beta`` multiplies each term by that power of the
        variance, as a constant (Seitzer et al. 2022, arXiv 2203.09168, equation 5): 0 is the likelihood, at 1 means learn as
        from squared errors.

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
        return Loss(rows, {"bounds": self._spread()} if self.numbers and logvar is not None else {})

    def _number_loss(self, mean: th.Tensor, logvar: th.Tensor | None, targets: Targets) -> th.Tensor:
        """``(E, B, columns)``: ``((mu - y)^2 / var + log var) * var^nll_beta``, or the squared error of a regression."""
        errors = (mean - targets.numbers).square()
        if logvar is not None:
            precision = (-logvar).exp()
            errors = errors * precision + logvar
            if self.nll_beta:
                errors = errors * precision.detach().pow(-self.nll_beta)
        return errors

    def _spread(self) -> th.Tensor:
        """The penalty on the distance between the bounds of the log-variances."""
        return 0.01 * (self.max_logvar - self.min_logvar).mean(-1).sum()

    def score(self, raw: th.Tensor, targets: Targets) -> th.Tensor:
        """
        Compute the holdout error of every member, ``(E,)``: the mean squared error of the standardised numbers, plus the
        cross-entropies of the labels and of a learned termination (without it, early stopping would throw away what only that
        head has learned).

        :param raw: ``(E, B, out)``
        :param targets: ``(B, ...)``, the same for all
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

    def _label_loss(self, logits: th.Tensor, labels: th.Tensor) -> th.Tensor:
        """``(E, B)``: mean cross-entropy over category groups and bits."""
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
        Draw one step, or take its mode.

        :param raw: ``(..., out)``
        :param obs: ``(..., D)``, encoded
        """
        mean, logvar, logits, termination = self.split(raw, member)
        generator = on_device(generator, raw.device)
        if logvar is not None and not deterministic:
            noise = th.randn(mean.shape, generator=generator, device=mean.device, dtype=mean.dtype)
            mean = th.addcmul(mean, (0.5 * logvar).exp(), noise)
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
        # The plain version: zeros unless saw_termination. A product does not wait for the accelerator, an `if` would.
        return logits.sigmoid() * self.saw_termination if self.learn_termination else th.zeros_like(logits)

    def _labels(self, logits: th.Tensor, deterministic: bool, generator: th.Generator | None) -> th.Tensor:
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
        """Return mean and variance ``(..., D)`` of the next encoded observation; the mean of a label is its probability."""
        mean, logvar, logits, _ = self.split(raw, member)
        n = len(self.number_columns)
        in_units = self.standardiser.inverse(mean)[..., :n]
        next_mean = obs.new_zeros(*raw.shape[:-1], self.codec.dim)
        next_var = th.zeros_like(next_mean)
        next_mean[..., self.number_columns] = in_units + (self._continuous(obs) if self.target == "delta" else 0.0)
        if logvar is not None:
            next_var[..., self.number_columns] = (logvar.exp() * self.standardiser.std.square())[..., :n]
        for group, columns in self.label_groups:
            part = logits[..., columns]
            probability = part.softmax(-1) if group.kind == "categorical" else part.sigmoid()
            next_mean[..., group.columns] = probability
            next_var[..., group.columns] = probability * (1 - probability)
        return next_mean, next_var
