"""Which real observations rollouts start from: rules by name, and functions like them."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch as th

from sb3_mbrl.contracts import Data

StartRule = Callable[[Data, int, th.Generator | None], th.Tensor]
"""``rule(data, n, generator)`` returns ``(n,)`` integers out of ``data.row_ids()``, where the rows lie oldest first."""


def pick(ids: th.Tensor, n: int, generator: th.Generator | None) -> th.Tensor:
    """``n`` of some rows, uniformly with replacement."""
    return ids[th.randint(len(ids), (n,), generator=generator)]


def initial(data: Data, n: int, generator: th.Generator | None) -> th.Tensor:
    """First observations of episodes (of all rows, where the beginnings of all episodes have been overwritten)."""
    ids = data.episode_starts()
    return pick(ids if len(ids) else data.row_ids(), n, generator)


def recent(data: Data, n: int, generator: th.Generator | None, *, rows: int) -> th.Tensor:
    """The newest real observations alone: where the present policy goes."""
    return pick(data.row_ids()[-rows:], n, generator)


def parse_rule(starts: Any, max_age: int) -> StartRule | None:
    """
    :param starts: ``"uniform"``, ``"recent"``, ``"initial"`` or a function
    :param max_age: how many real steps are recent
    :return: ``None`` for all rows alike
    :raises ValueError: for anything else
    """
    if callable(starts):
        return starts
    rules = {"uniform": None, "recent": partial(recent, rows=max_age), "initial": initial}
    if not isinstance(starts, str) or starts not in rules:
        raise ValueError(
            f"starts={starts!r}: choose one of {', '.join(map(repr, rules))}, or give a function (data, n, generator)"
        )
    return rules[starts]


def check_choice(chosen: Any, n: int, data: Data, where: str) -> th.Tensor:
    """
    :param chosen: what a rule returned
    :param n: the number that was asked for
    :param data: the rows it was to choose from
    :param where: whose rule it is
    :raises ValueError: when it is not ``(n,)`` integers out of ``data.row_ids()``
    """
    given = th.as_tensor(chosen)
    if given.shape != (n,) or given.is_floating_point() or given.dtype == th.bool:
        raise ValueError(
            f"{where} returned {tuple(given.shape)} of {given.dtype}, expected ({n},) integers out of data.row_ids()"
        )
    strangers = ~th.isin(given, data.row_ids())
    if bool(strangers.any()):
        raise ValueError(
            f"{where} chose row {int(given[strangers][0])}, which is none of data.row_ids(): return "
            "elements of row_ids(), not their indices"
        )
    return given
