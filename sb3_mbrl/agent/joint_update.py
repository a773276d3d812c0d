"""The joint update: one step of one optimiser for a latent world model and the behaviour that learns in it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch as th
from torch import nn

from sb3_mbrl.agent.cuda_graph import (
    EAGER_BEFORE_CAPTURE,
    CapturedUpdate,
    Compile,
    Update,
    explained_out_of_memory,
    make_plain,
    precision,
    set_rate,
)
from sb3_mbrl.agent.objects import AgentObject
from sb3_mbrl.optim import LaProp
from sb3_mbrl.rng import RandomStream
from sb3_mbrl.trees import State

OPTIMIZERS: dict[str, type[th.optim.Optimizer]] = {"laprop": LaProp, "adam": th.optim.Adam}

Losses = Callable[..., tuple[th.Tensor, State, dict[str, th.Tensor]]]
"""``losses(*batch, generator)``: the loss of everything, the new packed states of the batch, and metrics to log"""


@dataclass(frozen=True)
class Learner:
    """
    A module that learns, as a group of the optimiser.

    :param module: the module whose parameters form the group
    :param rate: the learning rate of the group, relative to the agent's
    :param max_grad_norm: the largest norm of its gradients; ``None``: no clipping
    """

    module: nn.Module
    rate: float = 1.0
    max_grad_norm: float | None = None


class JointUpdate(AgentObject):
    """
    An update of several learners by one step of one optimiser on the sum of their losses. It runs as it is or as a CUDA graph,
    in mixed precision on request, and refuses losses that are not finite.

    :param learners: the modules that learn
    :param losses: the function that computes the losses of a batch
    :param after_step: a function that is called after every step of the optimiser, e.g. to update a target network
    :param optimizer_class: ``"laprop"``, ``"adam"`` or a class
    :param optimizer_kwargs: the arguments of its constructor, apart from the parameters and ``lr``
    :param learning_rate: the first learning rate
    :param random: the stream of all random choices
    :param device: the device of the learners
    :param compile: whether to run as a CUDA graph on a GPU; ``"auto"``: if the optimiser supports it
    :param mixed_precision: whether matrix products are in bfloat16; ``"auto"``: on a GPU that supports it
    :param name: the name of the algorithm, for errors
    :param verbose: as in SB3
    """

    def __init__(
        self,
        learners: Sequence[Learner],
        losses: Losses,
        after_step: Callable[[], None],
        *,
        optimizer_class: str | type[th.optim.Optimizer],
        optimizer_kwargs: Mapping[str, Any],
        learning_rate: float,
        random: RandomStream,
        device: th.device,
        compile: Compile,
        mixed_precision: bool | Literal["auto"],
        name: str,
        verbose: int = 0,
    ) -> None:
        self.learners, self.losses, self.after_step = learners, losses, after_step
        self.random, self.device, self.name, self.verbose = random, device, name, verbose
        self.compile, self.mixed_precision = compile, mixed_precision
        groups = [{"params": list(learner.module.parameters()), "lr": learning_rate * learner.rate} for learner in learners]
        self.optimizer = optimizer_of(optimizer_class)(groups, **optimizer_kwargs)
        self.generator = random.generator
        """The source of randomness on the device"""
        self.n_updates = 0
        """The number of updates so far, for errors"""
        self._run: Update | None = None
        """The update as it is run: :meth:`update`, or its captured graph"""

    def __getstate__(self) -> dict[str, Any]:
        """Leave out a captured graph, which belongs to the memory of one process."""
        return {**vars(self), "_run": None} if self.device.type == "cuda" else dict(vars(self))

    def set_learning_rate(self, rate: float) -> None:
        """Set the step sizes of all groups."""
        for group, learner in zip(self.optimizer.param_groups, self.learners, strict=True):
            set_rate(group, rate * learner.rate)

    def reset(self) -> None:
        """Drop a captured graph, which would continue with the optimiser's old state."""
        self._run = None

    def __call__(self, batch: State, **settings: Any) -> tuple[State, dict[str, th.Tensor]]:
        """
        Update once.

        :param batch: tensors on the device, always of the same shapes
        :param settings: the settings that the error names if the GPU runs out of memory
        :return: the new packed states of the batch, and metrics
        """
        self._follow_stream()
        if self._run is None:
            self._run = self._choose_run()
        with explained_out_of_memory(**settings):
            return self._run(batch)

    def update(self, batch: State) -> tuple[State, dict[str, th.Tensor]]:
        """Make the update itself. It changes nothing but tensors, so that a graph can repeat it."""
        with precision(self.mixed_precision, self.device):
            loss, states, metrics = self.losses(*batch, self.generator)
        if self.device.type == "cpu":  # reading values would wait for a GPU, where train() checks them afterwards
            self.refuse_not_finite({**metrics, "the loss": loss.detach()})
        self.optimizer.zero_grad()
        loss.backward()
        for learner in self.learners:
            if learner.max_grad_norm is not None:
                nn.utils.clip_grad_norm_(learner.module.parameters(), learner.max_grad_norm)
        self.optimizer.step()
        self.after_step()
        return states, metrics

    def refuse_not_finite(self, metrics: Mapping[str, th.Tensor]) -> None:
        """
        Refuse metrics that are not finite. On a CPU this comes before the weights are changed, on a GPU after it.

        :raises ValueError: for a metric that is not finite; the message names it
        """
        finite = th.stack([value.isfinite() for value in metrics.values()]).tolist()
        if wrong := [name for name, fine in zip(metrics, finite, strict=True) if not fine]:
            raise ValueError(
                f"{self.name} after {self.n_updates} updates: {', '.join(wrong)} not finite. Lower learning_rate, "
                "and look for rewards or observations that are very large; continue from the last checkpoint."
            )

    def _follow_stream(self) -> None:
        """Draw from the agent's stream: on a CPU directly, on a GPU by a generator that the stream seeds."""
        stream = self.random.generator
        if self.device.type == stream.device.type:
            self.generator = stream
            return
        # The generator stays the same object, which a captured graph refers to.
        if self.generator.device.type != self.device.type:
            self.generator = th.Generator(self.device)
        self._reseed()

    def _reseed(self) -> None:
        self.generator.manual_seed(int(th.randint(2**62, (1,), generator=self.random.generator)))

    def _renew_generator(self) -> None:
        """Make a new generator, since one that took part in a failed capture may be unusable."""
        self.generator = th.Generator(self.device)
        self._reseed()

    def _choose_run(self) -> Update:
        run: Update = self.update
        can = self.compile is True or all("capturable" in group for group in self.optimizer.param_groups)
        if self.compile is not False and self.device.type == "cuda" and can:
            how = f"captured as a CUDA graph after {EAGER_BEFORE_CAPTURE} of them"
            run = CapturedUpdate(run, self.optimizer, (self.generator,), self._renew_generator)
        else:
            how = "run as they are"
            if self.device.type != "cuda":
                make_plain(self.optimizer)
        if self.verbose:
            print(f"Updates are {how} (compile={self.compile!r}, {self.device.type})")
        return run


def optimizer_of(choice: str | type[th.optim.Optimizer]) -> type[th.optim.Optimizer]:
    """
    Return the class of an optimiser.

    :param choice: the class, or one of :data:`OPTIMIZERS`
    :raises ValueError: for another name
    """
    if not isinstance(choice, str):
        return choice
    if choice not in OPTIMIZERS:
        raise ValueError(f"optimizer_class={choice!r}: choose one of {', '.join(map(repr, OPTIMIZERS))}, or a class")
    return OPTIMIZERS[choice]
