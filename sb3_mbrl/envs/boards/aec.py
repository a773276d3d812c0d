"""Games of PettingZoo as environments of two players. PettingZoo is an extra: ``pip install "sb3-mbrl[boards]"``."""

import importlib
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from sb3_mbrl.envs.boards.base import TwoPlayerEnv, whole_action


class PlayerOrderError(ValueError):
    """Raised when the players of a game do not move in turn, or do not end together."""


class TwoPlayerAEC(TwoPlayerEnv):
    """
    A game of PettingZoo (the AEC interface) as a :class:`~sb3_mbrl.envs.boards.TwoPlayerEnv`: for two players who move in
    turn, and whose rewards add up to zero at every step. ``gymnasium.make("PettingZoo-v0",
    game="pettingzoo.classic.chess_v6")`` makes one.

    Observations that are dictionaries with ``"observation"`` and ``"action_mask"``, as those of ``pettingzoo.classic``, are
    split: the agent sees the first, and :meth:`action_masks` returns the second. Other games may have the mask in
    ``infos[player]["action_mask"]``; without any, all moves count as legal. Player 0 is the first of ``possible_agents``,
    whoever begins.

    An illegal move ends the game with a reward of -1, without asking the game (see :class:`TwoPlayerEnv`).

    :param game: a game, a function that makes one, or the module of one, e.g. ``"pettingzoo.classic.connect_four_v3"``
    :param render_mode: the render mode of a game that is given as a module
    :param kwargs: further arguments of the module's ``env()``
    :raises ValueError: for a game whose players, spaces or rewards cannot be mapped
    :raises ImportError: when the module, or what it needs, is not installed
    """

    metadata: dict[str, Any] = {"render_modes": ["ansi", "rgb_array", "human"], "render_fps": 2}  # noqa: RUF012

    def __init__(self, game: Any, render_mode: str | None = None, **kwargs: Any) -> None:
        if isinstance(game, str):
            game = _load(game).env(render_mode=render_mode, **kwargs)
        elif kwargs or render_mode is not None:
            raise ValueError(f"render_mode={render_mode!r}, {kwargs}: arguments of the game are for games given as modules")
        elif isinstance(game, Callable) and not hasattr(game, "agent_selection"):  # type: ignore[arg-type]
            game = game()
        self._held = _WholeState(game)
        self.render_mode = getattr(game, "render_mode", None)
        self.players = list(game.possible_agents)
        """PettingZoo's names of both players"""
        if len(self.players) != 2:
            raise PlayerOrderError(f"{game} has {len(self.players)} players, {self.players}: only games of two can be mapped")
        self.action_space = self._same("action_space")
        self._whole_space = self._same("observation_space")
        if not isinstance(self.action_space, spaces.Discrete) or self.action_space.start != 0:
            raise ValueError(f"{game}: moves are {self.action_space}, and only Discrete spaces that start at 0 can be mapped")
        self._split = isinstance(self._whole_space, spaces.Dict) and {"observation", "action_mask"} <= set(self._whole_space)
        self.observation_space = self._whole_space["observation"] if self._split else self._whole_space
        self._player, self._over = 0, True

    @property
    def aec(self) -> Any:
        """The game"""
        return self._held.game

    def _same(self, name: str) -> Any:
        first, second = (getattr(self.aec, name)(player) for player in self.players)
        if first != second:
            raise ValueError(f"{self.aec}: the {name}s of the players differ, {first} and {second}: no agent can play both")
        return first

    @property
    def to_move(self) -> int:
        return self._player

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.aec.reset(seed=seed, options=options)
        self._player, self._over = self.players.index(self.aec.agent_selection), False
        return self.observe(), {"player": self._player}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """
        Play a move for the player whose turn it is.

        :raises PlayerOrderError: if the game gives the same player another move, or ends for one of the players only
        :raises ValueError: if the rewards of the players do not add up to zero
        """
        move, player = whole_action(self, action), self._player
        if self._over:
            raise gym.error.ResetNeeded(f"{self.aec}: the game is over; call reset() to begin another one")
        if not self.action_masks()[move]:
            self._over = True
            return self.observe(), -1.0, True, False, {"player": player, "winner": 1 - player, "illegal": True}
        self.aec.step(move)
        rewards = [float(self.aec.rewards.get(name, 0.0)) for name in self.players]
        if abs(sum(rewards)) > 1e-6:
            raise ValueError(
                f"{self.aec}: the rewards {dict(zip(self.players, rewards, strict=True))} do not add up to zero. Only games "
                "in which one player's gain is the other's loss can be mapped, not cooperative ones."
            )
        terminated, truncated = (self._ended(name) for name in ("terminations", "truncations"))
        self._over = terminated or truncated
        self._player = 1 - player
        info: dict[str, Any] = {"player": self._player}
        if self._over:
            info["winner"] = None if rewards[0] == 0 else int(rewards[1] > 0)
        elif self.aec.agent_selection != self.players[self._player]:
            raise PlayerOrderError(
                f"{self.aec}: after a move of {self.players[player]}, {self.aec.agent_selection} is to move. Only games whose "
                "players move in turn can be mapped."
            )
        return self.observe(), rewards[player], terminated, truncated, info

    def _ended(self, name: str) -> bool:
        ended = {bool(getattr(self.aec, name).get(player, True)) for player in self.players}
        if len(ended) != 1:
            raise PlayerOrderError(f"{self.aec}: its {name} are {getattr(self.aec, name)}; both players must end together")
        return ended.pop()

    def action_masks(self) -> np.ndarray:
        if self._over:
            return np.zeros(int(self.action_space.n), bool)
        name = self.players[self._player]
        seen = self.aec.observe(name) if self._split else self.aec.infos.get(name, {})
        mask = seen.get("action_mask")
        return np.ones(int(self.action_space.n), bool) if mask is None else np.asarray(mask, bool).copy()

    def observe(self) -> Any:
        seen = self.aec.observe(self.players[self._player])
        return seen["observation"] if self._split else seen

    def render(self) -> Any:
        """Draw the game, as PettingZoo does."""
        return self.aec.render()

    def close(self) -> None:
        self.aec.close()


