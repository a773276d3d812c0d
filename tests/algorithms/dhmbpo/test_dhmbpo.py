"""``DHMBPO`` and ``SVG``: gradients against finite differences and a closed form, arguments, refusals, learning."""

import inspect
import re

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import SAC
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecNormalize

from sb3_mbrl import DHMBPO, SVG
from sb3_mbrl.algorithms.dhmbpo.rollout import frozen
from sb3_mbrl.contracts import Prediction, UnsupportedSpace, WorldModel

TINY = {
    "learning_starts": 40,
    "batch_size": 16,
    "seed": 0,
    "device": "cpu",
    "policy_kwargs": {"net_arch": [16, 16]},
    "world_model_kwargs": {"members": 3, "elites": 3, "hidden": [16]},
    "imagination_kwargs": {"horizon": 4, "freq": 10, "starts_per_step": 2, "max_age": 50},
    "fit_kwargs": {"max_batches": 20},
}


def tiny(cls=DHMBPO, env="Pendulum-v1", **settings):
    return cls("MlpPolicy", env, **{**TINY, **settings})


class Linear(WorldModel):
    """``s' = A s + B a``, ``r = -(s'^2 + a^2)``, without noise; one column each."""

    A, B = 0.9, 0.5
    fitted = True

    def initial(self, obs, snapshot=None):
        return {"obs": obs}

    def step(self, state, action, *, deterministic=False, generator=None):
        following = self.A * state["obs"] + self.B * action
        reward = -(following.square() + action.square()).squeeze(1)
        return Prediction({"obs": following}, reward, th.zeros_like(reward))

    def decode(self, state):
        return state["obs"]


class Cart(gym.Env):
    observation_space, action_space = spaces.Box(-9, 9, (1,)), spaces.Box(-1, 1, (1,))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return np.ones(1, np.float32), {}

    def step(self, action):
        self.t += 1
        return np.ones(1, np.float32), 0.0, False, self.t == 10, {}


# ---- gradients


def test_the_gradient_of_a_linear_feedback_is_the_closed_form(monkeypatch):
    """``a = k s`` in a linear-quadratic problem: the objective is a polynomial of ``k``, differentiated by hand."""
    agent = tiny(env=Cart(), world_model=Linear, world_model_kwargs={})
    k = th.tensor(-0.6, requires_grad=True, dtype=th.float64)
    monkeypatch.setattr(agent.actor, "action_log_prob", lambda obs: (k * obs, th.zeros(len(obs), dtype=th.float64)))
    rollout = agent.training_rollout(th.tensor([[1.0], [2.0]], dtype=th.float64), 3)
    objective = rollout.returns(th.tensor(0.1), th.zeros(2, dtype=th.float64), first_entropy=True)
    (gradient,) = th.autograd.grad(objective.sum(), k)
    b, gamma = Linear.B, agent.gamma
    m = Linear.A + b * -0.6  # s_t = m^t s_0, so that J = -s_0^2 sum_t q^t (m^2 + k^2) with q = gamma m^2
    q, cost = gamma * m * m, m * m + 0.36
    value = cost * (1 + q + q * q)
    slope = (2 * m * b - 1.2) * (1 + q + q * q) + cost * (1 + 2 * q) * 2 * gamma * m * b
    assert objective.tolist() == pytest.approx([-value, -4 * value])
    assert float(gradient) == pytest.approx(-5 * slope)


def test_the_actors_gradient_is_that_of_finite_differences(monkeypatch):
    """Through an ensemble, its noise and choice of members, a learned termination, and the critics at the end."""
    agent = tiny(env="InvertedPendulum-v5", termination_fn=None).learn(80)
    for module in (agent.world_model, agent.policy):
        module.double()
    # Codecs and SB3's preprocessing convert to single precision, in which differences are too coarse.
    monkeypatch.setattr(agent.world_model.codec, "decode", lambda obs: obs)
    monkeypatch.setattr(agent.world_model.action_codec, "encode", lambda action: action)
    for part in (agent.actor, agent.critic):
        monkeypatch.setattr(part, "extract_features", lambda obs, extractor: extractor(obs))
    obs = th.as_tensor(agent.replay_buffer.observations[:8, 0]).double()
    agent.policy.set_training_mode(False)

    def objective():
        with agent.random.scope():  # pinned below
            th.manual_seed(3)
            rollout = agent.training_rollout(obs, 4, th.Generator().manual_seed(5))
            value = th.stack(agent.critic(rollout.last_obs, rollout.last_action)).mean(0).flatten()
            return rollout.returns(th.tensor(0.1, dtype=th.float64), value, first_entropy=True).mean()

    with frozen(agent.world_model), frozen(agent.critic):
        agent.actor.optimizer.zero_grad()
        objective().backward()
        for parameter in (
            agent.actor.mu.weight,
            agent.actor.mu.bias,
            agent.actor.log_std.bias,
            agent.actor.latent_pi[0].weight,
        ):
            index = (0,) * parameter.dim()
            sides = []
            for change in (1e-5, -1e-5):  # with gradients, for members are drawn otherwise without
                parameter.data[index] += change
                sides.append(float(objective().detach()))
                parameter.data[index] -= change
            difference = (sides[0] - sides[1]) / 2e-5
            assert float(parameter.grad[index]) == pytest.approx(difference, rel=1e-5, abs=1e-9)


