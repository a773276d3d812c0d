"""``--normalize`` and ``vecnormalize.pkl``."""

import json

import numpy as np
import pytest
from stable_baselines3 import SAC
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

from sb3_mbrl import MBPO
from sb3_mbrl.checkpoints.normalising import save_statistics
from sb3_mbrl.cli import main
from sb3_mbrl.cli.normalize import find_statistics, frozen, normalised, with_statistics
from sb3_mbrl.cli.values import UserError
from tests.cli.commands import train


def pendulum():
    return make_vec_env("Pendulum-v1", seed=0)


def test_a_normalised_run_is_saved_resumed_and_evaluated(here, capsys):
    assert train("--steps", "70", "--normalize", "--eval-every", "35", "--output", "run") == 0
    out = capsys.readouterr().out
    assert "VecNormalize: on" in out
    assert json.loads((here / "run" / "run.json").read_text())["normalize"] == "both"
    statistics = with_statistics(here / "run" / "vecnormalize.npz", pendulum())
    assert (statistics.norm_obs, statistics.norm_reward, statistics.gamma) == (True, True, 0.98), "the preset's discount"
    # 70 steps and a reset, on top of the first epsilon observations.
    assert statistics.obs_rms.count == pytest.approx(71, abs=0.1)
    assert (here / "run" / "best_vecnormalize.npz").is_file()

    resume = ["train", "--resume", "--output", "run", "--no-progress", "--eval-episodes", "0"]
    assert main([*resume, "--steps", "80", "--device", "cpu"]) == 0
    assert with_statistics(here / "run" / "vecnormalize.npz", pendulum()).obs_rms.count > 80
    capsys.readouterr()
    assert main(["evaluate", "run", "--episodes", "2", "--device", "cpu"]) == 0
    out = capsys.readouterr().out
    assert "Observations are normalised by run/checkpoints/" in out
    # By hand: the agent behind the same statistics, and the environment's own rewards.
    env = with_statistics(here / "run" / "vecnormalize.npz", pendulum(), training=False)
    agent = MBPO.load(here / "run" / "model.zip", env=env, device="cpu")
    from stable_baselines3.common.evaluation import evaluate_policy

    returns, _ = evaluate_policy(agent, env, n_eval_episodes=2, return_episode_rewards=True)
    assert f"mean return {np.mean(returns):.2f}" in out
    (here / "lone").mkdir()
    for name in ("model.zip", "run.json"):
        (here / "lone" / name).write_bytes((here / "run" / name).read_bytes())
    assert main(["evaluate", "lone", "--device", "cpu"]) == 2, "never without the statistics that the agent knows"
    assert "vecnormalize.npz is missing" in capsys.readouterr().err
    assert main(["evaluate", "lone", "--vecnormalize", "run/vecnormalize.npz", "--device", "cpu"]) == 0


def test_statistics_of_another_project_are_taken(here, capsys):
    env = VecNormalize(pendulum())
    sac = SAC("MlpPolicy", env, learning_starts=10, buffer_size=100, device="cpu", seed=0).learn(20)
    sac.save("sac")
    env.save("stats.pkl")
    count = env.obs_rms.count
    assert main(["evaluate", "sac.zip", "--env", "Pendulum-v1", "--episodes", "1", "--vecnormalize", "stats.pkl"]) == 0
    assert "normalised by stats.pkl" in capsys.readouterr().out
    assert train("--steps", "10", "--vecnormalize", "stats.pkl", "--output", "run", "--eval-episodes", "0") == 0
    after = with_statistics(here / "run" / "vecnormalize.npz", pendulum())
    assert after.obs_rms.count == pytest.approx(count + 11, abs=0.1)
    assert train("--steps", "10", "--vecnormalize", "stats.pkl", "--normalize", "--output", "b") == 2
    assert "leave --normalize out" in capsys.readouterr().err


