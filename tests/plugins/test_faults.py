"""The place of a fault in the code of a plug-in, and the message about it."""

import inspect
from pathlib import Path

import pytest

from sb3_mbrl.models.mlp import MLPModel
from sb3_mbrl.plugins.faults import Fault, contract_error, locate

FILE = Path(__file__)


class Part:
    setting = 3

    def __init__(self):
        self.other: int = 4

    def method(self):
        return self.helper()

    def helper(self):
        return {}["missing"]

    @property
    def derived(self):
        return 5


class Heir(Part):
    """Adds nothing."""


def line(text):
    """The first line of this file with a text, as messages give it."""
    number = next(number for number, row in enumerate(FILE.read_text().splitlines(), 1) if row.strip().startswith(text))
    return number


def place(where):
    path, _, rest = where.partition(":")
    assert Path(path).resolve() == FILE
    number, _, name = rest.partition(" ")
    return int(number), name.strip("()")


@pytest.mark.parametrize("part", [Part, Part(), Heir, Heir()])
def test_methods_and_attributes_are_found_where_they_are_defined(part):
    assert place(locate(part, "method")) == (line("def method"), "Part.method")
    assert place(locate(part, "setting")) == (line("setting = 3"), "Part.setting")
    assert place(locate(part, "other")) == (line("self.other"), "Part.other")
    assert place(locate(part, "derived")) == (line("@property"), "Part.derived")


def test_without_a_method_it_is_the_class():
    assert place(locate(Heir)) == (line("class Heir"), "Heir")
    assert place(locate(Heir, "unheard_of")) == (line("class Heir"), "Heir")
    made = type("Made", (), {"method": Part.method})
    assert place(locate(made)) == (line("def method"), "Made")
    assert locate(type("Empty", (), {})) is None


def test_a_factory_is_its_function():
    assert place(locate(line)) == (line("def line"), "line")


def test_an_exception_is_found_in_the_innermost_line_of_the_part():
    with pytest.raises(KeyError) as caught:
        Part().method()
    assert place(locate(Part, error=caught.value)) == (line('return {}["missing"]'), "Part.helper")


def test_a_part_of_the_library_is_found_too():
    where = locate(MLPModel, "step")
    assert f"{Path(inspect.getsourcefile(MLPModel)).name}:" in where
    assert where.endswith("(MLPModel.step)")


def test_the_message_and_its_signature():
    def error(what, check="check_a", cause=None):
        return contract_error("part", Part, Fault(what, "do it."), check=check, required="All is well.", error=cause)

    first = error(".method returned 3 rows\nof 4")
    assert str(first).splitlines() == [
        "part.method returned 3 rows of 4.",
        f"  where: {locate(Part, 'method')}",
        "  required: All is well.",
        "  remedy: do it.",
        "  [contract v2, check_a]",
    ]
    # The same mistake, met with other numbers by another check.
    assert error(".method returned 7 rows\nof 8", "check_b").signature == first.signature
    assert error(".helper returned 3 rows of 4").signature != first.signature
    with pytest.raises(KeyError) as caught:
        Part().method()
    both = [error(what, cause=caught.value).signature for what in (" raised KeyError", ".fit raised KeyError on one row")]
    assert both[0] == both[1] != first.signature
