"""Plugins: how world models, planners, imaginations, algorithms and known environment functions are found and chosen by name.

A plugin is a module, a class or an object whose functions implement hooks of :mod:`sb3_mbrl.hookspecs`. There are two ways in:

* an installed distribution names it in the entry-point group ``sb3_mbrl``::

    [project.entry-points.sb3_mbrl]
    gp = "sb3_mbrl_gp"

* it is given to one agent: ``MBPO("MlpPolicy", env, plugins=[my_module])``.

The library's own parts (:mod:`sb3_mbrl.builtin`) are registered through the same hooks. No plugin is imported before the first
look-up. A broken plugin causes one line of warning; its traceback is shown when one of its parts is asked for by name.

A part is chosen by a name (``"gp"``), by ``"distribution:name"`` where two distributions offer the same name, by
``"package.module:Class"``, or with a class, a factory or an instance.

=========================  ==================================================================================================
environment variable       meaning
=========================  ==================================================================================================
``SB3_MBRL_PLUGINS``       allow-list of entry points or distributions, separated by commas; empty: none; not set: all
``SB3_MBRL_BLOCK``         entry points or distributions that are not loaded, separated by commas
``SB3_MBRL_TRACE=1``       log every hook call
``SB3_MBRL_STRICT=1``      raise an error instead of each warning
=========================  ==================================================================================================
"""

from sb3_mbrl.plugins.errors import (
    BrokenPluginError,
    PartArgumentError,
    PluginConflictError,
    PluginContractError,
    PluginError,
    PluginVersionError,
    PluginWarning,
    UnknownPartError,
)
from sb3_mbrl.plugins.kinds import Origin, Plugin, Record
from sb3_mbrl.plugins.registry import AutoChoice, Registry, ReportRow, get_registry, reset_registry
from sb3_mbrl.plugins.selection import Selection

__all__ = [
    "AutoChoice",
    "BrokenPluginError",
    "Origin",
    "PartArgumentError",
    "Plugin",
    "PluginConflictError",
    "PluginContractError",
    "PluginError",
    "PluginVersionError",
    "PluginWarning",
    "Record",
    "Registry",
    "ReportRow",
    "Selection",
    "UnknownPartError",
    "get_registry",
    "reset_registry",
]
