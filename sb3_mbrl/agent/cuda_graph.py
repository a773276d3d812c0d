"""How an update runs: as it is, or as a captured graph on a GPU; in which precision."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch as th

from sb3_mbrl.trees import State, tree_leaves, tree_map

Compile = Literal["auto"] | bool
Update = Callable[[State], State]
"""From a batch to what it found: tensors alone, always of the same shapes"""

EAGER_BEFORE_CAPTURE = 3
"""Updates that run as they are first, so that the libraries below have allocated what they want"""


class CapturedUpdate:
    """
    Plays an update back as one CUDA graph: thousands of small kernels without a processor that starts them one by one.

    The first updates run as they are (they count like any other), then one is captured and played back from there on, on
    tensors of its own that a batch is copied to. Another shape is captured anew. Where capturing fails, a warning says so, and
    updates go on as they are.

    :param update: uses nothing but tensors that stay where they are, and the generators below
    :param optimizer: has its step sizes and counts in tensors from now on
    :param generators: that the update draws from
    :param after_failure: is called where capturing failed, before the update runs as it is
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
        with th.cuda.device(self._device):  # streams and graphs are of the current one
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
        return self._found

    def _aside(self, batch: State) -> State:
        """Not on the default stream, as capturing wants it."""
        stream = th.cuda.Stream()
        stream.wait_stream(th.cuda.current_stream())
        with th.cuda.stream(stream):
            found = self._update(batch)
        th.cuda.current_stream().wait_stream(stream)
        return found

    def _capture(self, batch: State) -> None:
        self._batch = tree_map(th.clone, batch)
        graph = th.cuda.CUDAGraph()
        for generator in self._generators:
            graph.register_generator_state(generator)
        self._optimizer.zero_grad(set_to_none=True)
        with th.cuda.graph(graph):
            self._found = self._update(self._batch)
        self._graph = graph


def make_capturable(optimizer: th.optim.Optimizer) -> None:
    """Let an optimiser keep in tensors what changes from step to step: a graph repeats numbers."""
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
    """Take back what :func:`make_capturable` did on a GPU: torch's optimisers refuse it on a processor."""
    for group in optimizer.param_groups:
        if group.get("capturable"):
            group["capturable"] = False
        group["lr"] = float(group["lr"])


def set_rate(group: dict[str, Any], rate: float) -> None:
    """The step size of a group of parameters, wherever it is kept."""
    if isinstance(group["lr"], th.Tensor):
        group["lr"].fill_(rate)
    else:
        group["lr"] = rate


def precision(mixed: bool | Literal["auto"], device: th.device) -> th.autocast:
    """
    Matrix products in bfloat16, the rest in float32.

    :param mixed: ``"auto"``: on a GPU that can
    """
    if mixed == "auto":
        mixed = device.type == "cuda" and th.cuda.is_bf16_supported()
    return th.autocast(device.type, dtype=th.bfloat16, enabled=mixed)


@contextmanager
def explained_out_of_memory(**settings: Any) -> Iterator[None]:
    """Say what to lower where a GPU's memory is not enough."""
    try:
        yield
    except th.cuda.OutOfMemoryError as error:
        told = ", ".join(f"{name}={value}" for name, value in settings.items())
        raise RuntimeError(
            f"The GPU's memory is not enough for an update with {told}. Lower imagine_last first (it decides how many "
            "trajectories are imagined at once), then batch_size or batch_length, then size. Nothing is lost: save() works."
        ) from error
