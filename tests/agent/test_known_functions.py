"""Known rewards and terminations: when an agent uses them, and what happens where they disagree with real transitions."""

from functools import partial

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.envs import BitFlippingEnv
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecFrameStack, VecNormalize

from sb3_mbrl import MBPO
from sb3_mbrl.agent.known_functions import try_functions
from sb3_mbrl.contracts import EnvFunctions
from sb3_mbrl.envs.known_functions.classic_control import PendulumReward
from sb3_mbrl.envs.known_functions.common import Never
from sb3_mbrl.envs.known_functions.mujoco import InvertedPendulumTermination, Unhealthy
from sb3_mbrl.models.analytic import PendulumModel
from tests.helpers.agents import LEARNED, TINY, DictEnv, learned, tiny


@pytest.mark.parametrize(
    ("env_id", "kind"),
    [("InvertedPendulum-v5", InvertedPendulumTermination), ("Hopper-v5", Unhealthy), ("Pendulum-v1", Never)],
)
def test_known_terminations_are_found(env_id, kind):
    agent = learned(env_id)
    assert type(agent.parts.known.termination_fn) is kind
    assert agent.world_model.termination_fn is agent.parts.known.termination_fn
    assert not agent.world_model.heads.learn_termination
    # The reward is learned unless it is asked for.
    assert agent.parts.known.reward_fn is None
    assert agent.world_model.heads.learn_reward


def test_none_learns_the_termination():
    agent = learned("InvertedPendulum-v5", termination_fn=None)
    assert agent.parts.known.termination_fn is None
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
    assert agent.parts.known.termination_fn is None
    assert agent.parts.known.reward_fn is None


@pytest.mark.parametrize("wrap", [lambda env: env, VecNormalize])
def test_known_functions_are_found_through_neutral_vector_environments(wrap):
    agent = learned(wrap(make_vec_env("InvertedPendulum-v5", 2)))
    assert type(agent.parts.known.termination_fn) is InvertedPendulumTermination


def test_known_functions_are_found_in_other_processes():
    # SB3's Monitor, which make_vec_env puts around every environment, cannot be made again from a specification.
    env = make_vec_env("InvertedPendulum-v5", 1, vec_env_cls=SubprocVecEnv, vec_env_kwargs={"start_method": "fork"})
    try:
        agent = learned(env)
        assert type(agent.parts.known.termination_fn) is InvertedPendulumTermination
    finally:
        env.close()


def scaled_env() -> gym.Env:
    return Scaled(gym.make("InvertedPendulum-v5"))


def test_wrappers_in_other_processes_are_noticed():
    env = make_vec_env(scaled_env, 1, vec_env_cls=SubprocVecEnv, vec_env_kwargs={"start_method": "fork"})
    try:
        assert learned(env).parts.known.termination_fn is None
    finally:
        env.close()


def test_a_vector_environment_that_is_not_made_of_gymnasium_environments():
    class Simulator(DummyVecEnv):
        """A vector environment like those on a GPU: one object, which has no specifications of its parts."""

        def __init__(self):
            super().__init__([lambda: gym.make("InvertedPendulum-v5")])
            self.simulated, self.envs = self.envs, []

        def get_attr(self, attr_name, indices=None):
            if attr_name == "spec":
                raise NotImplementedError
            return [getattr(env, attr_name) for env in self.__dict__.get("simulated") or self.envs]

    agent = learned(Simulator())
    assert agent.parts.known.termination_fn is None


