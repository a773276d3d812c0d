"""``PlannerPolicy``: planning on top of a trained agent, from call to call."""

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from stable_baselines3 import DQN, PPO, SAC
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor

from sb3_mbrl import PETS
from sb3_mbrl.models.analytic import CartPoleModel, PendulumModel
from sb3_mbrl.models.particles import Particles
from sb3_mbrl.planners import CEM, ICEM, ILQR, MPPI
from sb3_mbrl.planners.policy import PlannerPolicy
from sb3_mbrl.planners.priors import as_prior, as_value
from sb3_mbrl.planners.rollout import rollout_prior
from tests.planners.problems import OBS, pendulum


def test_a_trained_agent_plans():
    """An untrained SAC agent with the exact model plans much better than it acts."""
    sac = SAC("MlpPolicy", "Pendulum-v1", seed=0, device="cpu", policy_kwargs={"net_arch": [16]}, buffer_size=10)
    policy = PlannerPolicy(
        CEM(sac.action_space, horizon=20, population=100, iterations=3), PendulumModel(device="cpu"), prior=sac.policy, seed=0
    )
    env = Monitor(gym.make("Pendulum-v1"))
    env.reset(seed=1)
    planned, _ = evaluate_policy(policy, env, n_eval_episodes=2)
    assert planned > -450


def test_actions_of_policies_in_the_environments_units_are_scaled():
    """PPO does not squash its actions. Regression: its torque of 1, half the bound, became the whole bound."""
    ppo = PPO("MlpPolicy", "Pendulum-v1", seed=0, device="cpu")
    with th.no_grad():
        ppo.policy.action_net.weight.zero_()
        ppo.policy.action_net.bias.fill_(1.0)
    model = PendulumModel(device="cpu")
    act = as_prior(ppo.policy, model, deterministic=True)
    assert act(model.initial(th.rand(2, 3))).flatten().tolist() == pytest.approx([0.5, 0.5])
    sequences = rollout_prior(model, model.initial(th.rand(1, 3)), lambda state, generator: th.full((2, 1), 3.0), 2, 2, None)
    assert sequences.max() == 1.0


def test_planning_on_top_leaves_the_global_stream_alone():
    sac = SAC("MlpPolicy", "Pendulum-v1", seed=0, device="cpu", policy_kwargs={"net_arch": [16]}, buffer_size=10)
    actions = []
    for seed in (1, 2):
        policy = PlannerPolicy(CEM(sac.action_space, horizon=3, population=8), PendulumModel(device="cpu"), sac.policy, seed=0)
        th.manual_seed(seed)
        before = th.get_rng_state()
        actions.append(policy.predict(np.zeros(3, np.float32))[0])
        assert th.equal(th.get_rng_state(), before)
    assert actions[0] == actions[1]


def test_a_critic_under_ilqr():
    sac = SAC("MlpPolicy", "Pendulum-v1", seed=0, device="cpu", policy_kwargs={"net_arch": [16]}, buffer_size=10)
    planner = ILQR(sac.action_space, horizon=3, iterations=2)
    policy = PlannerPolicy(planner, PendulumModel(device="cpu"), prior=sac.policy, value=sac.critic, seed=0)
    assert sac.action_space.contains(policy.predict(np.zeros(3, np.float32))[0])


def test_a_critic_evaluates_all_particles():
    sac = SAC("MlpPolicy", "Pendulum-v1", seed=0, device="cpu", policy_kwargs={"net_arch": [16]}, buffer_size=10)
    model = Particles(PendulumModel(device="cpu"), 3, "ts1")
    value = as_value(sac.critic, lambda state, generator: th.zeros(len(state["theta"]), 1), model)
    alone = as_value(sac.critic, lambda state, generator: th.zeros(len(state["theta"]), 1), model.model)
    state = model.initial(th.rand(2, 3))
    state["particles"] = {key: th.rand_like(leaf) for key, leaf in state["particles"].items()}
    inner = {key: leaf.flatten(0, 1) for key, leaf in state["particles"].items()}
    th.testing.assert_close(value(state), alone(inner).view(2, 3).mean(1))


def test_a_prior_under_particles_sees_the_states_of_the_model():
    """It used to be called with the cloud by the planner, and with the particles by the critic."""
    sac = SAC("MlpPolicy", "Pendulum-v1", seed=0, device="cpu", policy_kwargs={"net_arch": [16]}, buffer_size=10)
    model = Particles(PendulumModel(device="cpu"), 3, "ts1")
    planner = CEM(sac.action_space, horizon=3, population=4, iterations=1, n_prior=2)
    policy = PlannerPolicy(
        planner, model, prior=lambda state, generator: th.zeros(len(state["theta"]), 1), value=sac.critic, seed=0
    )
    assert sac.action_space.contains(policy.predict(np.zeros(3, np.float32))[0])


def test_a_critic_is_the_value_of_the_last_state():
    sac = SAC("MlpPolicy", "Pendulum-v1", seed=0, device="cpu", policy_kwargs={"net_arch": [16]}, buffer_size=10)
    model = PendulumModel(device="cpu")
    policy = PlannerPolicy(
        CEM(sac.action_space), model, prior=lambda s, generator: th.zeros(len(s["theta"]), 1), value=sac.critic
    )
    obs = th.rand(4, 3)
    state = model.initial(obs)
    decoded = model.decode(state)
    expected = th.cat(sac.critic(decoded, th.zeros(4, 1)), 1).min(1).values
    assert th.allclose(policy._parts[3](state), expected)
    with pytest.raises(ValueError, match="give the policy that chooses them as prior="):
        PlannerPolicy(CEM(sac.action_space), model, value=sac.critic)


