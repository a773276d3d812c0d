"""What a run says of itself before it begins."""

from sb3_mbrl.cli import main
from tests.cli.commands import SMALL, train

TINY = ["train", "--no-progress", "--eval-episodes", "0", "--device", "cpu", "--steps", "10"]


def test_a_preset_that_uses_a_known_reward_says_so(here, capsys):
    """PETS' presets do, which makes a run look better than one that has to learn it."""
    assert main([*TINY, "--env", "Pendulum-v1", "--algo", "pets", "--output", "a"]) == 0
    out = capsys.readouterr().out
    assert "the reward is known and not learned (the preset's reward_fn='auto'; --set reward_fn=none learns it)" in out
    assert "the termination is known and not learned (the default termination_fn='auto'" in out
    assert main([*TINY, "--env", "Pendulum-v1", "--algo", "pets", "--output", "b", "--set", "reward_fn=none"]) == 0
    assert "reward is known" not in capsys.readouterr().out
    assert main([*TINY, "--env", "Pendulum-v1", "--world-model", "none", "--output", "c"]) == 0
    assert "is known" not in capsys.readouterr().out


def test_logs_start_states_and_costs_are_said_first(here, capsys):
    assert train("--steps", "60", "--seed", "3", "--tensorboard", "tb", "--eval-every", "50", "--output", "x") == 0
    out = capsys.readouterr().out
    before = out.partition("Eval num_timesteps")[0]
    assert "TensorBoard: tensorboard --logdir tb  (this run: tb/mbpo/x)" in before
    assert list((here / "tb" / "mbpo" / "x").iterdir())
    assert "Evaluations: 1 episodes every 50 real steps, in an environment of their own: the first begins at" in before
    assert "reset(seed=10003)" in before
    assert "60 real steps, the first 50 of them without learning" in before
    assert "updates: 10 (1 per real step)" in before
    assert "memory of the buffers when they are full: replay buffer 20 kB, imagined transitions" in before
    assert "Measuring" not in out, "--no-progress times nothing"


def test_several_environments_say_their_pace_once(here, capsys, recwarn):
    assert main(["train", *SMALL, "--eval-episodes", "0", "--steps", "8", "--n-envs", "4"]) == 0
    out = capsys.readouterr().out
    assert "Updates: gradient_steps=20 with 4 environments: 5 updates per real step" in out
    assert "gradient_steps=80 makes it 20" in out
    assert not [warning for warning in recwarn if "updates per real step" in str(warning.message)]


def test_costs_are_measured_with_progress(here, capsys):
    command = ["train", "--env", "Pendulum-v1", "--eval-episodes", "1", "--device", "cpu", "--steps", "60", "--output", "x"]
    small = ["--world-model-kwargs", "members=2", "elites=1", "hidden=[16]", "--set", "learning_starts=50", "gradient_steps=1"]
    assert main([*command, *small]) == 0
    out = capsys.readouterr().out
    assert "ms each" in out
    assert "0 of 60 real steps (0%)" in out, "lines where there is no terminal"
    assert ": fit" in out
