"""``PETS`` as a class of SB3."""

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecNormalize

from sb3_mbrl import PETS

SMALL = {
    "learning_starts": 60,
    "fit_freq": 50,
    "world_model_kwargs": {"members": 3, "elites": 2, "hidden": [16]},
    "fit_kwargs": {"max_batches": 20},
    "planner_kwargs": {"horizon": 4, "population": 8, "iterations": 1},
    "seed": 0,
    "device": "cpu",
}


def agent(env="Pendulum-v1", **kwargs):
    return PETS("MlpPolicy", env, **{**SMALL, **kwargs})


def test_it_learns_predicts_and_evaluates():
    pets = agent().learn(100)
    assert pets.world_model.fitted
    assert pets.trainer.fit_at >= 60
    obs = pets.get_env().reset()
    action, state = pets.predict(obs, deterministic=True)
    assert action.shape == (1, 1)
    assert np.abs(action).max() <= 2
    second, _ = pets.predict(obs, state, np.array([False]), deterministic=True)
    assert second.shape == (1, 1)
    single, _ = pets.predict(obs[0])
    assert single.shape == (1,)
    mean, _ = evaluate_policy(pets, Monitor(gym.make("Pendulum-v1", max_episode_steps=5)), n_eval_episodes=2)
    assert np.isfinite(mean)


def weights(pets):
    return th.cat([p.flatten() for p in pets.world_model.parameters()])


def trajectory(pets):
    return pets.replay_buffer.actions[:120].copy()


def test_evaluation_does_not_disturb_the_training_plan():
    """An EvalCallback in the middle of episodes leaves every later action and weight as it is."""
    plain = agent().learn(120)
    evaluated = agent()
    evaluation = EvalCallback(
        Monitor(gym.make("Pendulum-v1", max_episode_steps=3)), eval_freq=25, n_eval_episodes=2, verbose=0
    )
    evaluated.learn(120, callback=evaluation)
    assert np.isfinite(evaluation.last_mean_reward)  # it has evaluated
    assert np.array_equal(trajectory(plain), trajectory(evaluated))
    assert th.equal(weights(plain), weights(evaluated))


def test_the_same_seed_is_the_same_run():
    assert np.array_equal(trajectory(agent().learn(120)), trajectory(agent().learn(120)))
    assert not np.array_equal(trajectory(agent().learn(120)), trajectory(agent(seed=1).learn(120)))


def test_save_and_load(tmp_path):
    pets = agent().learn(100)
    pets.save(tmp_path / "pets")
    pets.save_replay_buffer(tmp_path / "buffer")
    loaded = PETS.load(tmp_path / "pets", device="cpu")
    assert th.equal(weights(loaded), weights(pets))
    assert loaded.planner.horizon == 4
    obs = gym.make("Pendulum-v1").reset(seed=3)[0]
    pets.policy.set_seed(7), loaded.policy.set_seed(7)
    assert np.array_equal(pets.predict(obs)[0], loaded.predict(obs)[0])
    loaded.set_env(pets.get_env())
    loaded.load_replay_buffer(tmp_path / "buffer")
    loaded.learn(20, reset_num_timesteps=False)
    assert loaded.num_timesteps == 120


def test_several_environments_are_planned_for_in_one_batch():
    pets = agent(make_vec_env("Pendulum-v1", 3))
    rows = []
    plan = pets.planner.plan
    pets.planner.plan = lambda model, state, carry, **kw: (rows.append(len(kw["is_first"])), plan(model, state, carry, **kw))[
        1
    ]
    pets.learn(90)
    assert rows
    assert set(rows) == {3}


def test_a_plan_is_carried_within_an_episode_only():
    """CartPole: episodes are short and end at different times in different environments."""
    pets = agent(make_vec_env("CartPole-v1", 2), planner="cem")
    seen = []
    plan = pets.planner.plan
    pets.planner.plan = lambda *args, **kw: (seen.append(kw["is_first"].tolist()), plan(*args, **kw))[1]
    pets.learn(120)
    dones = pets.replay_buffer.dones[pets.replay_buffer.pos - len(seen) : pets.replay_buffer.pos]
    assert seen[0] == [True, True]
    assert seen[1:] == [(row > 0).tolist() for row in dones[:-1]]
    assert any(any(row) for row in seen[1:])


@pytest.mark.parametrize("env_id", ["CartPole-v1", "Taxi-v4"])
def test_discrete_actions_and_observations(env_id):
    pets = agent(env_id, planner="cem").learn(80)
    action, _ = pets.predict(pets.get_env().reset())
    assert pets.action_space.contains(action[0])


