"""``branched``: short rollouts of the policy in the world model, from real states (MBPO, Janner et al. 2019, algorithm 2)."""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal, NamedTuple

import torch as th

from sb3_mbrl.checks import number, whole
from sb3_mbrl.contracts import Data, Imagined, Obs, Prediction, RolloutImagination, WorldModel
from sb3_mbrl.imagination.acting import explore
from sb3_mbrl.imagination.schedule import HorizonSchedule
from sb3_mbrl.imagination.starts import StartRule, parse_rule
from sb3_mbrl.rng import on_device
from sb3_mbrl.trees import State, finite_rows, tree_map, tree_where


class Step(NamedTuple):
    """A step of all rollouts, and what a rule makes of it (:meth:`BranchedRollouts.predict`)."""

    prediction: Prediction
    """The states after the step, ``(B, ...)``, their rewards and probabilities of termination"""
    keep: th.Tensor | None = None
    """``(B,)`` booleans: whether the rows are kept; ``None``: all are"""
    go_on: th.Tensor | None = None
    """``(B,)`` booleans: whether the rollouts go on after the step; ``None``: all do, until they terminate"""
    weight: th.Tensor | None = None
    """``(B,)``: the weights with which the rows are drawn later; ``None``: 1"""


class Progress(NamedTuple):
    """Where rollouts are, for rules that depend on it."""

    step: int
    """The number of steps before this one"""
    horizon: int
    """The largest number of steps"""
    running: th.Tensor
    """``(B,)`` booleans: the rollouts that have not ended"""
    memory: dict[str, th.Tensor]
    """An empty dictionary at the first step, in which a rule keeps what it needs at later ones"""


