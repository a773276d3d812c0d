"""A callback that evaluates an agent of board games by playing against others and its own earlier versions."""

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from stable_baselines3.common.callbacks import BaseCallback

from sb3_mbrl.checks import whole
from sb3_mbrl.envs.boards.elo import Results, elo_ratings
from sb3_mbrl.envs.boards.evaluation import Game, Score, play_games
from sb3_mbrl.envs.boards.players import AgentPlayer, Player


class BoardEvalCallback(BaseCallback):
    """
    A callback that lets the agent play against given players and its own earlier versions, and logs the results:

    * ``boards/NAME_win``, ``_draw``, ``_loss``: the shares of games against the player NAME that were won, drawn and lost
    * ``boards/earlier_win``, ``_draw``, ``_loss``: the same against the earlier versions, together
    * ``boards/points``: the share of points against the given players (a draw is half a point)
    * ``boards/illegal``: the number of games that were lost by an illegal move
    * ``boards/elo``: the agent's Elo rating, fitted to all games of this training (see
      :func:`~sb3_mbrl.envs.boards.elo.elo_ratings`); the first of the given players has 0

    Games are played by the agent's deterministic ``predict``; the random streams of training stay as they are. An earlier
    version is saved at each evaluation; those that the agent plays against are spread evenly over the training so far.

    :param env: the game: an id, or a function that makes it
    :param players: the players, e.g. ``[RandomPlayer(), PerfectPlayer()]``
    :param every: the number of real steps between two evaluations; there is one at the start of training too
    :param openings: the moves that are played first (see :func:`~sb3_mbrl.envs.boards.evaluation.all_openings`), once from
        either seat
    :param repeats: the number of games per opening and seat
    :param earlier: the number of earlier versions to play against; 0: none are saved
    :param folder: where earlier versions are saved (``None``: in a temporary folder)
    :param best_model_save_path: the folder in which the agent with the most points is saved as ``best_model.zip``
    :param seed: the seed of the players' random choices, the same at every evaluation
    :param options: further arguments of the agent's ``predict``, e.g. ``{"num_simulations": 50}``
    :param observation: see :class:`~sb3_mbrl.envs.boards.players.AgentPlayer`
    """

    def __init__(
        self,
        env: Game,
        players: Sequence[Player],
        every: int = 5_000,
        *,
        openings: Sequence[Sequence[int]] = ((),),
        repeats: int = 10,
        earlier: int = 0,
        folder: str | Path | None = None,
        best_model_save_path: str | Path | None = None,
        seed: int = 0,
        options: dict[str, Any] | None = None,
        observation: Callable[[Any], Any] | None = None,
        verbose: int = 0,
    ) -> None:
        super().__init__(verbose)
        names = [player.name for player in players]
        if not names or len({*names, "earlier"}) != len(names) + 1:
            raise ValueError(f"players={list(players)}: give at least one, and each a name of its own other than 'earlier'")
        self.env, self.players, self.openings = env, list(players), openings
        self.every, self.repeats = whole("every", every, 1), whole("repeats", repeats, 1)
        self.earlier, self.seed = whole("earlier", earlier, 0), seed
        self.options, self.observation = dict(options or {}), observation
        self.best_model_save_path = None if best_model_save_path is None else Path(best_model_save_path)
        self._temporary = tempfile.TemporaryDirectory() if folder is None and earlier else None
        self._folder = Path(self._temporary.name if self._temporary else folder or ".")
        self.results: Results = {}
        """All scores so far, by pairs of names; the agent's name is ``step_N``"""
        self.history: list[tuple[int, float, float]] = []
        """Of each evaluation: the number of real steps, the share of points against the given players, and the Elo rating"""
        self._versions: list[tuple[str, Path]] = []
        self._last = 0

    def _on_training_start(self) -> None:
        if self.model.num_timesteps < self._last:  # the agent trains anew
            self.results, self.history, self._versions = {}, [], []
        if not self.history:
            self._evaluate()

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        # Not in _on_step, in which an agent has counted a step that it has not stored: earlier versions are saved here.
        if self.num_timesteps // self.every > self._last // self.every:
            self._evaluate()

    def _on_training_end(self) -> None:
        if self.num_timesteps > self._last:
            self._evaluate()

    def _evaluate(self) -> None:
        agent: Any = self.model
        self._last = agent.num_timesteps
        name = f"step_{self._last}"
        present = AgentPlayer(agent, name, observation=self.observation, **self.options)
        total = Score()
        for player in self.players:
            score = self._play(present, player)
            total = total.plus(score)
            self._log(player.name, score)
        against_earlier = Score()
        for version, path in self._spread():
            past = AgentPlayer.load(type(agent), path, version, observation=self.observation, **self.options)
            against_earlier = against_earlier.plus(self._play(present, past))
        if against_earlier.games:
            self._log("earlier", against_earlier)
        rating = elo_ratings(self.results, self.players[0].name)[name]
        self.logger.record("boards/points", total.points)
        self.logger.record("boards/illegal", total.illegal + against_earlier.illegal)
        self.logger.record("boards/elo", rating)
        self.logger.record("time/total_timesteps", agent.num_timesteps, exclude="tensorboard")
        self.logger.dump(agent.num_timesteps)
        if self.verbose:
            print(f"{name}: {total}; Elo rating {rating:.0f}")
        if self.best_model_save_path is not None and all(points <= total.points for _, points, _ in self.history):
            self.best_model_save_path.mkdir(parents=True, exist_ok=True)
            agent.save(self.best_model_save_path / "best_model.zip")
        self.history.append((self._last, total.points, rating))
        if self.earlier:
            self._folder.mkdir(parents=True, exist_ok=True)
            path = self._folder / f"{name}.zip"
            agent.save(path)
            self._versions.append((name, path))

    def _play(self, present: Player, other: Player) -> Score:
        score = play_games(present, other, self.env, self.openings, repeats=self.repeats, seed=self.seed)
        self.results[present.name, other.name] = score
        return score

    def _log(self, name: str, score: Score) -> None:
        for kind, number in (("win", score.wins), ("draw", score.draws), ("loss", score.losses)):
            self.logger.record(f"boards/{name}_{kind}", number / score.games)

    def _spread(self) -> list[tuple[str, Path]]:
        """Choose earlier versions, evenly from the first to the newest."""
        count, last = min(self.earlier, len(self._versions)), len(self._versions) - 1
        if count == 1:
            return self._versions[-1:]
        return [self._versions[round(last * n / (count - 1))] for n in range(count)]
