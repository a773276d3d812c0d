"""Exact Gaussian processes, one per number that is predicted, with GPyTorch's kernels and marginal likelihood."""

import copy
from collections.abc import Mapping
from typing import Any

import gpytorch
import torch as th
from gymnasium import spaces
from linear_operator.utils.cholesky import psd_safe_cholesky
from sb3_mbrl.checks import number, whole
from sb3_mbrl.contracts import Data, FitBudget, Obs, Prediction, RewardFn, TerminationFn, UnsupportedSpace, WorldModel
from sb3_mbrl.networks.ensemble import Standardiser
from sb3_mbrl.rng import on_device
from sb3_mbrl.spaces import ActionCodec, SpaceCodec

from sb3_mbrl_gp import supports


class _Prior(gpytorch.models.ExactGP):
    """Independent processes side by side: constant mean, squared exponential kernel with a length scale per input."""

    def __init__(self, inputs: th.Tensor, targets: th.Tensor, likelihood: gpytorch.likelihoods.GaussianLikelihood) -> None:
        super().__init__(inputs, targets, likelihood)
        batch = th.Size([len(targets)])
        self.mean_module = gpytorch.means.ConstantMean(batch_shape=batch)
        rbf = gpytorch.kernels.RBFKernel(ard_num_dims=inputs.shape[-1], batch_shape=batch)
        self.covar_module = gpytorch.kernels.ScaleKernel(rbf, batch_shape=batch)

    def forward(self, inputs: th.Tensor) -> gpytorch.distributions.MultivariateNormal:
        return gpytorch.distributions.MultivariateNormal(self.mean_module(inputs), self.covar_module(inputs))