def test_normalised_observations_reach_the_model_raw():
    env = VecNormalize(make_vec_env("Pendulum-v1", 1), norm_reward=True)
    pets = agent(env).learn(100)
    seen = []
    initial = pets.world_model.initial
    pets.world_model.initial = lambda obs, snapshot=None: (seen.append(obs.clone()), initial(obs, snapshot))[1]
    raw = env.get_original_obs()
    pets.predict(env.normalize_obs(raw))
    np.testing.assert_allclose(seen[0].numpy(), raw, atol=1e-4)


class Wrong:
    def __call__(self, obs, action, next_obs):
        return th.zeros(len(obs), 2)


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        ({"world_model": None}, "PETS plans in a world model, and none was given"),
        ({"planner_kwargs": {"horizon": 0}}, "horizon=0: give a whole number from 1 on"),
        ({"planner_kwargs": {"population": 0}}, "population=0"),
        ({"planner": "gradiant"}, "gradient"),
        (
            {"planner_kwargs": {"action_space": None}},
            "planner_kwargs has 'action_space', which every planner is given by PETS",
        ),
        ({"propagation": "ts3"}, "propagation='ts3': choose"),
        ({"n_particles": 0}, "n_particles=0: give a whole number from 1 on"),
        ({"planner": "ilqr", "penalty": 5.0}, "planner='ilqr' follows the model's mean: it has no particles for"),
        ({"planner": "ilqr", "propagation": "ts1"}, "Leave that out, or choose 'icem'"),
    ],
)
def test_bad_choices(kwargs, words):
    with pytest.raises((ValueError, TypeError, KeyError, LookupError), match=words):
        agent(**kwargs)


def test_a_gradient_planner_for_discrete_actions():
    with pytest.raises(ValueError, match=r"planner 'ilqr'.*does not take.*a gradient needs Box actions"):
        agent("CartPole-v1", planner="ilqr")


def test_images_have_no_model_yet():
    class Pixels(gym.Env):
        observation_space, action_space = spaces.Box(0, 255, (36, 36, 3), np.uint8), spaces.Discrete(2)

        def reset(self, *, seed=None, options=None):
            return self.observation_space.sample(), {}

    with pytest.raises(ValueError, match="no built-in one takes these spaces"):
        PETS("MlpPolicy", Pixels(), buffer_size=10)


def test_a_reward_function_of_the_wrong_shape():
    with pytest.raises(ValueError, match=r"reward_fn.*\(\d+, 2\)"):
        agent(reward_fn=Wrong()).learn(70)


def test_before_there_is_a_model_actions_are_random():
    """As those of any untrained agent, so that an EvalCallback may begin before ``learning_starts``."""
    pets = agent()
    actions = pets.predict(np.zeros((200, 3), np.float32))[0]
    assert actions.min() < -1.5
    assert actions.max() > 1.5


@pytest.mark.parametrize("planner", ["random", "cem", "icem", "mppi", "gradient", "ilqr"])
def test_every_planner_plans_in_pets(planner):
    settings = {"horizon": 3} if planner in ("gradient", "ilqr") else SMALL["planner_kwargs"]
    settings = {**settings, "iterations": 1} if planner != "random" else {"horizon": 3, "population": 8}
    trained = agent(planner=planner, planner_kwargs=settings).learn(64)
    assert trained.action_space.contains(trained.predict(np.zeros(3, np.float32))[0])


def test_training_and_evaluation_draw_different_numbers():
    pets = agent()
    assert pets.policy.generator.initial_seed() != pets.random.generator.initial_seed()
    same = agent()
    assert pets.policy.generator.initial_seed() == same.policy.generator.initial_seed()


@pytest.mark.parametrize("name", ["published", "random-shooting"])
def test_presets(name):
    pets = PETS("MlpPolicy", "Pendulum-v1", device="cpu", **PETS.preset(name))
    assert pets.world_model.reward_fn is not None
    expected = {"published": (400, 25, 20), "random-shooting": (2000, 15, 1)}[name]
    assert (pets.planner.population, pets.planner.horizon, pets.policy.world_model.n) == expected


@pytest.mark.parametrize(("env_id", "horizon"), [("Pendulum-v1", 15), ("CartPoleBalance-v0", 15), ("CartPoleSwingUp-v0", 30)])
def test_presets_of_the_small_tasks(env_id, horizon):
    pets = PETS("MlpPolicy", env_id, device="cpu", **PETS.preset(env_id))
    assert pets.world_model.reward_fn is not None
    assert pets.planner.horizon == horizon