def test_critics_learn_the_value_of_the_first_state_alone(monkeypatch):
    """Targets are hand-computed from the rollout: the reward, without the entropy of the first action."""
    agent = tiny(env=Cart(), world_model=Linear, world_model_kwargs={}, bounds_rate=0.0, ent_coef=0.5, horizon=2)
    monkeypatch.setattr(agent.actor, "action_log_prob", lambda obs: (0.0 * obs, th.full((len(obs),), 2.0)))
    monkeypatch.setattr(agent, "_target_value", lambda obs, action: th.full((len(obs),), 10.0))
    rollout = agent.training_rollout(th.tensor([[1.0]]), 2)
    target = rollout.returns(th.tensor(0.5), agent._target_value(rollout.last_obs, None), first_entropy=False)
    g, (r0, r1) = agent.gamma, (-(0.9**2), -(0.81**2))
    assert float(target) == pytest.approx(r0 + g * (r1 - 1.0) + g * g * (10.0 - 1.0))


# ---- as a class


def test_arguments_are_those_of_sac_in_their_order():
    ours, theirs = inspect.signature(DHMBPO).parameters, inspect.signature(SAC).parameters
    assert list(ours)[: len(theirs)] == list(theirs)
    explained = re.findall(r"^:param (\w+):", inspect.getdoc(DHMBPO), flags=re.M)
    assert explained == list(ours)


def test_svg_has_the_arguments_of_dhmbpo():
    """Regression: arguments that were handed on as ``**kwargs`` were unknown to presets, and stayed in the SAC of before."""
    assert inspect.signature(SVG) == inspect.signature(DHMBPO)
    assert SVG.preset("Pendulum-v1", horizon=3)["horizon"] == 3
    agent = tiny(SVG).learn(45)
    assert agent.real_ratio == 1.0
    plain = agent.to_model_free()
    assert type(plain) is SAC
    assert not {"horizon", "bounds_rate", "world_model_class"} & set(vars(plain))


def test_updates_begin_where_distribution_rollouts_have_been():
    twin = {"world_model": "pendulum", "world_model_kwargs": {}}  # a model that is trusted from the first step
    agent = tiny(**twin).learn(60)
    assert len(agent.imagined) > 0
    assert agent._n_updates == 20
    sampled = agent._sampler().sample(64).observations
    known = {tuple(row) for row in agent.imagined.draw(5_000)["obs"].tolist()}
    assert all(tuple(row) in known for row in sampled.tolist())
    svg = tiny(SVG, **twin).learn(60)
    assert svg.imagined is None
    assert svg._n_updates == 20


def test_bounds_include_zero_where_real_episodes_have_ended():
    assert not tiny().learn(45).value_bounds.episodes_end
    agent = tiny(env="InvertedPendulum-v5").learn(45)
    assert agent.value_bounds.episodes_end
    assert agent.value_bounds.low <= 0.0 <= agent.value_bounds.high


def test_without_a_world_model_it_is_sac_with_these_networks():
    agent = tiny(world_model=None, world_model_kwargs=None).learn(60)
    assert agent._n_updates == 20
    assert agent.trainer.fit_at == -1


def test_observations_are_standardised_by_the_real_ones():
    agent = tiny().learn(41)
    real = agent.replay_buffer.observations[:41, 0]
    for part in (agent.actor, agent.critic, agent.critic_target):
        scale = part.features_extractor.standardiser
        assert th.allclose(scale.mean, th.as_tensor(real.mean(0)), atol=1e-5)
        assert th.allclose(scale.std, th.as_tensor(real.std(0)), atol=1e-5)


def test_saving_keeps_bounds_and_predictions(tmp_path):
    agent = tiny().learn(60)
    agent.save(tmp_path / "agent", safe=True)
    loaded = DHMBPO.load(tmp_path / "agent", safe=True, device="cpu")
    assert loaded.value_bounds.state_dict() == agent.value_bounds.state_dict()
    assert th.equal(loaded.critic.bounds, agent.critic.bounds)
    obs = np.zeros((2, 3), np.float32)
    assert np.array_equal(agent.predict(obs, deterministic=True)[0], loaded.predict(obs, deterministic=True)[0])


