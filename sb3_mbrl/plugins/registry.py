"""The registry: finds the part that a user's name, class or instance stands for, or explains why it cannot."""

import fnmatch
import inspect
import operator
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from importlib import import_module
from types import ModuleType
from typing import Any, NamedTuple

import gymnasium as gym
import pluggy
from gymnasium import spaces
from torch import nn

from sb3_mbrl.checks import did_you_mean
from sb3_mbrl.contracts import EnvFunctions, PartSpec, UnsupportedSpace, WorldModelSpec
from sb3_mbrl.plugins.errors import (
    PluginConflictError,
    PluginContractError,
    PluginError,
    UnknownPartError,
    error_line,
)
from sb3_mbrl.plugins.kinds import KINDS, Layer, Origin, Plugin, Record, normalise
from sb3_mbrl.plugins.loader import (
    broken_error,
    complain,
    load_builtin,
    load_entry_point,
    load_given,
    load_installed,
    logger,
    new_manager,
    trace,
    version_problem,
)
from sb3_mbrl.plugins.selection import (
    Selection,
    advice,
    conflict,
    import_target,
    imported_attribute,
    path_of,
    patterns,
    reference_to,
    refusal,
    select,
    specificity,
    unknown_part,
)


class AutoChoice(NamedTuple):
    """
    The outcome of ``"auto"``.

    :param selection: the choice, or ``None`` if no candidate takes the spaces
    :param reasons: the reason why each better-ranked candidate was passed over, by name
    """

    selection: Selection | None
    reasons: Mapping[str, str]


class ReportRow(NamedTuple):
    """
    A line of ``sb3-mbrl plugins``: a part, or a plugin that offers none.

    :param name: the name of the part or plugin
    :param kind: the kind of part; ``"plugin"`` for a plugin without parts (life-cycle hooks only, broken or blocked)
    :param distribution: the name of the distribution
    :param version: the version of the distribution
    :param status: ``ok``, ``broken``, ``blocked``, ``conflict`` or ``replaced``
    :param summary: the summary of the part
    :param hooks: the hooks that the plugin implements
    :param error: the error in one line, or an empty string
    """

    name: str
    kind: str
    distribution: str
    version: str
    status: str
    summary: str
    hooks: tuple[str, ...]
    error: str


