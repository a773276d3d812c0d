"""DreamerV3 as a class of Stable-Baselines3: data, saving, spaces."""

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import SAC
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_mbrl import DreamerV3
from sb3_mbrl.models.rssm import RSSM
from tests.helpers.agents import DictEnv
from tests.helpers.dreamers import MODEL, ActionEnv, ImageEnv, same, small, spaces_of, weights


@pytest.fixture(scope="module")
def trained():
    return small().learn(120)


# ---- data


def test_latent_states_in_the_buffer_are_those_the_agent_had():
    """Every deterministic state follows from the state, the action and the observation before."""
    agent = small(learning_starts=1000).learn(60)
    buffer, side, model = agent.replay_buffer, agent.real.side, agent.world_model
    deter, stoch = th.as_tensor(side.arrays["latent.deter"][:60, 0]).float(), th.as_tensor(side.arrays["latent.stoch"][:60, 0])
    ends = th.as_tensor(buffer.dones[:60, 0] > 0)
    state = {"deter": deter[:-1], "stoch": model.latent.unpack(stoch[:-1])}
    obs, action = th.as_tensor(buffer.observations[1:60, 0]), th.as_tensor(buffer.actions[:59, 0])
    with th.no_grad():
        expected = model.observe_step(state, action, obs, ends[:-1], deterministic=True)
    assert ends.sum() >= 1
    th.testing.assert_close(expected["deter"], deter[1:], atol=2e-3, rtol=0)
    assert side.arrays["latent.stoch"].dtype == np.uint8


def test_training_refreshes_the_latent_states(trained):
    before = trained.real.side.arrays["latent.deter"].copy()
    trained.train(1, 4)
    changed = (before != trained.real.side.arrays["latent.deter"]).any(-1).sum()
    assert 0 < changed <= 4 * 8


def test_ends_are_in_what_is_learned(trained):
    batch = trained.sequences.sample(64)
    assert batch.rows.terminated.sum() > 0
    assert th.equal(batch.rows.is_last.float(), batch.rows.terminated), "no time limit was reached"


def test_imagination_does_not_move_the_world_model(trained):
    """Only the critic's loss on real sequences does; with its scale at 0, actor and critic leave the model alone."""
    agent = small(replay_value_scale=0.0).learn(48)
    with th.no_grad():
        agent.policy.critic.out.weight.normal_()  # it begins at 0, and so do its gradients
    batch = agent.sequences.on_device(agent.sequences.sample(4, generator=th.Generator().manual_seed(0)), agent.device)
    gradients = []
    for scale in (0.0, 0.3):
        agent.replay_value_scale = scale
        agent.update.generator.manual_seed(3)
        loss, _, _ = agent._losses(*batch, agent.update.generator)
        agent.optimizer.zero_grad()
        loss.backward()
        gradients.append(agent.world_model.cell.gates.weight.grad.clone())
    agent.update.generator.manual_seed(3)
    agent.optimizer.zero_grad()
    agent.world_model.loss(*batch, generator=agent.update.generator).total().backward()
    th.testing.assert_close(gradients[0], agent.world_model.cell.gates.weight.grad)
    assert not th.allclose(gradients[0], gradients[1])


def test_too_few_steps_for_a_sequence_are_waited_for():
    agent = small(learning_starts=0, batch_length=16).learn(16)
    assert agent._n_updates == 0
    assert small(learning_starts=0, batch_length=16).learn(24)._n_updates == 1


# ---- as a class of SB3


def test_saved_and_loaded_it_acts_and_learns_the_same(trained, tmp_path):
    trained.save(tmp_path / "agent")
    trained.save_replay_buffer(tmp_path / "buffer")
    assert not hasattr(trained.replay_buffer, "side_store")
    loaded = DreamerV3.load(tmp_path / "agent", env=make_vec_env("CartPole-v1"), device="cpu")
    loaded.load_replay_buffer(tmp_path / "buffer")
    assert same(trained, loaded)
    for name, values in trained.real.side.arrays.items():
        np.testing.assert_array_equal(values, loaded.real.side.arrays[name])
    for agent in (trained, loaded):
        agent.train(2, 4)
    assert same(trained, loaded), "optimiser, random stream, return scale and latent states are all back"
    obs = np.linspace(-1, 1, 4, dtype=np.float32)
    without_env = DreamerV3.load(tmp_path / "agent", device="cpu")
    assert (
        without_env.predict(obs, deterministic=True)[0]
        == DreamerV3.load(tmp_path / "agent").predict(obs, deterministic=True)[0]
    )


