"""Dreams as images in TensorBoard."""

import gymnasium as gym
import pytest
from stable_baselines3 import DQN
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.logger import Logger

from sb3_mbrl import MBPO, DynaQ
from sb3_mbrl.callbacks import DreamCallback, ExactCheckpointCallback
from sb3_mbrl.checkpoints import CheckpointFolder
from tests.helpers.agents import TINY
from tests.helpers.dreamers import ImageEnv, small
from tests.helpers.resumed import CASES, EPISODE, digests_of


def test_pictures_for_tensorboard(monkeypatch):
    small()  # torch imports more with its first optimiser, for which it needs the real function
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)  # with moviepy
    seen = []

    class Watching(Logger):
        def record(self, key, value, exclude=None):
            seen.append((key, type(value).__name__))

    for env, policy, expected in (
        (ImageEnv(), "CnnPolicy", ("dream/obs", "Image")),
        (ImageEnv(), "CnnPolicy", ("dream/obs_video", "Video")),
        (gym.make("CartPole-v1"), "MlpPolicy", ("dream/curves", "Figure")),
    ):
        agent = small(env, policy, train_freq=20)
        agent.set_logger(Watching(None, []))
        agent.learn(80, callback=DreamCallback(type(env)() if policy == "CnnPolicy" else gym.make("CartPole-v1"), 30, 2, 3))
        assert expected in seen


def test_images_continue_in_the_next_learn():
    """Regression: after a first learn() there were no images until a second one had been longer."""

    class Counting(DreamCallback):
        shown = 0

        def _show(self):
            self.shown += 1

    agent, callback = small(train_freq=20), Counting(gym.make("CartPole-v1"), 30)
    agent.learn(100, callback=callback)
    assert callback.shown == 2  # at 60, 90; at 30 there was no model yet
    agent.learn(100, callback=callback)
    assert callback.shown == 2 + 3


def test_a_callback_that_cannot_work():
    """Regression: training ended with an error at the first image."""
    with pytest.raises(TypeError, match=r"one Gymnasium environment of its own, e.g. gym.make\(...\), not .CartPole-v1."):
        DreamCallback("CartPole-v1")
    with pytest.raises(ValueError, match="every=0: give a whole number from 1"):
        DreamCallback(gym.make("CartPole-v1"), every=0)
    agent = small()
    with pytest.raises(ValueError, match="not trained in such an environment: its observations are"):
        agent.learn(10, callback=DreamCallback(gym.make("Acrobot-v1")))
    assert agent.num_timesteps == 0


# ---- checkpoints


def saved_steps(folder):
    return [one.step for one in CheckpointFolder(folder).sets()]


QUICK = ("mbpo", "dyna-3-envs", "dyna-q", "dreamer-3-envs", "mbpo-normalised")
OTHERS = ("mbpo-3-envs", "dyna", "pets", "pets-3-envs", "dyna-q-3-envs", "dreamer", "mbpo-her", "mbpo-n-step", "td3-noise")


