"""The oracle repeats the real environment's next steps from any snapshot."""

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces, wrappers
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecNormalize

from sb3_mbrl.envs.snapshots import ClassicControlSnapshots, MujocoSnapshots, PickledSnapshots
from sb3_mbrl.models.oracle import OracleModel
from sb3_mbrl.trees import batch_size, finite_rows, tree_cat, tree_index, tree_repeat
from tests.models.oracles import advance, as_obs, oracle_of, scaled_actions, to_env

CLASSIC = ["Pendulum-v1", "CartPole-v1", "MountainCar-v0", "MountainCarContinuous-v0", "Acrobot-v1"]
MUJOCO = [
    "HalfCheetah-v5",
    "Hopper-v5",
    "Ant-v5",
    "Ant-v4",
    "Humanoid-v5",
    "Reacher-v4",
    "Pusher-v5",
    "InvertedDoublePendulum-v5",
]
TABULAR = ["FrozenLake-v1", "Taxi-v4", "CliffWalking-v1", "Blackjack-v1"]

pytestmark = pytest.mark.filterwarnings("ignore:.*out of date:DeprecationWarning")


def check_continuation(env: gym.Env, oracle: OracleModel, obs, n_steps: int = 50) -> int:
    """Step the oracle first and the environment afterwards, so that the oracle knows nothing but the snapshot."""
    actions = scaled_actions(env.action_space, n_steps, seed=99)
    state = oracle.initial(as_obs(env, obs), oracle.capture(env)[None])
    predictions = []
    for action in actions:
        predictions.append(oracle.step(state, action[None]))
        state = predictions[-1].state
    assert finite_rows(state).all()  # else callers would drop it
    for step, (action, prediction) in enumerate(zip(actions, predictions, strict=True), start=1):
        obs, reward, terminated, _, _ = env.step(to_env(env.action_space, action))
        assert th.equal(oracle.decode(prediction.state), as_obs(env, obs))
        assert prediction.reward.item() == np.float32(reward)
        assert prediction.terminated.item() == terminated
        if terminated:
            return step
    return n_steps


@pytest.mark.parametrize(
    ("env_ids", "kind"), [(CLASSIC, ClassicControlSnapshots), (MUJOCO, MujocoSnapshots), (TABULAR, PickledSnapshots)]
)
def test_rollout_is_the_real_continuation(env_ids, kind):
    if kind is MujocoSnapshots:
        pytest.importorskip("mujoco")
    for env_id in env_ids:
        env = gym.make(env_id)
        oracle = oracle_of(env)
        assert type(oracle._snapshots) is kind
        for seed, begun in ((1, 0), (2, 6), (3, 13)):
            check_continuation(env, oracle, advance(env, begun, seed))


def test_fifty_steps_are_fifty_steps():
    """The environments above whose episodes are long enough."""
    for env_id in ("Pendulum-v1", "HalfCheetah-v5"):
        if env_id == "HalfCheetah-v5":
            pytest.importorskip("mujoco")
        env = gym.make(env_id)
        assert check_continuation(env, oracle_of(env), advance(env, 20)) == 50


def test_ant_reward_uses_the_lagging_body_position():
    """Named regression: restored from qpos and qvel alone, Ant's x velocity is off by up to 15 in the first step."""
    pytest.importorskip("mujoco")
    env = gym.make("Ant-v5")
    oracle = oracle_of(env)
    obs = advance(env, 30)
    snapshot = oracle.capture(env)
    start = oracle.initial(as_obs(env, obs), snapshot[None])
    action = th.zeros(1, 8)
    expected = oracle.step(start, action).reward
    assert env.step(np.zeros(8, np.float32))[1] == pytest.approx(expected.item(), abs=1e-6)
    assert th.equal(oracle.step(start, action).reward, expected)
    broken = snapshot.clone()
    broken[-3 * env.unwrapped.model.nbody * 2 :] = 0.0  # xpos, xipos
    assert (oracle.step(oracle.initial(as_obs(env, obs), broken[None]), action).reward - expected).abs() > 1.0


def test_stochastic_environment_repeats_its_noise():
    """FrozenLake slips: its generator is in the snapshot, so a row slips the same way twice, and as the environment will."""
    env = gym.make("FrozenLake-v1", is_slippery=True)
    oracle = oracle_of(env)
    obs = advance(env, 2, seed=5)
    state = tree_repeat(oracle.initial(as_obs(env, obs), oracle.capture(env)[None]), 5)
    prediction = oracle.step(state, th.full((5, 1), 2))
    assert len(set(oracle.decode(prediction.state)[:, 0].tolist())) == 1
    assert check_continuation(env, oracle, obs, 20) >= 1