def test_a_replay_buffer_of_a_model_free_agent(tmp_path):
    sac = SAC("MlpPolicy", "Pendulum-v1", buffer_size=500, learning_starts=1000, device="cpu").learn(100)
    sac.save_replay_buffer(tmp_path / "buffer")
    agent = small("Pendulum-v1")
    agent.load_replay_buffer(tmp_path / "buffer")
    agent.train(2, 4)
    assert agent._n_updates == 2


def test_evaluation_in_between_changes_nothing():
    alone = small().learn(100)
    evaluated = small().learn(100, callback=EvalCallback(make_vec_env("CartPole-v1", seed=1), eval_freq=30, verbose=0))
    assert same(alone, evaluated)


def test_same_seed_same_run():
    assert same(small().learn(60), small().learn(60))
    assert not same(small().learn(60), small(seed=1).learn(60))


def test_several_environments_and_evaluation():
    agent = small(make_vec_env("CartPole-v1", n_envs=3, seed=0), train_freq=4).learn(120)
    assert agent._n_updates > 0
    assert agent.real.side.arrays["latent.deter"].shape[1] == 3
    mean, _ = evaluate_policy(agent, make_vec_env("CartPole-v1", n_envs=2), n_eval_episodes=3)
    assert mean > 1


@pytest.mark.parametrize(
    "action_space",
    [spaces.Discrete(3, start=1), spaces.MultiDiscrete([2, 3]), spaces.MultiBinary(2), spaces.Box(-3, 1, (2, 1))],
    ids=lambda space: type(space).__name__,
)
def test_all_actions(action_space):
    agent = small(ActionEnv(action_space)).learn(60)
    assert agent._n_updates > 0
    assert all(action_space.contains(agent.predict(np.array(3))[0]) for _ in range(5))


def test_dictionaries_and_images(tmp_path):
    for env, policy in ((DictEnv(), "MultiInputPolicy"), (ImageEnv(), "CnnPolicy")):
        agent = small(env, policy, train_freq=20).learn(60)
        assert agent._n_updates > 0
        agent.save(tmp_path / "agent")
        loaded = DreamerV3.load(tmp_path / "agent", device="cpu")
        assert same(agent, loaded)
        obs, _ = env.reset(seed=0)
        assert env.action_space.contains(loaded.predict(obs, deterministic=True)[0])


def deter_after(predict, scale):
    """Return the deterministic state after three observations; the first alone does not determine it."""
    state, first = None, np.array([True])
    for value in (0.3, -0.2, 0.5):
        _, state = predict(scale(np.full((1, 4), value, np.float32)), state, first, deterministic=True)
        first = np.array([False])
    return state["latent"]["deter"]


def test_normalised_environments_are_seen_raw(tmp_path):
    env = VecNormalize(DummyVecEnv([lambda: gym.make("CartPole-v1")]), clip_obs=2.0)
    agent = small(env).learn(60)
    raw = deter_after(agent.policy.predict, lambda obs: obs)
    env.clip_obs = 1e9  # what lies outside is lost before predict() is asked
    th.testing.assert_close(deter_after(agent.predict, env.normalize_obs), raw, atol=1e-4, rtol=0)
    assert not th.allclose(deter_after(agent.policy.predict, env.normalize_obs), raw)
    agent.save(tmp_path / "agent")
    with pytest.warns(UserWarning, match="was trained behind VecNormalize, and has none now"):
        DreamerV3.load(tmp_path / "agent", device="cpu").predict(np.zeros((1, 4), np.float32))


def test_the_policy_sees_the_observations_that_are_stored():
    """VecNormalize clips observations far from its mean; policy and model see them unclipped."""
    env = VecNormalize(DummyVecEnv([lambda: gym.make("CartPole-v1")]), clip_obs=0.1)
    agent = small(env, learning_starts=1000).learn(32)
    seen = []
    act = agent.policy.act
    agent.policy.act = lambda obs, *args, **kwargs: (seen.append(obs.clone()), act(obs, *args, **kwargs))[1]
    agent.learn(24, reset_num_timesteps=False)
    stored = agent.replay_buffer.observations[32:56, 0]
    np.testing.assert_allclose(th.cat(seen), stored, atol=1e-6)


@pytest.mark.parametrize("other", [{"world_model_kwargs": {**MODEL, "classes": 3}}, {"seed": 1}])
def test_latent_states_of_another_model_are_left_out(trained, tmp_path, other):
    """Regression: states of a model with the same sizes were restored as its own."""
    trained.save_replay_buffer(tmp_path / "buffer")
    agent = small(**other)
    agent.load_replay_buffer(tmp_path / "buffer")
    assert agent.real.side.arrays == {}
    trained.save(tmp_path / "agent")
    again = DreamerV3.load(tmp_path / "agent", device="cpu")
    again.load_replay_buffer(tmp_path / "buffer")
    assert set(again.real.side.arrays) == {"latent.deter", "latent.stoch"}


