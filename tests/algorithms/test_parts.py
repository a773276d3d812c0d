"""From what a user writes to the parts of an agent."""

import copy
import types
from functools import partial

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import SAC
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.envs import BitFlippingEnv
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecFrameStack, VecNormalize

from sb3_mbrl import MBPO, hookimpl
from sb3_mbrl.contracts import UnsupportedSpace
from sb3_mbrl.envs.known_functions.classic_control import PendulumReward
from sb3_mbrl.envs.known_functions.common import Never
from sb3_mbrl.envs.known_functions.mujoco import InvertedPendulumTermination, Unhealthy
from sb3_mbrl.imagination import BranchedRollouts
from sb3_mbrl.models.analytic import PendulumModel
from sb3_mbrl.models.ensemble import EnsembleModel
from sb3_mbrl.models.mlp import MLPModel
from sb3_mbrl.plugins import UnknownPartError
from sb3_mbrl.plugins.errors import PartArgumentError
from sb3_mbrl.testing import LinearToy
from tests.algorithms.common import LEARNED, TINY, DictEnv, learned, tiny

SMALL = LEARNED["world_model_kwargs"]


class PixelEnv(gym.Env):
    """Two grey frames, 36 pixels square."""

    observation_space = spaces.Box(0, 255, (36, 36, 1), np.uint8)
    action_space = spaces.Box(-1, 1, (1,))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return self._obs(), {}

    def step(self, action):
        self.t += 1
        return self._obs(), float(action[0]), False, self.t >= 10, {}

    def _obs(self):
        return np.full((36, 36, 1), 10 * self.t, np.uint8)


def make_ensemble(observation_space, action_space, **kwargs):
    """A factory."""
    return EnsembleModel(observation_space, action_space, members=3, elites=1, hidden=[8], **kwargs)


# ---- world_model=


def test_auto_picks_the_ensemble():
    agent = learned()
    assert type(agent.world_model) is EnsembleModel
    assert agent.part_references["world_model"]["name"] == "ensemble"
    assert agent.world_model.n_members == 2


@pytest.mark.parametrize(
    ("choice", "kwargs", "kind", "how"),
    [
        ("ensemble", SMALL, EnsembleModel, "name"),
        ("mlp", {"hidden": [8]}, MLPModel, "name"),
        ("sb3-mbrl:mlp", {"hidden": [8]}, MLPModel, "name"),
        ("sb3_mbrl.models.mlp:MLPModel", {"hidden": [8]}, MLPModel, "import"),
        (MLPModel, {"hidden": [8]}, MLPModel, "class"),
        (LinearToy, {"decay": 0.5}, LinearToy, "class"),
        (make_ensemble, {}, EnsembleModel, "factory"),
    ],
)
def test_ways_to_choose_a_world_model(choice, kwargs, kind, how):
    agent = learned(world_model=choice, world_model_kwargs=kwargs)
    assert type(agent.world_model) is kind
    assert agent.part_references["world_model"]["how"] == how
    assert agent.world_model.observation_space == agent.observation_space


def test_an_instance_is_used_as_it_is():
    agent = tiny()
    model = EnsembleModel(agent.observation_space, agent.action_space, members=2, elites=1, hidden=[8], device="cpu")
    assert learned(world_model=model, world_model_kwargs=None).world_model is model


def test_an_instance_of_other_spaces_is_refused():
    model = PendulumModel(device="cpu")
    with pytest.raises(
        ValueError, match=r"The world model was built for the observation_space Box.*, and this agent's is Box"
    ):
        learned("MountainCarContinuous-v0", world_model=model, world_model_kwargs=None)


def test_keywords_for_an_instance_come_too_late():
    with pytest.raises(PartArgumentError, match=r"is an instance: world_model_kwargs .* come too late"):
        tiny(world_model=PendulumModel(device="cpu"), world_model_kwargs={"g": 9.0})


def test_a_misspelt_keyword_is_recognised():
    with pytest.raises(PartArgumentError, match=r"does not take 'member'\. Did you mean 'members'\?"):
        learned(world_model_kwargs={"member": 3})
    with pytest.raises(PartArgumentError, match=r"does not take 'horizn'. Did you mean 'horizon'?"):
        learned(imagination_kwargs={"horizn": 3})


