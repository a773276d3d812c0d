"""Linear-quadratic expansions of a world model and their solution, the two steps of iLQR."""

from collections.abc import Callable
from typing import NamedTuple

import torch as th
from torch.func import hessian, jacrev, vmap

from sb3_mbrl.contracts import MissingCapability, WorldModel
from sb3_mbrl.planners.rollout import StateValue
from sb3_mbrl.trees import State, finite_rows, tree_leaves, tree_map, tree_where

FlatValue = Callable[[th.Tensor], th.Tensor]
"""A value function of flat states: from ``(B, D)`` to ``(B,)``"""

FlatStep = Callable[[th.Tensor, th.Tensor], tuple[th.Tensor, th.Tensor]]
"""A model's step on flat states: from states ``(B, D)`` and actions ``(B, A)`` to the next states and rewards ``(B,)``"""


class Expansion(NamedTuple):
    """
    An expansion of the model's mean around a trajectory, for small changes ``x`` of the state and ``u`` of the action::

        next state  ~  f + f_x x + f_u u
        reward      ~  r + r_x x + r_u u + 1/2 (x' r_xx x + 2 u' r_ux x + u' r_uu u)

    The Hessian ``[[r_xx, r_ux'], [r_ux, r_uu]]`` is made negative semidefinite (:func:`negative_semidefinite`). All have the
    leading axes ``(B, H)``.
    """

    f_x: th.Tensor
    """The Jacobian of the next state in the state, ``(D, D)``"""
    f_u: th.Tensor
    """The Jacobian of the next state in the action, ``(D, A)``"""
    r_x: th.Tensor
    """The gradient of the reward in the state, ``(D,)``"""
    r_u: th.Tensor
    """The gradient of the reward in the action, ``(A,)``"""
    r_xx: th.Tensor
    """The Hessian of the reward in the state, ``(D, D)``"""
    r_ux: th.Tensor
    """The mixed second derivatives of the reward, ``(A, D)``"""
    r_uu: th.Tensor
    """The Hessian of the reward in the action, ``(A, A)``"""


def flatten(state: State) -> th.Tensor:
    """Flatten all leaves of a state and join their columns, ``(B, D)``."""
    parts = list(tree_leaves(state))
    if not all(part.is_floating_point() for part in parts):
        raise MissingCapability(
            "iLQR differentiates in the state, and this model's state has leaves that are not floats. iLQR follows the "
            "model's mean: give it the model itself, not Particles of it."
        )
    return th.cat([part.flatten(1) if part.dim() > 1 else part[:, None] for part in parts], dim=1)


def unflatten(flat: th.Tensor, like: State) -> State:
    """Undo :func:`flatten`: turn flat states into states of the same structure as ``like``."""
    shapes = [leaf.shape[1:] for leaf in tree_leaves(like)]
    parts = iter(flat.split([max(1, shape.numel()) for shape in shapes], dim=1))
    sizes = iter(shapes)
    return tree_map(lambda _leaf: next(parts).reshape(len(flat), *next(sizes)), like)