class GPModel(WorldModel):
    """
    The change of the observation, the reward, and (where some row has ended an episode) the termination, each a Gaussian
    process of observation and action (Rasmussen and Williams 2006, chapter 2; as dynamics in PILCO, Deisenroth and Rasmussen
    2011). The state is the encoded observation, ``(B, D)``.

    A step draws from the posterior with its noise, independently from step to step; ``deterministic=True`` is the posterior
    mean. Predictions cost the number of stored rows times that of outputs, so at most ``max_rows`` are stored.

    :param observation_space: a flat ``Box``
    :param action_space: ``Box`` or ``Discrete``
    :param max_rows: the maximum number of rows of a fit, drawn at random
    :param steps: the number of steps of Adam on the marginal likelihood per fit; the budget's ``max_batches`` is a limit too
    :param learning_rate: the step size of Adam
    :param reward_fn: see :class:`sb3_mbrl.contracts.WorldModel`
    :param termination_fn: see :class:`sb3_mbrl.contracts.WorldModel`
    :param device: as in SB3
    :raises UnsupportedSpace: for other spaces
    """

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        *,
        max_rows: int = 500,
        steps: int = 60,
        learning_rate: float = 0.1,
        reward_fn: RewardFn | None = None,
        termination_fn: TerminationFn | None = None,
        device: th.device | str = "auto",
    ) -> None:
        super().__init__(observation_space, action_space, reward_fn=reward_fn, termination_fn=termination_fn, device=device)
        if reason := supports(observation_space, action_space):
            raise UnsupportedSpace(f"GPModel does not fit: {reason}")
        self.codec, self.action_codec = SpaceCodec(observation_space), ActionCodec(action_space)
        self.max_rows, self.steps = whole("max_rows", max_rows, 1), whole("steps", steps, 0)
        self.learning_rate = number("learning_rate", learning_rate, 0.0, 10.0, open_low=True)
        self.n_outputs = self.codec.dim + 2
        """Changes of the observation, reward, termination"""
        inputs = self.codec.dim + self.action_codec.dim
        self.likelihood = gpytorch.likelihoods.GaussianLikelihood(batch_shape=th.Size([self.n_outputs]))
        nothing = th.zeros(self.n_outputs, 1, inputs), th.zeros(self.n_outputs, 1)
        self.prior = _Prior(*nothing, self.likelihood)
        self.likelihood.noise = 0.01
        self.stored: dict[str, th.Tensor] = {}
        """Standardised training rows, and whether an episode has ended"""
        self.input_scale, self.target_scale = Standardiser(inputs), Standardiser(self.n_outputs)
        self.n_fits = 0
        self.to(self.device)

    # ---- learning

    def fit(self, data: Data, budget: FitBudget | None = None, *, generator: th.Generator | None = None) -> dict[str, float]:
        """
        Climb the marginal likelihood from where the last fit ended, and store the rows. All rows that the data shows are used:
        the likelihood weighs fit against complexity, so that nothing is needed to stop early by (``data.held_out()``). An
        interrupted fit keeps the rows and hyperparameters of the last one.

        :return: ``rows``, and ``loss``: the negative log marginal likelihood per row and output
        """
        if len(data) == 0:
            return {}
        rows = data.transitions()
        obs = self.codec.encode(rows.obs)
        chosen = th.randperm(len(obs), generator=on_device(generator, th.device("cpu")))[: self.max_rows]
        inputs = th.cat([obs, self.action_codec.encode(rows.action)], dim=1)[chosen].to(self.device)
        delta = self.codec.encode(rows.next_obs) - obs
        targets = th.cat([delta, rows.reward[:, None], rows.terminated[:, None]], dim=1)[chosen].float().to(self.device)
        stored = {"ended": rows.terminated.max().to(self.device)}
        before = {name: value.clone() for name, value in self.state_dict().items()}
        try:
            self.input_scale.fit(inputs)
            self.target_scale.fit(targets, constant=0.0)  # what never varied has no noise
            stored["x"], stored["y"] = self.input_scale(inputs), self.target_scale(targets).T.contiguous()
            # In single precision the covariance of rows that lie close together (a pendulum that is held up) has no factor.
            self.prior.double()
            loss = self._climb(stored["x"].double(), stored["y"].double(), budget or FitBudget())
        except BaseException:
            self.prior.float()
            self.load_state_dict(before)
            raise
        finally:
            self.prior.float()
            self.eval()
        kept = self.stored
        self.stored = stored
        try:
            self._factorise()
        except BaseException:
            self.stored = kept
            self.load_state_dict(before)
            raise
        self.fitted = True
        self.n_fits += 1
        return {"rows": float(len(inputs)), "loss": loss}

    def _climb(self, x: th.Tensor, y: th.Tensor, budget: FitBudget) -> float:
        steps = self.steps if budget.max_batches is None else min(self.steps, budget.max_batches)
        self.prior.set_train_data(x.expand(self.n_outputs, *x.shape), y, strict=False)
        self.train()
        optimizer = th.optim.Adam(self.prior.parameters(), lr=self.learning_rate)
        likelihood = gpytorch.mlls.ExactMarginalLogLikelihood(self.likelihood, self.prior)
        loss = th.zeros(())
        with gpytorch.settings.max_cholesky_size(10_000), th.enable_grad():
            for step in range(steps):
                optimizer.zero_grad()
                loss = -likelihood(self.prior(*self.prior.train_inputs), y).mean()
                loss.backward()
                optimizer.step()
                if self.on_progress is not None:
                    self.on_progress(f"fit {step + 1}/{steps}")
        return float(loss.detach())

    @th.no_grad()
    def _factorise(self) -> None:
        """Compute what every prediction needs: the weights of the rows and the inverse of the Cholesky factor."""
        x, y = self.stored["x"], self.stored["y"]
        with gpytorch.settings.lazily_evaluate_kernels(False):
            kernel = copy.deepcopy(self.prior.covar_module).double()
            covariance = kernel(x.double()).to_dense()
        noise = self.likelihood.noise.double()
        covariance.diagonal(dim1=1, dim2=2).add_(noise)
        # Adds more and more to the diagonal until it can be done.
        factor = psd_safe_cholesky(covariance)
        residual = (y - self.prior.mean_module.constant[:, None]).double()
        self._weights = th.cholesky_solve(residual[:, :, None], factor).squeeze(2).float()
        identity = th.eye(len(x), dtype=th.float64, device=x.device).expand_as(factor)
        self._whitener = th.linalg.solve_triangular(factor, identity, upper=False).float()

    _weights: th.Tensor
    """``(outputs, rows)``"""
    _whitener: th.Tensor
    """``(outputs, rows, rows)``"""

    def posterior(self, state: th.Tensor, action: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        """
        :return: mean and variance of changes, reward and termination in their units, ``(B, outputs)``; the variance is of a
            new observation, noise included
        """
        inputs = th.cat([state, self.action_codec.encode(action.to(self.device))], dim=1)
        x = self.input_scale(inputs)
        kernel = self.prior.covar_module
        scale = kernel.base_kernel.lengthscale  # (outputs, 1, inputs)
        here, there = x / scale, self.stored["x"] / scale
        # Written out: th.cdist has no second derivatives.
        distance = here.square().sum(2, keepdim=True) + there.square().sum(2)[:, None] - 2.0 * here @ there.mT
        cross = kernel.outputscale[:, None, None] * (-0.5 * distance.clamp(min=0.0)).exp()
        mean = self.prior.mean_module.constant[:, None] + (cross @ self._weights[:, :, None]).squeeze(2)
        explained = (cross @ self._whitener.mT).square().sum(2)
        variance = (kernel.outputscale[:, None] - explained).clamp(min=0.0) + self.likelihood.noise
        return self.target_scale.inverse(mean.T), self.target_scale.std.square() * variance.T

    # ---- states

    def initial(self, obs: Obs, snapshot: th.Tensor | None = None) -> th.Tensor:
        return self.codec.encode(obs).to(self.device)

    def step(
        self, state: th.Tensor, action: th.Tensor, *, deterministic: bool = False, generator: th.Generator | None = None
    ) -> Prediction:
        mean, variance = self.posterior(state, action)
        outcome = mean
        if not deterministic:
            noise = th.randn(mean.shape, generator=on_device(generator, mean.device), device=mean.device)
            outcome = mean + variance.sqrt() * noise
        next_state = self.codec.project(state + outcome[:, :-2])
        reward, terminated = outcome[:, -2], self.stored["ended"] * mean[:, -1].clamp(0.0, 1.0)
        reward, terminated = self.with_known(
            lambda: (self.decode(state), self.action_codec.to_env(action), self.decode(next_state)), reward, terminated
        )
        return Prediction(next_state, reward, terminated)

    def decode(self, state: th.Tensor) -> Obs:
        return self.codec.decode(state)

    # ---- saving: the rows are the model, and no parameter's shape tells their number

    def extra_state(self) -> dict[str, Any]:
        return {**super().extra_state(), "n_fits": self.n_fits, "stored": {k: v.cpu() for k, v in self.stored.items()}}

    def load_extra_state(self, extra: Mapping[str, Any]) -> None:
        super().load_extra_state(extra)
        self.n_fits = int(extra["n_fits"])
        self.stored = {name: value.to(self.device) for name, value in extra["stored"].items()}

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load the hyperparameters, and compute from them and the stored rows what predictions need."""
        result = super().load_state_dict(state_dict, strict, assign)
        if self.stored:
            self._factorise()
        return result
