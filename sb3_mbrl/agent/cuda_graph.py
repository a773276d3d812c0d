"""The way an update runs: as it is or as a CUDA graph, and in which precision."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch as th

from sb3_mbrl.trees import State, tree_leaves, tree_map

Compile = Literal["auto"] | bool
Update = Callable[[State], State]
"""An update: from a batch to its results, nested tensors that always have the same shapes"""

EAGER_BEFORE_CAPTURE = 3
"""The number of updates that run as they are before one is captured, so that CUDA's libraries have allocated their memory"""


class CapturedUpdate:
    """
    An update that is replayed as one CUDA graph, so that the CPU need not start thousands of small kernels one by one.

    The first updates run as they are (they count like any other). Then one is captured, and from there on replayed on tensors
    of its own, to which each batch is copied. For batches of another shape a new graph is captured. If capturing fails, a
    warning is printed, and all further updates run as they are.

    :param update: the update; it uses nothing but tensors that stay in their places, and the generators below
    :param optimizer: the optimiser, whose step sizes and counters are moved into tensors
    :param generators: the generators that the update draws from
    :param after_failure: a function that is called if capturing fails, before the update runs as it is
    """

    def __init__(
        self,
        update: Update,
        optimizer: th.optim.Optimizer,
        generators: tuple[th.Generator, ...],
        after_failure: Callable[[], None] = lambda: None,
    ) -> None:
        self._update, self._optimizer, self._generators = update, optimizer, generators
        self._after_failure = after_failure
        self._device = optimizer.param_groups[0]["params"][0].device
        self._graph: th.cuda.CUDAGraph | None = None
        self._shapes: list[th.Size] = []
        self._seen = 0
        self._failed = False
        make_capturable(optimizer)

    def __call__(self, batch: State) -> State:
        if self._failed:
            return self._update(batch)
        with th.cuda.device(self._device):  # streams and graphs belong to the current device
            return self._play(batch)

    def _play(self, batch: State) -> State:
        shapes = [leaf.shape for leaf in tree_leaves(batch)]
        if shapes != self._shapes:
            self._shapes, self._graph, self._seen = shapes, None, 0
        if self._graph is None:
            self._seen += 1
            if self._seen <= EAGER_BEFORE_CAPTURE:
                return self._aside(batch)
            try:
                self._capture(batch)
            except RuntimeError as error:
                self._failed, self._graph = True, None
                warnings.warn(
                    f"The update could not be captured as a CUDA graph, and runs as it is, slower ({error}). compile=False "
                    "does not try.",
                    stacklevel=2,
                )
                self._after_failure()
                return self._update(batch)
        for ours, new in zip(tree_leaves(self._batch), tree_leaves(batch), strict=True):
            ours.copy_(new, non_blocking=True)
        assert self._graph is not None
        self._graph.replay()
        return self._results

    def _aside(self, batch: State) -> State:
        """Run the update as it is, on a stream of its own: capturing requires that the warm-up is not on the default one."""
        stream = th.cuda.Stream()
        stream.wait_stream(th.cuda.current_stream())
        with th.cuda.stream(stream):
            results = self._update(batch)
        th.cuda.current_stream().wait_stream(stream)
        return results

    def _capture(self, batch: State) -> None:
        self._batch = tree_map(th.clone, batch)
        graph = th.cuda.CUDAGraph()
        for generator in self._generators:
            graph.register_generator_state(generator)
        self._optimizer.zero_grad(set_to_none=True)
        with th.cuda.graph(graph):
            self._results = self._update(self._batch)
        self._graph = graph


def make_capturable(optimizer: th.optim.Optimizer) -> None:
    """Move an optimiser's step sizes and counters into tensors: a graph would repeat plain numbers unchanged."""
    for group in optimizer.param_groups:
        if "capturable" not in group:
            raise ValueError(f"{type(optimizer).__name__} cannot be captured as a CUDA graph: compile=False")
        device = group["params"][0].device
        group["capturable"] = True
        if not isinstance(group["lr"], th.Tensor):
            group["lr"] = th.tensor(float(group["lr"]), device=device)
        for parameter in group["params"]:
            state = optimizer.state.get(parameter, {})
            if "step" in state and not isinstance(state["step"], th.Tensor):
                state["step"] = th.tensor(float(state["step"]), device=device)


def make_plain(optimizer: th.optim.Optimizer) -> None:
    """Undo :func:`make_capturable`, for an agent from a GPU: torch's optimisers refuse such tensors on a CPU."""
    for group in optimizer.param_groups:
        if group.get("capturable"):
            group["capturable"] = False
        group["lr"] = float(group["lr"])


def set_rate(group: dict[str, Any], rate: float) -> None:
    """Set the step size of a group of parameters, whether it is a number or a tensor."""
    if isinstance(group["lr"], th.Tensor):
        group["lr"].fill_(rate)
    else:
        group["lr"] = rate


def precision(mixed: bool | Literal["auto"], device: th.device) -> th.autocast:
    """
    Return the context of mixed precision: matrix products in bfloat16, the rest in float32.

    :param mixed: whether to use it; ``"auto"``: on a GPU that supports bfloat16
    """
    if mixed == "auto":
        mixed = device.type == "cuda" and th.cuda.is_bf16_supported()
    return th.autocast(device.type, dtype=th.bfloat16, enabled=mixed)


@contextmanager
def explained_out_of_memory(**settings: Any) -> Iterator[None]:
    """
    Explain an out-of-memory error of a GPU by the settings to lower.

    :param settings: the settings that decide about the memory of an update, and their values, the first to lower first
    """
    try:
        yield
    except th.cuda.OutOfMemoryError as error:
        listed = ", ".join(f"{name}={value}" for name, value in settings.items())
        first, *others = settings
        then = "".join(f", then {name}" for name in others)
        raise RuntimeError(
            f"The GPU's memory is not enough for an update with {listed}. Lower {first} first{then}. Nothing is lost: save() "
            "works."
        ) from error
