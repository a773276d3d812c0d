"""Zips of SB3 and sb3-contrib on the command line."""

from importlib import import_module

import pytest

from sb3_mbrl.cli import main
from sb3_mbrl.cli.model_free import CLASSES, guess, is_model_free, load_model_free
from sb3_mbrl.cli.values import UserError
from tests.helpers.agents import learned

KWARGS = {
    "PPO": {"n_steps": 8, "batch_size": 8},
    "MaskablePPO": {"n_steps": 8, "batch_size": 8},
    "TRPO": {"n_steps": 8, "batch_size": 8},
    "RecurrentPPO": {"n_steps": 8, "batch_size": 8},
}
DISCRETE = ("DQN", "QRDQN", "MaskablePPO")


def make(name):
    cls = getattr(pytest.importorskip(CLASSES[name]), name)
    env = "CartPole-v1" if name in DISCRETE else "Pendulum-v1"
    policy = "MlpLstmPolicy" if name == "RecurrentPPO" else "MlpPolicy"
    small = {"buffer_size": 10} if hasattr(cls, "load_replay_buffer") else {}
    return cls(policy, env, device="cpu", **small, **KWARGS.get(name, {})), env


@pytest.mark.parametrize("name", CLASSES)
def test_the_class_of_a_zip_is_guessed(name, tmp_path):
    agent, _ = make(name)
    agent.save(tmp_path / "agent")
    path = tmp_path / "agent.zip"
    assert is_model_free(path)
    assert guess(path) == {"DDPG": "TD3"}.get(name, name), "files of DDPG are TD3's too"
    again = load_model_free(path, name.lower(), device="cpu")
    assert type(again).__name__ == name


@pytest.mark.parametrize("name", ["PPO", "DQN", "MaskablePPO", "RecurrentPPO"])
def test_zips_of_sb3_are_evaluated(name, here, capsys):
    agent, env = make(name)
    agent.save("agent")
    assert main(["evaluate", "agent.zip", "--env", env, "--episodes", "2", "--seed", "7", "--device", "cpu"]) == 0
    out = capsys.readouterr().out
    assert f"{env}, 2 episodes: mean return" in out
    assert "start states: reset(seed=7), and the resets that follow it" in out


def test_a_users_policy_is_guessed_by_attributes(tmp_path):
    sac = import_module("stable_baselines3").SAC

    class Mine(sac.policy_aliases["MlpPolicy"]):
        pass

    sac(Mine, "Pendulum-v1", buffer_size=10, device="cpu").save(tmp_path / "agent")
    assert guess(tmp_path / "agent.zip") == "SAC"


def test_what_cannot_be_loaded_is_said(tmp_path):
    learned().save(tmp_path / "ours")
    assert not is_model_free(tmp_path / "ours.zip")
    (tmp_path / "text.zip").write_text("hello")
    with pytest.raises(UserError, match="is not an agent that was saved"):
        is_model_free(tmp_path / "text.zip")
    make("PPO")[0].save(tmp_path / "ppo")
    with pytest.raises(UserError, match=r"--algo nothing: it is none of these: a2c, .*sac"):
        load_model_free(tmp_path / "ppo.zip", "nothing")
    with pytest.raises(UserError, match="cannot be loaded as DQN"):
        load_model_free(tmp_path / "ppo.zip", "dqn", device="cpu")
