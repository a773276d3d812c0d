"""
Truncation is not termination, anywhere: models learn ``done * (1 - timeout)``, and the value of the state after a time limit
counts, while that of a terminal state is 0.
"""

import itertools

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import DQN, HerReplayBuffer
from stable_baselines3.common.buffers import NStepReplayBuffer, ReplayBuffer
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.envs import BitFlippingEnv
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_mbrl import Dyna, DynaQ, ModelVecEnv
from sb3_mbrl.algorithms.dreamer.losses import replayed_returns
from sb3_mbrl.buffers import ImaginedBuffer, MixedSampler, ReplayData
from sb3_mbrl.buffers.her import towards_goals
from sb3_mbrl.contracts import Imagined, LearnerView, Prediction, WorldModel
from sb3_mbrl.fitting import fit_world_model
from sb3_mbrl.imagination import BranchedRollouts
from sb3_mbrl.imagination.value_expansion import ValueExpansion
from sb3_mbrl.models.rssm import RSSM
from sb3_mbrl.models.tabular import TabularModel
from sb3_mbrl.planners.rollout import evaluate
from sb3_mbrl.returns import multi_step
from sb3_mbrl.testing import LinearToy
from sb3_mbrl.timesteps import to_timesteps
from tests.buffers.filled import ACT, OBS, filled, windows
from tests.helpers.agents import Counter, tiny
from tests.helpers.dreamers import MODEL
from tests.helpers.dreamers import small as small_dreamer

GAMMA, VALUE, EPISODE = 0.9, 100.0, 7


class OneStep(gym.Env):
    """An environment whose every step pays 1 and ends the episode, by a time limit or in a terminal state."""

    observation_space, action_space = spaces.Discrete(1), spaces.Discrete(2)

    def __init__(self, terminates: bool, vector: bool = False) -> None:
        self.terminates = terminates
        if vector:
            self.observation_space = spaces.Box(-1, 1, (1,))

    def _obs(self):
        return np.zeros(1, np.float32) if isinstance(self.observation_space, spaces.Box) else 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self._obs(), {}

    def step(self, action):
        return self._obs(), 1.0, self.terminates, not self.terminates, {}


