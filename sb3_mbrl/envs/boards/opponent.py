"""A game of two as an environment for one player, whose opponent is given."""

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np

from sb3_mbrl.envs.boards.base import TwoPlayerEnv
from sb3_mbrl.envs.boards.players import Player


class Opponent(gym.Wrapper):
    """
    A wrapper that plays one side of a game, so that any algorithm (PPO, MaskablePPO, DQN) learns to play the other one. A step
    is the agent's move and the opponent's reply; its reward is the agent's minus the opponent's: 1 for a win, -1 for a loss.
    Observations are those of the agent's turn; only the last one of a game that ends by the agent's own move is the
    opponent's.

    ``info["seat"]`` is the player that the agent is in this episode.

    :param env: an environment of two players
    :param player: the opponent; of several, a random one plays each episode
    :param seat: the agent's player: 0 begins, 1 replies, ``None``: a random one in every episode
    """

    turns = 1
    """The number of players who move in turn, for whom the agent decides"""

    def __init__(self, env: gym.Env, player: Player | Sequence[Player], seat: int | None = None) -> None:
        super().__init__(env)
        if not isinstance(env.unwrapped, TwoPlayerEnv):
            raise TypeError(f"Opponent needs a game of two players (a TwoPlayerEnv), not {env}")
        if env.get_wrapper_attr("turns") != 2:
            raise ValueError(f"{env} has an opponent already")
        self.opponents = [player] if isinstance(player, Player) else list(player)
        if not self.opponents or not all(isinstance(one, Player) for one in self.opponents):
            raise TypeError(f"player={player!r}: give a Player, or several")
        if seat not in (0, 1, None):
            raise ValueError(f"seat={seat!r}: give 0 (begins), 1 (replies) or None (random)")
        self.seat, self._seat, self._playing = seat, 0, self.opponents[0]

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin a game, with the opponent's first move where it begins."""
        obs, info = self.env.reset(seed=seed, options=options)
        if seed is not None:
            for number, player in enumerate(self.opponents):
                player.seed(seed + number)
        self._playing = self.opponents[int(self.np_random.integers(len(self.opponents)))]
        self._seat = int(self.np_random.integers(2)) if self.seat is None else self.seat
        if self._table.to_move != self._seat:
            obs, _, terminated, truncated, info = self._reply()
            if terminated or truncated:
                raise ValueError(f"{self.env}: the game is over after the opponent's first move")
        return obs, {**info, "seat": self._seat}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Play the agent's move and, unless the game is over, the opponent's reply."""
        obs, reward, terminated, truncated, info = self.env.step(action)
        total = float(reward)
        if not (terminated or truncated):
            obs, reply_reward, terminated, truncated, info = self._reply()
            total -= float(reply_reward)
        return obs, total, terminated, truncated, {**info, "seat": self._seat}

    def action_masks(self) -> np.ndarray:
        """Return which moves are legal, ``(n_actions,)`` booleans."""
        return self._table.action_masks()

    @property
    def _table(self) -> TwoPlayerEnv:
        return self.env.unwrapped  # type: ignore[return-value]

    def _reply(self) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        (move,) = self._playing.choose([self._table])
        return self.env.step(move)
