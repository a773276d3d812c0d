"""Elo ratings: known values, consistency, refusals."""

import numpy as np
import pytest

from sb3_mbrl.envs.boards import Score, elo_ratings, expected_points


@pytest.mark.parametrize(
    ("difference", "points"),
    [(0, 0.5), (100, 0.640), (200, 0.760), (400, 10 / 11), (800, 100 / 101), (-400, 1 / 11), (-100, 0.360)],
)
def test_expected_points(difference, points):
    """The table of the World Chess Federation's formula: 100 points are 64 %, 200 are 76 %, 400 are 10 to 1."""
    assert expected_points(1500 + difference, 1500) == pytest.approx(points, abs=5e-4)
    assert expected_points(1500, 1500 + difference) == pytest.approx(1 - points, abs=5e-4)


@pytest.mark.parametrize(
    ("score", "rating"),
    [
        (Score(wins=10, losses=1), 400.0),
        (Score(wins=3, losses=1), 190.848),
        (Score(wins=1, draws=1), 190.848),
        (Score(draws=7), 0.0),
        (Score(wins=1, losses=10), -400.0),
    ],
)
def test_ratings_of_two_players(score, rating):
    """Without a prior, the difference is 400 log10(p / (1 - p)); three of four points are 190.8."""
    ratings = elo_ratings({("new", "old"): score}, "old", prior_draws=0)
    assert ratings == pytest.approx({"new": rating, "old": 0.0}, abs=0.01)
    assert elo_ratings({("new", "old"): score}, "new", prior_draws=0)["old"] == pytest.approx(-rating, abs=0.01)


def test_a_player_who_has_won_every_game_is_finite():
    """100 wins and half a draw: 400 log10(100.5 / 0.5)."""
    assert elo_ratings({("new", "old"): Score(wins=100)}, "old")["new"] == pytest.approx(400 * np.log10(201), abs=0.01)
    with pytest.raises(ValueError, match="'new' has won or lost every game: give prior_draws above 0"):
        elo_ratings({("new", "old"): Score(wins=100)}, "old", prior_draws=0)


def test_ratings_that_explain_the_results_are_found():
    """Results that are what the ratings expect give these ratings back, through other players too."""
    true = {"a": 0.0, "b": 150.0, "c": 420.0, "d": -230.0}
    results = {}
    for first, second in (("a", "b"), ("b", "c"), ("c", "a"), ("d", "b")):
        wins = round(1_000_000 * expected_points(true[first], true[second]))
        results[first, second] = Score(wins=wins, losses=1_000_000 - wins)
    assert elo_ratings(results, "a", prior_draws=0) == pytest.approx(true, abs=0.01)


def test_points_are_what_the_ratings_expect():
    """The condition of the maximum of the likelihood, with results that no ratings explain."""
    results = {("a", "b"): Score(7, 2, 1), ("b", "c"): Score(6, 0, 4), ("c", "a"): Score(5, 1, 4), ("b", "a"): Score(3, 0, 0)}
    ratings = elo_ratings(results, "b", prior_draws=0)
    for name in "abc":
        earned = expected = 0.0
        for (first, second), score in results.items():
            for own, other, points in ((first, second, score.points), (second, first, 1 - score.points)):
                if own == name:
                    earned += points * score.games
                    expected += score.games * expected_points(ratings[own], ratings[other])
        assert earned == pytest.approx(expected, abs=1e-5)


def test_both_orders_of_a_pair_are_added():
    split = {("a", "b"): Score(wins=3, losses=1), ("b", "a"): Score(wins=1, losses=5)}
    assert elo_ratings(split, "b") == pytest.approx(elo_ratings({("a", "b"): Score(wins=8, losses=2)}, "b"))


def test_players_without_a_connection():
    results = {("a", "b"): Score(1), ("c", "d"): Score(1)}
    with pytest.raises(ValueError, match=r"\['c', 'd'\] have no games that connect them with 'a'"):
        elo_ratings(results, "a")
    with pytest.raises(ValueError, match="against itself"):
        elo_ratings({("a", "a"): Score(1)}, "a")
    with pytest.raises(ValueError, match="prior_draws=-1"):
        elo_ratings({("a", "b"): Score(1)}, "a", prior_draws=-1)
