"""Games of PettingZoo: mapped exactly, or refused."""

import copy

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from gymnasium.utils.env_checker import check_env

import sb3_mbrl  # noqa: F401  (registers PettingZoo-v0)
from sb3_mbrl.envs.boards import (
    ConnectFour,
    PlayerOrderError,
    RandomPlayer,
    TicTacToe,
    TwoPlayerAEC,
    play_games,
)
from sb3_mbrl.models.oracle import OracleModel
from tests.envs.boards.fake_aec import OneLeaves, Race

# ---- without PettingZoo


def test_a_game_is_mapped():
    env = TwoPlayerAEC(Race())
    assert env.observation_space == spaces.Box(0, 6, (1,), np.float32)
    obs, info = env.reset()
    assert (obs.tolist(), info, env.to_move) == ([0.0], {"player": 0}, 0)
    assert env.action_masks().tolist() == [False, True, True]
    for move, total in ((2, 2), (2, 4)):
        obs, reward, terminated, truncated, info = env.step(move)
        assert (obs.tolist(), reward, terminated, truncated) == ([total], 0.0, False, False)
    assert info == {"player": 0}
    assert env.action_masks().tolist() == [False, True, False]
    obs, reward, terminated, truncated, info = env.step(1)
    assert (reward, terminated, truncated, info) == (1.0, True, False, {"player": 1, "winner": 0})
    assert not env.action_masks().any()
    assert env.render() == "5"
    with pytest.raises(gym.error.ResetNeeded, match="the game is over"):
        env.step(1)


def test_the_reward_is_that_of_the_player_who_moved():
    """Also for a move by which the player who makes it loses."""
    env = TwoPlayerAEC(Race(rewards=(-3, 3)))
    env.reset()
    for move in (2, 2):
        env.step(move)
    _, reward, terminated, _, info = env.step(1)
    assert (reward, terminated, info["winner"]) == (-3.0, True, 1)


def test_an_illegal_move_does_not_reach_the_game():
    env = TwoPlayerAEC(Race())
    env.reset()
    _, reward, terminated, _, info = env.step(0)
    assert (reward, terminated, info) == (-1.0, True, {"player": 0, "winner": 1, "illegal": True})
    assert env.aec.moves == 0
    assert not env.action_masks().any()


def test_a_limit_of_moves_is_a_truncation():
    env = TwoPlayerAEC(Race(limit=2))
    env.reset()
    env.step(1)
    _, reward, terminated, truncated, info = env.step(1)
    assert (reward, terminated, truncated, info["winner"]) == (0.0, False, True, None)


def test_masks_in_infos_and_none_at_all():
    env = TwoPlayerAEC(Race(mask="in_info"))
    env.reset()
    assert env.action_masks().tolist() == [False, True, True]
    env = TwoPlayerAEC(Race(mask=None))
    env.reset()
    assert env.action_masks().all()


def test_the_second_player_may_begin():
    env = TwoPlayerAEC(Race(order=(1, 0)))
    _, info = env.reset()
    assert info == {"player": 1}
    assert env.step(1)[-1] == {"player": 0}


@pytest.mark.parametrize(("order", "in_turn"), [((0, 0, 1, 1), 0), ((0, 1, 1), 1)], ids=["at_once", "later"])
def test_an_order_of_players_that_cannot_be_mapped(order, in_turn):
    env = TwoPlayerAEC(Race(order=order))
    env.reset()
    for _ in range(in_turn):
        env.step(1)
    with pytest.raises(PlayerOrderError, match=r"after a move of ., . is to move\. Only games whose players move in turn"):
        env.step(1)


def test_players_who_do_not_end_together():
    env = TwoPlayerAEC(OneLeaves())
    env.reset()
    with pytest.raises(PlayerOrderError, match="both players must end together"):
        env.step(1)


@pytest.mark.parametrize("rewards", [(1, 1), (1, 0), (0, 1)])
def test_rewards_that_do_not_add_up_to_zero(rewards):
    env = TwoPlayerAEC(Race(rewards=rewards))
    env.reset()
    env.step(2)
    env.step(2)
    with pytest.raises(ValueError, match=r"do not add up to zero.*not cooperative ones"):
        env.step(1)


@pytest.mark.parametrize("names", [("a",), ("a", "b", "c")])
def test_other_numbers_of_players(names):
    with pytest.raises(PlayerOrderError, match=f"has {len(names)} players.*only games of two"):
        TwoPlayerAEC(Race(names))


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ({"b": spaces.Discrete(4)}, "the action_spaces of the players differ"),
        (dict.fromkeys("ab", spaces.Box(-1, 1)), "only Discrete spaces that start at 0"),
        (dict.fromkeys("ab", spaces.Discrete(3, start=1)), "only Discrete spaces that start at 0"),
    ],
)
def test_spaces_that_cannot_be_mapped(own, message):
    with pytest.raises(ValueError, match=message):
        TwoPlayerAEC(Race(spaces_by_player=own))


