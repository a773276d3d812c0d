"""
MuZero on boards, by self-play::

    python examples/reproduce/boards.py tictactoe --seed 0
    python examples/reproduce/boards.py connect-four --seed 0

TicTacToe is judged by a walk through its whole game tree: the trained agent makes its move, the opponent makes every legal
one, from both seats. Connect Four is judged by the games from all openings of two plies against an alpha-beta player that
looks four plies ahead, from both seats. A run writes its record after every evaluation, saves a checkpoint beside it, and
goes on from there when it is started again.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # one thread for each run, before torch is imported

import argparse
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch as th
from records import CHECKPOINTS, HERE, Record, read_record, run_name, write_record
from run import machine, versions
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.utils import LinearSchedule

from sb3_mbrl import MuZero
from sb3_mbrl.envs.boards.evaluation import all_openings, play_games
from sb3_mbrl.envs.boards.game_tree import walk
from sb3_mbrl.envs.boards.line_game import CONNECT_FOUR, TIC_TAC_TOE
from sb3_mbrl.envs.boards.players import AgentPlayer, AlphaBetaPlayer

N_ENVS = 16

RESULTS = HERE / "results-of-boards"
"""Apart from the other results, since games are won or lost, and have no curve of returns"""


class Game(NamedTuple):
    """A game, its preset and how long is trained."""

    env_id: str
    steps: int
    every: int


GAMES = {
    "tictactoe": Game("TicTacToe-v0", 160_000, 8_000),
    "connect-four": Game("ConnectFour-v0", 240_000, 20_000),
}
SEEDS = (0, 1, 2)
SETTINGS: dict[str, Any] = {"learning_rate": [2e-3, 1e-5]}
"""What differs from the preset: the learning rate falls linearly"""


def judge(agent: MuZero, game: str) -> dict[str, Any]:
    """Return wins, draws and losses, and the share of points (a draw is half of one)."""
    player = AgentPlayer(agent)
    if game == "tictactoe":
        score = walk(player, TIC_TAC_TOE).score
    else:
        openings = all_openings(CONNECT_FOUR, 2)
        score = play_games(player, AlphaBetaPlayer(4), "ConnectFour-v0", openings=openings)
    return {"wins": score.wins, "draws": score.draws, "losses": score.losses, "points": round(score.points, 4)}


class Judged(BaseCallback):
    """Judges the agent now and then, writes the record, and saves the agent with its buffer."""

    def __init__(self, game: str, path: Path, record: Record, folder: Path) -> None:
        super().__init__()
        self.game, self.path, self.record, self.folder = game, path, record, folder
        curve = record["curve"]
        self.before = (curve[-1]["cpu_s"], curve[-1]["wall_s"]) if curve else (0.0, 0.0)

    def _on_training_start(self) -> None:
        self.since = time.process_time(), time.perf_counter()

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        curve = self.record["curve"]
        if self.model.num_timesteps >= (curve[-1]["step"] + GAMES[self.game].every if curve else 0):
            self.judge()

    def _on_training_end(self) -> None:
        self.judge()

    def judge(self) -> None:
        """Judge the agent as it is, and save everything."""
        agent, curve = self.model, self.record["curve"]
        assert isinstance(agent, MuZero)
        cpu, wall = (now - since for now, since in zip((time.process_time(), time.perf_counter()), self.since, strict=True))
        spent = {"cpu_s": round(self.before[0] + cpu, 1), "wall_s": round(self.before[1] + wall, 1)}
        point = {"step": agent.num_timesteps, **judge(agent, self.game), **spent}
        curve.append(point)
        print(self.path.stem, point, flush=True)
        self.folder.mkdir(parents=True, exist_ok=True)
        agent.save(self.folder / "agent")
        agent.save_replay_buffer(self.folder / "buffer")
        write_record(self.path, self.record)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("game", choices=GAMES)
    parser.add_argument("--seed", type=int, required=True, help=f"published: {', '.join(map(str, SEEDS))}")
    parser.add_argument("--label", help="for a tuning run")
    parser.add_argument("--steps", type=int, help="instead of the game's")
    arguments = parser.parse_args()
    th.set_num_threads(1)
    game = GAMES[arguments.game]
    steps, name = arguments.steps or game.steps, run_name("muzero", arguments.seed, arguments.label)
    path, folder = RESULTS / f"muzero-{arguments.game}" / f"{name}.json", CHECKPOINTS / f"muzero-{arguments.game}" / name
    record = read_record(path) or {
        "task": f"muzero-{arguments.game}",
        "seed": arguments.seed,
        "env_id": game.env_id,
        "total_steps": steps,
        "n_envs": N_ENVS,
        "preset": MuZero.preset(game.env_id),
        "settings": SETTINGS,
        "versions": versions(),
        "machine": machine(),
        "threads": 1,
        "curve": [],
    }
    env = make_vec_env(game.env_id, N_ENVS, seed=arguments.seed)
    if record["curve"]:
        agent = MuZero.load(folder / "agent", env=env, device="cpu")
        agent.load_replay_buffer(folder / "buffer")
    else:
        rate = LinearSchedule(*SETTINGS["learning_rate"], end_fraction=1.0)
        settings = {**MuZero.preset(game.env_id), "learning_rate": rate}
        agent = MuZero("MlpPolicy", env, seed=arguments.seed, device="cpu", **settings)
    if agent.num_timesteps < steps:
        callback = Judged(arguments.game, path, record, folder)
        agent.learn(steps - agent.num_timesteps, callback=callback, reset_num_timesteps=not record["curve"])


if __name__ == "__main__":
    main()