def test_the_exact_reward_of_pendulum_is_used_in_imagination():
    agent = learned(reward_fn="auto", learning_starts=40, imagination_kwargs={"freq": 20, "starts_per_step": 4, "max_age": 20})
    assert isinstance(agent.parts.known.reward_fn, PendulumReward)
    agent.learn(45)
    assert not agent.world_model.heads.learn_reward
    with agent.random.scope() as generator, th.no_grad():
        starts = agent._start_states(64, generator)
        imagined = agent.imagination.imagine(agent.world_model, starts, agent._act_in_imagination, 2, generator=generator)
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
        (lambda n: th.zeros(n, 1), r"\(7, 1\)"),
        (lambda n: th.zeros(()), r"\(\)"),
        (lambda n: np.zeros(n), "ndarray"),
        (lambda n: 0.0, "float"),
    ],
)
@pytest.mark.parametrize("name", ["reward_fn", "termination_fn"])
def test_functions_of_the_user_of_another_shape_are_an_error_at_construction(name, value, got):
    """They were refused at the first fit, after thousands of steps."""
    with pytest.raises(ValueError, match=rf"{name} must return a tensor of shape \(7,\), one value per row; got {got}"):
        learned(**{name: lambda obs, action, next_obs: value(len(obs))})


def test_an_error_inside_a_function_says_where_it_came_from():
    with pytest.raises(IndexError) as caught:
        learned(termination_fn=lambda obs, action, next_obs: next_obs[:, 7] > 0)
    assert "raised by termination_fn(obs, action, next_obs) on 7 rows" in caught.value.__notes__[0]


def test_what_was_found_and_disagrees_is_learned_instead(capsys, monkeypatch):
    monkeypatch.setattr(InvertedPendulumTermination, "compute", lambda self, obs, action, next_obs: next_obs[:, 0] > 99)
    agent = learned("InvertedPendulum-v5", learning_starts=60, verbose=1)
    first = agent.world_model
    agent.learn(65, log_interval=10**6)
    said = capsys.readouterr().out
    assert "termination_fn disagrees with" in said
    assert "it is learned instead" in said
    assert agent.world_model is not first
    assert agent.parts.known.termination_fn is None
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
    assert loaded.parts.known.termination_fn == agent.parts.known.termination_fn
    assert not loaded.world_model.heads.learn_termination


def test_an_environment_in_another_process_that_cannot_be_made_here():
    """An environment whose specification has no entry point: it runs, and nothing about it is known."""
    env = SubprocVecEnv([partial(BitFlippingEnv, continuous=True)])
    try:
        agent = MBPO("MultiInputPolicy", env, buffer_size=10, device="cpu")
        assert agent.world_model.termination_fn is None
    finally:
        env.close()


@pytest.mark.parametrize(
    ("functions", "words"),
    [
        ({"reward_fn": lambda obs, action, next_obs: obs[:, 0].to(th.complex64)}, "reward_fn must return real numbers"),
        ({"termination_fn": lambda obs, action, next_obs: 0.5 * th.ones(len(obs))}, "must return booleans, and returned 0.5"),
    ],
    ids=["complex", "probability"],
)
def test_results_of_the_wrong_type_are_refused_at_construction(functions, words):
    with pytest.raises(ValueError, match=words):
        learned(**functions)


def test_a_function_of_other_arguments_is_refused_at_construction():
    with pytest.raises(TypeError, match="3 were given") as caught:
        learned(reward_fn=lambda obs, action: obs[:, 0])
    assert "reward_fn=None learns it instead" in caught.value.__notes__[0]


def test_trying_functions_touches_no_random_stream():
    spaces_ = gym.spaces.Box(-1, 1, (3,)), gym.spaces.Box(-1, 1, (1,))
    for space in spaces_:
        space.seed(0)
    before = th.get_rng_state(), np.random.get_state()[1].copy(), [space.np_random.bit_generator.state for space in spaces_]
    drawn = EnvFunctions(termination_fn=lambda obs, action, next_obs: th.rand(len(obs)) * np.random.rand() < 0)
    try_functions(drawn, *spaces_)
    assert th.equal(before[0], th.get_rng_state())
    assert np.array_equal(before[1], np.random.get_state()[1])
    assert before[2] == [space.np_random.bit_generator.state for space in spaces_]
