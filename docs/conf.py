"""The site, built by ``make docs``: the pages of this folder, and the reference from the docstrings."""

import os
import re
from pathlib import Path

import sb3_mbrl

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent

project = "sb3-mbrl"
author = "The sb3-mbrl developers"
project_copyright = author
version = release = sb3_mbrl.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.viewcode"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = "sb3-mbrl"

myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3

autodoc_default_options = {"members": True, "show-inheritance": True}
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_preserve_defaults = True
autodoc_inherit_docstrings = False  # else those of Gymnasium and SB3, which do not build without warnings

_LINK = re.compile(r"(?P<image>!?)\[(?P<text>[^\]]*)\]\((?P<target>[^)#\s]+)(?P<anchor>#[^)\s]*)?\)")


def for_the_site(text: str, folder: Path, page_folder: Path = HERE) -> str:
    """
    Point the links of a page to where their targets are on the site. What is not on it is named by its path in the repository.

    :param text: the page, in Markdown
    :param folder: the folder that its links start from
    :param page_folder: the folder of the page on the site
    """

    def one(match: re.Match[str]) -> str:
        target, words = match["target"], match["text"]
        if re.match(r"\w+:", target):
            return match[0]
        path = (folder / target).resolve()
        if path == ROOT / "README.md":
            path = HERE / "index.md"
        on_the_site = path.is_file() and (path.is_relative_to(HERE) or match["image"] or path.suffix == ".py")
        if on_the_site:
            return f"{match['image']}[{words}]({Path(os.path.relpath(path, page_folder)).as_posix()}{match['anchor'] or ''})"
        name = path.relative_to(ROOT).as_posix()
        return f"`{name}`" if words.strip("`") in (name, path.name) else f"{words} (`{name}`)"

    return _LINK.sub(one, text)


def read_page(app: object, name: str, source: list[str]) -> None:
    """Put the README on the first page, and mend the links of all pages written in Markdown."""
    text = for_the_site(source[0], (HERE / name).parent, (HERE / name).parent)
    source[0] = for_the_site((ROOT / "README.md").read_text(), ROOT) + "\n\n" + text if name == "index" else text


def setup(app: object) -> None:
    """Connect with Sphinx."""
    app.connect("source-read", read_page)  # type: ignore[attr-defined]
