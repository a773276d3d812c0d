"""Operations on a :data:`State`: nested tensors whose every leaf has the batch as its leading axis.

A world model may keep anything in its state (an observation, a member index, ``(h, z)``, a frame stack, a key-value cache).
The code that rolls it out only needs the few functions of this file, which walk dictionaries, lists, tuples and named
tuples. ``None`` is an empty branch.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch as th

State = Any
"""A nested ``dict``, ``list``, ``tuple`` or named tuple of tensors, every leaf ``(B, ...)``"""


class Constant:
    """
    A constant tensor that is copied to each device once, on first use: a CUDA graph cannot copy from the CPU.

    :param value: the tensor, on the CPU
    """

    def __init__(self, value: th.Tensor) -> None:
        self.value = value
        self._elsewhere: dict[th.device, th.Tensor] = {}

    def on(self, device: th.device) -> th.Tensor:
        """Return the tensor on a device."""
        if device == self.value.device:
            return self.value
        if device not in self._elsewhere:
            self._elsewhere[device] = self.value.to(device)
        return self._elsewhere[device]

    def __getstate__(self) -> dict[str, Any]:
        return {"value": self.value, "_elsewhere": {}}  # copies on a GPU are not saved: the next machine may have none


def tree_map(function: Callable[..., th.Tensor], state: State, *others: State) -> State:
    """
    Apply a function to every leaf of one state, or to the matching leaves of several states of the same structure.

    :param function: a function of one tensor per state that returns a tensor
    :param state: the state that gives the structure of the result
    :param others: further states of the same structure
    :return: the results, in the structure of ``state``
    :raises TypeError: when a leaf is not a tensor, or the structures differ
    """
    if state is None:
        return None
    if isinstance(state, th.Tensor):
        return function(state, *others)
    if any(type(other) is not type(state) or len(other) != len(state) for other in others):
        raise TypeError(f"States of different structure: {describe(state)} and {[describe(other) for other in others]}")
    if isinstance(state, dict):
        return type(state)((key, tree_map(function, state[key], *(other[key] for other in others))) for key in state)
    if isinstance(state, (tuple, list)):
        children = [tree_map(function, *items) for items in zip(state, *others, strict=True)]
        return type(state)(*children) if hasattr(state, "_fields") else type(state)(children)
    raise TypeError(f"A State holds tensors in dicts, lists and tuples, not {type(state).__name__}")


def tree_leaves(state: State) -> Iterator[th.Tensor]:
    """Iterate over the tensors of a state, depth first, in the order of its containers."""
    if isinstance(state, th.Tensor):
        yield state
    elif isinstance(state, dict):
        for child in state.values():
            yield from tree_leaves(child)
    elif isinstance(state, (tuple, list)):
        for child in state:
            yield from tree_leaves(child)
    elif state is not None:
        raise TypeError(f"A State holds tensors in dicts, lists and tuples, not {type(state).__name__}")


def tree_items(state: State, name: str = "state") -> Iterator[tuple[str, th.Tensor]]:
    """Iterate over the tensors of a state with their names, such as ``state['belief'][0]``, in the order of its containers."""
    if isinstance(state, th.Tensor):
        yield name, state
    elif isinstance(state, dict):
        for key, child in state.items():
            yield from tree_items(child, f"{name}[{key!r}]")
    elif isinstance(state, (tuple, list)):
        for key, child in zip(getattr(state, "_fields", range(len(state))), state, strict=True):
            yield from tree_items(child, f"{name}.{key}" if isinstance(key, str) else f"{name}[{key}]")
    elif state is not None:
        raise TypeError(f"A State holds tensors in dicts, lists and tuples, not {type(state).__name__}")


def batch_size(state: State) -> int:
    """
    Return the number of rows of a state.

    :raises ValueError: when the state has no tensor or its leaves disagree about the leading axis
    """
    sizes = {leaf.shape[0] if leaf.dim() else None for leaf in tree_leaves(state)}
    if len(sizes) != 1 or None in sizes:
        raise ValueError(f"Every leaf of a State needs the same leading batch axis, got {describe(state)}")
    return sizes.pop()  # type: ignore[return-value]


def tree_index(state: State, index: th.Tensor | slice) -> State:
    """Select rows of a state (integer or boolean index, or a slice)."""
    return tree_map(lambda leaf: leaf[index], state)


def tree_repeat(state: State, times: int) -> State:
    """Repeat every row ``times`` times, copies side by side (``a, b`` becomes ``a, a, b, b``)."""
    return tree_map(lambda leaf: leaf.repeat_interleave(times, dim=0), state)


def tree_cat(states: list[State]) -> State:
    """Join states along the batch axis."""
    return tree_map(lambda *parts: th.cat(parts), states[0], *states[1:])


def tree_where(mask: th.Tensor, state: State, other: State) -> State:
    """
    Choose row by row: ``state`` where ``mask`` is true, ``other`` elsewhere.

    :param mask: the choice, ``(B,)`` booleans
    :param state: the state for true rows
    :param other: the state for false rows
    """

    def choose(left: th.Tensor, right: th.Tensor) -> th.Tensor:
        return th.where(mask.view(-1, *[1] * (left.dim() - 1)), left, right)

    return tree_map(choose, state, other)


def finite_rows(state: State) -> th.Tensor:
    """Tell which rows are finite in every floating-point leaf, ``(B,)`` booleans."""

    def finite(leaf: th.Tensor) -> th.Tensor:
        # Plainly: leaf.isfinite().flatten(1).all(1). A finite value times 0 is 0, NaN or infinity times 0 is NaN, so the row's
        # sum is 0 exactly if all of it is finite: several times faster than a boolean per element.
        return leaf.isfinite() if leaf.dim() == 1 else (leaf.detach().flatten(1) * 0).sum(1) == 0

    return th.stack([finite(leaf) for leaf in tree_leaves(state)]).all(0)


def describe(state: State) -> str:
    """Write the structure of a state for error messages: ``{h: (32, 200), z: (32, 30)}``."""
    if isinstance(state, th.Tensor):
        return str(tuple(state.shape))
    if isinstance(state, dict):
        return "{" + ", ".join(f"{key}: {describe(child)}" for key, child in state.items()) + "}"
    if isinstance(state, (tuple, list)):
        return "(" + ", ".join(describe(child) for child in state) + ")"
    return type(state).__name__
