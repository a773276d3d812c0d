"""A recurrent model in use: planners, imagined environments and agents take it like any other."""

import math

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import PPO

from sb3_mbrl import MBPO, PETS, DreamerV3, ModelVecEnv, holdout
from sb3_mbrl.contracts import UnsupportedSpace
from sb3_mbrl.models.rssm import RSSM

MODEL = {"size": "tiny", "deter": 16, "units": 16, "stoch": 4, "classes": 4, "hidden": 16, "blocks": 4, "context": 4}
COMMON = {"world_model": "rssm", "world_model_kwargs": MODEL, "learning_starts": 60, "seed": 0, "device": "cpu"}


@pytest.fixture(scope="module")
def planning():
    planner = {"horizon": 4, "population": 8, "iterations": 1}
    fits = {"fit_freq": 50, "fit_kwargs": {"max_batches": 5}}
    return PETS("MlpPolicy", "Pendulum-v1", planner_kwargs=planner, n_particles=2, **fits, **COMMON).learn(120)


def test_a_planner_remembers_what_it_saw(planning, tmp_path):
    """Two histories with the same last observation lead to different latent states, also after saving and loading."""
    planning.save(tmp_path / "agent")
    loaded = PETS.load(tmp_path / "agent", device="cpu")

    def deter_after(agent, first):
        state, start = None, np.array([True])
        for value in (first, 0.0):
            _, state = agent.predict(np.full((1, 3), value, np.float32), state, start, deterministic=True)
            start = np.array([False])
        return state["latent"]["particles"]["deter"]

    left, right = deter_after(planning, 1.0), deter_after(planning, -1.0)
    assert not th.allclose(left, right)
    again = PETS.load(tmp_path / "agent", device="cpu")
    th.testing.assert_close(deter_after(again, 1.0), deter_after(loaded, 1.0))


def test_ppo_trains_on_its_features(planning):
    env = ModelVecEnv(planning.world_model, planning.replay_buffer, n_envs=4, horizon=10, observation="features", seed=0)
    assert env.observation_space.shape == (16 + 4 * 4,)
    agent = PPO("MlpPolicy", env, n_steps=16, batch_size=16, seed=0).learn(128)
    assert agent.num_timesteps == 128
    assert env.nonfinite == 0


def imagining(**more):
    imagination = {"starts_per_step": 2, "freq": 25}
    settings = {"imagination_kwargs": imagination, "fit_kwargs": {"max_batches": 5}, "gradient_steps": 1, **COMMON, **more}
    return MBPO("MlpPolicy", "Pendulum-v1", **settings)


def test_rollouts_of_it_are_decoded_for_a_model_free_learner(monkeypatch):
    monkeypatch.setattr(holdout, "trusted_below", lambda *_: 3.0)  # five batches teach it nothing
    agent = imagining(gamma=0.9).learn(100)
    assert isinstance(agent.world_model, RSSM)
    assert len(agent.imagined) > 0
    rows = agent.imagined.draw(64)
    assert all(agent.observation_space.contains(obs) for obs in rows["next_obs"].numpy())
    # Imagined and real rows of a batch are discounted alike, and not by the model's own 1 - 1 / 333.
    going_on = rows["discount"] > 0.5
    assert going_on.any()
    assert float(rows["discount"][going_on].max()) == pytest.approx(0.9, abs=0.01)


def test_it_has_the_agents_discount():
    with pytest.raises(ValueError, match="world_model_kwargs has 'gamma': give gamma to MBPO"):
        imagining(world_model_kwargs={**MODEL, "gamma": 0.5})
    assert imagining(world_model_kwargs={**MODEL, "gamma": 0.99}).world_model.discount == 0.99
    with gym.make("Pendulum-v1") as env:
        model = RSSM(env.observation_space, env.action_space, **MODEL, device="cpu")
        with pytest.raises(ValueError, match=r"built with gamma=0.99\d+, and this agent has gamma=0.99: give both the same"):
            MBPO("MlpPolicy", env, world_model=model, device="cpu")


def test_learned_terminations_do_not_depend_on_the_discount_of_load(tmp_path):
    """Regression: 10 % of all steps terminated when a head that had learned 0.9 was read as if it had learned 0.999."""
    agent = imagining(gamma=0.9, termination_fn=None)
    with th.no_grad():
        agent.world_model.continue_head.out.weight.zero_()
        agent.world_model.continue_head.out.bias.fill_(math.log(9.0))  # 0.9: nothing ends
    agent.save(tmp_path / "agent")
    model = MBPO.load(tmp_path / "agent", gamma=0.999).world_model
    prediction = model.step(model.initial(th.zeros(2, 3)), th.zeros(2, 1))
    th.testing.assert_close(prediction.terminated, th.zeros(2), atol=1e-6, rtol=0)
    th.testing.assert_close(prediction.discount, th.full((2,), 0.999))


def test_it_is_not_trusted_until_it_beats_a_copy():
    """Regression: it was trusted as soon as there were two rows."""
    agent = imagining().learn(100)
    logged = agent.logger.name_to_value
    assert logged["model/error"] > logged["model/copy_error"]
    assert agent.imagined is None


def test_images_have_their_channels_first():
    last = spaces.Box(0, 255, (64, 64, 3), np.uint8)
    with pytest.raises(UnsupportedSpace, match=r"shape \(64, 64, 3\) have their channels last: wrap .* VecTransposeImage"):
        RSSM(last, spaces.Discrete(2))
    with pytest.raises(UnsupportedSpace, match="an image of 3 x 3 pixels is too small"):
        RSSM(spaces.Box(0, 255, (3, 3, 3), np.uint8), spaces.Discrete(2))


def test_it_is_not_chosen_by_itself():
    """``"auto"`` is the ensemble for vectors, and off for images."""
    with gym.make("Pendulum-v1") as env:
        assert not isinstance(MBPO("MlpPolicy", env, buffer_size=10, device="cpu").world_model, RSSM)


def test_the_last_action_reaches_the_model_of_a_dreamer():
    """An environment that shows the last action: a model that is given the wrong one cannot follow."""

    class Echo(gym.Env):
        observation_space, action_space = spaces.Box(-1, 1, (1,)), spaces.Discrete(2)

        def reset(self, *, seed=None, options=None):
            super().reset(seed=seed)
            self.t = 0
            return np.zeros(1, np.float32), {}

        def step(self, action):
            self.t += 1
            return np.full(1, 2.0 * action - 1, np.float32), 0.0, False, self.t >= 20, {}

    agent = DreamerV3(
        "MlpPolicy",
        Echo(),
        learning_rate=3e-3,
        batch_size=8,
        batch_length=8,
        train_freq=2,
        horizon=2,
        optimizer_kwargs={"warmup": 10},
        world_model_kwargs={"deter": 32, "units": 32, "hidden": 16, "stoch": 4, "classes": 4, "bins": 15},
        policy_kwargs={"bins": 15},
        ent_coef=1.0,  # keep acting at random
        buffer_size=2_000,
        seed=0,
        device="cpu",
    ).learn(500)
    model, action = agent.world_model, np.arange(12) % 2
    import torch as th

    state = model.initial(th.zeros(1, 1))
    decoded = []
    for choice in action:
        prediction = model.step(state, th.tensor([[choice]]), deterministic=True)
        state = prediction.state
        decoded.append(float(model.decode(state)))
    np.testing.assert_allclose(decoded, 2 * action - 1, atol=0.4)
