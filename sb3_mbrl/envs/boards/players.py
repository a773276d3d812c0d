"""Players of board games: random, perfect, alpha-beta, and agents."""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from os import PathLike
from typing import Any

import numpy as np

from sb3_mbrl.checks import whole
from sb3_mbrl.envs.boards.alpha_beta import alpha_beta
from sb3_mbrl.envs.boards.base import BoardEnv, TwoPlayerEnv
from sb3_mbrl.envs.boards.minimax import best_moves
from sb3_mbrl.rng import streams_kept


class Player(ABC):
    """
    A player of games. It chooses the moves of many games at a time, since agents are much faster in batches.

    :param name: its name, in results and logs
    """

    def __init__(self, name: str) -> None:
        self.name = name

    @abstractmethod
    def choose(self, tables: Sequence[TwoPlayerEnv]) -> Sequence[int]:
        """
        Choose a move in every game, for the player whose turn it is there.

        :param tables: the games, none of which is over; they are only read
        :return: one move for each
        """

    def seed(self, seed: int | None) -> None:  # noqa: B027 (most draw no random numbers)
        """Restart the player's random choices."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r})"


class RandomPlayer(Player):
    """
    A player whose moves are random legal ones, all equally probable.

    :param seed: the seed of its moves
    """

    def __init__(self, seed: int | None = None, name: str = "random") -> None:
        super().__init__(name)
        self.seed(seed)

    def seed(self, seed: int | None) -> None:
        self._rng = np.random.default_rng(seed)

    def choose(self, tables: Sequence[TwoPlayerEnv]) -> list[int]:
        return [int(self._rng.choice(np.flatnonzero(table.action_masks()))) for table in tables]


class PerfectPlayer(Player):
    """
    A player without mistakes, for games whose whole tree can be searched (TicTacToe): every move keeps the minimax value. Of
    several such moves it plays a random one.

    :param seed: the seed of these choices
    """

    def __init__(self, seed: int | None = None, name: str = "perfect") -> None:
        super().__init__(name)
        self.seed(seed)

    def seed(self, seed: int | None) -> None:
        self._rng = np.random.default_rng(seed)

    def choose(self, tables: Sequence[TwoPlayerEnv]) -> list[int]:
        return [int(self._rng.choice(best_moves(table.game, table.position))) for table in _boards(self, tables)]


class AlphaBetaPlayer(Player):
    """
    A player that searches a number of plies; its estimate of what follows is
    :func:`~sb3_mbrl.envs.boards.alpha_beta.heuristic`. It draws no random numbers.

    :param depth: the number of plies
    """

    def __init__(self, depth: int = 4, name: str | None = None) -> None:
        self.depth = whole("depth", depth, 1)
        super().__init__(name or f"alpha_beta_{self.depth}")

    def choose(self, tables: Sequence[TwoPlayerEnv]) -> list[int]:
        return [alpha_beta(table.game, table.position, self.depth)[0] for table in _boards(self, tables)]


class AgentPlayer(Player):
    """
    A player whose moves are an agent's: any object with SB3's ``predict``. Masks are given to agents whose ``predict`` has an
    argument ``action_masks``, and to those of sb3-mbrl that plan; others may make illegal moves, and lose by them. Recurrent
    states are not kept between moves.

    :param agent: the agent
    :param deterministic: whether it plays its best move, not a sample
    :param observation: converts an observation of the game to one of the agent's, where it was trained with wrappers that
        change observations
    :param options: further arguments of ``predict``, e.g. ``num_simulations=50``
    """

    def __init__(
        self,
        agent: Any,
        name: str = "agent",
        *,
        deterministic: bool = True,
        observation: Callable[[Any], Any] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(name)
        self.agent, self.deterministic, self.observation, self.options = agent, deterministic, observation, options
        # predict() of an agent that plans hands its **kwargs to the planner; without one, SB3's predict() refuses them.
        plans = getattr(agent, "acting", None) is not None
        self.takes_masks = plans or "action_masks" in inspect.signature(agent.predict).parameters
        """Whether the agent is given which moves are legal"""

    @classmethod
    def load(cls, algorithm: Any, path: str | PathLike[str], name: str | None = None, **kwargs: Any) -> "AgentPlayer":
        """
        Make a player of a saved agent, e.g. an earlier checkpoint. The global random streams stay as they are.

        :param algorithm: the class of the agent, whose ``load`` is called
        :param path: the file
        :param name: the player's name (default: the path)
        :param kwargs: the other arguments of the player
        """
        with streams_kept():
            return cls(algorithm.load(path), name or str(path), **kwargs)

    @staticmethod
    def batch(observations: Sequence[Any]) -> Any:
        """Stack observations, also dictionaries of arrays, along a new first axis."""
        if isinstance(observations[0], dict):
            return {key: np.stack([one[key] for one in observations]) for key in observations[0]}
        return np.stack(observations)

    def choose(self, tables: Sequence[TwoPlayerEnv]) -> list[int]:
        """
        Ask the agent for all moves at once.

        :raises ValueError: for an agent that was not trained on this game
        """
        for name in ("action_space", "observation_space"):
            own, given = getattr(self.agent, name, None), getattr(tables[0], name)
            if own is not None and own != given and not (name == "observation_space" and self.observation is not None):
                raise ValueError(
                    f"{self.name}: the agent's {name} is {own}, the game's is {given}; it was not trained on this game. "
                    "Where wrappers change the observations, give AgentPlayer(..., observation=FUNCTION)."
                )
        seen = [table.observe() if self.observation is None else self.observation(table.observe()) for table in tables]
        masks = {"action_masks": np.stack([table.action_masks() for table in tables])} if self.takes_masks else {}
        actions, _ = self.agent.predict(self.batch(seen), deterministic=self.deterministic, **masks, **self.options)
        moves = np.asarray(actions).reshape(-1).tolist()
        if len(moves) != len(tables):
            raise ValueError(f"{self.name}: predict() returned {len(moves)} actions for {len(tables)} observations")
        return [int(move) for move in moves]


def _boards(player: Player, tables: Sequence[TwoPlayerEnv]) -> list[BoardEnv]:
    """:raises TypeError: for games whose rules the player does not know"""
    boards = []
    for table in tables:
        if not isinstance(table, BoardEnv):
            raise TypeError(f"{player} reads the positions of a BoardEnv, and does not know the rules of {table}")
        boards.append(table)
    return boards
