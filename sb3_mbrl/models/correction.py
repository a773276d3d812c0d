"""
Model correction: training against compounding error.

A model that is trained on real observations alone is used on its own predictions. Two remedies for vector models:

* *Own predictions* (``multi_step``; data as demonstrator, Venkatraman et al., AAAI 2015): the model is rolled out along real
  actions, and learns to get from the observation that it predicted to the real one that followed.
* *Disturbed inputs* (``input_noise``; after DART, Laskey et al., CoRL 2017): noise is added to observations, and the model
  learns to get from the disturbed observation to the real one that followed.
"""

from typing import Any, NamedTuple, Protocol

import torch as th

from sb3_mbrl.contracts import Data
from sb3_mbrl.models.vector_heads import Targets, VectorHeads
from sb3_mbrl.networks.ensemble import EnsembleMLP, Standardiser
from sb3_mbrl.rng import on_device
from sb3_mbrl.spaces import SpaceCodec
from sb3_mbrl.trees import State, tree_map

TOO_FAR = 10.0
"""The largest standardised value of a predicted observation that is learned from; beyond it a rollout has diverged"""


class Corrections(NamedTuple):
    """``N`` rows for each member: what it predicted itself, and the real outcome."""

    inputs: th.Tensor
    """Standardised inputs, ``(E, N, D + A)``"""
    targets: Targets
    """Standardised targets, ``(E, N, ...)``"""
    weight: th.Tensor
    """1; 0 for rows that must not be learned from, ``(E, N)``"""

    @property
    def n(self) -> int:
        """The number of rows of each member"""
        return self.weight.shape[1]

    def rows(self, index: th.Tensor) -> "Corrections":
        """Select rows by ``(n,)`` integers."""
        return tree_map(lambda leaf: leaf[:, index], self)

    def part(self, start: int, n: int) -> "Corrections":
        """Return ``n`` rows from a place on; after the last row follows the first."""
        return self.rows((start + th.arange(n, device=self.weight.device)) % self.n)


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
    A maker of :class:`Corrections`: every member's predictions along real actions.

    :param model: the model
    :param data: the training data, of which windows of consecutive steps are drawn
    :param length: the number of steps of a window; the first observation is real, so it gives ``length - 1`` rows
    """

    def __init__(self, model: CorrectedModel, data: Data, length: int) -> None:
        self.model, self.data, self.length = model, data, length

    @th.no_grad()
    def draw(self, n: int, generator: th.Generator | None) -> Corrections | None:
        """
        Roll every member out, and return its rows in random order.

        Rows after the end of an episode, and those after a prediction that is not finite or far away, have weight 0.

        :param n: the number of rows per member, rounded up to whole windows
        :param generator: the source of randomness
        :return: ``None`` if there is no window of this length
        """
        model = self.model
        try:
            windows = self.data.sequences(-(-n // (self.length - 1)), self.length, generator=generator)
        except ValueError:  # too few consecutive steps as yet
            return None
        own = self._everyone(model.codec.encode(model.to_device(_step(windows.obs, 0))))
        member = th.arange(model.n_members, device=own.device).repeat_interleave(len(windows.reward))
        fine = th.ones(len(own), dtype=th.bool, device=own.device)
        rows: list[tuple[th.Tensor, Targets, th.Tensor]] = []
        for t in range(self.length):
            action = self._everyone(windows.action[:, t].to(own.device))
            inputs = model.standardiser(model.inputs(own, action))
            if t:
                fine = fine & ~self._everyone(windows.is_first[:, t].to(own.device))
                aim = self._everyone(model.codec.encode(model.to_device(_step(windows.next_obs, t))))
                reward, terminated = (
                    self._everyone(value[:, t].to(own.device).float()) for value in (windows.reward, windows.terminated)
                )
                targets = model.heads.standardised(model.heads.targets(own, aim, reward, terminated))
                rows.append((inputs, targets, fine.float()))
            raw = model.network(inputs.view(model.n_members, -1, inputs.shape[-1])).flatten(0, 1)
            new = model.heads.predict(raw, own, member=member, deterministic=True, generator=None).obs
            far = (new - model.standardiser.mean[: model.codec.dim]).abs() / model.standardiser.std[: model.codec.dim]
            fine = fine & (far < TOO_FAR).all(-1)  # False for NaN, too
            own = th.where(fine[:, None], model.codec.project(new), own)
        every = Corrections(*(_by_member(parts, model.n_members) for parts in zip(*rows, strict=True)))
        return every.rows(th.randperm(every.n, generator=generator).to(own.device))

    def _everyone(self, rows: th.Tensor) -> th.Tensor:
        """Repeat rows for every member, ``(E N, ...)``."""
        return rows.expand(self.model.n_members, *rows.shape).flatten(0, 1)


def _step(obs: State, t: int) -> State:
    """Return the observations of one step of windows, ``(N, ...)``."""
    return tree_map(lambda leaf: leaf[:, t], obs)


def _by_member(parts: tuple[Any, ...], members: int) -> Any:
    """Join the rows of all steps, ``T`` times ``(E N, ...)``, to ``(E, T N, ...)``."""
    return tree_map(lambda *leaves: th.cat([leaf.unflatten(0, (members, len(leaf) // members)) for leaf in leaves], 1), *parts)


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
