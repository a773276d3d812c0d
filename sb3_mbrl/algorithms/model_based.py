"""``model_based``: any off-policy class of Stable-Baselines3 or sb3-contrib, with a world model."""

import inspect
import types
from importlib import import_module
from typing import Any

from stable_baselines3 import DQN, SAC
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm

from sb3_mbrl.agent.agent import ModelBasedAgent
from sb3_mbrl.agent.conversion import added_attributes
from sb3_mbrl.algorithms.base import ModelBasedMixin
from sb3_mbrl.algorithms.dyna import Dyna
from sb3_mbrl.algorithms.mbpo import MBPO

_PREFIX = "ModelBased"
_CLASSES: dict[type, type[Any]] = {SAC: MBPO, DQN: Dyna}
"""The model-based classes by base class"""
KNOWN_BASES = {
    "TD3": "stable_baselines3",
    "DDPG": "stable_baselines3",
    "TQC": "sb3_contrib",
    "CrossQ": "sb3_contrib",
    "QRDQN": "sb3_contrib",
}
"""The packages of the base classes that have no named model-based subclass"""

BY_NAME = {f"mb_{base.lower()}": base for base in KNOWN_BASES}
"""The base classes by the names of their model-based classes on command lines"""

_DOCSTRING = """\
:class:`{base}` whose batches mix real transitions with rollouts of the policy in a learned world model.

All arguments of {base} are accepted, with its meaning and its defaults (its docstring follows). After them, by keyword:
``world_model``, ``world_model_kwargs``, ``imagination``, ``imagination_kwargs``, ``real_ratio``, ``fit_freq``, ``fit_kwargs``,
``reward_fn``, ``termination_fn`` and ``plugins``, as :class:`~sb3_mbrl.MBPO` explains them. ``gradient_steps`` alone sets the
number of updates; a model makes more of them worthwhile than {base}'s default of {gradient_steps}.

{docstring}
"""


def model_based(cls: type[OffPolicyAlgorithm]) -> type[Any]:
    """
    Make the model-based version of a class: ``model_based(TQC)("MlpPolicy", env).learn(10_000)``.

    Every call returns the same class; ``model_based(SAC) is MBPO``, ``model_based(DQN) is Dyna``. The class is a subclass of
    ``cls`` and takes its arguments and those of :class:`~sb3_mbrl.MBPO` that concern the model. Its instances can be saved and
    loaded; the class itself can be pickled.

    :param cls: any off-policy class of Stable-Baselines3 or sb3-contrib, or of your own that reads its data through
        ``self.replay_buffer.sample`` as theirs do
    :raises TypeError: for anything else; on-policy classes have no replay buffer to mix into, and train in
        :class:`~sb3_mbrl.ModelVecEnv` instead
    """
    if not isinstance(cls, type):
        raise TypeError(f"model_based({cls!r}): give a class, e.g. model_based(TQC), and call what it returns")
    if cls is ModelBasedMixin:
        raise TypeError(
            "model_based(ModelBasedMixin): it is what model_based puts before a class; give an algorithm, e.g. TQC"
        )
    if issubclass(cls, ModelBasedMixin):
        return cls
    if issubclass(cls, ModelBasedAgent):
        raise TypeError(f"model_based({cls.__name__}): it plans with a world model already; use it as it is")
    if issubclass(cls, OnPolicyAlgorithm):
        raise TypeError(
            f"model_based({cls.__name__}): on-policy classes learn from their own rollouts and have no replay buffer to mix "
            f"imagined transitions into. Train {cls.__name__} in a learned model instead: "
            f'{cls.__name__}("MlpPolicy", ModelVecEnv(world_model, starts, n_envs=..., horizon=...)).'
        )
    if not issubclass(cls, OffPolicyAlgorithm) or cls is OffPolicyAlgorithm:
        raise TypeError(
            f"model_based({cls.__name__}): it is no off-policy algorithm class of Stable-Baselines3 or sb3-contrib, such as "
            "SAC, TD3, DDPG, DQN, TQC, CrossQ or QRDQN"
        )
    if cls not in _CLASSES:
        _CLASSES[cls] = _generate(cls)
    return _CLASSES[cls]


def model_based_by_name(name: str) -> type[Any]:
    """
    Make the model-based class of a name on the command line.

    :param name: one of :data:`BY_NAME`
    :raises ImportError: when the package of the base class is not installed
    """
    base = BY_NAME[name]
    return model_based(getattr(import_module(KNOWN_BASES[base]), base))