def test_games_are_made_by_modules_and_functions():
    module = "tests.envs.boards.fake_aec"
    env = gym.make("PettingZoo-v0", game=module, limit=2)
    assert env.unwrapped.aec.limit == 2
    assert TwoPlayerAEC(Race).aec.possible_agents == ["a", "b"]
    with pytest.raises(ImportError, match=r"no module 'no_such_games'.*pip install \"sb3-mbrl\[boards\]\""):
        TwoPlayerAEC("no_such_games.chess")
    with pytest.raises(ValueError, match="has no function env"):
        TwoPlayerAEC("tests.envs.boards.counting")
    with pytest.raises(ValueError, match="for games given as modules"):
        TwoPlayerAEC(Race(), limit=2)


def test_the_oracle_copies_the_state_of_a_game():
    env = TwoPlayerAEC(Race())
    oracle = OracleModel(env.observation_space, env.action_space, env=env, device="cpu")
    env.reset()
    obs = env.step(2)[0]
    state = oracle.initial(th.as_tensor(obs)[None], oracle.capture(env)[None])
    for move, reward, terminated in ((1, 0.0, False), (2, 1.0, True)):
        prediction = oracle.step(state, th.tensor([[move]]))
        state = prediction.state
        assert (float(prediction.reward), bool(prediction.terminated)) == (reward, terminated)
    assert env.aec.sum == 2, "the game itself is not touched"


# ---- with PettingZoo


GAMES = [("tictactoe_v3", TicTacToe), ("connect_four_v3", ConnectFour)]


def real(name):
    pytest.importorskip("pettingzoo")
    pytest.importorskip("pygame")
    return TwoPlayerAEC(f"pettingzoo.classic.{name}")


@pytest.mark.parametrize(("name", "ours"), GAMES)
@pytest.mark.filterwarnings("ignore")
def test_games_of_pettingzoo_are_ours(name, ours):
    """The same random games in both: masks, rewards, ends and stones."""
    theirs, ours = real(name), ours()
    # PettingZoo numbers the squares of TicTacToe column by column.
    number = (lambda move: move) if ours.game.drops else (lambda move: 3 * (move % 3) + move // 3)
    rng, ends = np.random.default_rng(0), set()
    for seed in range(30):
        theirs.reset(seed=seed)
        ours.reset()
        over = False
        while not over:
            assert theirs.action_masks().tolist() == [ours.action_masks()[number(m)] for m in range(theirs.action_space.n)]
            move = int(rng.choice(np.flatnonzero(theirs.action_masks())))
            obs, *rest = theirs.step(move)
            own_obs, *own_rest = ours.step(number(move))
            assert rest == own_rest
            planes = np.moveaxis(obs, -1, 0)
            assert np.array_equal(planes if ours.game.drops else planes.swapaxes(1, 2), own_obs)
            over = rest[1]
        ends.add(rest[-1]["winner"])
    assert {0, 1} <= ends


@pytest.mark.parametrize("name", [name for name, _ in GAMES])
def test_games_of_pettingzoo_are_environments(name):
    check_env(real(name), skip_render_check=True)


@pytest.mark.parametrize("name", [name for name, _ in GAMES])
def test_the_oracle_copies_games_of_pettingzoo(name):
    """Named after a fault: their own copies are new games without a move."""
    env = real(name)
    env.reset()
    env.step(3)
    assert copy.deepcopy(env).observe().tolist() == env.observe().tolist()
    oracle = OracleModel(env.observation_space, env.action_space, env=env, device="cpu")
    rng, over = np.random.default_rng(1), False
    state = oracle.initial(th.as_tensor(env.observe())[None], oracle.capture(env)[None])
    while not over:
        move = int(rng.choice(np.flatnonzero(env.action_masks())))
        obs, reward, over, *_ = env.step(move)
        prediction = oracle.step(state, th.tensor([[move]]))
        state = prediction.state
        assert np.array_equal(oracle.decode(state)[0].numpy(), obs)
        assert (float(prediction.reward), bool(prediction.terminated)) == (reward, over)


def test_random_players_play_games_of_pettingzoo():
    real("connect_four_v3")
    score = play_games(
        RandomPlayer(), RandomPlayer(), lambda: TwoPlayerAEC("pettingzoo.classic.connect_four_v3"), repeats=10, seed=0
    )
    assert (score.games, score.illegal) == (20, 0)


def test_games_that_are_not_for_two_in_turn_are_refused():
    pytest.importorskip("pettingzoo")
    from pettingzoo.utils.env import AECEnv

    class Three(AECEnv):
        possible_agents = ("a", "b", "c")

    with pytest.raises(PlayerOrderError, match="has 3 players"):
        TwoPlayerAEC(Three())