def _load(name: str) -> Any:
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise ImportError(
            f'game={name!r}: there is no module {error.name!r}. Games of PettingZoo need `pip install "sb3-mbrl[boards]"`.'
        ) from error
    if not hasattr(module, "env"):
        raise ValueError(f"game={name!r}: this module has no function env(); name one like 'pettingzoo.classic.tictactoe_v3'")
    return module


class _WholeState:
    """
    A holder of a game, whose copies and pickles have the game's state. PettingZoo's own are new games: its ``EzPickle`` keeps
    nothing but the arguments of the constructor.

    :param game: the game, with its wrappers
    """

    def __init__(self, game: Any) -> None:
        self.game = game

    def __getstate__(self) -> list[tuple[type, dict[str, Any]]]:
        layers, layer = [], self.game
        while layer is not None:
            attributes = dict(vars(layer))
            inner = attributes.pop("env", None)
            layers.append((type(layer), attributes))
            layer = inner
        return layers

    def __setstate__(self, layers: list[tuple[type, dict[str, Any]]]) -> None:
        game = None
        for cls, attributes in reversed(layers):
            layer = cls.__new__(cls)
            layer.__dict__.update(attributes if game is None else {**attributes, "env": game})
            game = layer
        self.game = game


def register() -> None:
    """Register ``PettingZoo-v0`` with Gymnasium; ``import sb3_mbrl`` does it."""
    if "PettingZoo-v0" not in gym.registry:
        gym.register("PettingZoo-v0", entry_point="sb3_mbrl.envs.boards.aec:TwoPlayerAEC")