def ends_of(steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Tell which steps of :func:`filled` end an episode, and which of these in a terminal state: every second episode."""
    time = np.arange(steps)
    last = time % EPISODE == EPISODE - 1
    return last, last & (time // EPISODE % 2 == 0)


# ------------------------------------------------------------------------------------------------------------ the replay view


@pytest.mark.parametrize("n_envs", [1, 3])
@pytest.mark.parametrize(("cls", "kwargs"), [(ReplayBuffer, {}), (NStepReplayBuffer, {"n_steps": 3})])
def test_models_see_terminations_of_real_rows_alone(cls, kwargs, n_envs):
    rows = ReplayData(filled(28, n_envs=n_envs, cls=cls, **kwargs)).transitions()
    _, terminal = ends_of(28)
    assert rows.terminated.view(28, n_envs).tolist() == [[float(end)] * n_envs for end in terminal]


def test_windows_end_with_an_episode_and_say_how():
    data = ReplayData(filled(28))
    last, terminal = ends_of(28)
    window = data.windows(np.arange(28)[None], np.zeros((1, 28), int))
    assert window.is_last[0].tolist() == last.tolist()
    assert window.terminated[0].tolist() == terminal.astype(float).tolist()
    assert window.is_first[0, 1:].tolist() == last[:-1].tolist()
    assert (window.next_obs[window.is_last] == window.obs[window.is_last] + 1).all(), (
        "the terminal observation, not the reset's"
    )


def test_where_the_last_observation_is_lost_the_row_is_left_out():
    """With ``optimize_memory_usage`` SB3 cannot tell time limits either, so no row claims a termination."""
    data = ReplayData(filled(28, optimize_memory_usage=True, handle_timeout_termination=False))
    rows = data.transitions()
    assert len(rows.obs) == 28 - 4
    assert not rows.terminated.any()


@pytest.mark.parametrize("normalise", [False, True])
def test_rows_of_a_run_behind_a_time_limit(normalise):
    """The wrappers of SB3 and Gymnasium between the environment and the buffer."""
    env = DummyVecEnv([lambda: gym.wrappers.TimeLimit(Counter(), 5)] * 3)
    agent = tiny(VecNormalize(env) if normalise else env, world_model="mlp", learning_starts=1_000).learn(60)
    rows = agent.model_data.transitions()
    assert int(agent.replay_buffer.dones.sum()) == 60 // 5
    assert not rows.terminated.any()
    assert rows.next_obs.max() == 5, "the observation after the last step of an episode"


# ------------------------------------------------------------------------------------------------------------------- learning


@pytest.mark.parametrize("terminates", [False, True])
def test_a_model_learns_terminations_alone(terminates):
    """Counted, so exact: the step from 1 to 2 ends every episode."""
    space, actions = spaces.Discrete(3), spaces.Discrete(2)
    buffer = ReplayBuffer(40, space, actions, device="cpu")
    for t in range(40):
        infos = [{"TimeLimit.truncated": bool(t % 2) and not terminates}]
        buffer.add(*(np.array([value]) for value in (t % 2, t % 2 + 1, 0, 1.0, bool(t % 2))), infos)
    model = TabularModel(space, actions, device="cpu")
    fit_world_model(model, ReplayData(buffer))
    prediction = model.step(model.initial(th.tensor([[0], [1]])), th.zeros(2, 1, dtype=th.long))
    assert prediction.terminated.tolist() == [0.0, float(terminates)]


# --------------------------------------------------------------------------------------------------------------- imagination


def edge(obs, action, next_obs):
    return next_obs[:, 0] > 1.5


def test_the_horizon_of_a_rollout_is_no_termination():
    """Without noise a state of 1 grows to 2 under an action of 1 (x' = x + a), and one of -1 to 0; the edge is at 1.5."""
    model = LinearToy(spaces.Box(-9, 9, (1,)), spaces.Box(-1, 1, (1,)), decay=1.0, termination_fn=edge, device="cpu")
    rollout = BranchedRollouts(horizon=2).imagine(model, th.tensor([[1.0], [-1.0]]), lambda obs: th.ones(2, 1), 2)
    assert rollout.valid.tolist() == [[True, True], [False, True]]
    assert rollout.terminated.tolist() == [[1.0, 0.0], [0.0, 0.0]]
    store = ImaginedBuffer(10)
    store.extend(rollout, 0)
    batch = store.sample(50, filled(7))
    assert set(zip(batch.next_observations[:, 0].tolist(), batch.dones[:, 0].tolist(), strict=True)) == {
        (2.0, 1.0),
        (0.0, 0.0),
        (1.0, 0.0),
    }


def targets(batch, gamma: float = GAMMA) -> th.Tensor:
    """Compute the targets of SB3's algorithms where the value of every next state is 100."""
    discount = gamma if batch.discounts is None else batch.discounts
    return (batch.rewards + (1 - batch.dones) * discount * VALUE).flatten()


def steps(ended: bool, length: int) -> Imagined:
    """Make a rollout of ``length`` steps with rewards 0, 1, 2, ... that terminates at the last one if ``ended``."""
    time = th.arange(float(length))[:, None]
    terminated = th.zeros(length, 1)
    terminated[-1] = float(ended)
    return Imagined(time[..., None], time[..., None], time[..., None] + 1, time, terminated, None, time >= 0)


@pytest.mark.parametrize("ended", [False, True])
def test_a_mixed_batch_bootstraps_through_time_limits_only(ended):
    """Real rows of one step cut by a time limit, imagined ones that terminate, and the other way round."""
    real = ReplayBuffer(8, OBS, ACT, device="cpu")
    for _ in range(8):
        real.add(*(np.array([value]) for value in ([0.0], [1.0], [0.5], 3.0, True)), [{"TimeLimit.truncated": ended}])
    imagined = ImaginedBuffer(10)
    imagined.extend(steps(ended, 1), 0)
    got = targets(MixedSampler(real, imagined, 0.5, GAMMA).sample(8))
    bootstrapped = GAMMA * VALUE
    wanted = [3.0 + bootstrapped, 0.0] if ended else [3.0, 0.0 + bootstrapped]
    th.testing.assert_close(got, th.tensor(wanted).repeat_interleave(4))


@pytest.mark.parametrize(("real_ends", "model_ends"), [*itertools.product([False, True], repeat=2)])
def test_the_loss_of_dqn_has_the_targets_of_both_kinds_of_rows(real_ends, model_ends):
    """
    Through all layers: environment, buffer, model, imagination, mixed batch, SB3's own ``train``. The network says 0 and its
    target 100, so DQN's Huber loss is the mean target minus 0.5.
    """

    class Paying(WorldModel):
        fitted = True

        def initial(self, obs, snapshot=None):
            return obs

        def step(self, state, action, *, deterministic=False, generator=None):
            return Prediction(state, th.ones(len(state)), th.full((len(state),), float(model_ends)))

        def decode(self, state):
            return state

    env = OneStep(real_ends, vector=True)
    agent = Dyna(
        "MlpPolicy",
        env,
        world_model=Paying(env.observation_space, env.action_space, device="cpu"),
        gamma=GAMMA,
        learning_starts=20,
        buffer_size=100,
        imagination_kwargs={"freq": 10, "starts_per_step": 2, "max_age": 50},
        device="cpu",
        seed=0,
    ).learn(40)
    with th.no_grad():
        for network, value in ((agent.q_net, 0.0), (agent.q_net_target, VALUE)):
            for parameter in network.parameters():
                parameter.zero_()
            network.q_net[-1].bias.fill_(value)
    agent.train(1, 16)
    real, imagined = (1.0 + (0.0 if ended else GAMMA * VALUE) for ended in (real_ends, model_ends))
    assert len(agent.imagined) > 0
    assert agent.logger.name_to_value["train/loss"] == pytest.approx((real + imagined) / 2 - 0.5, rel=1e-5)


# -------------------------------------------------------------------------------------------------------------- several steps


def n_step_target(step: int, length: int, ended: bool, reward: float, n: int = 3) -> float:
    """Compute the target of a step with the rewards ``reward``, ``reward + 1``, ... in an episode of ``length`` steps."""
    joined = min(n, length - step)
    total = sum(GAMMA**i * (reward + i) for i in range(joined))
    return total + (0.0 if ended and step + joined == length else GAMMA**joined * VALUE)


def test_real_returns_of_several_steps_stop_at_either_end_and_bootstrap_after_a_time_limit():
    """Rewards are times, which tell the row: at a reset the time jumps by 10."""
    buffer = filled(28, cls=NStepReplayBuffer, n_steps=3, gamma=GAMMA)
    rewards = buffer.rewards[:28, 0]
    wanted = {float(rewards[t]): n_step_target(t % 7, 7, t // 7 % 2 == 0, float(rewards[t])) for t in range(28)}
    batch = MixedSampler(buffer, ImaginedBuffer(1), 1.0, GAMMA).sample(300)
    got = dict(zip(batch.observations[:, 0].tolist(), targets(batch).tolist(), strict=True))
    assert set(got) == set(wanted)
    assert got == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("ended", [False, True])
def test_imagined_returns_of_several_steps_are_those_of_real_ones(ended):
    imagined = ImaginedBuffer(10)
    imagined.extend(multi_step(steps(ended, 5), 3, GAMMA), 0)
    batch = MixedSampler(filled(28, cls=NStepReplayBuffer, n_steps=3, gamma=GAMMA), imagined, 0.0, GAMMA).sample(200)
    got = dict(zip(batch.observations[:, 0].tolist(), targets(batch).tolist(), strict=True))
    assert got == pytest.approx({float(t): n_step_target(t, 5, ended, t) for t in range(5)}, rel=1e-5)


@pytest.mark.parametrize("truncated", [False, True])
def test_value_expansion_continues_after_a_time_limit(truncated):
    """A real reward of 3; the model pays the next state 0.5 and then bootstraps."""
    real = ReplayBuffer(8, OBS, ACT, device="cpu")
    for _ in range(8):
        real.add(*(np.array([value]) for value in ([0.0], [1.0], [0.5], 3.0, True)), [{"TimeLimit.truncated": truncated}])
    model = LinearToy(OBS, ACT, decay=0.5, device="cpu")
    view = LearnerView(model, lambda obs: th.zeros(len(obs), 1), GAMMA, 0.5, th.Generator(), lambda: None)
    got = targets(ValueExpansion(1).sampler(view, real).sample(4))
    wanted = 3.0 + GAMMA * (0.5 + GAMMA * VALUE) if truncated else 3.0
    th.testing.assert_close(got, th.full((4,), wanted))


# ------------------------------------------------------------------------------------------------------------------------ HER


def test_hindsight_keeps_the_real_terminations():
    """Four bits are to become ones: that terminates; a limit of four steps truncates. Relabelled goals change neither."""
    env = make_vec_env(lambda: BitFlippingEnv(n_bits=4, continuous=False, max_steps=4), 2, seed=0)
    agent = DQN("MultiInputPolicy", env, replay_buffer_class=HerReplayBuffer, learning_starts=500, seed=0, device="cpu")
    agent.learn(400)
    buffer = agent.replay_buffer
    assert buffer.timeouts.sum() > 0
    rows = ReplayData(buffer).transitions()
    reached = (rows.next_obs["achieved_goal"] == 1).all(1)
    assert 0 < int(reached.sum()) < int(buffer.dones.sum())
    assert th.equal(rows.terminated > 0, reached)
    batch = buffer.sample(500)
    assert (batch.observations["desired_goal"] != 1).any(), "some goals are relabelled"
    assert th.equal(batch.dones[:, 0] > 0, (batch.next_observations["achieved_goal"] == 1).all(1))

    # Imagined rows towards relabelled goals keep what the model predicted.
    generator = th.Generator().manual_seed(0)
    obs, next_obs = (
        {key: th.randint(2, (2, 5, 4), generator=generator, dtype=th.int8) for key in buffer.observations} for _ in range(2)
    )
    terminated = (th.rand(2, 5, generator=generator) > 0.5).float()
    imagined = Imagined(obs, th.zeros(2, 5, 1), next_obs, th.zeros(2, 5), terminated, None, th.ones(2, 5, dtype=th.bool))
    assert th.equal(towards_goals(imagined, buffer).terminated, terminated)


# ---------------------------------------------------------------------------------------------------------------- DreamerV3


def test_timesteps_end_with_an_episode_and_say_how():
    """Steps 1 and 3 end episodes, the first one by a time limit; each end takes a row of its own."""
    rows, _ = to_timesteps(windows([0, 1, 0, 1, 0, 0], [0, 0, 0, 1, 0, 0]))
    assert rows.is_last[0].tolist() == [False, False, True, False, False, True]
    assert rows.terminated[0].tolist() == [0, 0, 0, 0, 0, 1]
    assert rows.obs[0, :, 0].tolist() == [0, 10, 11, 20, 30, 31]


@pytest.mark.parametrize("terminates", [False, True])
def test_a_dreamer_learns_to_continue_after_a_time_limit(terminates):
    """
    The head says ``b`` for every state. Its cross-entropy is ``softplus(b) - b gamma`` where the model is to continue, also
    after a time limit, and ``softplus(b)`` in a terminal state.
    """
    bias = 2.0
    model = RSSM(OBS, ACT, gamma=GAMMA, size="tiny", device="cpu", **MODEL)
    with th.no_grad():
        model.continue_head.out.weight.zero_()
        model.continue_head.out.bias.fill_(bias)
    rows, _ = to_timesteps(windows([0, 1, 0, 0], [0, float(terminates), 0, 0]))
    loss = model.loss(rows, generator=th.Generator().manual_seed(0)).rows["continue"][0]
    softplus = float(np.log1p(np.exp(bias)))
    wanted = [softplus - bias * GAMMA] * 4
    wanted[2] = softplus if terminates else wanted[2]
    assert loss.tolist() == pytest.approx(wanted, rel=1e-5)


def test_a_dreamers_real_returns_end_with_the_value_after_a_time_limit():
    """The reward of arriving in the last state is 1, and imagination says 100 of it."""
    reward, boot = th.tensor([[0.0, 1.0, 5.0]]), th.full((1, 3), VALUE)
    ends = th.tensor([[False, True, False]])
    returns = {
        kind: float(replayed_returns(reward, ends.float() * (kind == "terminated"), ends, boot, GAMMA, 0.95)[0, 0])
        for kind in ("truncated", "terminated")
    }
    assert returns == pytest.approx({"truncated": 1 + GAMMA * VALUE, "terminated": 1.0})


@pytest.mark.parametrize("terminates", [False, True])
def test_a_dreamers_sequences_come_from_the_buffer_with_both_kinds_of_ends(terminates):
    agent = small_dreamer(OneStep(terminates), learning_starts=1_000).learn(30)
    rows = agent.sequences.sample(20, generator=th.Generator().manual_seed(0)).rows
    assert rows.is_last.any()
    assert th.equal(rows.terminated > 0, rows.is_last & terminates)


# -------------------------------------------------------------------------------------------------------------------- tables


@pytest.mark.parametrize("planning", ["dyna_q", "value_iteration", "prioritized_sweeping"])
@pytest.mark.parametrize("terminates", [False, True])
def test_a_table_bootstraps_through_time_limits_only(terminates, planning):
    """One state that pays 1 a step: 1 / (1 - gamma) where only time is up, 1 where the episode is over."""
    agent = DynaQ(
        "QTablePolicy", OneStep(terminates), 0.5, GAMMA, 20, exploration_rate=0.5, planning=planning, theta=1e-6, seed=0
    ).learn(300)
    wanted = 1.0 if terminates else 1 / (1 - GAMMA)
    np.testing.assert_allclose(agent.policy.q_values, [[wanted, wanted]], rtol=1e-3)
    tables = agent.world_model.tables
    assert tables.terminal[: tables.sizes[0]].tolist() == [int(terminates)] * int(tables.sizes[0])


def test_one_update_of_q_learning():
    """Q is 10 before: r + gamma 10 = 10 after a time limit; half way from 10 to 1 in a terminal state."""
    got = {}
    for terminates in (False, True):
        agent = DynaQ("QTablePolicy", OneStep(terminates), 0.5, GAMMA, world_model=None, policy_kwargs={"initial_value": 10.0})
        got[terminates] = float(agent.learn(1).policy.q_values.min())
    assert got == pytest.approx({False: 10.0, True: 5.5})


# -------------------------------------------------------------------------------------------------- planning, ModelVecEnv


def test_a_plan_counts_the_value_at_its_horizon_and_none_after_a_termination():
    """Two steps of reward 1, then a value of 100."""

    class Ending(LinearToy):
        def step(self, state, action, **kwargs):
            following, ended = state + 1, (state[:, 0] >= 1.0).float() * self.noise
            return Prediction(following, th.ones(len(state)), ended)

    got = {}
    for ends in (0.0, 1.0):
        model = Ending(OBS, ACT, noise=ends, device="cpu")
        state, value = th.zeros(1, 1), lambda state: th.full((len(state),), VALUE)
        got[ends] = float(evaluate(model, state, th.zeros(1, 1, 2, 1), gamma=GAMMA, value=value).returns)
    assert got == pytest.approx({0.0: 1 + GAMMA + GAMMA**2 * VALUE, 1.0: 1 + GAMMA}, rel=1e-5)


def test_a_model_as_an_environment_says_which_ends_are_time_limits():
    model = LinearToy(OBS, ACT, decay=1.0, termination_fn=edge, device="cpu")
    env = ModelVecEnv(model, np.array([[0.0], [1.0]], np.float32), n_envs=40, horizon=1, seed=0)
    starts = env.reset()[:, 0]
    _, _, dones, infos = env.step(np.ones((40, 1), np.float32))
    assert dones.all()
    assert [info["TimeLimit.truncated"] for info in infos] == [start == 0.0 for start in starts]
    assert [info["terminal_observation"].item() for info in infos] == (starts + 1).tolist()
