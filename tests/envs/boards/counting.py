"""Counting the positions of a game."""

from sb3_mbrl.envs.boards import EMPTY, LineGame, Position


def perft(game: LineGame, plies: int) -> int:
    """Count the sequences of that many moves; a game that has ended earlier has none."""
    lines = {EMPTY: 1}
    for _ in range(plies):
        following: dict[Position, int] = {}
        for position, count in lines.items():
            for action in game.legal(position):
                after = game.play(position, action)
                following[after] = following.get(after, 0) + count
        lines = following
    return sum(lines.values())


def positions(game: LineGame) -> set[Position]:
    """All positions that can be reached."""
    reached, frontier = {EMPTY}, [EMPTY]
    while frontier:
        position = frontier.pop()
        for action in game.legal(position):
            after = game.play(position, action)
            if after not in reached:
                reached.add(after)
                frontier.append(after)
    return reached