def test_a_q_network_is_prior_and_value():
    dqn = DQN("MlpPolicy", "CartPole-v1", seed=0, device="cpu", policy_kwargs={"net_arch": [16]}, buffer_size=10)
    model = CartPoleModel(device="cpu")
    policy = PlannerPolicy(CEM(dqn.action_space, horizon=3, population=10), model, prior=dqn.policy, value=dqn.q_net, seed=0)
    state = model.initial(th.rand(2, 4) * 0.1)
    assert th.allclose(policy._parts[3](state), dqn.q_net(model.decode(state)).max(1).values)
    action, _ = policy.predict(np.zeros(4, np.float32))
    assert dqn.action_space.contains(action)


def test_a_state_of_other_environments_is_refused():
    policy = PlannerPolicy(CEM(PendulumModel.env_spaces[1], horizon=2, population=4), PendulumModel(device="cpu"))
    _, state = policy.predict(np.zeros((2, 3), np.float32))
    with pytest.raises(ValueError, match="state is of 2 environments, and there are 3 observations"):
        policy.predict(np.zeros((3, 3), np.float32), state)


def test_an_oracle_cannot_plan_from_an_observation():
    """Regression: the error came only after the random steps."""
    with pytest.raises(ValueError, match="An oracle starts from a snapshot of the true environment"):
        PETS("MlpPolicy", "Pendulum-v1", device="cpu", world_model="oracle", world_model_kwargs={"env": "Pendulum-v1"})


def test_a_model_that_is_not_fitted_is_warned_of():
    learner = PETS("MlpPolicy", "Pendulum-v1", device="cpu", world_model_kwargs={"members": 2, "elites": 2, "hidden": [4]})
    with pytest.warns(UserWarning, match="has not been fitted yet: until it is, actions are random"):
        PlannerPolicy(learner.planner, learner.world_model)


@pytest.mark.parametrize("cls", [CEM, ICEM, MPPI, ILQR])
def test_observations_in_double_precision(cls):
    """MPPI and a warm iLQR used to fail where the model keeps the precision of the observation."""
    policy = pendulum(cls(PendulumModel.env_spaces[1], horizon=3, iterations=2))
    action, state = policy.predict(OBS.astype(np.float64))
    again, _ = policy.predict(OBS.astype(np.float64), state)
    assert np.isfinite([action, again]).all()


def test_a_state_that_is_not_this_policys():
    policy, longer = pendulum(), pendulum(CEM(PendulumModel.env_spaces[1], horizon=5, population=8))
    for foreign in ((1, 2), {}, {"latent": 3}):
        with pytest.raises(TypeError, match="give back what the last predict of this policy returned"):
            policy.predict(OBS, foreign)
    with pytest.raises(ValueError, match=r"comes from another planner, horizon or number of environments.*state=None"):
        policy.predict(OBS, longer.predict(OBS)[1])
    cloudy = PlannerPolicy(policy.planner, Particles(PendulumModel(device="cpu"), 2, "ts1"))
    with pytest.raises(ValueError, match="state is that of another world model"):
        policy.predict(OBS, cloudy.predict(OBS)[1])


def test_there_is_nothing_to_save(tmp_path):
    """SB3's way of saving a policy used to write a file that could not be loaded."""
    with pytest.raises(NotImplementedError, match="save the agent"):
        pendulum().save(tmp_path / "policy")


def test_shapes_of_the_known_functions_of_a_twin_are_checked():
    """Regression: they failed within torch, while an ensemble's were checked."""
    for wrong, got in ((lambda o, a, n: a, r"\(8, 1\)"), (lambda o, a, n: 1.0, "float")):
        policy = pendulum(model=PendulumModel(device="cpu", reward_fn=wrong))
        with pytest.raises(ValueError, match=rf"reward_fn must return a tensor of shape \(8,\), one value per row; got {got}"):
            policy.predict(OBS)


def test_deterministic_predictions_are_the_same_every_time():
    policy = pendulum()
    before = policy.generator.get_state()
    first = policy.predict(OBS, deterministic=True)[0]
    assert policy.predict(OBS, deterministic=True)[0] == first
    assert th.equal(policy.generator.get_state(), before)
    assert policy.predict(OBS)[0] != first


def test_action_masks():
    policy = pendulum(model=CartPoleModel(device="cpu"))
    for allowed in (0, 1):
        mask = np.arange(2) == allowed
        assert policy.predict(np.zeros(4, np.float32), action_masks=mask)[0] == allowed
        assert (policy.predict(np.zeros((3, 4), np.float32), action_masks=np.tile(mask, (3, 1)))[0] == allowed).all()
    with pytest.raises(ValueError, match=r"shape \(1, 3\): give \(1, 2\), with an allowed action in every row"):
        policy.predict(np.zeros(4, np.float32), action_masks=np.ones(3, bool))
    with pytest.raises(ValueError, match="with an allowed action in every row"):
        policy.predict(np.zeros(4, np.float32), action_masks=[0, 0])