@pytest.mark.parametrize("name", [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in OTHERS)])
def test_a_run_from_a_checkpoint_is_the_uninterrupted_one(name, tmp_path):
    """Saved in the middle of one ``learn``, at the end of an episode, where the environment can be put back."""
    case = CASES[name]
    callback = ExactCheckpointCallback(tmp_path, every=case.steps)
    whole = digests_of(case.make(case.venv(0)).learn(2 * case.steps, callback=callback))
    first, last = CheckpointFolder(tmp_path).sets()
    assert (first.step, last.step) == (case.steps, 2 * case.steps)
    env = case.venv(case.steps // case.n_envs // EPISODE)
    resumed = digests_of(first.load(case.kind, env, safe=True).learn(case.steps, reset_num_timesteps=False))
    assert [part for part in whole if resumed[part] != whole[part]] == []


@pytest.fixture
def everything_stays(monkeypatch):
    monkeypatch.setattr(CheckpointFolder, "_discard_old", lambda self: None)


def test_a_checkpoint_has_every_step_that_it_counts(tmp_path):
    """SB3's ``CheckpointCallback`` saves between a step and its storing: 100 steps counted, 99 transitions saved."""
    agent = MBPO("MlpPolicy", "Pendulum-v1", world_model="pendulum", **TINY)
    updates = []

    class Noting(ExactCheckpointCallback):
        def _save(self):
            super()._save()
            updates.append((self.model.num_timesteps, self.model._n_updates))

    agent.learn(115, callback=Noting(tmp_path, every=50))
    assert updates == [(0, 0), (50, 0), (100, 50), (115, 65)]  # the update that follows a step is in its checkpoint
    for one, (steps, n_updates) in zip(CheckpointFolder(tmp_path).sets(), updates[2:], strict=True):
        loaded = one.load(MBPO, safe=True)
        assert (loaded.num_timesteps, loaded.replay_buffer.size(), loaded._n_updates) == (steps, steps, n_updates)


def test_several_environments_and_sb3_own_classes(tmp_path, everything_stays):
    env = make_vec_env("CartPole-v1", n_envs=3)
    DQN("MlpPolicy", env, buffer_size=300, learning_starts=1000, device="cpu", train_freq=1).learn(
        60, callback=ExactCheckpointCallback(tmp_path, every=20, at_end=False)
    )
    assert saved_steps(tmp_path) == [0, 21, 42]
    assert all(one.load(DQN).replay_buffer.size() * 3 == one.step for one in CheckpointFolder(tmp_path).sets())


def test_when_checkpoints_are_saved(tmp_path, everything_stays, monkeypatch):
    def run(name, steps=40, **when):
        DynaQ("QTablePolicy", "FrozenLake-v1", seed=0).learn(steps, callback=ExactCheckpointCallback(tmp_path / name, **when))
        return saved_steps(tmp_path / name)

    evaluations = EvalCallback(make_vec_env("FrozenLake-v1"), eval_freq=15, n_eval_episodes=1, verbose=0)
    assert run("only at the end") == [0, 40]
    assert run("every", every=15) == [0, 15, 30, 40]
    monkeypatch.setattr("sb3_mbrl.callbacks.PAUSE", 0)
    assert run("seconds", 3, seconds=0.0) == [0, 1, 2, 3]
    checkpoints = ExactCheckpointCallback(tmp_path / "evaluations", evaluations=evaluations, at_end=False)
    DynaQ("QTablePolicy", "FrozenLake-v1", seed=0).learn(40, callback=[evaluations, checkpoints])
    assert saved_steps(tmp_path / "evaluations") == [0, 15, 30]
    monkeypatch.setattr("sb3_mbrl.callbacks.PAUSE", 1e9)
    assert run("a save that takes too long", seconds=0.0) == [0, 40]
    for wrong in ({"every": 0}, {"seconds": -1}, {"keep": 0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            ExactCheckpointCallback(tmp_path, **wrong)


def test_a_checkpoint_that_cannot_be_saved_does_not_end_training(tmp_path, monkeypatch):
    agent = DynaQ("QTablePolicy", "FrozenLake-v1", seed=0)
    callback = ExactCheckpointCallback(tmp_path, every=10, at_end=False)
    agent.learn(15, callback=callback)

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("sb3_mbrl.checkpoints.checkpoint_set._write_buffer", full)
    with pytest.warns(UserWarning, match=r"saved without its replay buffer \(No space left on device\)"):
        agent.learn(10, callback=callback, reset_num_timesteps=False)
    monkeypatch.setattr("sb3_mbrl.checkpoints.checkpoint_set._write_agent", full)
    with pytest.warns(UserWarning, match=r"after 25 real steps could not be saved: .* Training continues"):
        agent.learn(10, callback=callback, reset_num_timesteps=False)
    assert agent.num_timesteps == 35
    assert CheckpointFolder(tmp_path).newest().chosen.step == 10