def test_what_is_normalised():
    assert normalised(pendulum(), None, None, 0.9).__class__.__name__ == "DummyVecEnv"
    only = normalised(pendulum(), "obs", None, 0.9)
    assert (only.norm_obs, only.norm_reward, only.gamma) == (True, False, 0.9)
    only = normalised(pendulum(), "reward", None, 0.9)
    assert (only.norm_obs, only.norm_reward) == (False, True)
    with pytest.raises(UserError, match=r"--normalize both: .*--normalize reward leaves observations alone"):
        normalised(make_vec_env("FrozenLake-v1"), "both", None, 0.9)


def test_evaluation_neither_changes_statistics_nor_rewards():
    env = VecNormalize(pendulum())
    env.reset()
    twin = frozen(pendulum(), env)
    twin.reset()
    twin.step(np.zeros((1, 1), np.float32))
    assert twin.obs_rms.count == env.obs_rms.count
    assert not twin.norm_reward
    assert env.norm_reward
    assert env.training


def test_where_statistics_are_found(tmp_path):
    (tmp_path / "Ant-v5").mkdir()
    model = tmp_path / "Ant-v5.zip"
    assert find_statistics(model, "Ant-v5", None) is None
    (tmp_path / "Ant-v5" / "vecnormalize.pkl").write_text("")
    assert find_statistics(model, "Ant-v5", None) == tmp_path / "Ant-v5" / "vecnormalize.pkl", "the zoo's place"
    (tmp_path / "vecnormalize.pkl").write_text("")
    (tmp_path / "best_vecnormalize.npz").write_text("")
    assert find_statistics(model, "Ant-v5", None) == tmp_path / "vecnormalize.pkl"
    (tmp_path / "rl_model_vecnormalize_600_steps.pkl").touch()
    found = find_statistics(tmp_path / "rl_model_600_steps.zip", None, None)
    assert found == tmp_path / "rl_model_vecnormalize_600_steps.pkl", "the name of SB3's CheckpointCallback"
    assert find_statistics(tmp_path / "rl_model_700_steps.zip", None, None) == tmp_path / "vecnormalize.pkl"
    assert find_statistics(tmp_path / "best_model.zip", None, None) == tmp_path / "best_vecnormalize.npz"
    with pytest.raises(UserError, match="no such file"):
        find_statistics(model, None, "missing.pkl")


def test_files_without_statistics_are_refused(tmp_path):
    (tmp_path / "text.pkl").write_text("hello")
    (tmp_path / "text.npz").write_text("hello")
    for name, message in (
        ("text.pkl", r"text\.pkl holds no statistics"),
        ("text.npz", r"text\.npz holds no statistics"),
        ("none.pkl", "there are no statistics"),
    ):
        with pytest.raises(UserError, match=message):
            with_statistics(tmp_path / name, pendulum())
    env = VecNormalize(make_vec_env("CartPole-v1"))
    env.save(str(tmp_path / "cart.pkl"))
    save_statistics(env, tmp_path / "cart.npz")
    for name in ("cart.pkl", "cart.npz"):
        with pytest.raises(UserError, match=r"cart\.... holds no statistics of VecNormalize for Box"):
            with_statistics(tmp_path / name, pendulum())


def test_statistics_that_are_missing_are_asked_for(here, capsys):
    """Regression: an agent that was trained behind VecNormalize was evaluated on raw observations without a word."""
    env = VecNormalize(make_vec_env("Pendulum-v1", 1))
    settings = {"learning_starts": 20, "gradient_steps": 1, "world_model": "pendulum", "device": "cpu"}
    MBPO("MlpPolicy", env, policy_kwargs={"net_arch": [16]}, **settings).learn(40).save("agent")
    env.save("vn.pkl")
    evaluation = ["evaluate", "agent.zip", "--env", "Pendulum-v1", "--episodes", "1", "--no-progress"]
    assert main(evaluation) == 0
    assert "was trained behind VecNormalize, and its statistics are not beside it" in capsys.readouterr().err
    assert main([*evaluation, "--vecnormalize", "vn.pkl"]) == 0
    assert "trained behind" not in capsys.readouterr().err
