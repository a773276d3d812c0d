"""The evaluation of a world model that learns jointly with the policy, on real steps before it trains on them."""

from collections.abc import Mapping
from typing import Any

import torch as th
from gymnasium import spaces

from sb3_mbrl.agent.objects import AgentObject
from sb3_mbrl.agent.recorder import Recorder
from sb3_mbrl.contracts import Transitions, WorldModel
from sb3_mbrl.diagnostics.quality import columns_of
from sb3_mbrl.trees import State, tree_map

EVERY = 8
"""The interval between two evaluated steps of an environment: predictions cost time"""
ROWS = 64
"""The number of evaluated rows per logged value"""


class FreshSteps(AgentObject):
    """
    An evaluation of the world model on real steps as they are collected, before it trains on them.

    A model that learns jointly with the policy trains on sequences from the whole replay buffer, so no row can be held out.
    Only a step that was just taken is certain to be new to it. The metrics, over :data:`ROWS` evaluated rows:

    * ``model/error_1``: the error of the next observation as the model's deterministic step predicts it, relative to the
      standard deviation of the observations: the root of the mean over columns of ``E_j / V_j``, with the mean squared error
      and the variance of a column
    * ``model/copy_error_1``: that of copying the present observation
    * ``model/reward_error``: the root mean squared error of the reward, relative to the standard deviation of the reward
    * ``model/term_brier``: the mean squared error of the probability of termination

    :param observation_space: the observation space of the environment
    :param recorder: the log of the metrics
    """

    def __init__(self, observation_space: spaces.Space, recorder: Recorder) -> None:
        self.columns, self.recorder = columns_of(observation_space), recorder
        self.steps = 0
        """The number of steps of every environment so far"""
        self._clear()

    def _clear(self) -> None:
        self._rows = 0
        self._sums: dict[str, th.Tensor] = {}

    def due(self) -> bool:
        """Count a step, and return whether it is to be evaluated."""
        self.steps += 1
        return self.steps % EVERY == 0

    @th.no_grad()
    def evaluate(self, model: WorldModel, state: State, rows: Transitions) -> None:
        """
        Predict steps, and log the metrics when there are enough of them.

        :param model: the world model, which has trained on none of the rows
        :param state: its states before the steps, ``(B, ...)``
        :param rows: the steps, ``(B, ...)``
        """
        rows = tree_map(lambda leaf: leaf.to(model.device), rows)
        prediction = model.step(state, rows.action, deterministic=True)
        errors = {
            "reward": (prediction.reward - rows.reward)[:, None],
            "rewards": rows.reward[:, None],
            "term": (prediction.terminated - rows.terminated)[:, None],
        }
        if model.decodes:
            truth = self.columns.encode(rows.next_obs)
            errors["obs"] = self.columns.encode(model.decode(prediction.state)) - truth
            errors["copy"], errors["truth"] = self.columns.encode(rows.obs) - truth, truth
        for name, value in errors.items():
            moments = th.stack([value.double().sum(0), value.double().square().sum(0)]).cpu()
            self._sums[name] = self._sums.get(name, 0.0) + moments
        self._rows += len(rows.reward)
        if self._rows >= ROWS:
            self.recorder.record_all("model", self._metrics())
            self._clear()

    def _metrics(self) -> dict[str, float]:
        """Compute the metrics from the sums of the columns and of their squares."""
        mean, square = {}, {}
        for name, (total, squares) in self._sums.items():
            mean[name], square[name] = total / self._rows, squares / self._rows
        # V = E[x^2] - E[x]^2; a column that does not vary has no scale and is left out.
        spread = {name: square[name] - mean[name].square() for name in ("rewards", "truth") if name in mean}
        varies = {name: value > 1e-9 * square[name].clamp(min=1e-9) for name, value in spread.items()}
        metrics = {"term_brier": float(square["term"])}
        if bool(varies["rewards"].all()):
            metrics["reward_error"] = float((square["reward"] / spread["rewards"]).sqrt())
        if "truth" in spread and bool(varies["truth"].any()):
            for name, key in (("obs", "error_1"), ("copy", "copy_error_1")):
                metrics[key] = float((square[name] / spread["truth"])[varies["truth"]].mean().sqrt())
        return metrics

    # ---- saving

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps, "rows": self._rows, "sums": dict(self._sums)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.steps, self._rows, self._sums = state["steps"], state["rows"], dict(state["sums"])
