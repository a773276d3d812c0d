"""``sb3-mbrl presets``."""

from sb3_mbrl.cli import main


def test_presets_are_listed(capsys):
    assert main(["presets"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["mbpo", "Hopper-v5", "125,000", "ensemble", "learned"] in rows
    assert ["pets", "random-shooting", "mlp", "known,", "if", "it", "is"] in rows
    assert any(row[:2] == ["dreamer_v3", "size12m"] for row in rows)


def test_presets_of_one_algorithm(capsys):
    assert main(["presets", "--algo", "pets"]) == 0
    out = capsys.readouterr().out
    assert "CartPoleSwingUp-v0" in out
    assert "mbpo" not in out.partition("sb3-mbrl train")[0]
    assert main(["presets", "--algo", "dyna_q"]) == 2
    assert "there are no presets of 'dyna_q'; there are some of" in capsys.readouterr().err
