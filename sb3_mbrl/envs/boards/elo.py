"""Elo ratings from results."""

import math
from collections import defaultdict

from sb3_mbrl.checks import number
from sb3_mbrl.envs.boards.evaluation import Score

MAX_SWEEPS = 10_000
"""The largest number of sweeps over all ratings, which converge long before"""


def expected_points(rating: float, other: float) -> float:
    """
    Compute the share of points that Elo's model expects: ``1 / (1 + 10 ** ((other - rating) / 400))``.

    :param rating: the player's rating
    :param other: the opponent's rating
    """
    return 1.0 / (1.0 + 10.0 ** ((other - rating) / 400.0))


Results = dict[tuple[str, str], Score]
"""Scores by pairs of names, of the first against the second"""


def elo_ratings(results: Results, anchor: str, prior_draws: float = 1.0) -> dict[str, float]:
    """
    Fit Elo ratings to results: those under which every player's points are what the ratings expect, which is the maximum of
    the likelihood of Elo's (Bradley and Terry's) model::

        sum of points = sum over opponents of games * expected_points(rating, opponent's rating)

    Each pair of players is given ``prior_draws`` more draws; without, the rating of a player who has won every game would be
    infinite. So 100 wins in 100 games are a difference of 921, not of infinity.

    :param results: the scores by pairs of names; both orders of a pair are added
    :param anchor: the name whose rating is 0; the others, through any opponents, must have played with it
    :param prior_draws: the number of draws that are added per pair
    :return: the ratings by name
    :raises ValueError: for players without a connection to the anchor
    """
    number("prior_draws", prior_draws, 0.0)
    games: defaultdict[tuple[str, str], float] = defaultdict(float)
    points: defaultdict[tuple[str, str], float] = defaultdict(float)
    for (first, second), score in results.items():
        if first == second:
            raise ValueError(f"{first!r} has played against itself; ratings need different names")
        earned = score.wins + score.draws / 2
        for pair, of_pair in (((first, second), earned), ((second, first), score.games - earned)):
            games[pair] += score.games
            points[pair] += of_pair
    opponents: dict[str, list[str]] = {}
    for first, second in games:
        opponents.setdefault(first, []).append(second)
    _check_connected(opponents, anchor)
    # Zermelo's iteration for strengths g = 10 ** (rating / 400), with expected points g / (g + g_other):
    # g = points / sum(games / (g + g_other)), one name after the other.
    strength = dict.fromkeys(opponents, 1.0)
    for _ in range(MAX_SWEEPS):
        largest = 0.0
        for name, others in opponents.items():
            earned = sum(points[name, other] + prior_draws / 2 for other in others)
            available = sum(games[name, other] + prior_draws for other in others)
            if not 0 < earned < available:
                raise ValueError(f"{name!r} has won or lost every game: give prior_draws above 0, or its rating is infinite")
            rate = sum((games[name, other] + prior_draws) / (strength[name] + strength[other]) for other in others)
            largest = max(largest, abs(earned / rate / strength[name] - 1.0))
            strength[name] = earned / rate
        if largest < 1e-10:
            break
    return {name: 400.0 * math.log10(value / strength[anchor]) for name, value in strength.items()}


def _check_connected(opponents: dict[str, list[str]], anchor: str) -> None:
    reached, frontier = {anchor}, [anchor]
    while frontier:
        for other in opponents.get(frontier.pop(), ()):
            if other not in reached:
                reached.add(other)
                frontier.append(other)
    if missing := sorted(set(opponents) - reached):
        raise ValueError(f"{missing} have no games that connect them with {anchor!r}, whose rating is 0")
