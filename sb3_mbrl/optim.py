"""LaProp with adaptive gradient clipping: DreamerV3's optimiser, for all parameters in a few fused operations."""

from collections.abc import Callable, Iterable
from typing import Any

import torch as th


class LaProp(th.optim.Optimizer):
    """
    Adaptive gradient clipping (Brock et al. 2021, arXiv 2102.06171), then LaProp (Ziyin et al. 2020, arXiv 2002.04839):
    gradients are first divided by the root of their mean square; the momentum is an average of the quotients.

    Per parameter tensor, at step ``t``::

        g <- g * min(1, clip * max(|w|, min_norm) / |g|)        # |.|: 2-norm of the whole tensor
        v <- beta2 v + (1 - beta2) g^2
        m <- beta1 m + (1 - beta1) g / (sqrt(v / (1 - beta2^t)) + eps)
        w <- w - lr(t) m / (1 - beta1^t)

    :param params: the parameters or parameter groups, as in torch's optimisers
    :param lr: the step size after the warm-up
    :param betas: the decay rates of momentum and mean square
    :param eps: the constant added to the root of the mean square
    :param clip: the largest norm of a gradient relative to that of its tensor, before normalisation (0: no clipping)
    :param min_norm: the smallest norm of a tensor that clipping assumes (biases begin at 0)
    :param warmup: the number of steps in which the step size grows linearly from 0
    :param capturable: whether to keep step counts in tensors, so that a CUDA graph can repeat a step, as in torch's optimisers
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 4e-5,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-20,
        clip: float = 0.3,
        min_norm: float = 1e-3,
        warmup: int = 1000,
        capturable: bool = False,
    ) -> None:
        if not (lr >= 0 and eps > 0 and clip >= 0 and min_norm > 0 and warmup >= 0):
            raise ValueError(
                f"LaProp(lr={lr}, eps={eps}, clip={clip}, min_norm={min_norm}, warmup={warmup}): none may be negative"
            )
        if not all(0.0 <= beta < 1.0 for beta in betas):
            raise ValueError(f"LaProp(betas={betas}): give numbers from 0 to 1, without 1")
        defaults = {"lr": lr, "betas": betas, "eps": eps, "clip": clip, "min_norm": min_norm, "warmup": warmup}
        defaults["capturable"] = capturable
        super().__init__(params, defaults)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for group in self.param_groups:
            group.setdefault("capturable", False)

    @th.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Make one step; parameters without a gradient stay as they are."""
        loss = None
        if closure is not None:
            with th.enable_grad():
                loss = closure()
        for group in self.param_groups:
            learning = [parameter for parameter in group["params"] if parameter.grad is not None]
            if not learning:
                continue
            for parameter in learning:
                state = self.state[parameter]
                if not state:
                    state["step"] = th.zeros((), device=parameter.device) if group["capturable"] else 0
                    state["square"], state["momentum"] = th.zeros_like(parameter), th.zeros_like(parameter)
                state["step"] += 1
            if group["capturable"]:
                self._update(learning, group, *self._scales(group, [self.state[parameter]["step"] for parameter in learning]))
                continue
            by_step: dict[int, list[th.Tensor]] = {}
            for parameter in learning:
                # After a move from a GPU to the CPU, counts may still be tensors.
                by_step.setdefault(int(self.state[parameter]["step"]), []).append(parameter)
            for t, parameters in by_step.items():
                self._update(parameters, group, *self._scales(group, t))
        return loss

    @staticmethod
    def _scales(group: dict[str, Any], t: Any) -> tuple[Any, Any]:
        """
        Return the divisor of mean squares and the factor of momenta at step ``t``::

            1 - beta2^t,    -lr * min(1, t / warmup) / (1 - beta1^t)

        :param group: the parameter group
        :param t: the step: a number, or a list of tensors, for which both results are lists of tensors
        """
        beta1, beta2 = group["betas"]
        warmup = max(group["warmup"], 1)
        if isinstance(t, list):
            return (
                [1 - beta2**step for step in t],
                [-group["lr"] * (step / warmup).clamp(max=1.0) / (1 - beta1**step) for step in t],
            )
        return 1 - beta2**t, -group["lr"] * min(1.0, t / warmup) / (1 - beta1**t)

    def _update(self, parameters: list[th.Tensor], group: dict[str, Any], debias: Any, rate: Any) -> None:
        # Plainly: the formulas of the class, parameter by parameter. torch's _foreach functions work on all of them at once.
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        squares = [self.state[parameter]["square"] for parameter in parameters]
        momenta = [self.state[parameter]["momentum"] for parameter in parameters]
        beta1, beta2 = group["betas"]
        if group["clip"]:
            # g <- g * min(1, clip * max(|w|, min_norm) / |g|)
            sizes = th._foreach_norm(parameters)
            th._foreach_clamp_min_(sizes, group["min_norm"])
            th._foreach_mul_(sizes, group["clip"])
            norms = th._foreach_norm(gradients)
            th._foreach_clamp_min_(norms, 1e-12)
            th._foreach_div_(sizes, norms)
            th._foreach_clamp_max_(sizes, 1.0)
            gradients = list(th._foreach_mul(gradients, sizes))
        # v <- beta2 v + (1 - beta2) g^2
        th._foreach_mul_(squares, beta2)
        th._foreach_addcmul_(squares, gradients, gradients, 1 - beta2)
        # m <- beta1 m + (1 - beta1) g / (sqrt(v / (1 - beta2^t)) + eps)
        roots = th._foreach_div(squares, debias)
        th._foreach_sqrt_(roots)
        th._foreach_add_(roots, group["eps"])
        th._foreach_mul_(momenta, beta1)
        th._foreach_add_(momenta, th._foreach_div(gradients, roots), alpha=1 - beta1)
        # w <- w + rate * m
        if isinstance(rate, list):
            th._foreach_add_(parameters, th._foreach_mul(momenta, rate))
        else:
            th._foreach_add_(parameters, momenta, alpha=rate)
