"""The helpers of the checks: parts under test, messages of failures, and comparisons.

One mistake gives one message: a check names the checks that it needs, and is not tried where one of them has failed; a fault
that another check has met before, of the same kind and in the same line of the part, is not reported again.
"""

import copy
import functools
import inspect
import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any
from unittest import SkipTest

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.preprocessing import get_obs_shape

from sb3_mbrl.contracts import (
    FitBudget,
    Imagination,
    MissingCapability,
    Obs,
    PartSpec,
    Planner,
    Prediction,
    UnsupportedSpace,
    WorldModel,
)
from sb3_mbrl.fitting import fit_world_model
from sb3_mbrl.plugins import PluginContractError
from sb3_mbrl.plugins.faults import Fault, contract_error
from sb3_mbrl.plugins.selection import import_target
from sb3_mbrl.spaces import torch_dtype
from sb3_mbrl.testing.toy_data import CASES, Case, ToyData
from sb3_mbrl.trees import State, batch_size, tree_items, tree_leaves, tree_map

Check = Callable[[Any], None]
"""A function of a part (instance, class, factory or record) that raises ``PluginContractError`` or ``SkipTest``"""

SMALL_BUDGET = FitBudget(max_epochs=2, max_batches=20, batch_size=32)


class Violation(Exception):
    """
    The error for a broken contract.

    :param what: a clause that continues the part's name: ``".step returned ..."``
    :param remedy: how to mend it, as a request
    :param required: the requirement, where it is not that of the check (``None``: it is)
    """

    def __init__(self, what: str, remedy: str, required: str | None = None) -> None:
        super().__init__(what)
        self.fault, self.required = Fault(what, remedy), required

    @classmethod
    def of(cls, fault: Fault) -> "Violation":
        """Make the error of a fault."""
        return cls(*fault)


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
    expected: frozenset[str] = frozenset()
    """The names of checks that are known to fail; those that need them are tried all the same"""
    _home: list[Case] = field(default_factory=list)
    _built: list[Any] = field(default_factory=list)
    _outcomes: dict[str, BaseException | None] = field(default_factory=dict)
    _seen: dict[tuple[str, str], str] = field(default_factory=dict)

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

    # ---- one mistake, one message

    @property
    def part(self) -> Any:
        """The part, or the nearest thing to it, for the place of a fault"""
        if self.instance is not None:
            return self.instance
        return self._built[-1] if self._built else self.factory

    def judge(self, name: str, needs: Sequence[str], run: Callable[["Subject"], None]) -> None:
        """
        Run a check, once: a second call repeats the outcome of the first.

        :param name: the name of the check
        :param needs: the names of the checks that have to pass first; they have been run
        :param run: the check
        :raises PluginContractError: when it fails
        :raises SkipTest: when it does not apply, or is not tried since the fault is known already
        """
        if name not in self._outcomes:
            self._outcomes[name] = self._try(name, needs, run)
        if (outcome := self._outcomes[name]) is not None:
            raise outcome

    def _try(self, name: str, needs: Sequence[str], run: Callable[["Subject"], None]) -> BaseException | None:
        for need in needs:
            if isinstance(self._outcomes.get(need), (PluginContractError, _NotTried)) and need not in self.expected:
                return _NotTried(f"not tried, since {self._root(need)} has failed")
        try:
            run(self)
        except PluginContractError as error:
            first = self._seen.setdefault(error.signature, name) if error.signature else name
            return error if first == name or name in self.expected else _NotTried(f"the same fault as in {first}")
        except SkipTest as reason:
            return reason
        return None

    def _root(self, name: str) -> str:
        """Return the failed check behind one that was not tried."""
        words = str(self._outcomes[name])
        found = re.match(r"not tried, since (\w+)|the same fault as in (\w+)", words)
        return (found[1] or found[2]) if found else name

    # ---- building

    def build(self, *args: Any, **kwargs: Any) -> Any:
        """
        Build a fresh part.

        :raises Violation: when the factory returns something else
        """
        part = self.factory(*args, **kwargs)
        base = {"world_model": WorldModel, "planner": Planner, "imagination": Imagination}[self.kind]
        if not isinstance(part, base):
            raise Violation(
                f"'s factory returned {type(part).__name__}, expected a {self.kind.replace('_', ' ')}",
                f"return an instance of a subclass of sb3_mbrl.contracts.{base.__name__}",
            )
        self._built[:] = [part]
        return part

    # ---- world models

    def refusal(self, case: Case) -> str | None:
        """Return the reason why the part's record does not support the spaces of a case; ``None`` if it does."""
        return None if self.spec is None else self.spec.supports(case.observation_space, case.action_space)

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
            return self.build()
        with th.random.fork_rng(devices=[]):
            th.manual_seed(0)
            return self.build(
                case.observation_space,
                case.action_space,
                **{"reward_fn": None, "termination_fn": None, **functions},
                device=device or "cpu",
            )

    def home(self) -> Case:
        """Return the first case that the world model takes."""
        if not self._home:
            for case in self.cases():
                if self.refusal(case) is not None:
                    continue
                try:
                    self.world_model(case)
                except UnsupportedSpace:
                    continue
                except Violation:
                    raise
                except Exception as error:
                    raise refused_by(error, case) from error
                self._home.append(case)
                break
            else:
                raise Violation(
                    f" takes none of the kit's spaces ({', '.join(case.name for case in CASES)})",
                    "if it is made for one environment, give an instance built for it (sb3-mbrl check: --env ID)",
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
        fit_before(model, data)
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


def raised(error: Exception) -> str:
    """Put an exception into words that follow the name of what raised it."""
    return f"raised {type(error).__name__}" + (f": {error}" if str(error) else "")


def refused_by(error: Exception, case: Case) -> Violation:
    """Make the violation of a model whose constructor fails for the spaces of a case."""
    return Violation(
        f" {raised(error)}, for the spaces of case {case.name!r} ({case.observation_space} with {case.action_space})",
        "refuse spaces that the model does not take with UnsupportedSpace, and take the arguments of every world model: "
        "(observation_space, action_space, *, reward_fn, termination_fn, device)",
    )


class _NotTried(SkipTest):
    """The reason why a check was not run: its failure would be about a mistake that is known already."""


def contract_check(kind: str, *needs: Check) -> Callable[[Callable[[Subject], None]], Check]:
    """
    Turn a function of a :class:`Subject` into a check whose failures say what is wrong, where, what the contract requires (the
    function's docstring), and how to mend it.

    :param kind: the kind of part
    :param needs: the checks without which this one makes no sense. They are run first if the check is given a
        :class:`Subject`, as in a run of all checks; a check that is called with a part runs alone
    """

    def decorate(function: Callable[[Subject], None]) -> Check:
        required = " ".join((inspect.getdoc(function) or "").split())
        needed = [one.__name__ for one in needs]

        def judge(subject: Subject) -> None:
            def failed(fault: Fault, error: BaseException | None, wanted: str = required) -> PluginContractError:
                return contract_error(subject.name, subject.part, fault, check=function.__name__, required=wanted, error=error)

            try:
                function(subject)
            except (SkipTest, PluginContractError):
                raise
            except MissingCapability as error:
                raise SkipTest(f"not supported: {error}") from error
            except Violation as violation:
                cause = violation.__cause__
                raise failed(violation.fault, cause, violation.required or required) from cause
            except Exception as error:
                remedy = (
                    "mend the line that is named above; what the part does not support, it refuses with MissingCapability "
                    "(spaces: with UnsupportedSpace, when it is built)"
                )
                raise failed(Fault(f" {raised(error)}", remedy), error) from error

        @functools.wraps(function)
        def check(part: Any) -> None:
            if not isinstance(part, Subject):
                judge(Subject.of(part, kind))
                return
            for one in needs:
                with suppress(PluginContractError, SkipTest):  # judge() looks at the outcomes
                    one(part)
            part.judge(function.__name__, needed, judge)

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
            f"{method} drew from {' and '.join(moved)} global random stream, so SB3's own randomness would change",
            "draw from the generator that is given, th.rand(..., generator=generator), and not at all where there is none",
        )