def test_a_misspelt_name_is_recognised():
    with pytest.raises(UnknownPartError, match=r"Did you mean 'ensemble'?"):
        learned(world_model="ensembel")


# ---- images


def test_auto_is_off_for_images_and_says_so(capsys):
    arguments = {key: value for key, value in TINY.items() if key not in ("imagination_kwargs", "fit_freq")}
    arguments |= {"learning_starts": 10, "buffer_size": 100, "batch_size": 4}
    arguments["policy_kwargs"] = {"net_arch": [8], "features_extractor_kwargs": {"features_dim": 8}}
    plain = SAC("CnnPolicy", PixelEnv(), **arguments).learn(20)
    agent = MBPO("CnnPolicy", PixelEnv(), verbose=1, **arguments)
    assert agent.world_model is None
    assert "world_model='auto': no built-in takes these spaces, so the model is off (ensemble: " in capsys.readouterr().out
    agent.learn(20, log_interval=10**6)
    for one, other in zip(agent.policy.state_dict().values(), plain.policy.state_dict().values(), strict=True):
        assert th.equal(one, other)


def test_a_name_that_does_not_take_images_is_an_error():
    arguments = {**TINY, "buffer_size": 10}
    with pytest.raises(UnsupportedSpace, match=r"does not take observations Box\(0, 255, .*image(.|\n)*These do: .*oracle"):
        MBPO("CnnPolicy", PixelEnv(), world_model="ensemble", **arguments)


# ---- imagination=


def test_ways_to_choose_an_imagination():
    mine = BranchedRollouts(horizon=3, starts_per_step=1)
    assert tiny(imagination=mine, imagination_kwargs=None).imagination is mine
    agent = tiny(imagination="sb3_mbrl.imagination:BranchedRollouts", imagination_kwargs={"horizon": 7})
    assert agent.imagination.horizon(0) == 7


def test_features_are_no_observations_of_the_policy():
    with pytest.raises(ValueError, match=r"MBPO's policy acts on observations, so imagined rows must be decoded ones"):
        tiny(imagination_kwargs={"observation": "features"})


# ---- known functions


@pytest.mark.parametrize(
    ("env_id", "kind"),
    [("InvertedPendulum-v5", InvertedPendulumTermination), ("Hopper-v5", Unhealthy), ("Pendulum-v1", Never)],
)
def test_known_terminations_are_found(env_id, kind):
    agent = learned(env_id)
    assert type(agent._known.termination_fn) is kind
    assert agent.world_model.termination_fn is agent._known.termination_fn
    assert not agent.world_model.heads.learn_termination
    # The reward is learned unless it is asked for.
    assert agent._known.reward_fn is None
    assert agent.world_model.heads.learn_reward


def test_none_learns_the_termination():
    agent = learned("InvertedPendulum-v5", termination_fn=None)
    assert agent._known.termination_fn is None
    assert agent.world_model.heads.learn_termination


def test_an_unknown_environment_is_learned():
    agent = MBPO("MultiInputPolicy", DictEnv(), **TINY, **LEARNED)
    assert agent.world_model.termination_fn is None


class Scaled(gym.ObservationWrapper):
    def observation(self, observation):
        return (10 * observation).astype(np.float64)


@pytest.mark.parametrize(
    "env",
    [
        lambda: Scaled(gym.make("InvertedPendulum-v5")),
        lambda: gym.wrappers.FrameStackObservation(gym.make("InvertedPendulum-v5"), 2),
        lambda: gym.wrappers.TransformReward(gym.make("InvertedPendulum-v5"), lambda reward: 2 * reward),
        lambda: VecFrameStack(make_vec_env("InvertedPendulum-v5", 1), 3),
    ],
    ids=["scaled", "stacked", "reward", "VecFrameStack"],
)
def test_wrapped_by_what_changes_the_task_nothing_is_known(env):
    env = env()
    if isinstance(env, gym.Env) and len(env.observation_space.shape) > 1:
        env = gym.wrappers.FlattenObservation(env)
    agent = learned(env, reward_fn="auto")
    assert agent._known.termination_fn is None
    assert agent._known.reward_fn is None


