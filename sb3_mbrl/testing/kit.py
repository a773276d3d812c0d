"""The helpers of the checks: parts under test, messages of failures, and comparisons."""

import copy
import functools
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import SkipTest

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.preprocessing import get_obs_shape

from sb3_mbrl.contracts import (
    CONTRACT_VERSION,
    FitBudget,
    Imagination,
    Obs,
    PartSpec,
    Planner,
    Prediction,
    UnsupportedSpace,
    WorldModel,
)
from sb3_mbrl.fitting import fit_world_model
from sb3_mbrl.plugins import PluginContractError
from sb3_mbrl.plugins.selection import import_target
from sb3_mbrl.spaces import torch_dtype
from sb3_mbrl.testing.toy_data import CASES, Case, ToyData
from sb3_mbrl.trees import State, tree_leaves, tree_map

Check = Callable[[Any], None]
"""A function of a part (instance, class, factory or record) that raises ``PluginContractError`` or ``SkipTest``"""

SMALL_BUDGET = FitBudget(max_epochs=2, max_batches=20, batch_size=32)


class Violation(Exception):
    """The error for a broken contract. Its message continues the part's name: ``".step returned ..."``."""


@dataclass(frozen=True)
class Subject:
    """
    A part under test.

    :param name: the name in messages and test ids
    :param kind: ``world_model``, ``planner`` or ``imagination``
    :param factory: the function that builds a fresh one
    :param instance: the part itself, where an instance was given
    :param spec: the plugin's record, where one was given
    """

    name: str
    kind: str
    factory: Callable[..., Any]
    instance: Any = None
    spec: PartSpec | None = None
    _home: list[Case] = field(default_factory=list)

    @classmethod
    def of(cls, part: Any, kind: str) -> "Subject":
        """
        Make the subject of a part.

        :param part: an instance, class, factory or record
        :param kind: the kind of part that a bare factory makes
        """
        if isinstance(part, Subject):
            return part
        if isinstance(part, PartSpec):
            factory = import_target(part.factory, part.name) if isinstance(part.factory, str) else part.factory
            return cls(part.name, part.kind, factory, spec=part)
        if isinstance(part, (WorldModel, Planner, Imagination)):
            return cls(type(part).__name__, kind_of(part, kind), functools.partial(copy.deepcopy, part), instance=part)
        return cls(getattr(part, "__name__", repr(part)), kind_of(part, kind), part)

    # ---- world models

    def cases(self) -> tuple[Case, ...]:
        """Return the spaces to try."""
        if isinstance(self.instance, WorldModel):
            return (Case("its own", self.instance.observation_space, self.instance.action_space),)
        return CASES

    def world_model(self, case: Case | None = None, *, device: str | None = None, **functions: Any) -> WorldModel:
        """
        Build a fresh world model: always the same one, without a change to torch's global stream.

        :param case: the spaces of the model (default: :meth:`home`)
        :param device: the device; default: that of the given instance, if any, else the CPU
        :param functions: known functions
        :raises UnsupportedSpace: when the model does not take the case
        """
        case = case or self.home()
        if self.instance is not None:
            if functions or device not in (None, self.instance.device.type):
                raise SkipTest(f"{self.name} was given as an instance; give its class to have this checked")
            return self.factory()
        with th.random.fork_rng(devices=[]):
            th.manual_seed(0)
            return self.factory(
                case.observation_space,
                case.action_space,
                **{"reward_fn": None, "termination_fn": None, **functions},
                device=device or "cpu",
            )

    def home(self) -> Case:
        """Return the first case that the world model takes."""
        if not self._home:
            for case in self.cases():
                try:
                    self.factory() if self.instance is not None else self.world_model(case)
                except UnsupportedSpace:
                    continue
                self._home.append(case)
                break
            else:
                raise Violation(
                    f" takes none of the kit's spaces ({', '.join(case.name for case in CASES)}). "
                    "If it is made for one environment, give an instance built for it (sb3-mbrl check: --env ID)"
                )
        return self._home[0]

    def data(self, case: Case | None = None, **kwargs: Any) -> ToyData:
        """Make data in the spaces of a case; fewer rows for images."""
        case = case or self.home()
        big = any(len(shape) == 3 for shape in _shapes(case.observation_space))
        extra = self._extra(case) if self.kind == "world_model" else {}
        return ToyData(case.observation_space, case.action_space, **{"steps": 25 if big else 60, "extra": extra, **kwargs})

    def _extra(self, case: Case) -> Mapping[str, tuple[int, ...]]:
        """Return the values of the side store that the world model reads."""
        known = isinstance(self.factory, type) and issubclass(self.factory, WorldModel)
        return self.factory.extra if known else self.world_model(case).extra  # type: ignore[attr-defined]

    def fitted(self, case: Case | None = None, *, device: str | None = None, **functions: Any) -> tuple[WorldModel, ToyData]:
        """Make a model, fit it shortly, and return it with its data."""
        model, data = self.world_model(case, device=device, **functions), self.data(case)
        fit_shortly(model, data)
        return model, data