class BranchedRollouts(RolloutImagination):
    """
    An imagination that rolls the policy out from real states for ``horizon`` steps, and keeps all steps.

    A rollout ends early where the model predicts a termination (drawn from its probability) or a value that is not finite; the
    rows after that are masked. ``info`` has the mean ``reward``, the share of rows that ``terminated``, the share of steps
    that were ``dropped`` because they were not finite, and the mean ``length`` of a rollout in rows that were kept.

    Subclasses are rules against the model's errors: they override :meth:`predict`, which decides what a step is, which rows
    are kept, and which rollouts go on.

    :param horizon: the number of steps, or a schedule ``[start_step, end_step, start, end]`` in real environment steps
        (:class:`~sb3_mbrl.imagination.schedule.HorizonSchedule`)
    :param starts_per_step: the number of start states per real environment step
    :param freq: the number of real environment steps between two calls
    :param max_age: the number of real environment steps after which imagined rows are forgotten
    :param exploration: the probability with which a row takes a uniformly random action instead of the policy's, at every
        step; with ``n_steps`` above 1 only at the first step of a rollout, since later rewards belong to the policy's return
    :param starts: the real observations to start from: ``"uniform"``, all of them (MBPO); ``"recent"``, the newest
        ``max_age``, where the present policy goes; ``"initial"``, the first ones of episodes; or a function ``(data, n,
        generator)`` that returns ``n`` of ``data.row_ids()`` (:class:`~sb3_mbrl.contracts.Data`)
    :param n_steps: the largest number of steps of a stored transition, as SB3's ``n_steps``, at most the horizon: one update
        carries the effect of an episode's end so many steps back (:func:`~sb3_mbrl.returns.multi_step`)
    :param observation: ``"decoded"``: the policy sees, and rows hold, observations; ``"features"``: features of model states
    :param rollouts: a short way to choose ``starts`` and ``horizon`` together: ``"branched"``, short rollouts from all real
        states (the defaults); ``"short"``, ``horizon`` steps from the first states of episodes; ``"long"``, whole episodes of
        up to 1,000 steps from there
    """

    masks_rows: ClassVar[bool] = False
    """Whether the rule leaves out rows in the middle of a rollout, which then cannot be joined to several steps"""

    def __init__(
        self,
        horizon: int | Sequence[int] | HorizonSchedule | None = None,
        starts_per_step: float = 400,
        freq: int = 250,
        max_age: int = 1000,
        exploration: float = 0.0,
        observation: Literal["decoded", "features"] = "decoded",
        starts: Literal["uniform", "recent", "initial"] | StartRule | None = None,
        n_steps: int = 1,
        rollouts: Literal["branched", "short", "long"] = "branched",
    ) -> None:
        if rollouts not in ROLLOUTS:
            raise ValueError(f"rollouts={rollouts!r}: choose 'branched', 'short' or 'long'")
        if rollouts != "branched" and type(self) is not BranchedRollouts:
            raise ValueError(
                f"rollouts={rollouts!r} sets the horizon of imagination='branched': give {type(self).__name__} a horizon, and "
                "starts='initial'"
            )
        usual_starts, usual_horizon = ROLLOUTS[rollouts]
        if starts is not None and rollouts != "branched" and not (isinstance(starts, str) and starts == usual_starts):
            raise ValueError(
                f"rollouts={rollouts!r} begin where episodes do, and starts={starts!r} elsewhere: give one of them"
            )
        starts = usual_starts if starts is None else starts
        horizon = usual_horizon if horizon is None else horizon
        freq, max_age = whole("freq", freq, 1), whole("max_age", max_age, 1)
        starts_per_step = number("starts_per_step", starts_per_step, 0.0, open_low=True)
        if max_age < freq:
            raise ValueError(f"max_age={max_age} is shorter than freq={freq}: the imagined buffer would run empty in between")
        exploration = number("exploration", exploration, 0.0, 1.0)
        if observation not in ("decoded", "features"):
            raise ValueError(f"observation={observation!r}: choose 'decoded' or 'features'")
        self.schedule = HorizonSchedule.parse(horizon)
        self.starts_per_step, self.freq, self.max_age = starts_per_step, freq, max_age
        self.exploration, self.observation, self.n_steps = exploration, observation, whole("n_steps", n_steps, 1)
        if self.masks_rows and self.n_steps > 1:
            raise ValueError(
                f"n_steps={n_steps}: {type(self).__name__} leaves out single steps, so they cannot be joined: give 1"
            )
        self._rule = parse_rule(starts, max_age)

    def choose_starts(self, data: Data, n: int, *, generator: th.Generator | None = None) -> th.Tensor | None:
        if self._rule is None:
            return None
        chosen = self._rule(data, n, generator)
        if chosen is None:
            raise ValueError(f"starts={self._rule} returned None, expected ({n},) integers out of data.row_ids()")
        return chosen

    def horizon(self, num_timesteps: int) -> int:
        return self.schedule(num_timesteps)

    def predict(
        self, world_model: WorldModel, state: State, action: th.Tensor, at: Progress, *, generator: th.Generator | None
    ) -> Step:
        """
        Predict a step of all rollouts, and decide about its rows. Here: a step of the model, all of which is kept.

        :param world_model: the model
        :param state: the states, ``(B, ...)``
        :param action: scaled actions, ``(B, A)``
        :param at: where the rollouts are
        :param generator: the source of randomness
        """
        return Step(world_model.step(state, action, generator=generator))

    @th.no_grad()
    def imagine(
        self,
        world_model: WorldModel,
        starts: State,
        act: Callable[[Any], th.Tensor],
        horizon: int,
        *,
        generator: th.Generator | None = None,
    ) -> Imagined:
        see: Callable[[State], Obs] = world_model.decode if self.observation == "decoded" else world_model.features
        # States that are not finite are replaced before the policy sees them (its distribution may refuse the whole batch),
        # and rollouts that ended keep their last state: shapes are fixed, and such rows are masked.
        running = finite_rows(starts)
        state = tree_where(running, starts, tree_map(th.zeros_like, starts))
        obs = see(state)
        steps: list[tuple[Any, ...]] = []
        memory: dict[str, th.Tensor] = {}
        nonfinite = (~running).sum()
        for step in range(horizon):
            share = self.exploration if step == 0 or self.n_steps == 1 else 0.0
            action = explore(act(obs), share, world_model.action_space, generator)
            at = Progress(step, horizon, running, memory)
            prediction, keep, go_on, weight = self.predict(world_model, state, action, at, generator=generator)
            finite = finite_rows((prediction.state, prediction.reward, prediction.terminated, prediction.discount))
            next_state = tree_where(running & finite, prediction.state, state)
            next_obs = see(next_state)
            finite &= finite_rows(next_obs)
            valid = running & finite
            nonfinite = nonfinite + (running & ~finite).sum()
            next_state, next_obs = tree_where(valid, next_state, state), tree_where(valid, next_obs, obs)
            uniform = th.rand(valid.shape, generator=on_device(generator, valid.device), device=valid.device)
            terminated = valid & (uniform < prediction.terminated)
            reward = th.where(valid, prediction.reward, 0.0)
            discount = prediction.discount
            if discount is not None and self.n_steps > 1:
                # A discount includes the probability of termination. Here the termination has been drawn, so the discount is
                # divided by 1 - p where the rollout continues, and 0 where it does not: its expectation stays the same.
                discount = th.where(terminated, 0.0, discount / (1 - prediction.terminated).clamp(min=1e-6))
            kept = valid if keep is None else valid & keep
            steps.append((obs, action, next_obs, reward, (terminated & kept).float(), discount, kept, weight))
            running = valid & ~terminated if go_on is None else valid & ~terminated & go_on
            state, obs = next_state, next_obs
        obs, action, next_obs, reward, done, discount, mask, weight = (_stack(column) for column in zip(*steps, strict=True))
        valid_rows = mask.sum()
        tried, length = (valid_rows + nonfinite).clamp(min=1), valid_rows / max(1, mask.shape[1])
        valid_rows = valid_rows.clamp(min=1)
        info = {
            "reward": float((reward * mask).sum() / valid_rows),
            "terminated": float(done.sum() / valid_rows),
            "dropped": float(nonfinite / tried),
            "length": float(length),
        }
        return Imagined(obs, action, next_obs, reward, done, discount, mask, info, weight)


ROLLOUTS: dict[str, tuple[Literal["uniform", "initial"], int]] = {
    "branched": ("uniform", 1),
    "short": ("initial", 1),
    "long": ("initial", 1000),
}
"""The start states and the horizon of each kind of rollouts"""


def _stack(column: tuple[Any, ...]) -> Any:
    """Stack nested tensors of all steps along a new first axis."""
    return tree_map(lambda *leaves: th.stack(leaves), column[0], *column[1:])