@pytest.mark.parametrize("wrap", [lambda env: env, VecNormalize])
def test_known_functions_are_found_through_neutral_vector_environments(wrap):
    agent = learned(wrap(make_vec_env("InvertedPendulum-v5", 2)))
    assert type(agent._known.termination_fn) is InvertedPendulumTermination


def test_known_functions_are_found_in_other_processes():
    # SB3's Monitor, which make_vec_env puts around every environment, cannot be made again from a specification.
    env = make_vec_env("InvertedPendulum-v5", 1, vec_env_cls=SubprocVecEnv, vec_env_kwargs={"start_method": "fork"})
    try:
        agent = learned(env)
        assert type(agent._known.termination_fn) is InvertedPendulumTermination
    finally:
        env.close()


def scaled_env() -> gym.Env:
    return Scaled(gym.make("InvertedPendulum-v5"))


def test_wrappers_in_other_processes_are_noticed():
    env = make_vec_env(scaled_env, 1, vec_env_cls=SubprocVecEnv, vec_env_kwargs={"start_method": "fork"})
    try:
        assert learned(env)._known.termination_fn is None
    finally:
        env.close()


def test_a_vector_environment_that_is_not_made_of_gymnasium_environments():
    class Simulator(DummyVecEnv):
        """As those on a GPU are: one thing, that is not asked for its specification."""

        def __init__(self):
            super().__init__([lambda: gym.make("InvertedPendulum-v5")])
            self.simulated, self.envs = self.envs, []

        def get_attr(self, attr_name, indices=None):
            if attr_name == "spec":
                raise NotImplementedError
            return [getattr(env, attr_name) for env in self.__dict__.get("simulated") or self.envs]

    agent = learned(Simulator())
    assert agent._known.termination_fn is None


def test_the_exact_reward_of_pendulum_is_used_in_imagination():
    agent = learned(reward_fn="auto", learning_starts=40, imagination_kwargs={"freq": 20, "starts_per_step": 4, "max_age": 20})
    assert isinstance(agent._known.reward_fn, PendulumReward)
    agent.learn(45)
    assert not agent.world_model.heads.learn_reward
    with agent._random.scope() as generator, th.no_grad():
        starts = agent._start_states(64, generator)
        imagined = agent.imagination.imagine(agent.world_model, starts, agent._imagination_policy, 2, generator=generator)
    cos, sin, speed = imagined.obs.unbind(-1)
    torque = 2 * imagined.action[..., 0]
    expected = -(th.atan2(sin, cos) ** 2 + 0.1 * speed**2 + 0.001 * torque**2)
    th.testing.assert_close(imagined.reward, expected, rtol=1e-4, atol=1e-4)


def zero_reward(obs, action, next_obs):
    return th.zeros(len(obs))


def always(obs, action, next_obs):
    return th.ones(len(obs), dtype=th.bool)


def nan_reward(obs, action, next_obs):
    return th.full((len(obs),), float("nan"))


@pytest.mark.parametrize(
    ("functions", "words"),
    [
        (
            {"reward_fn": zero_reward},
            r"reward_fn disagrees with 2\d of 2\d real transitions \(the first: row 0, where it is 0 and the environment's -",
        ),
        ({"reward_fn": nan_reward}, r"reward_fn disagrees with 2\d of 2\d"),
        (
            {"termination_fn": always},
            r"termination_fn disagrees with 2\d of 2\d real transitions .* pass termination_fn=None to learn",
        ),
    ],
)
def test_functions_of_the_user_that_are_wrong_are_an_error(functions, words):
    agent = learned(learning_starts=20, **functions)
    with pytest.raises(ValueError, match=words):
        agent.learn(30)
    assert agent.replay_buffer.pos == agent.num_timesteps


