"""``sb3-mbrl plugins``: a table of all parts that can be chosen by name."""

import argparse
import traceback
import warnings

from sb3_mbrl.cli.values import load_plugins
from sb3_mbrl.plugins import PluginWarning, Registry, ReportRow
from sb3_mbrl.plugins.kinds import KINDS


def list_plugins(args: argparse.Namespace) -> int:
    """Print a table of all parts."""
    with warnings.catch_warnings():
        # The table shows the same error below the plugin's row.
        warnings.simplefilter("ignore", PluginWarning)
        _, registry = load_plugins(args.plugin)
    rows = registry.report()
    order = [*KINDS, "plugin"]
    rows.sort(key=lambda row: order.index(row.kind))  # a stable sort: built-in parts stay first
    cells = [("name", "kind", "from", "status", "summary"), *(_cells(row) for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(4)]
    notes = ["", *(row.error for row in rows)]
    for number, (row, note) in enumerate(zip(cells, notes, strict=True)):
        fixed = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=False))
        print(f"{fixed}  {row[4]}".rstrip())
        if note:
            print(f"{'':{widths[0]}}  {note}")
        if number == 0:
            print("-" * (sum(widths) + 8 + len("summary")))
    if args.verbose:
        _print_plugins(registry)
    return 0


def _cells(row: ReportRow) -> tuple[str, str, str, str, str]:
    kind = KINDS[row.kind].label if row.kind in KINDS else row.kind
    origin = f"{row.distribution} {row.version}".strip() or "--plugin"
    return row.name, kind, origin, row.status, row.summary


def _print_plugins(registry: Registry) -> None:
    """Print the hooks of every plugin, and the traceback of every broken one."""
    for plugin in registry.plugins:
        print(f"\n{plugin}: {plugin.status}")
        for hook in plugin.hooks:
            print(f"  {hook}")
        if plugin.error is not None:
            print("".join(traceback.format_exception(plugin.error)).rstrip())
