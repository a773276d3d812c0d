"""Linear-quadratic expansions of a world model, and their solution, for iLQR."""

from collections.abc import Callable
from typing import NamedTuple

import torch as th
from torch.func import hessian, jacrev, vmap

from sb3_mbrl.contracts import MissingCapability, WorldModel
from sb3_mbrl.planners.rollout import StateValue
from sb3_mbrl.trees import State, finite_rows, tree_leaves, tree_map, tree_where

Flat = Callable[[th.Tensor], th.Tensor]
"""From flat states ``(B, D)`` to values ``(B,)``"""

Step = Callable[[th.Tensor, th.Tensor], tuple[th.Tensor, th.Tensor]]
"""From flat states ``(B, D)`` and actions ``(B, A)`` to the next states and rewards ``(B,)``"""


class Expansion(NamedTuple):
    """
    An expansion of the model's mean around a trajectory: dynamics to first order, rewards to second, with negative
    semidefinite Hessians (:func:`negative_semidefinite`).
    """

    f_x: th.Tensor
    f_u: th.Tensor
    r_x: th.Tensor
    r_u: th.Tensor
    r_xx: th.Tensor
    r_ux: th.Tensor
    r_uu: th.Tensor


def flatten(state: State) -> th.Tensor:
    """Join all leaves of a state side by side, ``(B, D)``."""
    parts = list(tree_leaves(state))
    if not all(part.is_floating_point() for part in parts):
        raise MissingCapability(
            "iLQR differentiates in the state, and this model's has parts that are not floats. It follows the model's mean: "
            "give it the model itself, not Particles of it."
        )
    return th.cat([part.flatten(1) if part.dim() > 1 else part[:, None] for part in parts], dim=1)


def unflatten(flat: th.Tensor, like: State) -> State:
    """Undo :func:`flatten`, into a state of the same structure."""
    shapes = [leaf.shape[1:] for leaf in tree_leaves(like)]
    parts = iter(flat.split([max(1, shape.numel()) for shape in shapes], dim=1))
    sizes = iter(shapes)
    return tree_map(lambda _leaf: next(parts).reshape(len(flat), *next(sizes)), like)


