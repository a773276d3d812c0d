"""``sb3-mbrl play``: a board game against a saved agent, in the terminal."""

import argparse
import inspect
from collections.abc import Sequence
from typing import Any

import numpy as np

from sb3_mbrl.cli.run_folder import check_spaces, load_saved
from sb3_mbrl.cli.values import UserError, make_env
from sb3_mbrl.envs.boards.base import TwoPlayerEnv
from sb3_mbrl.envs.boards.players import AgentPlayer
from sb3_mbrl.planners.tree_search.search import MOST_SIMULATIONS

SHOWN = 9
"""The largest number of moves in a table of what the agent thinks"""


class Quit(Exception):
    """Raised when the person does not want to play any longer."""


def play(args: argparse.Namespace) -> int:
    """Load an agent and play games against it, until the person has enough."""
    saved = load_saved(args)
    env = make_env(saved.env_id, saved.env_kwargs).unwrapped
    if not isinstance(env, TwoPlayerEnv):
        raise UserError(f"{saved.env_id} is not a game of two players; `sb3-mbrl evaluate` plays episodes by itself")
    check_spaces(saved.agent, env, saved.env_id)
    opponent = Thinking(saved.agent, args.simulations, args.thoughts)
    seat, won = (1 if args.seat == "second" else 0), [0, 0, 0]
    print(f"You play {saved.env_id} against {type(saved.agent).__name__}. {opponent.help}")
    try:
        while True:
            winner = game(env, opponent, seat)
            result = 1 if winner is None else 0 if winner == seat else 2
            won[result] += 1
            print(("You have won.", "A draw.", "The agent has won.")[result])
            if ask("Another game, with the other one beginning? (y/n) ") not in ("y", "yes"):
                break
            seat = 1 - seat
    except Quit:
        pass
    finally:
        env.close()
    print(f"Games won: {won[0]} by you, {won[2]} by the agent; {won[1]} drawn. Goodbye.")
    return 0


def ask(prompt: str) -> str:
    """
    Read a line from the person.

    :raises Quit: at ``q``, or at the end of the input
    """
    try:
        answer = input(prompt).strip().lower()
    except EOFError:
        print()
        raise Quit from None
    except UnicodeDecodeError:  # bytes that are no text
        return "?"
    if answer in ("q", "quit", "exit"):
        raise Quit
    return answer


def game(env: TwoPlayerEnv, opponent: "Thinking", seat: int) -> int | None:
    """
    Play one game.

    :param env: the game
    :param opponent: the agent
    :param seat: the person's seat: 0 begins
    :return: the seat of the winner, if any
    """
    env.reset()
    while True:
        print(f"\n{env.text()}\n")
        move = read_move(env, opponent) if env.to_move == seat else opponent.move(env)
        _, _, terminated, truncated, info = env.step(move)
        if "illegal" in info:
            print("This is not a legal move, and loses the game. The agent does not know which moves are legal.")
        if terminated or truncated:
            print(f"\n{env.text()}\n")
            return info["winner"]


def read_move(env: TwoPlayerEnv, opponent: "Thinking") -> int:
    """Ask for a move until it is legal."""
    legal = {str(move): int(move) for move in np.flatnonzero(env.action_masks())}
    while True:
        answer = ask("Your move: ")
        if answer in legal:
            return legal[answer]
        if answer in ("h", "hint"):
            print(opponent.hint(env))
        elif answer.isdecimal():
            print(f"{answer} is not legal here. Legal moves: {' '.join(legal)}")
        else:
            print(f"{answer!r} is not a move. {opponent.help} Legal moves: {' '.join(legal)}")


