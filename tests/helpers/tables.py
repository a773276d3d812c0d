"""Tables of counted transitions, and a chain whose values are known."""

from sb3_mbrl.models.tabular.counts import new_tables, record, with_room

GAMMA = 0.9


def counted(rows, states=4, actions=2, memory=1.0):
    tables = new_tables(states, actions, outcomes=1)
    for now, (state, action, reward, following, terminal) in enumerate(rows, start=1):
        tables = with_room(tables)
        record(tables, state, action, reward, following, terminal, now, memory)
    return tables


def chain():
    """Count a chain: 0 -> 1 -> 2 -> termination with a reward of 1 (action 0); action 1 stays, with a reward of 0."""
    rows = [(0, 0, 0.0, 1, 0), (1, 0, 0.0, 2, 0), (2, 0, 1.0, 3, 1)] + [(s, 1, 0.0, s, 0) for s in range(3)]
    return counted(rows)