def kind_of(part: Any, default: str) -> str:
    """Return the kind of part that an instance or class is."""
    bases = {WorldModel: "world_model", Planner: "planner", Imagination: "imagination"}
    for base, kind in bases.items():
        if isinstance(part, base) or (isinstance(part, type) and issubclass(part, base)):
            return kind
    return default


def _shapes(space: spaces.Space) -> list[tuple[int, ...]]:
    if isinstance(space, spaces.Dict):
        return [shape for child in space.spaces.values() for shape in _shapes(child)]
    return [space.shape or ()]


def contract_check(kind: str) -> Callable[[Callable[[Subject], None]], Check]:
    """Turn a function of a :class:`Subject` into a check whose failures are sentences that name part, contract and check."""

    def decorate(function: Callable[[Subject], None]) -> Check:
        @functools.wraps(function)
        def check(part: Any) -> None:
            subject = Subject.of(part, kind)
            where = f"[contract v{CONTRACT_VERSION}, {function.__name__}]"
            try:
                function(subject)
            except (SkipTest, PluginContractError):
                raise
            except Violation as violation:
                raise PluginContractError(f"{subject.name}{violation}. {where}") from violation.__cause__
            except Exception as error:
                raise PluginContractError(f"{subject.name} raised {type(error).__name__}: {error}. {where}") from error

        return check

    return decorate


# ---------------------------------------------------------------------------------------------------------- small helpers


def rng(seed: int) -> th.Generator:
    """Make a generator with a seed, on the CPU."""
    return th.Generator().manual_seed(seed)


@contextmanager
def untouched_rng(method: str) -> Iterator[None]:
    """
    Check that a method leaves the global random streams alone.

    :param method: the name of the method in the message, as in ``".step"``
    :raises Violation: when a global random stream has moved
    """
    numpy_before = np.random.get_state()
    python_before, torch_before = random.getstate(), th.get_rng_state()
    yield
    moved = [
        name
        for name, same in (
            ("Python's", random.getstate() == python_before),
            ("NumPy's", same_values(np.random.get_state(), numpy_before)),
            ("torch's", th.equal(th.get_rng_state(), torch_before)),
        )
        if not same
    ]
    if moved:
        raise Violation(
            f"{method} drew from {' and '.join(moved)} global random stream although it was given a generator; "
            "SB3's own randomness would change. Draw from the generator only"
        )


def fit_shortly(model: WorldModel, data: ToyData, seed: int = 0) -> dict[str, float]:
    """Fit shortly where there is anything to learn, and leave the model in evaluation mode, as the agent does."""
    metrics = fit_world_model(model, data, SMALL_BUDGET, generator=rng(seed)) if model.learns else {}
    model.eval()
    return metrics