@pytest.mark.parametrize(
    ("value", "got"),
    [
        (lambda n: th.zeros(n, 1), r"\(2\d, 1\)"),
        (lambda n: th.zeros(()), r"\(\)"),
        (lambda n: np.zeros(n), "ndarray"),
        (lambda n: 0.0, "float"),
    ],
)
@pytest.mark.parametrize("name", ["reward_fn", "termination_fn"])
def test_functions_of_the_user_of_another_shape_are_an_error(name, value, got):
    agent = learned(learning_starts=20, **{name: lambda obs, action, next_obs: value(len(obs))})
    with pytest.raises(ValueError, match=rf"{name} must return a tensor of shape \(2\d,\), one value per row; got {got}"):
        agent.learn(30)


def test_an_error_inside_a_function_says_where_it_came_from():
    agent = learned(learning_starts=20, termination_fn=lambda obs, action, next_obs: next_obs[:, 7] > 0)
    with pytest.raises(IndexError) as caught:
        agent.learn(30)
    assert "raised by termination_fn(obs, action, next_obs) on 21 rows" in caught.value.__notes__[0]


def test_what_was_found_and_disagrees_is_learned_instead(capsys, monkeypatch):
    monkeypatch.setattr(InvertedPendulumTermination, "compute", lambda self, obs, action, next_obs: next_obs[:, 0] > 99)
    agent = learned("InvertedPendulum-v5", learning_starts=60, verbose=1)
    first = agent.world_model
    agent.learn(65, log_interval=10**6)
    said = capsys.readouterr().out
    assert "termination_fn disagrees with" in said
    assert "it is learned instead" in said
    assert agent.world_model is not first
    assert agent._known.termination_fn is None
    assert agent.world_model.heads.learn_termination
    assert agent.world_model.fitted


def test_what_was_found_and_disagrees_later_does_not_end_the_run(monkeypatch):
    agent = learned("InvertedPendulum-v5", learning_starts=60, fit_freq=30).learn(65)
    assert agent.world_model.termination_fn is not None
    assert agent.world_model.n_fits == 1
    monkeypatch.setattr(InvertedPendulumTermination, "compute", lambda self, obs, action, next_obs: next_obs[:, 0] > 99)
    agent.learn(30, reset_num_timesteps=False)
    assert agent.world_model.heads.learn_termination
    assert agent.world_model.n_fits == 1


def test_functions_given_to_the_agent_and_not_to_the_instance_contradict_each_other():
    model = PendulumModel(device="cpu")
    with pytest.raises(
        ValueError, match=r"reward_fn was given to MBPO, but the world model is an instance that was built without it"
    ):
        tiny(world_model=model, reward_fn=zero_reward)
    mine = PendulumModel(device="cpu", reward_fn=PendulumReward(2.0))
    assert tiny(world_model=mine, reward_fn=mine.reward_fn).world_model is mine


def test_without_an_environment_nothing_is_looked_up(tmp_path):
    agent = learned("InvertedPendulum-v5")
    agent.save(tmp_path / "agent")
    loaded = MBPO.load(tmp_path / "agent")
    assert loaded.env is None
    assert loaded._known.termination_fn == agent._known.termination_fn
    assert not loaded.world_model.heads.learn_termination


def test_a_deep_copy_is_an_agent_of_its_own():
    module = types.ModuleType("given")
    module.sb3_mbrl_on_setup = hookimpl(lambda agent: None, specname="sb3_mbrl_on_setup")
    agent = learned(plugins=[module])
    copied = copy.deepcopy(agent)
    assert copied.registry is agent.registry
    assert copied.world_model is not agent.world_model
    weights, before = next(agent.world_model.parameters()), next(copied.world_model.parameters()).clone()
    with th.no_grad():
        weights += 1
    assert th.equal(next(copied.world_model.parameters()), before)


def test_an_environment_in_another_process_that_cannot_be_made_here():
    """Its specification names no entry point; it runs all the same, and nothing is known of it."""
    env = SubprocVecEnv([partial(BitFlippingEnv, continuous=True)])
    try:
        agent = MBPO("MultiInputPolicy", env, buffer_size=10, device="cpu")
        assert agent.world_model.termination_fn is None
    finally:
        env.close()
