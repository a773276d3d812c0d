"""``sb3-mbrl plugins``."""

from sb3_mbrl.cli import main
from sb3_mbrl.plugins import loader
from tests.cli.commands import module


def test_plugins_says_what_is_broken(here, capsys, monkeypatch):
    """A distribution whose module cannot be imported is a row with the reason, and costs the others nothing."""
    module(here, "sb3_mbrl_bad", "import no_such_package_anywhere\n")
    info = here / "sb3_mbrl_bad-2.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: sb3-mbrl-bad\nVersion: 2.0\n")
    (info / "entry_points.txt").write_text("[sb3_mbrl]\nbad = sb3_mbrl_bad\n")
    real = loader.entry_points
    monkeypatch.setattr(
        loader, "entry_points", lambda group: [one for one in real(group=group) if one.dist.name == "sb3-mbrl-bad"]
    )
    assert main(["plugins", "--verbose"]) == 0
    captured = capsys.readouterr()
    lines = captured.out.splitlines()
    bad = next(number for number, line in enumerate(lines) if line.startswith("bad "))
    assert lines[bad].split() == ["bad", "plugin", "sb3-mbrl-bad", "2.0", "broken"]
    assert "No module named 'no_such_package_anywhere'" in lines[bad + 1]
    assert any(line.split()[:3] == ["ensemble", "world", "model"] for line in lines)
    assert "Traceback" in captured.out, "--verbose shows where it broke"
    assert "  sb3_mbrl_world_models" in lines
    assert captured.err == ""