def start_states(model: WorldModel, data: ToyData, n: int, seed: int = 0) -> State:
    """Filter states from contexts of the data."""
    if model.needs_snapshot:
        raise SkipTest(f"{type(model).__name__} starts from snapshots of its environment, which the kit's data lacks")
    context = data.contexts(n, model.context, generator=rng(seed))
    with th.no_grad():
        return model.filter(*to_device((context.obs, context.action, context.is_first), model.device))


def some_actions(model: WorldModel, data: ToyData, n: int, seed: int = 0) -> th.Tensor:
    """Draw random actions, on the model's device."""
    return data.system.sample_actions(n, rng(seed + 1)).to(model.device)


def predict(model: WorldModel, state: State, action: th.Tensor, *, deterministic: bool = False, seed: int = 0) -> Prediction:
    """Predict one step without gradients."""
    with th.no_grad():
        return model.step(state, action, deterministic=deterministic, generator=rng(seed))


def to_device(value: State, device: th.device) -> State:
    """Move nested tensors to a device."""
    return tree_map(lambda leaf: leaf.to(device), value)


def same_values(left: Any, right: Any) -> bool:
    """Compare anything nested bit by bit; NaN equals NaN."""
    if isinstance(left, th.Tensor):
        if not isinstance(right, th.Tensor) or left.dtype != right.dtype or left.shape != right.shape:
            return False
        return bool(((left == right) | ((left != left) & (right != right))).all())
    if isinstance(left, np.ndarray):
        return isinstance(right, np.ndarray) and np.array_equal(left, right, equal_nan=left.dtype.kind == "f")
    if isinstance(left, Mapping):
        return isinstance(right, Mapping) and left.keys() == right.keys() and all(same_values(left[k], right[k]) for k in left)
    if isinstance(left, (list, tuple)):
        return type(left) is type(right) and len(left) == len(right) and all(map(same_values, left, right))
    return bool(left == right)


def close_values(left: State, right: State, tolerance: float = 1e-4) -> bool:
    """Compare up to rounding, relative to the largest value of each leaf; NaN equals NaN."""

    def close(a: th.Tensor, b: th.Tensor) -> bool:
        if a.shape != b.shape:
            return False
        a, b = a.double(), b.double()
        scale = float(b.nan_to_num(0.0, 0.0, 0.0).abs().max()) if b.numel() else 0.0
        return th.allclose(a, b, rtol=tolerance, atol=tolerance * max(1.0, scale), equal_nan=True)

    pairs = list(zip(tree_leaves(left), tree_leaves(right), strict=False))
    return len(pairs) == len(list(tree_leaves(left))) == len(list(tree_leaves(right))) and all(close(a, b) for a, b in pairs)


def member_fault(space: spaces.Space, obs: Obs, rows: int, name: str = "") -> str | None:
    """Explain why observations ``(rows, ...)`` in SB3's layout are no members of a space; ``None`` if they are."""
    if isinstance(space, spaces.Dict):
        if not isinstance(obs, dict) or set(obs) != set(space.spaces):
            return f"expected a dictionary with the keys {sorted(space.spaces)}"
        faults = (member_fault(child, obs[key], rows, f"[{key!r}]") for key, child in space.spaces.items())
        return next((fault for fault in faults if fault), None)
    shape, dtype = get_obs_shape(space), torch_dtype(np.dtype(space.dtype))
    if not isinstance(obs, th.Tensor) or tuple(obs.shape) != (rows, *shape):
        got = tuple(obs.shape) if isinstance(obs, th.Tensor) else type(obs).__name__
        return f"{name} of shape {got}, expected {(rows, *shape)}"
    if obs.dtype != dtype:
        return f"{name} as {obs.dtype}, expected {dtype}"
    array = obs.detach().cpu().numpy().reshape(rows, *(space.shape or ())).astype(space.dtype)
    for row in array:
        if not space.contains(row):
            return f"{name} = {row}, which is no member of {space}"
    return None
