"""Values that are typed on a command line."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sb3_mbrl.cli.values import UserError, check_arguments, parse_pairs, parse_value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3e-4", 3e-4),
        ("5", 5),
        ("[64,64]", [64, 64]),
        ("{'net_arch': [8]}", {"net_arch": [8]}),
        ("true", True),
        ("False", False),
        ("none", None),
        ("delta", "delta"),
        ("1e6", 1e6),
        ("'5'", "5"),
        ("", ""),
        ("a=b", "a=b"),
    ],
)
def test_values_are_literals_or_strings(text, value):
    parsed = parse_value(text)
    assert parsed == value
    assert type(parsed) is type(value)


@given(
    st.one_of(
        st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.lists(st.integers()), st.booleans(), st.none()
    )
)
def test_what_python_prints_is_read_back(value):
    assert parse_pairs("--set", [f"key={value!r}"]) == {"key": value}


@pytest.mark.parametrize("pair", ["members", "=5", "a b=5", "1=2"])
def test_pairs_need_a_name_and_a_value(pair):
    with pytest.raises(UserError, match=r"--set .* write key=value"):
        parse_pairs("--set", [pair])


def test_a_dot_is_answered_with_what_to_write():
    with pytest.raises(UserError, match=r"--set \"planner_kwargs=\{'horizon': 5\}\""):
        parse_pairs("--set", ["planner_kwargs.horizon=5"])


def test_integers_may_be_written_as_floats():
    def f(buffer_size=1_000_000, learning_rate=3e-4, verbose=False):
        pass

    checked = check_arguments("--set", {"buffer_size": 1e4, "learning_rate": 1.0}, f)
    assert (type(checked["buffer_size"]), type(checked["learning_rate"])) == (int, float)
    assert check_arguments("--set", {"buffer_size": 0.5}, f) == {"buffer_size": 0.5}


def test_an_environment_module_in_the_current_folder(here, capsys, monkeypatch):
    """The installed script does not look there, as ``python -m`` does."""
    import sys

    from sb3_mbrl.cli import main
    from tests.cli.commands import module

    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry not in ("", str(here))])
    source = """
        import gymnasium as gym
        from gymnasium.envs.classic_control.pendulum import PendulumEnv

        class MyEnv(gym.Wrapper):
            def __init__(self, g=9.8):
                super().__init__(PendulumEnv(g=g))

        gym.register("Mine-v3", entry_point=MyEnv, max_episode_steps=20)

        class Direct(PendulumEnv):
            pass
        """
    module(here, "my_own_envs", source)
    common = ["--no-progress", "--eval-episodes", "1", "--steps", "10", "--device", "cpu"]
    assert main(["train", "--env", "my_own_envs:Mine-v3", "--env-kwargs", "g=1", "--output", "a", *common]) == 0
    before = list(sys.path)
    assert (
        main(["train", "--env", "my_own_envs:Direct", "--output", "b", "--eval-episodes", "0", *common[:1], *common[3:]]) == 0
    )
    assert sys.path == before, "the path is put back"
    assert main(["evaluate", "a", "--episodes", "1", "--device", "cpu"]) == 0
    capsys.readouterr()
    assert main(["train", "--env", "no_such_module:Mine-v3", *common]) == 2
    assert f"no module 'no_such_module', neither installed nor in this folder ({here})" in capsys.readouterr().err