def test_noise_that_numbers_miss_is_found_out():
    """Acrobot with torque noise: its ``state`` is not its whole state, the pickled generator is."""
    env = gym.make("Acrobot-v1")
    env.unwrapped.torque_noise_max = 1.0
    oracle = oracle_of(env)
    assert type(oracle._snapshots) is PickledSnapshots
    assert check_continuation(env, oracle, advance(env, 7)) == 50


def test_batch_rows_are_independent_and_keep_their_order():
    env = gym.make("CartPole-v1")
    oracle = oracle_of(env)
    starts = []
    for seed in range(6):
        obs = advance(env, seed, seed)
        starts.append(oracle.initial(as_obs(env, obs), oracle.capture(env)[None]))
    batch, actions = tree_cat(starts), scaled_actions(env.action_space, 6, seed=4)
    together = oracle.step(batch, actions)
    order = th.tensor([4, 2, 0, 5, 1, 3])
    shuffled = oracle.step(tree_index(batch, order), actions[order])
    for row in range(6):
        alone = oracle.step(starts[row], actions[row : row + 1])
        for prediction in (tree_index(together.state, slice(row, row + 1)), alone.state):
            assert th.equal(prediction["snapshot"], alone.state["snapshot"])
            assert th.equal(prediction["obs"], alone.state["obs"])
    assert th.equal(shuffled.state["obs"], together.state["obs"][order])
    assert th.equal(shuffled.state["snapshot"], together.state["snapshot"][order])


def test_steps_leave_the_given_state_as_it_was():
    env = gym.make("Pendulum-v1")
    oracle = oracle_of(env)
    state = oracle.initial(as_obs(env, advance(env, 3)), oracle.capture(env)[None])
    before = {key: value.clone() for key, value in state.items()}
    first = oracle.step(state, th.ones(1, 1))
    assert all(th.equal(state[key], before[key]) for key in before)
    assert th.equal(oracle.step(state, th.ones(1, 1)).state["obs"], first.state["obs"])


def test_the_environment_is_copied_not_touched():
    env, twin = gym.make("CartPole-v1"), gym.make("CartPole-v1")
    advance(env, 3), advance(twin, 3)
    oracle = oracle_of(env)
    oracle.step(oracle.initial(th.zeros(1, 4), oracle.capture(env)[None]), th.ones(1, 1, dtype=th.long))
    assert np.array_equal(env.step(1)[0], twin.step(1)[0])
    assert env.get_wrapper_attr("_elapsed_steps") == 4


def test_changed_physics_are_copied():
    cart_pole = gym.make("CartPole-v1")
    cart_pole.unwrapped.gravity = 3.0
    check_continuation(cart_pole, oracle_of(cart_pole), advance(cart_pole, 2))
    pytest.importorskip("mujoco")
    hopper = gym.make("Hopper-v5")
    hopper.unwrapped.model.opt.gravity[2] = -3.0
    check_continuation(hopper, oracle_of(hopper), advance(hopper, 2))


def test_time_limit_and_monitor_are_not_part_of_it(tmp_path):
    """A rollout does not end with the time, and an open log file does not prevent the copy."""
    env = Monitor(wrappers.TimeLimit(gym.make("Pendulum-v1").unwrapped, 5), str(tmp_path / "log"))
    oracle = oracle_of(env)
    env.reset(seed=0)
    state = oracle.initial(th.zeros(1, 3), oracle.capture(env)[None])
    for _ in range(12):
        state = oracle.step(state, th.zeros(1, 1)).state
    assert not state["ended"].any()


def test_wrappers_that_change_the_task_are_respected():
    env = wrappers.TransformReward(gym.make("Pendulum-v1"), lambda reward: 3 * reward)
    env = wrappers.RescaleAction(env, np.float32(-5.0), np.float32(5.0))
    env = wrappers.TransformObservation(env, lambda obs: obs[:2], spaces.Box(-1, 1, (2,)))
    env = Monitor(env)
    assert check_continuation(env, oracle_of(env), advance(env, 4)) == 50


def test_stateful_wrapper_falls_back_to_pickling():
    """Frames of the past are not in the simulator's state."""
    env = wrappers.FrameStackObservation(gym.make("Pendulum-v1"), 3)
    env = wrappers.FlattenObservation(env)
    oracle = oracle_of(env)
    assert type(oracle._snapshots) is PickledSnapshots
    assert check_continuation(env, oracle, advance(env, 4)) == 50