def flat_step(model: WorldModel, like: State) -> FlatStep:
    """Return the model's mean step as a function of flat states."""

    def step(x: th.Tensor, u: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        prediction = model.step(unflatten(x, like), u, deterministic=True)
        return flatten(prediction.state), prediction.reward

    return step


def flat_value(value: StateValue | None, like: State) -> FlatValue | None:
    """Return a value function of states as a function of flat states."""
    return None if value is None else lambda x: value(unflatten(x, like))


@th.no_grad()
def simulate(
    step: FlatStep,
    x: th.Tensor,
    act: Callable[[int, th.Tensor], th.Tensor],
    horizon: int,
    gamma: float,
    value: FlatValue | None = None,
) -> tuple[th.Tensor, th.Tensor]:
    """
    Roll the model out, and compute ``sum_t gamma^t r_t + gamma^H V(x_H)``.

    :param step: the model's step
    :param x: the first states, ``(B, D)``
    :param act: a function from the time step and the states to actions
    :param horizon: the number of steps
    :param gamma: the discount of a step
    :param value: the value function of the last states
    :return: ``(B, H + 1, D)`` states and ``(B,)`` returns, minus infinity where a value is not finite
    """
    states, total, weight = [x], th.zeros(len(x), device=x.device), 1.0
    for t in range(horizon):
        x, reward = step(x, act(t, x))
        total, weight = total + weight * reward, weight * gamma
        states.append(x)
    if value is not None:
        total = total + weight * value(x)
    stacked = th.stack(states, 1)
    return stacked, total.masked_fill(~(total.isfinite() & stacked.isfinite().flatten(1).all(1)), -th.inf)


def expand_value(value: FlatValue | None, x: th.Tensor) -> tuple[th.Tensor, th.Tensor] | None:
    """
    Expand a value function to second order.

    :param value: the value function
    :param x: ``(B, D)``
    :return: its gradient ``(B, D)`` and its Hessian ``(B, D, D)``, made negative semidefinite; ``None`` without a value
        function
    :raises MissingCapability: for a value function that cannot be differentiated
    """
    if value is None:
        return None

    def one(row: th.Tensor) -> th.Tensor:
        return value(row[None])[0]

    try:
        derivatives = vmap(jacrev(one))(x), vmap(hessian(one))(x)
        v_x, v_xx = (part.detach().nan_to_num(0.0, 0.0, 0.0) for part in derivatives)
    except (RuntimeError, NotImplementedError) as error:
        raise MissingCapability(
            f"The value function cannot be differentiated by torch.func ({error}): choose 'cem' or 'icem'"
        ) from error
    return v_x, negative_semidefinite(v_xx)


def expand(step: FlatStep, states: th.Tensor, actions: th.Tensor) -> Expansion:
    """
    Expand a model around a trajectory: dynamics to first order, rewards to second.

    :param step: the model's step
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
    if not (f_u.any() or r_u.any()) and _depends_on_action(step, *flat):
        raise MissingCapability("The model is not differentiable in the action: choose 'cem' or 'icem'")
    blocks = th.cat([th.cat([r_xx, r_ux.mT], 2), th.cat([r_ux, r_uu], 2)], 1).detach().nan_to_num(0.0, 0.0, 0.0)
    joint, size = negative_semidefinite(blocks), states.shape[2]
    parts = (f_x, f_u, r_x, r_u, joint[:, :size, :size], joint[:, size:, :size], joint[:, size:, size:])
    return Expansion(*(part.detach().nan_to_num(0.0, 0.0, 0.0).unflatten(0, (rows, horizon)) for part in parts))


@th.no_grad()
def _depends_on_action(step: FlatStep, x: th.Tensor, u: th.Tensor) -> bool:
    """
    Tell whether the lowest and the highest actions lead to different results.

    A model without derivatives in the action may be right: in the few rows that it was fitted to, actions may have had no
    effect.
    """
    ends = [step(x, th.full_like(u, end)) for end in (-1.0, 1.0)]
    return any(not th.equal(low, high) for low, high in zip(*ends, strict=True))


def negative_semidefinite(matrix: th.Tensor) -> th.Tensor:
    """
    Return the nearest symmetric negative semidefinite matrices, ``(..., D, D)``: ``V min(L, 0) V'`` with the eigenvalues ``L``
    and eigenvectors ``V`` of the symmetric part.

    Where the Hessian of a reward in state and action has a positive eigenvalue, the backward pass has no maximum, and values
    would grow from step to step without bound.
    """
    values, vectors = th.linalg.eigh(0.5 * (matrix + matrix.mT))
    return (vectors * values.clamp(max=0.0)[..., None, :]) @ vectors.mT


def negative_definite(matrix: th.Tensor, damping: th.Tensor) -> th.Tensor:
    """
    Make symmetric matrices negative definite: ``V (min(L, 0) - damping) V'``, so that no eigenvalue is above ``-damping``.

    :param matrix: ``(B, A, A)``
    :param damping: ``(B,)``
    """
    values, vectors = th.linalg.eigh(0.5 * (matrix + matrix.mT))
    values = values.clamp(max=0.0) - damping[:, None]
    return vectors @ th.diag_embed(values) @ vectors.mT


def solve(
    expansion: Expansion, damping: th.Tensor, gamma: float, last: tuple[th.Tensor, th.Tensor] | None = None
) -> tuple[th.Tensor, th.Tensor]:
    """
    Compute the changes of the actions that maximise an expansion (the backward pass), from the last step to the first::

        Q_x  = r_x  + gamma f_x' V_x           Q_xx = r_xx + gamma f_x' V_xx f_x
        Q_u  = r_u  + gamma f_u' V_x           Q_uu = r_uu + gamma f_u' V_xx f_u
                                               Q_ux = r_ux + gamma f_u' V_xx f_x
        k    = -Q_uu^-1 Q_u                    K    = -Q_uu^-1 Q_ux           (Q_uu made negative definite here)
        V_x  = Q_x + K' Q_uu k + K' Q_u + Q_ux' k
        V_xx = Q_xx + K' Q_uu K + K' Q_ux + Q_ux' K

    The action is to change by ``k + K x``, where ``x`` is the change of the state.

    :param expansion: the expansion around the present plan
    :param damping: ``(B,)``: the amount that is subtracted from the eigenvalues of ``Q_uu``
    :param gamma: the discount of a step
    :param last: the gradient ``(B, D)`` and the Hessian ``(B, D, D)`` of the last states' value, if there is a value function
    :return: changes ``k``, ``(B, H, A)``, and feedback matrices ``K``, ``(B, H, A, D)``
    """
    horizon = expansion.r_u.shape[1]
    v_x, v_xx = last or (th.zeros_like(expansion.r_x[:, 0]), th.zeros_like(expansion.r_xx[:, 0]))
    changes, feedback = [], []
    for t in reversed(range(horizon)):
        f_x, f_u = expansion.f_x[:, t], expansion.f_u[:, t]
        q_x = expansion.r_x[:, t] + gamma * (f_x.mT @ v_x[:, :, None]).squeeze(2)
        q_u = expansion.r_u[:, t] + gamma * (f_u.mT @ v_x[:, :, None]).squeeze(2)
        q_xx = expansion.r_xx[:, t] + gamma * f_x.mT @ v_xx @ f_x
        q_ux = expansion.r_ux[:, t] + gamma * f_u.mT @ v_xx @ f_x
        q_uu = expansion.r_uu[:, t] + gamma * f_u.mT @ v_xx @ f_u
        # Unstable dynamics can overflow. Such rows take no step in this iteration, and their damping is increased.
        parts = q_x, q_u, q_xx, q_ux, q_uu
        q_x, q_u, q_xx, q_ux, q_uu = tree_where(finite_rows(parts), parts, tree_map(th.zeros_like, parts))
        damped = negative_definite(q_uu, damping)
        k = -th.linalg.solve(damped, q_u[:, :, None])
        matrix = -th.linalg.solve(damped, q_ux)
        v_x = q_x + (matrix.mT @ q_uu @ k + matrix.mT @ q_u[:, :, None] + q_ux.mT @ k).squeeze(2)
        v_xx = q_xx + matrix.mT @ q_uu @ matrix + matrix.mT @ q_ux + q_ux.mT @ matrix
        v_xx = 0.5 * (v_xx + v_xx.mT)  # symmetric, which rounding errors would spoil
        changes.append(k.squeeze(2))
        feedback.append(matrix)
    return th.stack(changes[::-1], 1), th.stack(feedback[::-1], 1)
