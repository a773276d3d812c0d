"""
The page of a search tree as a person sees it: in Chromium, without a network. Skipped where there is no browser, or no driver
(the extra ``browser``).
"""

import os
import shutil
from pathlib import Path

import pytest

from sb3_mbrl import MuZero
from sb3_mbrl.envs.boards import TicTacToe

playwright = pytest.importorskip("playwright.sync_api")

CHROMIUM = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, ("chromium-headless-shell", "chromium"))), None)


@pytest.fixture(scope="module")
def agent() -> MuZero:
    return MuZero("MlpPolicy", TicTacToe(), seed=0, num_simulations=60, device="cpu")


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("No Chromium is installed: nobody looks at the page (apt-get install chromium-headless-shell)")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


def test_a_click_on_a_node_shows_the_numbers_behind_it(agent, browser, tmp_path: Path):
    obs, _ = agent.env.envs[0].reset(seed=0)
    path = agent.explain(obs, tmp_path / "tree.html")
    context = browser.new_context(offline=True)
    page, said = context.new_page(), []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: said.append(request.url) if request.url != path.as_uri() else None)
    page.goto(path.as_uri())

    assert page.locator("h1").inner_text().startswith("MuZero after 0 real steps")
    rows = page.locator("table tr")
    assert rows.count() == 10, "a line per square, and the head"
    assert page.locator(".bar").first.bounding_box()["width"] > 10, "visits are drawn as bars"

    is_open = page.locator("details.node").evaluate_all("nodes => nodes.map(node => node.open)")
    assert True in is_open, "the principal line is open from the start"
    shown = [i for i in range(len(is_open)) if page.locator("details.node").nth(i).is_visible()]
    node = page.locator("details.node").nth(next(i for i in shown if not is_open[i]))
    head, inside = node.locator("> summary"), node.locator("> .leaf .number, > details > summary .number")
    assert head.is_visible()
    assert not inside.first.is_visible()
    head.click()
    assert inside.first.is_visible()
    assert inside.first.inner_text().startswith("N = ")
    assert inside.first.bounding_box()["y"] > head.bounding_box()["y"], "below the node"
    head.click()
    assert not inside.first.is_visible()
    assert said == [], "no errors, and nothing is loaded from elsewhere"