def fit_shortly(model: WorldModel, data: ToyData, seed: int = 0) -> dict[str, float]:
    """Fit shortly where there is anything to learn, and leave the model in evaluation mode, as the agent does."""
    metrics = fit_world_model(model, data, SMALL_BUDGET, generator=rng(seed)) if model.learns else {}
    model.eval()
    return metrics


def fit_before(model: WorldModel, data: ToyData) -> None:
    """
    Fit shortly, for a check of something else.

    :raises Violation: when that fails, with the requirement of a fit
    """
    try:
        fit_shortly(model, data)
    except (SkipTest, MissingCapability):
        raise
    except Exception as error:
        raise Violation(
            f".fit {raised(error)} (on {len(data)} ordinary rows)",
            "mend the line that is named above",
            "`fit`, or the loop that minimises `loss`, learns from real transitions, and returns metrics",
        ) from error


def check_calls(part: Any, calls: Mapping[str, str]) -> None:
    """
    Check that methods take the arguments of the contract.

    :param part: the part
    :param calls: the arguments of each method, as in a call: ``{"step": "state, action, *, deterministic, generator"}``
    :raises Violation: for the first that does not
    """
    for method, arguments in calls.items():
        positional, _, keywords = arguments.partition("*, ")
        names, values = [word for word in positional.split(", ") if word], [word for word in keywords.split(", ") if word]
        try:
            inspect.signature(getattr(part, method)).bind(*names, **dict.fromkeys(values))
        except TypeError as error:
            call = ", ".join([*names, *(f"{name}={name}" for name in values)])
            raise Violation(
                f".{method} cannot be called as {method}({call}): {error}",
                f"write `def {method}(self, {arguments})`, with defaults as in sb3_mbrl.contracts",
            ) from None


