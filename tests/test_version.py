"""One version: in the package, in its metadata, and in the changelog."""

import re
import tomllib
from pathlib import Path

import sb3_mbrl
from sb3_mbrl.version import __version__

ROOT = Path(__file__).parents[1]


def test_the_version_is_three_numbers_and_the_package_s():
    assert re.fullmatch(r"\d+\.\d+\.\d+", __version__)
    assert sb3_mbrl.__version__ == __version__


def test_the_metadata_reads_the_version_from_here():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert "version" in project["project"]["dynamic"]
    assert project["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "sb3_mbrl.version.__version__"}


def test_the_changelog_begins_with_this_version():
    headings = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(), flags=re.M)
    assert headings[0] == __version__
