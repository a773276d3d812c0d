"""A page that shows a search tree: one HTML file that needs nothing else."""

import html
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sb3_mbrl.planners.tree_search import SearchResult, Tree

_STYLE = """
body { font: 14px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
h1 { font-size: 1.3rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
table { border-collapse: collapse; } th, td { padding: .2rem .8rem; text-align: right; } th { border-bottom: 1px solid #999; }
td:first-child, th:first-child { text-align: left; }
details { margin-left: 1.2rem; border-left: 1px solid #ddd; padding-left: .6rem; }
summary { cursor: pointer; white-space: nowrap; } .leaf { margin-left: 1.2rem; padding-left: 1.5rem; white-space: nowrap; }
.main > summary, .main.leaf, tr.main { background: #fff3cd; } .chance { color: #777; }
.bar { display: inline-block; height: .7rem; background: #4c78a8; vertical-align: middle; }
.number { display: inline-block; min-width: 7.5rem; } .edge { display: inline-block; min-width: 6rem; font-weight: 600; }
pre { background: #f6f6f6; padding: .6rem; overflow-x: auto; }
"""


DEEPEST = 150
"""The depth of the last nodes that are shown: browsers do not nest elements much deeper than 500"""


def tree_page(
    result: SearchResult,
    row: int = 0,
    *,
    label: Callable[[int, int], str] | Sequence[str] | None = None,
    title: str = "Search tree",
    observation: Any = None,
) -> str:
    """
    Draw one tree of a search as a page of HTML. It opens in any browser, without a network connection.

    :param result: the result of a search
    :param row: the index of the tree
    :param label: the names of edges: a list by edge, or a function of node and edge; ``None``: their numbers
    :param title: the title of the page
    :param observation: the observation of the root, to be shown as text
    """
    tree = result.tree
    name = _labels(label)
    line = tree.path(row)
    names, node = [], 0
    for edge in line:
        names.append(name(node, edge))
        node = int(tree.children[row, node, edge])
    shown = "" if observation is None else f"<pre>{html.escape(str(observation))}</pre>"
    simulations = int(tree.visits[row, 0].sum())
    value, network = float(tree.value[row, 0]), float(tree.raw_value[row, 0])
    return (
        f"<!DOCTYPE html>\n<html lang='en'><head><meta charset='utf-8'><title>{html.escape(title)}</title>"
        f"<style>{_STYLE}</style></head><body>\n<h1>{html.escape(title)}</h1>{shown}\n"
        f"<p>{simulations} simulations, {int(tree.depth[row])} steps deep. The value of the root is {value:.3f} after the "
        f"search; the network alone says {network:.3f}. Chosen: <b>{html.escape(name(0, int(result.action[row])))}</b>. "
        f"Principal line: <b>{html.escape(' → '.join(names)) or 'none'}</b>.</p>\n"
        f"<h2>Actions at the root</h2>\n{_root_table(result, row, name, line)}\n"
        "<h2>The tree</h2><p>Edges by visits; the principal line is marked. N: visits, Q: reward and discounted value, P: "
        "prior probability, r: reward, v: the network's value of the node.</p>\n"
        f"{_children(tree, row, 0, name, line)}</body></html>\n"
    )


def write_tree_page(path: str | Path, page: str) -> Path:
    """
    Write a page to a file.

    :return: the path
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8")
    return path


def _labels(label: Callable[[int, int], str] | Sequence[str] | None) -> Callable[[int, int], str]:
    if label is None:
        return lambda node, edge: str(edge)
    if callable(label):
        return label
    names = list(label)
    return lambda node, edge: str(names[edge]) if edge < len(names) else str(edge)


def _root_table(result: SearchResult, row: int, name: Callable[[int, int], str], line: list[int]) -> str:
    tree = result.tree
    visits = tree.visits[row, 0]
    rows = []
    for edge in np.lexsort((-result.policy[row], -visits)):
        if tree.prior[row, 0, edge] <= 0:
            continue
        width = 12.0 * visits[edge] / max(int(visits.max()), 1)
        cells = [
            html.escape(name(0, int(edge))),
            f"<span class='bar' style='width:{width:.2f}rem'></span> {visits[edge]}",
            f"{result.q[row, edge]:.3f}",
            f"{tree.prior[row, 0, edge]:.3f}",
            f"{result.policy[row, edge]:.3f}",
        ]
        mark = " class='main'" if line and edge == line[0] else ""
        rows.append(f"<tr{mark}>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>")
    head = "".join(f"<th>{cell}</th>" for cell in ("action", "visits", "Q", "prior", "improved policy"))
    return f"<table><tr>{head}</tr>\n{''.join(rows)}</table>"


def _children(tree: Tree, row: int, node: int, name: Callable[[int, int], str], line: list[int], depth: int = 0) -> str:
    """Return the visited edges out of a node, most visited first, each with what is behind it."""
    visits = tree.visits[row, node]
    if depth >= DEEPEST and visits.any():
        return f"<div class='leaf'>… {int(visits.sum())} simulations deeper</div>"
    parts = []
    for edge in np.argsort(-visits, kind="stable"):
        if not visits[edge]:
            break
        on_line = bool(line) and edge == line[0]
        parts.append(_edge(tree, row, node, int(edge), name, line[1:] if on_line else [], on_line, depth))
    return "\n".join(parts)


def _edge(
    tree: Tree, row: int, node: int, edge: int, name: Callable[[int, int], str], line: list[int], on_line: bool, depth: int
) -> str:
    child = int(tree.children[row, node, edge])
    chance = " chance" if tree.chance[row, node] else ""
    numbers = [
        f"N = {tree.visits[row, node, edge]}",
        f"Q = {tree.q[row, node, edge]:.3f}",
        f"P = {tree.prior[row, node, edge]:.3f}",
    ]
    if child >= 0:
        over = ", the end" if tree.discount[row, child] == 0 else ""
        numbers += [f"r = {tree.reward[row, child]:.3f}", f"v = {tree.raw_value[row, child]:.3f}{over}"]
    text = "".join(f"<span class='number'>{number}</span>" for number in numbers)
    head = f"<span class='edge{chance}'>{html.escape(name(node, edge))}</span>{text}"
    behind = _children(tree, row, child, name, line, depth + 1) if child >= 0 else ""
    mark = " main" if on_line else ""
    if not behind:
        return f"<div class='leaf{mark}'>{head}</div>"
    opened = " open" if on_line else ""
    return f"<details class='node{mark}'{opened}><summary>{head}</summary>\n{behind}</details>"
