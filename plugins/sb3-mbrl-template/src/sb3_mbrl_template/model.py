"""Ridge regression on random Fourier features: a world model that is fitted by solving one linear system."""

import math
from collections.abc import Mapping
from typing import Any

import torch as th
from gymnasium import spaces
from sb3_mbrl.contracts import Data, FitBudget, Obs, Prediction, RewardFn, TerminationFn, UnsupportedSpace, WorldModel
from sb3_mbrl.rng import on_device
from sb3_mbrl.spaces import ActionCodec, SpaceCodec

from sb3_mbrl_template import supports


class FourierModel(WorldModel):
    """
    The change of the observation and the reward are linear in features of observation and action, with Gaussian noise.

    The features are a constant, the standardised inputs, and random Fourier features that approximate a Gaussian kernel
    (Rahimi and Recht 2007, "Random Features for Large-Scale Kernel Machines", algorithm 1). Termination is logistic in the
    same features. The state is the observation, ``(B, D)``.

    :param observation_space: a flat ``Box``
    :param action_space: ``Box`` or ``Discrete``
    :param n_features: the number of random features
    :param lengthscale: the kernel's length scale in standard deviations of the inputs; ``None``: the square root of the number
        of inputs
    :param ridge: the penalty on squared weights, in units of one row of standardised data
    :param max_rows: the maximum number of rows of a fit, drawn at random
    :param feature_seed: the seed of the random features
    :param reward_fn: see :class:`sb3_mbrl.contracts.WorldModel`
    :param termination_fn: see :class:`sb3_mbrl.contracts.WorldModel`
    :param device: as in SB3
    :raises UnsupportedSpace: for other spaces
    """

    # Declared for type checkers, which do not see what register_buffer does.
    frequencies: th.Tensor
    phases: th.Tensor
    input_mean: th.Tensor
    input_std: th.Tensor
    target_mean: th.Tensor
    target_std: th.Tensor
    weights: th.Tensor
    noise_std: th.Tensor
    termination_weights: th.Tensor
    ever_terminated: th.Tensor

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        *,
        n_features: int = 256,
        lengthscale: float | None = None,
        ridge: float = 1e-2,
        max_rows: int = 20_000,
        feature_seed: int = 0,
        reward_fn: RewardFn | None = None,
        termination_fn: TerminationFn | None = None,
        device: th.device | str = "auto",
    ) -> None:
        super().__init__(observation_space, action_space, reward_fn=reward_fn, termination_fn=termination_fn, device=device)
        if reason := supports(observation_space, action_space):
            raise UnsupportedSpace(f"FourierModel does not fit: {reason}")
        if n_features < 1 or ridge <= 0 or max_rows < 1 or (lengthscale is not None and lengthscale <= 0):
            raise ValueError(
                f"n_features={n_features}, ridge={ridge}, max_rows={max_rows}, lengthscale={lengthscale}: all must be positive"
            )
        self.codec, self.action_codec = SpaceCodec(observation_space), ActionCodec(action_space)
        self.ridge, self.max_rows = ridge, max_rows
        inputs, outputs = self.codec.dim + self.action_codec.dim, self.codec.dim + 1
        features = 1 + inputs + n_features
        # A generator of its own: building a model must not move the random stream of whoever builds it.
        generator = th.Generator().manual_seed(feature_seed)
        frequencies = th.randn((inputs, n_features), generator=generator) / (lengthscale or math.sqrt(inputs))
        # Buffers are saved with the agent and follow it to its device. All are floats, as SB3 expects of a state_dict.
        self.register_buffer("frequencies", frequencies)
        self.register_buffer("phases", 2 * math.pi * th.rand(n_features, generator=generator))
        self.register_buffer("input_mean", th.zeros(inputs))
        self.register_buffer("input_std", th.ones(inputs))
        self.register_buffer("target_mean", th.zeros(outputs))
        self.register_buffer("target_std", th.ones(outputs))
        self.register_buffer("weights", th.zeros(features, outputs))
        self.register_buffer("noise_std", th.zeros(outputs))
        self.register_buffer("termination_weights", th.zeros(features))
        self.register_buffer("ever_terminated", th.zeros(()))
        self.n_fits = 0
        self.to(self.device)

    # ---- learning

    @th.no_grad()
    def fit(self, data: Data, budget: FitBudget | None = None, *, generator: th.Generator | None = None) -> dict[str, float]:
        """
        Solve for the weights. There are no epochs and no batches; of the budget only ``holdout_ratio`` and ``max_holdout`` are
        used.

        The agent has held rows out already, by which it will judge the model: ``data.transitions()`` does not show them. Of
        the rows that are left, some are set aside to measure the noise: it is what the weights of the others leave
        unexplained there. Then the weights are solved for with all rows that are left. (``data.held_out()`` must not be used
        for this: a variance that is estimated from the held-out rows is stored knowledge of them.)

        :return: ``rows``, ``holdout_rows`` (the rows set aside), and ``holdout_mse`` of their standardised targets (1: no
            better than their mean)
        """
        if len(data) == 0:
            return {}
        budget = budget or FitBudget()
        rows = data.transitions()
        obs = self.codec.encode(rows.obs)
        chosen = th.randperm(len(obs), generator=on_device(generator, th.device("cpu")))[: self.max_rows].to(obs.device)
        delta = self.codec.encode(rows.next_obs) - obs
        inputs = th.cat([obs, self.action_codec.encode(rows.action)], dim=1)[chosen].to(self.device)
        targets = th.cat([delta, rows.reward[:, None]], dim=1)[chosen].to(self.device)
        terminated = rows.terminated[chosen].to(self.device)

        # Copied into the buffers, which stay the same tensors: a loaded model has the same memory layout, hence the same last
        # bits.
        for buffer, value in zip(
            (self.input_mean, self.input_std, self.target_mean, self.target_std),
            (*_moments(inputs), *_moments(targets)),
            strict=True,
        ):
            buffer.copy_(value)
        features = self._features(inputs).double()
        targets = ((targets - self.target_mean) / self.target_std).double()

        aside = min(int(budget.holdout_ratio * len(inputs)), budget.max_holdout)
        metrics = {"rows": float(len(inputs)), "holdout_rows": float(aside)}
        weights = self._solve(features[aside:], targets[aside:])
        test = slice(0, aside) if aside else slice(None)
        error = (targets[test] - features[test] @ weights).square().mean(0)
        self.noise_std.copy_(error.sqrt())
        if aside:
            metrics["holdout_mse"] = float(error.mean())
            weights = self._solve(features, targets)
        self.weights.copy_(weights)
        self.ever_terminated.copy_(terminated.max())
        self.termination_weights.copy_(self._solve_logistic(features, terminated.double()))
        self.fitted = True
        self.n_fits += 1
        return metrics

    def _features(self, inputs: th.Tensor) -> th.Tensor:
        """``(B, D + A)`` raw inputs to ``(B, 1 + D + A + n_features)``."""
        inputs = (inputs - self.input_mean) / self.input_std.clamp_min(1e-6)
        waves = math.sqrt(2 / self.frequencies.shape[1]) * th.cos(inputs @ self.frequencies + self.phases)
        return th.cat([th.ones_like(inputs[:, :1]), inputs, waves], dim=1)

    def _solve(self, features: th.Tensor, targets: th.Tensor) -> th.Tensor:
        """Ridge regression: ``(F'F + ridge I)^-1 F'Y``."""
        gram = features.T @ features
        gram.diagonal().add_(self.ridge)
        return th.cholesky_solve(features.T @ targets, th.linalg.cholesky(gram))

    def _solve_logistic(self, features: th.Tensor, labels: th.Tensor, iterations: int = 100) -> th.Tensor:
        """Logistic regression by a bound on its curvature: one factor serves all steps, none overshoots (Böhning 1992)."""
        weights = features.new_zeros(features.shape[1])
        if not labels.any():
            return weights
        bound = 0.25 * (features.T @ features)
        bound.diagonal().add_(self.ridge)
        factor = th.linalg.cholesky(bound)
        for _ in range(iterations):
            gradient = features.T @ (labels - th.sigmoid(features @ weights)) - self.ridge * weights
            weights = weights + th.cholesky_solve(gradient[:, None], factor)[:, 0]
        return weights

    # ---- states

    def initial(self, obs: Obs, snapshot: th.Tensor | None = None) -> th.Tensor:
        return self.codec.encode(obs).to(self.device)

    def step(
        self, state: th.Tensor, action: th.Tensor, *, deterministic: bool = False, generator: th.Generator | None = None
    ) -> Prediction:
        features = self._features(th.cat([state, self.action_codec.encode(action)], dim=1))
        outcome = features @ self.weights
        if not deterministic:
            noise = th.randn(outcome.shape, generator=on_device(generator, outcome.device), device=outcome.device)
            outcome = outcome + self.noise_std * noise
        outcome = self.target_mean + self.target_std * outcome
        next_state = self.codec.project(state + outcome[:, :-1])
        reward = outcome[:, -1]
        # Before any row has ended an episode nothing is known about terminations: none is imagined.
        terminated = self.ever_terminated * th.sigmoid(features @ self.termination_weights)
        reward, terminated = self.with_known(
            lambda: (self.decode(state), self.action_codec.to_env(action), self.decode(next_state)), reward, terminated
        )
        return Prediction(next_state, reward, terminated)

    def decode(self, state: th.Tensor) -> Obs:
        return self.codec.decode(state)

    # ---- saving: the weights are buffers, so only the counter is left

    def extra_state(self) -> dict[str, Any]:
        return {**super().extra_state(), "n_fits": self.n_fits}

    def load_extra_state(self, extra: Mapping[str, Any]) -> None:
        super().load_extra_state(extra)
        self.n_fits = int(extra["n_fits"])


def _moments(rows: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
    """Mean and standard deviation of every column; 1 for a column that does not vary."""
    std = rows.std(0, correction=0)
    return rows.mean(0), th.where(std > 1e-6, std, th.ones_like(std))