def start_states(model: WorldModel, data: ToyData, n: int, seed: int = 0) -> State:
    """
    Filter states from contexts of the data.

    :raises Violation: when there is not one row of every leaf per context
    """
    if model.needs_snapshot:
        raise SkipTest(f"{type(model).__name__} starts from snapshots of its environment, which the kit's data lacks")
    context = data.contexts(n, model.context, generator=rng(seed))
    with th.no_grad():
        state = model.filter(*to_device((context.obs, context.action, context.is_first), model.device))
    maker = "initial" if type(model).filter is WorldModel.filter else "filter"
    remedy = "return nested dictionaries, lists and tuples of tensors, with one row of every leaf for each observation"
    try:
        rows = batch_size(state)
    except (TypeError, ValueError) as error:
        raise Violation(f".{maker} returned no valid state: {error}", remedy) from None
    if rows != n:
        raise Violation(f".{maker} returned a state of {rows} rows for {n} contexts", remedy)
    return state


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


def first_difference(left: Any, right: Any, name: str) -> str | None:
    """Return the name of the first of nested values that differs in a bit (NaN equals NaN); ``None`` if there is none."""
    if isinstance(left, th.Tensor):
        if not isinstance(right, th.Tensor) or left.dtype != right.dtype or left.shape != right.shape:
            return name
        return None if bool(((left == right) | ((left != left) & (right != right))).all()) else name
    if isinstance(left, np.ndarray):
        same = isinstance(right, np.ndarray) and np.array_equal(left, right, equal_nan=left.dtype.kind == "f")
        return None if same else name
    if isinstance(left, Mapping):
        if not isinstance(right, Mapping) or left.keys() != right.keys():
            return name
        return next((place for key in left if (place := first_difference(left[key], right[key], f"{name}[{key!r}]"))), None)
    if isinstance(left, (list, tuple)):
        if type(left) is not type(right) or len(left) != len(right):
            return name
        names = [f"{name}.{key}" for key in getattr(left, "_fields", ())] or [f"{name}[{i}]" for i in range(len(left))]
        return next((place for place in map(first_difference, left, right, names) if place), None)
    if callable(left) and callable(right):  # made anew at every call, they are never equal
        return None
    return None if bool(left == right) else name


def same_values(left: Any, right: Any) -> bool:
    """Compare anything nested bit by bit; NaN equals NaN."""
    return first_difference(left, right, "value") is None


def far_value(left: State, right: State, name: str, tolerance: float = 1e-4) -> str | None:
    """Return the name of the first leaf in which two states differ by more than rounding; ``None`` if there is none."""
    pairs = zip(tree_items(left, name), tree_items(right, name), strict=False)
    return next((place for (place, a), (_, b) in pairs if not close_values(a, b, tolerance)), None)


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


def member_fault(space: spaces.Space, obs: Obs, rows: int, name: str = "obs") -> str | None:
    """
    Explain why observations ``(rows, ...)`` in SB3's layout are no members of a space, in words that follow ``returned``;
    ``None`` if they are.
    """
    if isinstance(space, spaces.Dict):
        if not isinstance(obs, dict) or set(obs) != set(space.spaces):
            got = f"the keys {sorted(obs)}" if isinstance(obs, dict) else type(obs).__name__
            return f"{got}, expected a dictionary with the keys {sorted(space.spaces)}"
        faults = (member_fault(child, obs[key], rows, f"{name}[{key!r}]") for key, child in space.spaces.items())
        return next((fault for fault in faults if fault), None)
    shape, dtype = get_obs_shape(space), torch_dtype(np.dtype(space.dtype))
    if not isinstance(obs, th.Tensor):
        return f"{name} as {type(obs).__name__}, expected a tensor of shape {(rows, *shape)}"
    if tuple(obs.shape) != (rows, *shape):
        return f"{name} of shape {tuple(obs.shape)}, expected {(rows, *shape)}"
    if obs.dtype != dtype:
        return f"{name} as {obs.dtype}, expected {dtype}"
    array = obs.detach().cpu().numpy().reshape(rows, *(space.shape or ())).astype(space.dtype)
    for row in array:
        if not space.contains(row):
            return f"{name} = {row}, which is no member of {space}"
    return None


MEMBER_REMEDY = "return SB3's layout and types; `SpaceCodec.project` puts encoded observations into the space"
"""The remedy of every :func:`member_fault`"""