def test_data_of_others_gets_latent_states_while_it_is_learned_from(tmp_path):
    """Regression: they never got any, so every sequence began with an unknown state."""
    source = SAC("MlpPolicy", "Pendulum-v1", learning_starts=100, buffer_size=100, device="cpu").learn(60)
    source.save_replay_buffer(tmp_path / "buffer")
    agent = small("Pendulum-v1")
    agent.load_replay_buffer(tmp_path / "buffer")
    agent.train(30, 4)
    rows = agent.sequences.sample(64, generator=th.Generator().manual_seed(0)).rows
    assert float(rows.is_first[:, 0].float().mean()) < 0.2


def test_without_its_replay_buffer_an_agent_waits_for_new_data(trained, tmp_path):
    """Regression: every sequence of a batch was the same one."""
    trained.save(tmp_path / "agent")
    agent = DreamerV3.load(tmp_path / "agent", gym.make("CartPole-v1"), device="cpu")
    before = weights(agent)
    agent.learn(24, reset_num_timesteps=False)
    assert all(th.equal(a, b) for a, b in zip(before, weights(agent), strict=True))
    agent.learn(24, reset_num_timesteps=False)
    assert not all(th.equal(a, b) for a, b in zip(before, weights(agent), strict=True))


def test_a_buffer_that_was_put_in_by_hand(trained, tmp_path):
    agent = small().learn(40)
    agent.replay_buffer = trained.replay_buffer
    agent.train(1, 4)
    assert agent.sequences.buffer is trained.replay_buffer


def test_many_categories_of_actions():
    assert small(ActionEnv(spaces.Discrete(300))).learn(20).predict(np.array(3))[0] < 300


def test_subclasses_of_the_world_model_are_taken():
    class Mine(RSSM):
        pass

    assert type(small(world_model=Mine).world_model) is Mine
    model = Mine(*spaces_of("CartPole-v1"), size="tiny", device="cpu")
    assert small(world_model=model, world_model_kwargs=None).world_model is model
    with pytest.raises(ValueError, match=r"built with gamma=0.99.*, and this agent has gamma=0.5"):
        small(world_model=model, world_model_kwargs=None, gamma=0.5)


# ---- other versions


def test_warming_up_is_for_laprop():
    assert small().optimizer.param_groups[0]["warmup"] == 200
    assert small(optimizer_kwargs={"eps": 1e-6}).optimizer.param_groups[0]["warmup"] == 1000, "LaProp's own"
    assert "warmup" not in small(optimizer_class="adam").optimizer.param_groups[0]


def test_gradients_through_the_dynamics_reach_the_actor_alone():
    agent = small("Pendulum-v1", actor_gradient="dynamics", replay_value_scale=0.0, ent_coef=0.0).learn(56)
    model, policy = agent.world_model, agent.policy
    with th.no_grad():
        for head in (model.reward_head, policy.critic):
            head.out.weight.normal_()
    batch = agent.sequences.on_device(agent.sequences.sample(4, generator=th.Generator().manual_seed(0)), agent.device)
    agent.update.generator.manual_seed(3)
    loss, _, _ = agent._losses(*batch, agent.update.generator)
    agent.optimizer.zero_grad()
    loss.backward()
    gradient = model.cell.gates.weight.grad.clone()
    assert policy.actor.out.weight.grad.abs().sum() > 0
    agent.update.generator.manual_seed(3)
    agent.optimizer.zero_grad()
    model.loss(*batch, generator=agent.update.generator).total().backward()
    th.testing.assert_close(gradient, model.cell.gates.weight.grad)
    assert all(parameter.requires_grad for parameter in model.parameters())
    with pytest.raises(ValueError, match="actor_gradient='dynamics' needs Box actions"):
        small(actor_gradient="dynamics")


def test_sequences_may_begin_with_nothing():
    agent = small(replay_context=False).learn(48)
    rows, start = agent.sequences.on_device(agent.sequences.sample(4), agent.device)
    assert start is None
    assert rows.is_first[:, 0].all()


def test_an_unknown_optimiser_is_refused():
    with pytest.raises(ValueError, match="optimizer_class='sgd': choose one of 'laprop', 'adam', or a class"):
        small(optimizer_class="sgd")
    assert isinstance(small(optimizer_class=th.optim.SGD).optimizer, th.optim.SGD)
