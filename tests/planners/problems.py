"""World models with known answers to plan in."""

import numpy as np
import torch as th
from gymnasium import spaces

from sb3_mbrl.contracts import MemberPrediction, Prediction, WorldModel
from sb3_mbrl.models.analytic import PendulumModel
from sb3_mbrl.planners import CEM
from sb3_mbrl.planners.policy import PlannerPolicy
from sb3_mbrl.trees import batch_size

ONE, TWO = spaces.Box(-1.0, 1.0, (1,)), spaces.Box(-1.0, 1.0, (2,))
PLANE = spaces.Box(-np.inf, np.inf, (2,))


class LinearQuadratic(WorldModel):
    """``x' = A x + B u`` and the reward ``-(x'Qx' + u'Ru)``, with bounds that the best actions do not touch."""

    A = th.tensor([[1.0, 0.2], [0.0, 0.9]])
    B = th.tensor([[0.0], [0.3]])
    Q = th.diag(th.tensor([1.0, 0.1]))
    R = th.tensor([[0.2]])

    def __init__(self, **kwargs):
        super().__init__(PLANE, ONE, device="cpu", **kwargs)
        self.fitted = True

    def initial(self, obs, snapshot=None):
        return {"obs": obs}

    def step(self, state, action, *, deterministic=False, generator=None):
        x = state["obs"] @ self.A.T + action @ self.B.T
        cost = ((x @ self.Q) * x).sum(1) + ((action @ self.R) * action).sum(1)
        return Prediction({"obs": x}, -cost, th.zeros(len(x)))

    def decode(self, state):
        return state["obs"]

    @classmethod
    def riccati(cls, x, horizon):
        """The best return from ``x (B, 2)``, and the best actions ``(B, H, 1)``."""
        p, gains = th.zeros(2, 2, dtype=th.float64), []
        a, b, q, r = (matrix.double() for matrix in (cls.A, cls.B, cls.Q, cls.R))
        for _ in range(horizon):
            s = q + p
            gain = th.linalg.solve(r + b.T @ s @ b, b.T @ s @ a)
            gains.append(gain)
            p = a.T @ s @ (a - b @ gain)
        x0, actions, state = x.double(), [], x.double()
        for gain in reversed(gains):
            actions.append(-state @ gain.T)
            state = state @ a.T + actions[-1] @ b.T
        return -((x0 @ p) * x0).sum(1).float(), th.stack(actions, 1).float()


class Drifting(WorldModel):
    """Members ``x' = 0.8 x + u + c_m + sigma * noise`` whose reward is ``x'``."""

    DECAY, SIGMA = 0.8, 0.3
    OFFSETS = th.tensor([-1.0, 0.0, 0.5, 2.5])

    def __init__(self):
        super().__init__(spaces.Box(-np.inf, np.inf, (1,)), ONE, device="cpu")
        self.fitted = True

    def initial(self, obs, snapshot=None):
        return {"obs": obs}

    def decode(self, state):
        return state["obs"]

    @property
    def n_choices(self):
        return len(self.OFFSETS)

    def step(self, state, action, *, deterministic=False, generator=None):
        if deterministic:
            x = self.DECAY * state["obs"] + action + self.OFFSETS.mean()
            return Prediction({"obs": x}, x[:, 0], th.zeros(len(x)))
        member = th.randint(4, (len(action),), generator=generator)
        return self.member_step(state, action, member, generator=generator)

    def member_step(self, state, action, member, *, deterministic=False, generator=None):
        noise = 0.0 if deterministic else th.randn(action.shape, generator=generator)
        x = self.DECAY * state["obs"] + action + self.OFFSETS[member, None] + self.SIGMA * noise
        return Prediction({"obs": x}, x[:, 0], th.zeros(len(x)))

    def members(self, state, action):
        mean = self.DECAY * state["obs"] + action + self.OFFSETS[:, None, None]
        flat = mean[..., 0]
        return MemberPrediction(mean, th.full_like(mean, self.SIGMA**2), flat, th.zeros_like(flat))

    @classmethod
    def moments(cls, steps, kept):
        """Mean and variance after some steps from 0 without action, for members that are kept or drawn again at every step."""
        powers = cls.DECAY ** np.arange(steps)
        offsets = cls.OFFSETS.numpy()
        mean = offsets.mean() * powers.sum()
        between = offsets.var() * (powers.sum() ** 2 if kept else (powers**2).sum())
        return mean, between + cls.SIGMA**2 * (powers**2).sum()


class Line(WorldModel):
    """
    A point on a line, moved by the action; the reward is its place. It ends beyond ``edge``, and ``break_at`` is where numbers
    stop being finite.
    """

    def __init__(self, action_space=ONE, edge=None, break_at=None):
        super().__init__(spaces.Box(-np.inf, np.inf, (1,)), action_space, device="cpu")
        self.fitted, self.edge, self.break_at = True, edge, break_at

    def initial(self, obs, snapshot=None):
        return {"obs": obs}

    def decode(self, state):
        return state["obs"]

    def step(self, state, action, *, deterministic=False, generator=None):
        move = action if isinstance(self.action_space, spaces.Box) else action.float() - 1.0
        x = state["obs"] + move[:, :1]
        ended = th.zeros(len(x)) if self.edge is None else (x[:, 0] > self.edge).float()
        reward = x[:, 0]
        if self.break_at is not None:
            reward = th.where(x[:, 0] > self.break_at, th.nan, reward)
        return Prediction({"obs": x}, reward, ended)


CPU = th.device("cpu")


def rng(seed=0):
    return th.Generator().manual_seed(seed)


def plan(planner, model, x, carry=None, first=True, **kwargs):
    state = model.initial(th.as_tensor(x, dtype=th.float32))
    is_first = th.full((batch_size(state),), first)
    return planner.plan(model, state, carry, is_first=is_first, generator=rng(), **kwargs)


STARTS = 0.4 * th.tensor([[1.0, 0.0], [-0.5, 0.8], [0.3, -1.0]])
HORIZON = 8


OBS = np.array([1.0, 0.0, 0.0], np.float32)
SMALL = {"horizon": 3, "population": 8}


def pendulum(planner=None, model=None, **kwargs):
    model = model or PendulumModel(device="cpu")
    return PlannerPolicy(planner or CEM(model.action_space, **SMALL), model, seed=0, **kwargs)
