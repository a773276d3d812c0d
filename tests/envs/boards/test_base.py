"""Board games as environments: whose turn it is, rewards, ends, refusals, snapshots."""

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium.utils.env_checker import check_env as gymnasium_check
from stable_baselines3.common.env_checker import check_env
from stable_baselines3.common.env_util import make_vec_env

import sb3_mbrl  # noqa: F401  (registers them)
from sb3_mbrl.envs.boards import TIC_TAC_TOE, BoardEnv, ConnectFour, LineGame, Position, TicTacToe
from sb3_mbrl.envs.snapshots import OwnSnapshots, snapshots_of
from sb3_mbrl.models.oracle import OracleModel

IDS = ["TicTacToe-v0", "ConnectFour-v0"]


@pytest.mark.parametrize("env_id", IDS)
@pytest.mark.filterwarnings("error")
def test_they_are_environments(env_id):
    gymnasium_check(gym.make(env_id, render_mode="ansi").unwrapped)
    check_env(gym.make(env_id).unwrapped, warn=False)  # SB3 warns about planes, which it takes for an image


def test_a_game_won_by_the_player_who_began():
    env = TicTacToe(render_mode="ansi")
    obs, info = env.reset()
    assert (obs.shape, obs.sum(), info, env.to_move, env.turns) == ((2, 3, 3), 0, {"player": 0}, 0, 2)
    for ply, move in enumerate((0, 3, 1, 4)):
        obs, reward, terminated, truncated, info = env.step(move)
        assert (reward, terminated, truncated, info) == (0.0, False, False, {"player": (ply + 1) % 2})
        assert env.to_move == (ply + 1) % 2
    assert obs[0].tolist() == [[1, 1, 0], [0, 0, 0], [0, 0, 0]], "the stones of the player to move come first"
    assert np.flatnonzero(env.action_masks()).tolist() == [2, 5, 6, 7, 8]
    obs, reward, terminated, truncated, info = env.step(np.int64(2))
    assert (reward, terminated, truncated, info) == (1.0, True, False, {"player": 1, "winner": 0})
    assert obs[1].tolist() == [[1, 1, 1], [0, 0, 0], [0, 0, 0]]
    assert not env.action_masks().any()
    assert env.render() == "X X X\nO O 5\n6 7 8"


def test_the_second_player_is_rewarded_for_its_own_win():
    env = ConnectFour()
    env.reset(options={"moves": [0, 6, 0, 6, 1, 6, 1]})
    assert env.to_move == 1
    _, reward, terminated, _, info = env.step(6)
    assert (reward, terminated, info["winner"]) == (1.0, True, 1)


def test_a_draw_has_no_winner():
    env = TicTacToe()
    env.reset(options={"moves": [0, 1, 2, 4, 3, 5, 7, 6]})
    _, reward, terminated, _, info = env.step(8)
    assert (reward, terminated, info["winner"]) == (0.0, True, None)


def test_an_illegal_move_loses():
    env = TicTacToe()
    env.reset(options={"moves": [4]})
    obs, reward, terminated, truncated, info = env.step(4)
    assert (reward, terminated, truncated) == (-1.0, True, False)
    assert info == {"player": 1, "winner": 0, "illegal": True}
    assert obs.sum() == 1, "the board is as before"
    assert not env.action_masks().any()
    with pytest.raises(gym.error.ResetNeeded, match="TicTacToe: the game is over"):
        env.step(0)
    env.reset()
    assert env.action_masks().all()


@pytest.mark.parametrize("action", [9, -1, 0.5, [0, 1], None, "4"])
def test_what_is_no_action_is_refused(action):
    env = TicTacToe()
    env.reset()
    with pytest.raises(ValueError, match="give a whole number from 0 to 8"):
        env.step(action)


@pytest.mark.parametrize(
    ("moves", "message"),
    [([4, 4], "move 2, 4, is not legal"), ([0, 3, 1, 4, 2], "over after these moves"), ([9], "from 0 to 8")],
)
def test_openings_that_cannot_be(moves, message):
    with pytest.raises(ValueError, match=message):
        TicTacToe().reset(options={"moves": moves})


def test_steps_after_the_end_are_refused():
    env = TicTacToe()
    env.reset(options={"moves": [0, 3, 1, 4]})
    env.step(2)
    with pytest.raises(gym.error.ResetNeeded, match="call reset"):
        env.step(8)


def test_boards_are_not_shown_in_windows():
    with pytest.raises(ValueError, match=r"drawn as text \('ansi'\) or as images"):
        ConnectFour(render_mode="human")