def test_from_sac_and_back(tmp_path):
    sac = SAC("MlpPolicy", "Pendulum-v1", learning_starts=20, seed=0, device="cpu", policy_kwargs={"net_arch": [16]}).learn(60)
    kwargs = {name: TINY[name] for name in ("world_model_kwargs", "imagination_kwargs", "fit_kwargs")}
    agent = DHMBPO.from_model_free(sac, **kwargs)
    obs = np.zeros((2, 3), np.float32)
    assert np.array_equal(agent.predict(obs, deterministic=True)[0], sac.predict(obs, deterministic=True)[0])
    agent.learn(20, reset_num_timesteps=False)
    plain = agent.to_model_free()
    assert type(plain) is SAC
    assert np.array_equal(agent.predict(obs, deterministic=True)[0], plain.predict(obs, deterministic=True)[0])


def test_without_a_horizon_real_transitions_are_learned_from():
    agent = tiny(horizon=0).learn(60)
    assert agent._n_updates == 20
    assert agent.imagined is None


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"horizon": -1}, ValueError, "horizon=-1"),
        ({"use_sde": True}, ValueError, "use_sde=True"),
        ({"n_steps": 3}, ValueError, "n_steps=3.*give horizon instead"),
        ({"policy_kwargs": {"share_features_extractor": True}}, ValueError, "share_features_extractor=True"),
        ({"bounds_rate": 2.0}, ValueError, "bounds_rate=2.0"),
        (
            {"world_model": "oracle", "world_model_kwargs": {"env": "Pendulum-v1"}},
            ValueError,
            "OracleModel.step has no gradient",
        ),
    ],
)
def test_what_cannot_work_is_refused(settings, error, message):
    with pytest.raises(error, match=message):
        tiny(**settings)


def test_spaces_without_gradients_are_refused():
    with pytest.raises(UnsupportedSpace, match="give Box observations, or use MBPO"):
        tiny(env=gym.wrappers.TransformObservation(gym.make("Pendulum-v1"), lambda obs: 0, spaces.Discrete(3)))
    with pytest.raises(AssertionError) as caught:
        tiny(env="CartPole-v1")
    assert any("Dyna" in note for note in caught.value.__notes__)


def test_vec_normalize_is_refused():
    with pytest.raises(ValueError, match="train without VecNormalize"):
        tiny(env=VecNormalize(make_vec_env("Pendulum-v1", 1)))


@pytest.mark.slow
def test_it_swings_the_pendulum_up_with_two_updates_a_step():
    """Two updates per step, where MBPO needs twenty."""
    settings = {
        "learning_starts": 300,
        "gamma": 0.98,
        "gradient_steps": 2,
        "policy_kwargs": {"net_arch": [64, 64]},
        "world_model_kwargs": {"members": 5, "elites": 5, "hidden": [128, 128]},
        "fit_kwargs": {"max_batches": 500},
    }
    agent = DHMBPO("MlpPolicy", "Pendulum-v1", seed=0, device="cpu", **settings).learn(1_500)
    assert evaluate_policy(agent, gym.make("Pendulum-v1"), 10)[0] > -250


def test_a_loss_that_is_not_finite_is_named(monkeypatch):
    agent = tiny(world_model="pendulum", world_model_kwargs={}).learn(45)
    monkeypatch.setattr(agent, "_target_value", lambda obs, action: th.full((len(obs),), th.nan))
    before = agent.critic.layers[0].weight.clone()
    with pytest.raises(ValueError, match=r"The loss of the critic is nan after 5 updates and 45 steps.*can be saved"):
        agent.train(1, 16)
    assert th.equal(before, agent.critic.layers[0].weight)


@pytest.mark.parametrize(
    ("imagination", "kwargs"), [("mve", {}), ("steve", {}), ("wimle", {}), ("mopo", {}), ("branched", {"n_steps": 2})]
)
def test_rules_of_which_nothing_would_be_left_are_refused(imagination, kwargs):
    """Updates begin in imagined states and compute everything else anew: penalties and expanded targets had no effect."""
    with pytest.raises(ValueError, match="takes nothing but states from its imagination"):
        tiny(imagination=imagination, imagination_kwargs={"horizon": 2, **kwargs})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"gamma": 1.0}, "gamma=1.0: values then have no bounds"),
        ({"policy_kwargs": {"dropout": 2}}, "dropout"),
        ({"policy_kwargs": {"n_critics": 0}}, "n_critics"),
    ],
)
def test_settings_that_would_end_a_run_later_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        tiny(**settings)
    if "gamma" in settings:
        tiny(**settings, bounds_rate=0.0)
