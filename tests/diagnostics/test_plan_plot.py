"""The picture of plans."""

import pytest

from sb3_mbrl.diagnostics.plan import roll_out_plans
from sb3_mbrl.diagnostics.plan_plot import draw_plans
from tests.diagnostics.agents import planning


def test_the_picture(pendulum, tmp_path):
    plans = roll_out_plans(planning(), pendulum, particles=3, moments=2)
    draw_plans(plans, pendulum.observation_space, tmp_path / "new" / "plan.svg", title="a title", columns=[2])
    text = (tmp_path / "new" / "plan.svg").read_text()
    assert "a title" in text
    assert "obs[2]" in text
    assert "obs[0]" not in text
    with pytest.raises(ValueError, match=r"columns=\[3\]: there are the columns 0 to 2"):
        draw_plans(plans, pendulum.observation_space, tmp_path / "plan.png", title="", columns=[3])
    with pytest.raises(ValueError, match="nothing to draw"):
        draw_plans([], pendulum.observation_space, tmp_path / "plan.png", title="")
