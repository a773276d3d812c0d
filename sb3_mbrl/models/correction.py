"""
Model correction: training against compounding error.

A model that is trained on real observations alone is used on its own predictions. Two remedies for vector models:

* *Own predictions* (``multi_step``): the model is rolled out along real actions, and learns to get from the observation that
  it predicted to the real one that followed. With gradients through the rollout this is the loss of open-loop predictions;
  without them it is data as demonstrator (Venkatraman et al., AAAI 2015).
* *Disturbed inputs* (``input_noise``; after DART, Laskey et al., CoRL 2017): noise is added to observations, and the model
  learns to get from the disturbed observation to the real one that followed.
"""

import warnings
from typing import NamedTuple, Protocol

import torch as th

from sb3_mbrl.checks import user_stacklevel
from sb3_mbrl.contracts import Data
from sb3_mbrl.models.vector_heads import Targets, VectorHeads
from sb3_mbrl.networks.ensemble import EnsembleMLP, Standardiser
from sb3_mbrl.rng import on_device
from sb3_mbrl.spaces import SpaceCodec
from sb3_mbrl.trees import State, tree_map

ENOUGH = 10
"""The number of windows that the rows of a fit would make at which their absence is worth a warning"""

TOO_FAR = 10.0
"""The largest standardised value of a predicted observation that is learned from; beyond it a rollout has diverged"""


class Windows(NamedTuple):
    """``N`` windows of ``L`` consecutive real steps, encoded."""

    first: th.Tensor
    """The first observations, ``(N, D)``"""
    action: th.Tensor
    """Scaled actions, ``(N, L, A)``"""
    next_obs: th.Tensor
    """``(N, L, D)``"""
    reward: th.Tensor
    """``(N, L)``"""
    terminated: th.Tensor
    """``(N, L)``"""
    begins: th.Tensor
    """``(N, L)`` booleans: another episode begins, so that the steps from here on do not follow"""
    unknown: th.Tensor
    """``(N, L)`` booleans: the next observation is not known (the ends of episodes, with ``optimize_memory_usage``)"""

    def part(self, start: int, n: int) -> "Windows":
        """Return ``n`` windows from a place on; after the last one follows the first."""
        index = (start + th.arange(n, device=self.first.device)) % len(self.first)
        return Windows(*(leaf[index] for leaf in self))


class CorrectedModel(Protocol):
    """The parts of a vector model (:class:`~sb3_mbrl.models.mlp.MLPModel`) that are needed for its own predictions."""

    n_members: int
    codec: SpaceCodec
    standardiser: Standardiser
    heads: VectorHeads
    network: EnsembleMLP

    def inputs(self, obs: th.Tensor, action: th.Tensor) -> th.Tensor:
        """Join observations and actions to the inputs of the network."""

    def to_device(self, value: State) -> State:
        """Move nested tensors to the model's device."""