class Registry:
    """
    All plugins of a process or of one agent, and the parts they offer. Immutable: :meth:`with_plugins` makes another one.

    :param plugins: the plugins, the broken and blocked ones too
    """

    def __init__(self, plugins: Sequence[Plugin]) -> None:
        self.plugins = tuple(plugins)
        self._manager = new_manager()
        for index, plugin in enumerate(self.plugins):
            if plugin.status == "ok":
                self._manager.register(plugin.implementation, name=f"{index} {plugin}")
        if os.environ.get("SB3_MBRL_TRACE") == "1":
            trace(self._manager)

    @property
    def hook(self) -> pluggy.HookRelay:
        """The life-cycle hooks of all plugins: ``registry.hook.sb3_mbrl_on_setup(agent=agent)`` calls one of them."""
        return self._manager.hook

    def with_plugins(self, plugins: Iterable[Any] | None) -> "Registry":
        """
        Make a registry with further plugins, for one agent. This one does not change.

        :param plugins: modules, classes, objects, or names of installed plugins that ``SB3_MBRL_PLUGINS`` leaves out
        :raises BrokenPluginError: when one cannot be used
        :raises UnknownPartError: when no plugin of this name is installed
        """
        result = list(self.plugins)
        for given in plugins or ():
            if isinstance(given, str):
                self._add_installed(result, given)
            elif not any(plugin.implementation is given or type(plugin.implementation) is given for plugin in result):
                result.append(load_given(given))
        same = len(result) == len(self.plugins) and all(map(operator.is_, result, self.plugins))
        return self if same else Registry(result)

    @staticmethod
    def _add_installed(plugins: list[Plugin], name: str) -> None:
        meant = [index for index, plugin in enumerate(plugins) if plugin.origin.is_called(name)]
        if not meant:
            known = [plugin.origin.plugin for plugin in plugins]
            raise UnknownPartError(
                f"no plugin {name!r} is installed.{did_you_mean(name, known)} A module is given as such, not by name."
            )
        for index in meant:
            if plugins[index].blocked_by == "SB3_MBRL_BLOCK":
                raise PluginError(f"plugin {plugins[index]} was asked for, but SB3_MBRL_BLOCK keeps it out")
            if plugins[index].status == "blocked":
                plugins[index] = load_entry_point(plugins[index])
            if plugins[index].error is not None:
                raise broken_error(plugins[index]) from plugins[index].error

    def __deepcopy__(self, memo: dict[int, Any]) -> "Registry":
        """Return the registry itself: it is immutable, and modules cannot be copied. Agents that hold it can be copied."""
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        """
        Pickle the plug-ins that were given or asked for by name; the built-in and installed ones are those of the process that
        unpickles, so that agents can be sent to other processes.
        """
        return _of_this_process, ([_as_sent(plugin) for plugin in self.plugins if plugin not in get_registry().plugins],)

    # ---- records

    def records(self, kind: str) -> list[Record]:
        """Return every record of a kind, the replaced ones too: built-in parts first, then in the order of plugins."""
        if kind not in KINDS:
            raise ValueError(f"{kind!r} is not a kind of part: {', '.join(KINDS)}")
        return [record for plugin in self.plugins for record in plugin.records if record.spec.kind == kind]

    def in_effect(self, kind: str) -> list[Record]:
        """Return the records of a kind without those that a record of the same name replaces (``override=True``)."""
        records = self.records(kind)
        overridden = {record.spec.name for record in records if record.spec.override}
        return [record for record in records if record.spec.override or record.spec.name not in overridden]

    def specs(self, kind: str) -> list[PartSpec]:
        """Return the descriptions of a kind's parts, without the replaced ones."""
        return [record.spec for record in self.in_effect(kind)]

    # ---- choosing

    def resolve(self, kind: str, selection: Any) -> Selection:
        """
        Find the part that a user means.

        :param kind: ``"world_model"``, ``"planner"``, ``"imagination"``, ``"algorithm"`` or ``"env_functions"``
        :param selection: a name, ``"distribution:name"``, ``"package.module:Class"``, a class, a factory or an instance
        :raises UnknownPartError: when there is nothing of this name
        :raises PluginConflictError: when two plugins offer the name
        :raises BrokenPluginError: when the plugin could not be loaded
        :raises PluginVersionError: when the part was written for another contract version
        :raises TypeError: when it is none of these things
        """
        records = self.records(kind)
        if isinstance(selection, str):
            return self._by_name(kind, selection)
        label, product = KINDS[kind].label, KINDS[kind].product
        if inspect.isclass(selection):
            how = "class"
            if not issubclass(selection, product):
                raise TypeError(f"{kind}={selection!r} is no {label}: it is not derived from {product.__name__}")
        elif product is not object and isinstance(selection, product):
            path = path_of(type(selection))
            return Selection(kind, path, reference_to("instance", type(selection).__name__, path), instance=selection)
        elif callable(selection) and not isinstance(selection, nn.Module):
            how = "factory"
        else:
            raise TypeError(
                f"{kind}={selection!r} is no {label}: give a name, 'package.module:Class', a class, a factory or an instance"
            )
        path = path_of(selection)
        for record in records:
            if record.spec.factory is selection or record.spec.factory == path:
                return select(kind, record, how, record.spec.name)
        return Selection(kind, selection, reference_to(how, path.partition(":")[2], path))

    def _by_name(self, kind: str, name: str) -> Selection:
        offered = [record for record in self.in_effect(kind) if record.spec.name == name]
        qualifier, colon, part = name.rpartition(":")
        if colon:
            offered = [
                record for record in self.records(kind) if record.spec.name == part and record.origin.is_called(qualifier)
            ]
        if len(offered) > 1:
            raise conflict(kind, name, offered)
        if offered:
            return select(kind, offered[0], "name", name)
        for plugin in self.plugins:
            if plugin.error is not None and plugin.origin.is_called(qualifier or name):
                raise broken_error(plugin) from plugin.error
        if not colon:
            raise unknown_part(kind, name, self.in_effect(kind), self.plugins)
        try:
            imported = import_target(name, f"unknown {KINDS[kind].label} {name!r}")
        except UnknownPartError as error:
            if any(plugin.origin.is_called(qualifier) for plugin in self.plugins):
                raise unknown_part(kind, name, self.in_effect(kind), self.plugins) from error
            raise
        try:
            selection = self.resolve(kind, imported)
        except TypeError as error:
            raise UnknownPartError(f"{name!r} was imported, but {error}") from error
        return replace(selection, reference={**selection.reference, "how": "import", "name": name, "factory": name})

    # ---- loading

    def from_reference(self, kind: str, reference: Mapping[str, str], trusted: Sequence[str] = ()) -> Selection:
        """
        Find the part that an agent was saved with.

        The reference comes from a file, perhaps a stranger's: only a registered part, a class of this kind that is imported
        already, or what the user trusts is imported and called.

        :param reference: :attr:`Selection.reference`
        :param trusted: modules, and parts as ``"module:name"``, that may be imported
        :raises UnknownPartError: when it is no longer available, or not trusted; the message says what to install or to give
        """
        label, how, factory = KINDS[kind].label, reference["how"], reference["factory"]
        if how == "name":
            return self._by_saved_name(kind, reference)
        again = f"Give it again: load(..., {kind}=...)."
        if how == "instance":
            raise UnknownPartError(
                f"the saved agent's {label} was given as an instance of {factory}, which is not stored. {again}"
            )
        if "<" in factory:
            raise UnknownPartError(f"the saved agent's {label} was given as {factory}, which cannot be imported. {again}")
        if not self._may_name(kind, factory, trusted):
            raise UnknownPartError(
                f"the saved agent's {label} is {factory}, which is neither registered nor the class of a {label} that is "
                "imported already: a file must not choose what is run. If you trust it: "
                f"load(..., trust=[{factory!r}]), or import its module first. {again}"
            )
        try:
            selection = self.resolve(kind, factory)
        except UnknownPartError as error:
            install = f" Run `pip install {reference['distribution']}`, or:" if reference["distribution"] else ""
            raise UnknownPartError(f"the saved agent's {label} cannot be imported ({error}).{install} {again}") from error
        return replace(selection, reference={**selection.reference, "how": how, "name": reference["name"]})

    def _may_name(self, kind: str, factory: str, trusted: Sequence[str]) -> bool:
        """Tell whether a file may name a part of this path."""
        if factory in trusted or factory.partition(":")[0] in trusted:
            return True
        for record in self.records(kind):
            registered = record.spec.factory
            if factory == (registered if isinstance(registered, str) else path_of(registered)):
                return True
        imported = imported_attribute(factory)
        return inspect.isclass(imported) and issubclass(imported, KINDS[kind].product)

    def _by_saved_name(self, kind: str, reference: Mapping[str, str]) -> Selection:
        distribution, version = reference["distribution"], reference["version"]
        qualifier, _, name = reference["name"].rpartition(":")
        part = f"the saved agent's {KINDS[kind].label} {name!r}"
        if not distribution:
            given = [
                record for record in self.records(kind) if record.spec.name == name and record.origin.layer is Layer.GIVEN
            ]
            if given:
                return select(kind, given[0], "name", reference["name"])
            raise UnknownPartError(
                f"{part} came from a plugin that was given to the agent. Give it again: load(..., plugins=[...])"
            )
        plugins = [plugin for plugin in self.plugins if normalise(plugin.origin.distribution) == normalise(distribution)]
        records = [
            record for plugin in plugins for record in plugin.records if record.spec.kind == kind and record.spec.name == name
        ]
        if len(records) > 1:
            records = [record for record in records if qualifier and record.origin.is_called(qualifier)] or records
        if len(records) > 1:
            raise conflict(kind, name, records)
        if records:
            if records[0].origin.version != version:
                logger.info("%s was saved with %s %s; this is %s", part, distribution, version, records[0].origin.title)
            return select(kind, records[0], "name", reference["name"])
        for plugin in plugins:
            if plugin.error is not None:
                raise broken_error(plugin) from plugin.error
            if plugin.status == "blocked":
                raise UnknownPartError(f"{part} needs {plugin.origin}, which {plugin.blocked_by} keeps out")
        if plugins:
            raise UnknownPartError(
                f"{part} was saved with {distribution} {version}; {plugins[0].origin.title} does not offer it"
            )
        raise UnknownPartError(
            f"{part} needs {distribution} {version}, which is not installed. Run `pip install {distribution}`."
        )

    def as_pickled(self, selection: Selection) -> tuple[Selection, tuple[Origin, str] | None]:
        """Replace the record of a selection, whose functions need not be picklable, by the record's origin and name."""
        record = selection.record
        if record is None:
            return selection, None
        return replace(selection, record=None, target=selection.reference["factory"]), (record.origin, record.spec.name)

    def as_unpickled(self, selection: Selection, key: tuple[Origin, str] | None) -> Selection:
        """
        Take back what :meth:`as_pickled` gave.

        :raises UnknownPartError: when no plug-in of this process offers the part
        """
        if key is None:
            return selection
        for record in self.records(selection.kind):
            if (record.origin, record.spec.name) == key:
                return replace(selection, record=record, target=record.spec.factory)
        origin, name = key
        raise UnknownPartError(
            f"the pickled agent's {KINDS[selection.kind].label} {name!r} came from {origin.title}, which is not available in "
            "this process: install it here in the same version"
        )

    # ---- spaces

    def auto_world_model(self, observation_space: spaces.Space, action_space: spaces.Space) -> AutoChoice:
        """
        Choose the world model for ``"auto"``: among those with an ``auto_rank``, the highest-ranked that takes the spaces.

        :return: the choice, if any, and the reasons why better-ranked models were passed over
        """
        candidates = []
        for record in self.in_effect("world_model"):
            if isinstance(record.spec, WorldModelSpec) and record.spec.auto_rank is not None:
                candidates.append((-record.spec.auto_rank, record.origin.layer, record))
        reasons: dict[str, str] = {}
        for _, _, record in sorted(candidates, key=lambda candidate: candidate[:2]):
            try:
                reason = version_problem(record.origin, record.spec) or refusal(record, observation_space, action_space)
            except PluginContractError as error:
                complain(f"{error} It was passed over.", error)
                reason = str(error)
            if reason is None:
                return AutoChoice(select("world_model", record, "name", record.spec.name), reasons)
            reasons[record.spec.name] = reason
        return AutoChoice(None, reasons)

    def check_supports(self, selection: Selection, observation_space: spaces.Space, action_space: spaces.Space) -> None:
        """
        Check that a registered part takes the spaces. An unregistered part is not checked; it may refuse when it is built.

        :raises UnsupportedSpace: when it does not; the message names the parts that do
        """
        if selection.record is None:
            return
        reason = refusal(selection.record, observation_space, action_space)
        if reason is None:
            return
        alternatives = []
        for record in self.in_effect(selection.kind):
            if record is selection.record or version_problem(record.origin, record.spec):
                continue
            try:
                if refusal(record, observation_space, action_space) is None:
                    alternatives.append(record.spec.name)
            except PluginContractError as error:  # the fault of a plugin that would only be suggested here
                complain(f"{error} It was passed over.", error)
        label = KINDS[selection.kind].label
        hint = f"These do: {', '.join(alternatives)}." if alternatives else f"No registered {label} does."
        raise UnsupportedSpace(
            f"{selection} does not take observations {observation_space} with actions {action_space}: {reason}\n  {hint}"
        )

    def env_functions(self, env: gym.Env) -> EnvFunctions:
        """
        Look up the known reward and termination of an environment by its Gymnasium id.

        An exact pattern comes before a glob, a glob with more fixed characters before one with fewer; among equals a plugin
        comes before a built-in.

        :return: the functions; both ``None`` if no record has the id
        :raises PluginConflictError: when two plugins' patterns fit equally well
        """
        if env.spec is None:
            return EnvFunctions()
        ranked: dict[tuple[bool, int, Layer], list[Record]] = {}
        for record in self.in_effect("env_functions"):
            fits = [
                specificity(env.spec.id, pattern) for pattern in patterns(record) if fnmatch.fnmatchcase(env.spec.id, pattern)
            ]
            if fits:
                ranked.setdefault((*max(fits), record.origin.layer), []).append(record)
        if not ranked:
            return EnvFunctions()
        best = ranked[max(ranked)]
        if len(best) > 1:
            offers = " and ".join(f"{record.spec.name!r} of {record.origin.title}" for record in best)
            raise PluginConflictError(
                f"the reward and termination of {env.spec.id!r} are offered by {offers}; "
                + advice(best, "give reward_fn and termination_fn yourself")
            )
        return select("env_functions", best[0], "name", best[0].spec.name).build(env)

    # ---- overview

    def report(self) -> list[ReportRow]:
        """List all parts and plugins, for ``sb3-mbrl plugins``."""
        rows = []
        in_effect = {kind: self.in_effect(kind) for kind in KINDS}
        for plugin in self.plugins:
            origin = plugin.origin
            for record in plugin.records:
                kind, spec = record.spec.kind, record.spec
                rivals = [other for other in in_effect[kind] if other.spec.name == spec.name]
                status, error = "ok", ""
                if problem := version_problem(origin, spec):
                    status, error = "broken", " ".join(problem.split())
                elif not any(other is record for other in rivals):
                    status, error = "replaced", f"by {' and '.join(other.origin.title for other in rivals)}"
                elif len(rivals) > 1:
                    status, error = "conflict", str(conflict(kind, spec.name, rivals))
                rows.append(
                    ReportRow(spec.name, kind, origin.distribution, origin.version, status, spec.summary, plugin.hooks, error)
                )
            if not plugin.records:
                error = f"by {plugin.blocked_by}" if plugin.status == "blocked" else ""
                if plugin.error is not None:
                    error = error_line(plugin.error)
                rows.append(
                    ReportRow(
                        origin.plugin, "plugin", origin.distribution, origin.version, plugin.status, "", plugin.hooks, error
                    )
                )
        return rows


def _as_sent(plugin: Plugin) -> tuple[str, Any]:
    """Describe a plug-in for another process: an installed one and a module by name, an object as it is."""
    if plugin.origin.layer is not Layer.GIVEN:
        return "installed", f"{plugin.origin.distribution}:{plugin.origin.plugin}"
    given = plugin.implementation
    return ("module", given.__name__) if isinstance(given, ModuleType) else ("object", given)


def _of_this_process(sent: Sequence[tuple[str, Any]]) -> Registry:
    """Make the registry of a pickled agent: this process's, with the plug-ins that were sent (:func:`_as_sent`)."""
    return get_registry().with_plugins([import_module(value) if how == "module" else value for how, value in sent])


_registry: Registry | None = None


def get_registry() -> Registry:
    """Return the registry of built-in parts and installed plugins, which the first call loads."""
    global _registry
    if _registry is None:
        _registry = Registry([load_builtin(), *load_installed()])
        logger.info("plugins: %s", ", ".join(str(plugin) for plugin in _registry.plugins if plugin.status == "ok"))
    return _registry


def reset_registry() -> None:
    """Forget the registry, so that the next look-up loads all plugins again (tests; changed environment variables)."""
    global _registry
    _registry = None
