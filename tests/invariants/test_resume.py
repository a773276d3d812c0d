"""A run that is saved, and resumed in a new process, is the uninterrupted run, bit for bit."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.resumed import CASES


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    for command in ("begin", "resume"):
        run = [sys.executable, "-m", "tests.helpers.resumed", command, str(folder)]
        subprocess.run(run, check=True, cwd=Path(__file__).parents[2])
    return {command: json.loads((folder / f"{command}.json").read_text()) for command in ("begin", "resume")}


@pytest.mark.parametrize("name", CASES)
def test_a_resumed_run_is_the_uninterrupted_one(runs, name):
    whole, resumed = runs["begin"][name], runs["resume"][name]
    assert resumed.keys() == whole.keys()
    for part in whole:
        assert resumed[part] == whole[part], part


def test_the_cases_imagine_and_plan(runs):
    """Without a trusted model nothing would be compared but random streams."""
    assert runs["begin"]["mbpo"]["imagined"]
    assert runs["begin"]["dyna"]["verdict"]["fit_at"] >= 90
    assert runs["begin"]["pets"]["verdict"]["fit_at"] >= 90
    assert runs["begin"]["dreamer"]["counts"]["_n_updates"] > 5