def flat_step(model: WorldModel, like: State) -> Step:
    """Make the step of the model's mean on flat states."""

    def step(x: th.Tensor, u: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        prediction = model.step(unflatten(x, like), u, deterministic=True)
        return flatten(prediction.state), prediction.reward

    return step


@th.no_grad()
def simulate(
    step: Step,
    x: th.Tensor,
    act: Callable[[int, th.Tensor], th.Tensor],
    horizon: int,
    gamma: float,
    value_of: Flat | None = None,
) -> tuple[th.Tensor, th.Tensor]:
    """
    :param act: from the time step and the states to actions
    :return: ``(B, H + 1, D)`` states and ``(B,)`` returns, minus infinity where something was not finite
    """
    states, total, weight = [x], th.zeros(len(x), device=x.device), 1.0
    for t in range(horizon):
        x, reward = step(x, act(t, x))
        total, weight = total + weight * reward, weight * gamma
        states.append(x)
    if value_of is not None:
        total = total + weight * value_of(x)
    stacked = th.stack(states, 1)
    return stacked, total.masked_fill(~(total.isfinite() & stacked.isfinite().flatten(1).all(1)), -th.inf)


def flat_value(value: StateValue | None, like: State) -> Flat | None:
    """Turn a value function of states into one of flat states."""
    return None if value is None else lambda x: value(unflatten(x, like))


def expand_value(value_of: Flat | None, x: th.Tensor) -> tuple[th.Tensor, th.Tensor] | None:
    """Return gradient ``(B, D)`` and negative semidefinite Hessian ``(B, D, D)`` of a value function."""
    if value_of is None:
        return None

    def one(row: th.Tensor) -> th.Tensor:
        return value_of(row[None])[0]

    try:
        gradient, hessians = (
            part.detach().nan_to_num(0.0, 0.0, 0.0) for part in (vmap(jacrev(one))(x), vmap(hessian(one))(x))
        )
    except (RuntimeError, NotImplementedError) as error:
        raise MissingCapability(
            f"The value function cannot be differentiated by torch.func ({error}): choose 'cem' or 'icem'"
        ) from error
    return gradient, negative_semidefinite(hessians)


def expand(step: Step, states: th.Tensor, actions: th.Tensor) -> Expansion:
    """
    :param states: ``(B, H, D)``
    :param actions: ``(B, H, A)``
    :return: derivatives with the leading axes ``(B, H)``
    :raises MissingCapability: when the model cannot be differentiated
    """
    rows, horizon = states.shape[:2]

    def one(x: th.Tensor, u: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        next_x, reward = step(x[None], u[None])
        return next_x[0], reward[0]

    flat = states.flatten(0, 1), actions.flatten(0, 1)
    try:
        f_x, f_u = vmap(jacrev(lambda x, u: one(x, u)[0], argnums=(0, 1)))(*flat)
        r_x, r_u = vmap(jacrev(lambda x, u: one(x, u)[1], argnums=(0, 1)))(*flat)
        (r_xx, _), (r_ux, r_uu) = vmap(hessian(lambda x, u: one(x, u)[1], argnums=(0, 1)))(*flat)
    except (RuntimeError, NotImplementedError) as error:
        raise MissingCapability(
            f"The model cannot be differentiated by torch.func ({error}): choose 'cem' or 'icem'"
        ) from error
    if not (f_u.any() or r_u.any()) and _acts(step, *flat):
        raise MissingCapability("The model is not differentiable in the action: choose 'cem' or 'icem'")
    hessians = th.cat([th.cat([r_xx, r_ux.mT], 2), th.cat([r_ux, r_uu], 2)], 1).detach().nan_to_num(0.0, 0.0, 0.0)
    hessians, size = negative_semidefinite(hessians), states.shape[2]
    parts = (f_x, f_u, r_x, r_u, hessians[:, :size, :size], hessians[:, size:, :size], hessians[:, size:, size:])
    return Expansion(*(part.detach().nan_to_num(0.0, 0.0, 0.0).unflatten(0, (rows, horizon)) for part in parts))


@th.no_grad()
def _acts(step: Step, x: th.Tensor, u: th.Tensor) -> bool:
    """Whether other actions make any difference at all: a model of the first few rows may have seen nothing change."""
    ends = [step(x, th.full_like(u, end)) for end in (-1.0, 1.0)]
    return any(not th.equal(low, high) for low, high in zip(*ends, strict=True))


def negative_semidefinite(matrices: th.Tensor) -> th.Tensor:
    """
    Return the nearest symmetric negative semidefinite matrices, ``(..., D, D)``: positive eigenvalues become 0. Where a reward
    is convex in the state and the action taken together, the backward pass has no maximum, and values would grow from step to
    step without bound.
    """
    values, vectors = th.linalg.eigh(0.5 * (matrices + matrices.mT))
    return (vectors * values.clamp(max=0.0)[..., None, :]) @ vectors.mT


def solve(
    around: Expansion, damping: th.Tensor, gamma: float, last: tuple[th.Tensor, th.Tensor] | None = None
) -> tuple[th.Tensor, th.Tensor]:
    """
    The backward pass, maximising.

    :param last: gradient ``(B, D)`` and Hessian ``(B, D, D)`` of the last states' value, where there is one
    :param damping: ``(B,)``
    :return: steps ``(B, H, A)`` and feedback matrices ``(B, H, A, D)``
    """
    horizon = around.r_u.shape[1]
    v_x, v_xx = last or (th.zeros_like(around.r_x[:, 0]), th.zeros_like(around.r_xx[:, 0]))
    ahead, feedback = [], []
    for t in reversed(range(horizon)):
        f_x, f_u = around.f_x[:, t], around.f_u[:, t]
        q_x = around.r_x[:, t] + gamma * (f_x.mT @ v_x[:, :, None]).squeeze(2)
        q_u = around.r_u[:, t] + gamma * (f_u.mT @ v_x[:, :, None]).squeeze(2)
        q_xx = around.r_xx[:, t] + gamma * f_x.mT @ v_xx @ f_x
        q_ux = around.r_ux[:, t] + gamma * f_u.mT @ v_xx @ f_x
        q_uu = around.r_uu[:, t] + gamma * f_u.mT @ v_xx @ f_u
        # Where dynamics explode, numbers are not finite: such rows take no step this time, and get more damping.
        parts = q_x, q_u, q_xx, q_ux, q_uu
        q_x, q_u, q_xx, q_ux, q_uu = tree_where(finite_rows(parts), parts, tree_map(th.zeros_like, parts))
        curvature = negative_definite(q_uu, damping)
        k = -th.linalg.solve(curvature, q_u[:, :, None])
        matrix = -th.linalg.solve(curvature, q_ux)
        v_x = q_x + (matrix.mT @ q_uu @ k + matrix.mT @ q_u[:, :, None] + q_ux.mT @ k).squeeze(2)
        v_xx = q_xx + matrix.mT @ q_uu @ matrix + matrix.mT @ q_ux + q_ux.mT @ matrix
        v_xx = 0.5 * (v_xx + v_xx.mT)
        ahead.append(k.squeeze(2))
        feedback.append(matrix)
    return th.stack(ahead[::-1], 1), th.stack(feedback[::-1], 1)


def negative_definite(matrix: th.Tensor, damping: th.Tensor) -> th.Tensor:
    """Return the nearest negative definite matrices: eigenvalues ``min(eigenvalue, 0) - damping``."""
    values, vectors = th.linalg.eigh(0.5 * (matrix + matrix.mT))
    values = values.clamp(max=0.0) - damping[:, None]
    return vectors @ th.diag_embed(values) @ vectors.mT