def test_an_image_shows_who_has_which_square():
    env = ConnectFour(render_mode="rgb_array")
    env.reset(options={"moves": [3, 3, 0]})
    image = env.render()
    assert (image.shape, image.dtype) == ((192, 224, 3), np.uint8)
    middles = image[16::32, 16::32]
    assert middles[5, 3].tolist() == middles[5, 0].tolist() == [220, 90, 60], "the player who began"
    assert middles[4, 3].tolist() == [240, 200, 60]
    assert middles[3, 3].tolist() == [235, 235, 235]
    assert image[0, 0].tolist() == [40, 70, 140]


@pytest.mark.parametrize("env_id", IDS)
def test_masks_reach_the_agent_through_wrappers_and_vec_envs(env_id):
    maskable = pytest.importorskip("sb3_contrib.common.maskable.utils")
    env = make_vec_env(env_id, n_envs=3)
    env.reset()
    assert maskable.is_masking_supported(env)
    assert maskable.get_action_masks(env).all()
    assert gym.make(env_id).get_wrapper_attr("turns") == 2


@pytest.mark.parametrize("env", [TicTacToe(), ConnectFour(), BoardEnv(LineGame(7, 8, 5))], ids=str)
def test_the_oracle_saves_and_restores_boards(env):
    """The same steps from restored states: observations, rewards, ends, and masks."""
    oracle = OracleModel(env.observation_space, env.action_space, env=env, device="cpu")
    assert isinstance(snapshots_of(env), OwnSnapshots)
    rng = np.random.default_rng(1)
    obs, _ = env.reset()
    state = oracle.initial(th.as_tensor(obs)[None], oracle.capture(env)[None])
    over = False
    while not over:
        action = rng.choice(np.flatnonzero(env.action_masks()))
        obs, reward, over, _, _ = env.step(action)
        prediction = oracle.step(state, th.tensor([[action]]))
        state = prediction.state
        assert np.array_equal(oracle.decode(state)[0].numpy(), obs)
        assert (float(prediction.reward), bool(prediction.terminated)) == (reward, over)
    assert oracle.capture(env).tolist() == state["snapshot"][0].tolist()


def test_a_forfeited_game_is_restored_as_such():
    env, other = TicTacToe(), TicTacToe()
    env.reset(options={"moves": [4]})
    env.step(4)
    other.reset()
    other.restore(env.snapshot())
    assert not other.action_masks().any()
    assert other.position == env.position


def test_bit_boards_of_64_bits_survive_a_snapshot():
    """A float64 holds 53 bits: a bit board takes two of them."""
    env = BoardEnv(LineGame(7, 8, 5))
    own, other = (int(env.game.squares[rows].sum()) for rows in (slice(0, None, 2), slice(1, None, 2)))
    env.set_position(Position(own, other))
    copy = BoardEnv(LineGame(7, 8, 5))
    copy.restore(env.snapshot())
    assert copy.position == (own, other)


def test_any_position_can_be_set():
    env = TicTacToe()
    env.set_position(TIC_TAC_TOE.play(Position(0, 0), 8))
    assert env.to_move == 1
    assert env.observe()[1, 2, 2] == 1
    assert env.describe(5) == "5: row 1, column 2"
    assert ConnectFour().describe(5) == "column 5"


@pytest.mark.parametrize("env", [TicTacToe(), ConnectFour(), BoardEnv(LineGame(7, 8, 5))], ids=["3x3", "6x7", "7x8"])
def test_many_steps_together_are_those_alone(env):
    """Legal moves and illegal ones, from positions of random games; snapshots are found in observations."""
    rng = np.random.default_rng(0)
    snapshots, actions = [], []
    for _ in range(60):
        env.reset()
        for _ in range(rng.integers(0, 12)):
            if not (legal := np.flatnonzero(env.action_masks())).size:
                env.reset()
                continue
            env.step(rng.choice(legal))
        if not env.action_masks().any():
            env.reset()
        snapshots.append(env.snapshot())
        actions.append(rng.integers(env.action_space.n))
        assert (env.snapshot_of(env.observe()) == snapshots[-1]).all()
    before = env.snapshot()
    new, obs, reward, terminated = env.step_many(np.stack(snapshots), np.array(actions))
    assert (env.snapshot() == before).all()
    masks = env.action_masks_many(new)
    for row, (snapshot, action) in enumerate(zip(snapshots, actions, strict=True)):
        env.restore(snapshot)
        assert (env.action_masks_many(snapshot[None])[0] == env.action_masks()).all()
        own_obs, own_reward, own_terminated, _, _ = env.step(action)
        assert (own_obs == obs[row]).all()
        assert (own_reward, own_terminated) == (reward[row], terminated[row])
        assert (env.snapshot() == new[row]).all()
        assert (env.action_masks() == masks[row]).all()
