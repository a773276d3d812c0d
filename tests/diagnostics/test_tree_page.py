"""The page of a search tree."""

import re
from html.parser import HTMLParser

import numpy as np
import pytest
import torch as th

from sb3_mbrl.diagnostics.tree_page import DEEPEST, tree_page, write_tree_page
from sb3_mbrl.planners.tree_search import Leaf, TreeSearch


def expand(state, edge):
    """Edge 1 gives 1, all others nothing; the episode ends after three steps."""
    depth = state["depth"] + 1
    n = len(edge)
    over = depth.numpy() >= 3
    return Leaf({"depth": depth}, np.zeros((n, 3)), np.zeros(n), (edge == 1).astype(float), np.where(over, 0.0, 0.9))


@pytest.fixture
def result():
    root = Leaf(
        {"depth": th.zeros(2, dtype=th.int64)}, np.array([[0.0, 1.0, -np.inf]] * 2), np.zeros(2), np.zeros(2), np.ones(2)
    )
    return TreeSearch(num_simulations=24).search(root, expand, deterministic=True)


class Balanced(HTMLParser):
    """Every tag that is opened is closed."""

    def __init__(self):
        super().__init__()
        self.open = []

    def handle_starttag(self, tag, attributes):
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_says_what_the_search_found(result):
    page = tree_page(result, 1, label=["left", "right <", "none"], title="A & B", observation="<board>")
    parser = Balanced()
    parser.feed(page)
    assert parser.open == []
    assert "24 simulations" in page
    assert "A &amp; B" in page
    assert "&lt;board&gt;" in page
    assert "Chosen: <b>right &lt;</b>" in page
    assert "right &lt; → right &lt; → right &lt;" in page, "the principal line"
    assert "none</td>" not in page, "an illegal action"
    visits = [int(n) for n in re.findall(r"</span> (\d+)</td>", page)]
    assert visits == sorted(visits, reverse=True)
    assert sum(visits) == 24
    # One line per visited edge.
    assert len(re.findall(r"N = \d+", page)) == int((result.tree.visits[1] > 0).sum())


def test_it_needs_nothing_from_elsewhere(result):
    page = tree_page(result)
    assert "http" not in page
    assert "<script" not in page


def test_it_is_written_where_asked(result, tmp_path):
    path = write_tree_page(tmp_path / "new" / "tree.html", tree_page(result))
    assert path.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")


def test_a_tree_that_is_deeper_than_python_and_browsers_nest():
    """A RecursionError, from 450 simulations in a line on."""

    def onwards(state, edge):
        return Leaf(state, np.zeros((1, 1)), np.zeros(1), np.zeros(1), np.ones(1))

    root = Leaf({"depth": th.zeros(1)}, np.zeros((1, 1)), np.zeros(1), np.zeros(1), np.ones(1))
    page = tree_page(TreeSearch(num_simulations=700).search(root, onwards, deterministic=True))
    assert page.count("<details") == DEEPEST
    assert f"{700 - DEEPEST} simulations deeper" in page
    parser = Balanced()
    parser.feed(page)
    assert parser.open == []