class Lamp(gym.Env):
    """Counts to a goal drawn at reset, refuses steps after the end, refers to itself; may grow or hold anything."""

    observation_space = spaces.Dict({"count": spaces.Discrete(100), "goal": spaces.Box(0, 10, (1,), np.float64)})
    action_space = spaces.MultiDiscrete([3, 2])

    def __init__(self, grow: int = 0, **extra):
        self.myself, self.grow, self.done = self.read, grow, True
        vars(self).update(extra)

    def read(self):
        return {"count": np.int64(self.count), "goal": np.array([self.goal])}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.count, self.goal, self.memory, self.done = 0, float(self.np_random.integers(20, 40)), b"", False
        return self.myself(), {}

    def step(self, action):
        assert not self.done
        assert self.action_space.contains(action)
        self.count += int(action[0]) - int(action[1]) + 1
        self.memory += self.np_random.bytes(self.grow)
        self.done = self.count >= self.goal
        return self.myself(), self.goal - self.count, self.done, False, {}


def lamp_state(oracle: OracleModel, env: gym.Env):
    obs = env.unwrapped.read()
    return oracle.initial(
        {"count": th.tensor([[int(obs["count"])]]), "goal": th.as_tensor(obs["goal"]).float()[None]}, oracle.capture(env)[None]
    )


def test_any_picklable_environment_and_rows_after_the_end():
    """Dict observations, MultiDiscrete actions; a row that has terminated is not stepped again."""
    env = Lamp()
    env.reset(seed=3)
    oracle = oracle_of(env)
    state = tree_repeat(lamp_state(oracle, env), 2)
    actions, goal = th.tensor([[2, 0], [0, 0]]), env.goal
    for step in range(1, 20):
        prediction = oracle.step(state, actions)
        state = prediction.state
        was_over = 3 * (step - 1) >= goal
        assert prediction.terminated.tolist() == [float(3 * step >= goal), 0.0]
        assert prediction.reward.tolist() == [0.0 if was_over else goal - 3 * step, goal - step]
        assert oracle.decode(state)["count"][1].tolist() == [step]
    assert oracle.decode(state)["count"].dtype == th.int64
    assert oracle.decode(state)["goal"].dtype == th.float32
    assert env.count == 0
    assert batch_size(state) == 2
    assert oracle.features(state).shape == (2, 2)


def test_grown_state_is_refused_with_the_size_to_give():
    env = Lamp(grow=200)
    oracle = oracle_of(env)
    env.reset(seed=0)
    state = lamp_state(oracle, env)
    action = th.tensor([[0, 1]])

    def roll_out(state, n_steps=60):
        for _ in range(n_steps):
            state = oracle.step(state, action).state

    roll_out(state, 5)
    with pytest.raises(ValueError, match="max_snapshot_bytes="):
        roll_out(state)
    oracle = oracle_of(env, max_snapshot_bytes=20_000)
    assert oracle.snapshot_size == 20_000
    roll_out(lamp_state(oracle, env))


def test_environment_that_cannot_be_pickled_is_refused():
    with pytest.raises(ValueError, match="picklable attributes; use a learned world model"):
        OracleModel(Lamp.observation_space, Lamp.action_space, env=lambda: Lamp(handle=(n for n in range(3))))
    with pytest.raises(ValueError, match="cannot be copied"):
        oracle_of(Lamp(handle=(n for n in range(3))))


def test_environment_whose_state_is_elsewhere_is_refused():
    """State in a global: pickling works, restoring does not."""
    ticks = []

    class Clock(gym.Env):
        observation_space, action_space = spaces.Box(0, np.inf, (1,)), spaces.Discrete(2)

        def reset(self, *, seed=None, options=None):
            return np.zeros(1, np.float32), {}

        def step(self, action):
            ticks.append(action)
            return np.full(1, len(ticks), np.float32), 0.0, False, False, {}

    with pytest.raises(ValueError, match=r"after 1 steps from a restored state the observation is"):
        OracleModel(Clock.observation_space, Clock.action_space, env=Clock)


def test_capture_vec_through_wrappers():
    vec_env = VecNormalize(make_vec_env("Pendulum-v1", n_envs=3, seed=0))
    vec_env.reset()
    oracle = OracleModel(vec_env.observation_space, vec_env.action_space, env="Pendulum-v1", device="cpu")
    for _ in range(4):
        vec_env.step(np.zeros((3, 1)))
    snapshot = oracle.capture_vec(vec_env)
    assert snapshot.shape == (3, oracle.snapshot_size)
    assert snapshot.dtype == th.float64
    prediction = oracle.step(oracle.initial(th.as_tensor(vec_env.get_original_obs()), snapshot), th.ones(3, 1))
    vec_env.step(np.full((3, 1), 2.0))
    np.testing.assert_allclose(oracle.decode(prediction.state), vec_env.get_original_obs())
    np.testing.assert_allclose(prediction.reward, vec_env.get_original_reward(), rtol=1e-6)