class OwnPredictions:
    """
    The loss of every member's own predictions along real actions.

    :param model: the model
    :param data: the training data, of which windows of consecutive steps are drawn
    :param length: the number of steps of a window
    :param gradient: whether gradients flow through predictions into the steps before: the loss is then that of open-loop
        rollouts. ``False``: a prediction is an input like any other (data as demonstrator)
    :param held_out: the ids of rows that must not be learned from, if ``data`` has them; ``None``: it has none
    """

    def __init__(
        self, model: CorrectedModel, data: Data, length: int, gradient: bool, held_out: th.Tensor | None = None
    ) -> None:
        self.model, self.data, self.length, self.gradient, self.held_out = model, data, length, gradient, held_out
        # Only a view of SB3's buffer can have lost observations; other kinds of data have no such buffer.
        self.loses_last = bool(getattr(getattr(data, "buffer", None), "optimize_memory_usage", False))
        self.warned = False

    def draw(self, n: int, generator: th.Generator | None) -> Windows | None:
        """
        Draw windows.

        :param n: the number of steps in them, rounded up to whole windows
        :param generator: the source of randomness
        :return: ``None`` if there is no window of this length
        """
        model = self.model
        try:
            windows = self.data.sequences(-(-n // self.length), self.length, generator=generator)
        except ValueError:  # too few consecutive steps as yet
            if len(self.data) >= ENOUGH * self.length and not self.warned:
                self.warned = True
                warnings.warn(
                    f"multi_step={self.length}: no {self.length} consecutive steps are among the {len(self.data)} rows of the "
                    "fit (held-out rows and the ends of episodes interrupt them), so it learns from single steps: give a "
                    "smaller number",
                    stacklevel=user_stacklevel(),
                )
            return None
        if self.held_out is not None and windows.ids is not None:
            index = (~th.isin(windows.ids, self.held_out)).all(1).nonzero().flatten()
            if not len(index):
                return None
            fields = {name: value for name, value in windows._asdict().items() if name != "extra"}
            windows = windows._replace(**tree_map(lambda leaf: leaf[index.to(leaf.device)], fields))
        rows = (len(windows.reward), self.length)
        next_obs = model.codec.encode(model.to_device(tree_map(lambda leaf: leaf.flatten(0, 1), windows.next_obs)))
        return Windows(
            model.codec.encode(model.to_device(tree_map(lambda leaf: leaf[:, 0], windows.obs))),
            windows.action.to(next_obs.device),
            next_obs.unflatten(0, rows),
            windows.reward.to(next_obs.device).float(),
            windows.terminated.to(next_obs.device).float(),
            windows.is_first.to(next_obs.device).bool(),
            windows.is_last.to(next_obs.device).bool() & self.loses_last,
        )

    def loss(self, windows: Windows) -> th.Tensor:
        """
        Roll every member out, and compute its loss at the steps after the first, whose observation is real; summed over
        members.

        Means alone are learned: the error of a prediction that began in a prediction is no noise. Steps after the end of an
        episode, and those after a prediction that is not finite or far away, have weight 0.
        """
        model = self.model
        own = self._everyone(windows.first)
        member = th.arange(model.n_members, device=own.device).repeat_interleave(len(windows.first))
        fine = th.ones(len(own), dtype=th.bool, device=own.device)
        total, numbers = own.new_zeros(()), model.heads.number_columns
        for t in range(self.length):
            inputs = model.standardiser(model.inputs(own, self._everyone(windows.action[:, t])))
            raw = model.network(inputs.unflatten(0, (model.n_members, -1)))
            if t:
                fine = fine & ~self._everyone(windows.begins[:, t])
                rest = (self._everyone(part[:, t]) for part in (windows.next_obs, windows.reward, windows.terminated))
                targets = model.heads.standardised(model.heads.targets(own, *rest))
                by_member = Targets(*(value.unflatten(0, (model.n_members, len(windows.first))) for value in targets))
                weight = (fine & ~self._everyone(windows.unknown[:, t])).float().view(model.n_members, -1)
                total = total + model.heads.loss(raw, by_member, weight, means_alone=True)
            new = model.heads.predict(raw.flatten(0, 1), own, member=member, deterministic=True, generator=None).obs
            moved = new.detach()[:, numbers]
            far = (moved - model.standardiser.mean[numbers]).abs() / model.standardiser.std[numbers]
            fine = fine & (far < TOO_FAR).all(-1)  # False for NaN, too
            own = th.where(fine[:, None], model.codec.project(new if self.gradient else new.detach()), own)
        return total / (self.length - 1)

    def _everyone(self, rows: th.Tensor) -> th.Tensor:
        """Repeat rows for every member, ``(E N, ...)``."""
        return rows.expand(self.model.n_members, *rows.shape).flatten(0, 1)


def disturbed(
    inputs: th.Tensor,
    targets: Targets,
    noise: float,
    heads: VectorHeads,
    standardiser: Standardiser,
    generator: th.Generator | None,
) -> tuple[th.Tensor, Targets]:
    """
    Add noise to the numbers of observations, and aim at the same next observation.

    :param inputs: standardised inputs, ``(..., D + A)``
    :param targets: standardised targets, ``(..., ...)``
    :param noise: the standard deviation of the noise, in units of each number's own standard deviation
    :param heads: the heads, which know what targets mean
    :param standardiser: the standardiser of the inputs
    :param generator: the source of the noise
    """
    columns = heads.number_columns
    scale = standardiser.std[columns]
    draw = th.randn(*inputs.shape[:-1], len(columns), generator=on_device(generator, inputs.device), device=inputs.device)
    added = noise * draw * (scale > 0)
    inputs = inputs.clone()
    inputs[..., columns] += added
    if heads.target == "next":
        return inputs, targets
    # The change that leads to the same next observation is smaller by what was added, in units of the target's scale.
    of_target = heads.standardiser.std[: len(columns)]
    numbers = targets.numbers.clone()
    numbers[..., : len(columns)] -= th.where(of_target > 0, added * scale / of_target.clamp(min=1e-12), 0.0)
    return inputs, targets._replace(numbers=numbers)