class Thinking:
    """
    An agent that plays, and shows what its search thinks where it has one: a method ``search(obs, action_masks=...)`` whose
    result has ``action``, ``policy``, ``value``, ``visits`` and ``q`` with a leading batch axis, and optionally a ``tree``.

    :param agent: the agent
    :param simulations: the number of simulations per move (``None``: the agent's own)
    :param shown: whether its thoughts are shown before its moves
    :raises UserError: for a number of simulations for an agent that does not search
    """

    def __init__(self, agent: Any, simulations: int | None = None, shown: bool = True) -> None:
        self.agent, self.shown = agent, shown
        normalizing = agent.get_vec_normalize_env() if hasattr(agent, "get_vec_normalize_env") else None
        self.observation = None if normalizing is None else normalizing.normalize_obs
        self.searches = callable(getattr(agent, "search", None))
        self.options: dict[str, Any] = {}
        if simulations is not None:
            if not 1 <= simulations <= MOST_SIMULATIONS:
                raise UserError(f"--simulations {simulations}: give at least 1, and at most {MOST_SIMULATIONS}")
            if not takes(agent.search if self.searches else agent.predict, "num_simulations"):
                raise UserError(f"--simulations {simulations}: {type(agent).__name__} does not search")
            self.options["num_simulations"] = simulations

    @property
    def help(self) -> str:
        """What may be typed, in a sentence"""
        hint = ", h to see what the agent thinks of your position" if self.searches else ""
        return f"Type the number of a move{hint}, or q to quit."

    def move(self, env: TwoPlayerEnv) -> int:
        """Choose a move for the player to move, and show why."""
        if not self.searches:
            (move,) = AgentPlayer(self.agent, observation=self.observation, **self.options).choose([env])
        else:
            result = self._search(env)
            move = int(np.asarray(result.action).reshape(-1)[0])
            if self.shown:
                print(thoughts(env, result))
        print(f"The agent plays {env.describe(move)}.")
        return move

    def hint(self, env: TwoPlayerEnv) -> str:
        """Say what the agent would think in the person's place."""
        if not self.searches:
            return "This agent does not search: it has no thoughts to show."
        return thoughts(env, self._search(env))

    def _search(self, env: TwoPlayerEnv) -> Any:
        options = {**self.options, **({"deterministic": True} if takes(self.agent.search, "deterministic") else {})}
        obs = AgentPlayer.batch([env.observe() if self.observation is None else self.observation(env.observe())])
        return self.agent.search(obs, action_masks=env.action_masks()[None], **options)


def takes(function: Any, name: str) -> bool:
    """Whether a function has a parameter of this name"""
    return name in inspect.signature(function).parameters


def thoughts(env: TwoPlayerEnv, result: Any) -> str:
    """
    Draw a table of what a search thinks of the moves of a position: the visits of each, its value for the player to move, and
    the probabilities before the search (prior) and after it (policy).

    :param env: the game, in the position that was searched
    :param result: the result of the search
    """
    visits, values, policy = (np.asarray(getattr(result, name))[0] for name in ("visits", "q", "policy"))
    tree: Any = getattr(result, "tree", None)
    prior = None if getattr(tree, "prior", None) is None else np.asarray(tree.prior)[0, 0]
    depth = "" if getattr(tree, "depth", None) is None else f", {int(np.asarray(tree.depth).reshape(-1)[0])} moves deep"
    legal = np.flatnonzero(env.action_masks())
    order = sorted(legal.tolist(), key=lambda move: (-visits[move], -policy[move], move))
    head = ["move", "visits", "value", *([] if prior is None else ["prior"]), "policy"]
    rows = [
        [
            env.describe(move),
            str(int(visits[move])),
            f"{values[move]:+.2f}" if visits[move] else "-",
            *([] if prior is None else [f"{100 * prior[move]:.0f} %"]),
            f"{100 * policy[move]:.0f} %",
        ]
        for move in order[:SHOWN]
    ]
    lines = [
        f"Value of the position: {float(np.asarray(result.value).reshape(-1)[0]):+.2f} "
        f"({int(visits.sum())} simulations{depth}; 1: the player to move wins, -1: the other one)",
        *aligned([head, *rows]),
    ]
    if len(order) > SHOWN:
        lines.append(f"  and {len(order) - SHOWN} more")
    if callable(getattr(tree, "path", None)) and (line := tree.path(0)):
        lines.append("Expected moves: " + " ".join(str(int(move)) for move in line))
    return "\n".join(lines)


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Align the columns of a table: the first to the left, the others to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = (cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))
        lines.append("  ".join(["", row[0].ljust(widths[0]), *cells]))
    return lines