def _generate(base: type[OffPolicyAlgorithm]) -> type[Any]:
    _check_names(base)
    name = _free_name(base)
    signature = _joint_signature(base)

    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        ModelBasedMixin.__init__(self, *args, **kwargs)

    learn_signature = inspect.signature(base.learn)
    parameters = learn_signature.parameters
    named = "tb_log_name" in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())

    def learn(self: Any, *args: Any, **kwargs: Any) -> Any:
        """Train as in the base class. Only steps of the real environment count."""
        given = learn_signature.bind(self, *args, **kwargs).arguments
        if named and "tb_log_name" not in given:
            kwargs.setdefault("tb_log_name", name)
        return super(cls, self).learn(*args, **kwargs)

    steps = signature.parameters.get("gradient_steps")
    doc = _DOCSTRING.format(
        base=base.__name__,
        gradient_steps=steps.default if steps is not None else 1,
        docstring=inspect.cleandoc(base.__doc__ or ""),
    )
    init.__name__ = "__init__"
    own = {
        "__init__": init,
        "learn": learn,
        "__doc__": doc,
        "__module__": __name__,
        "__qualname__": name,
        "model_free_class": base,
    }
    cls: type[Any] = types.new_class(name, (ModelBasedMixin, base), exec_body=lambda namespace: namespace.update(own))
    vars(init)["__signature__"] = inspect.Signature(
        [inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD), *signature.parameters.values()]
    )
    vars(learn)["__signature__"] = learn_signature.replace(
        parameters=[p.replace(default=name) if p.name == "tb_log_name" else p for p in parameters.values()]
    )
    # Pickle looks classes up by name in their module. If a class was defined again (in a notebook), the last one is found.
    globals()[name] = cls
    return cls


def _check_names(base: type) -> None:
    """
    Check that the class has no attributes with names that the model-based classes add.

    :raises TypeError: when it has
    """
    # Names of SB3's own methods are no clash: the mixin overrides these, and so may the class.
    ours = {name for kind in ModelBasedMixin.__mro__ if kind is not object for name in vars(kind)} | set(
        added_attributes(MBPO)
    )
    theirs = {name for kind in base.__mro__ if not issubclass(OffPolicyAlgorithm, kind) for name in vars(kind)}
    overrides = {name for kind in OffPolicyAlgorithm.__mro__ for name in vars(kind)}
    if clash := sorted(name for name in (theirs & ours) - overrides if not name.startswith("__")):
        raise TypeError(
            f"model_based({base.__name__}): the class has attributes of its own called {', '.join(clash)}, as every "
            "model-based class has: rename them"
        )


def _free_name(base: type) -> str:
    """Choose a name that pickle cannot confuse with that of an equally named class from another module."""
    name = f"{_PREFIX}{base.__name__}"
    module = KNOWN_BASES.get(base.__name__)
    other = globals().get(name)
    foreign = module is not None and not base.__module__.startswith(f"{module}.")
    if foreign or (other is not None and other.model_free_class.__module__ != base.__module__):
        return f"{_PREFIX}_{base.__module__}_{base.__name__}".replace(".", "_")
    return name


def _joint_signature(base: type) -> inspect.Signature:
    """Join the base class's arguments and the keyword-only ones of the mixin."""
    given = list(inspect.signature(base).parameters.values())
    variable = [p for p in given if p.kind is p.VAR_KEYWORD]
    first = [p.name for p in given if p.kind is p.POSITIONAL_OR_KEYWORD][:2]
    positional = any(p.kind is p.VAR_POSITIONAL for p in given)
    begins = first == ["policy", "env"] or (positional and first == ["policy", "env"][: len(first)])
    if not begins or not (variable or any(p.name == "_init_setup_model" for p in given)):
        raise TypeError(
            f"model_based({base.__name__}): its constructor is {base.__name__}{inspect.signature(base)}. It has to begin with "
            "(policy, env) and to take _init_setup_model, which it hands to its base class, as all of Stable-Baselines3's do: "
            "the world model is built after its arguments are known."
        )
    taken = {parameter.name for parameter in given}
    mixin = inspect.signature(ModelBasedMixin).parameters.values()
    extra = [p for p in mixin if p.kind is p.KEYWORD_ONLY and not p.name.startswith("_")]
    if clash := sorted(p.name for p in extra if p.name in taken):
        raise TypeError(
            f"model_based({base.__name__}): its constructor has arguments of its own called {', '.join(clash)}, as the model "
            "has: rename them"
        )
    return inspect.Signature([*(p for p in given if p.kind is not p.VAR_KEYWORD), *extra, *variable])


def __getattr__(name: str) -> Any:
    """Generate a class by its name, in a process that has not generated it yet (unpickling)."""
    base = name.removeprefix(_PREFIX)
    if base == name or name == _PREFIX:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if base not in KNOWN_BASES:
        raise AttributeError(
            f"{name} is a class that model_based() made of {base}: call model_based({base}) before unpickling"
        )
    return model_based(getattr(import_module(KNOWN_BASES[base]), base))
