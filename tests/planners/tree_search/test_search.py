"""The search on dynamics whose best actions are known, and what it refuses."""

import numpy as np
import pytest
import torch as th

from sb3_mbrl import jit
from sb3_mbrl.planners.tree_search import Leaf, TreeSearch, search
from tests.planners.tree_search.games import Table, minimax, positions, tictactoe, tictactoe_root

KINDS = ("gumbel", "puct")


def scene(seed=0, rows=7, players=2):
    rng = np.random.default_rng(seed)
    return Table.random(rng, 30, 5, players=players), rng.integers(30, size=rows)


def run(kind="gumbel", seed=0, rows=7, players=2, simulations=20, noise=0, **kwargs):
    table, starts = scene(seed, rows, players)
    tree_search = TreeSearch(kind, num_simulations=simulations)
    return tree_search.search(table.root(starts), table.expand, rng=np.random.default_rng(noise), **kwargs)


def chosen(kind, rows, simulations, **settings):
    """The minimax values that are left after the chosen moves in TicTacToe, to the player who moved."""
    result = TreeSearch(kind, **settings).search(
        tictactoe_root(rows), tictactoe, num_simulations=simulations, deterministic=True
    )
    moves = zip(rows.tolist(), result.action.tolist(), strict=True)
    return [-minimax(other, own | 1 << action) for (own, other), action in moves]


@pytest.mark.parametrize("kind", KINDS)
def test_with_few_free_squares_100_simulations_play_perfectly(kind):
    rows = np.array([row for row in positions() if int(row[0] | row[1]).bit_count() >= 5])
    assert len(rows) == 3430
    assert chosen(kind, rows, 100) == [minimax(*row) for row in rows.tolist()]


@pytest.mark.parametrize(
    "settings", [{"kind": "puct"}, pytest.param({"kind": "gumbel", "q_norm": "none"}, marks=pytest.mark.slow)]
)
def test_3200_simulations_play_perfectly_in_all_positions(settings):
    """
    True dynamics, a uniform prior, values of zero and no noise: the chosen move preserves the minimax value. Gumbel search
    with Q-values scaled by siblings, as in mctx, does not, even with 12,800 simulations: in three positions an edge that
    looked bad at first is never tried again.
    """
    rows = positions()
    assert len(rows) == 4520
    for part in np.array_split(rows, 40):
        assert chosen(rows=part, simulations=3200, **settings) == [minimax(*row) for row in part.tolist()]


@pytest.mark.parametrize(
    "settings",
    [{"kind": "gumbel"}, {"kind": "gumbel", "q_norm": "tree"}, {"kind": "puct"}, {"kind": "puct", "fpu": "parent"}],
    ids=lambda settings: "-".join(settings.values()),
)
def test_a_tree_in_a_batch_is_the_tree_alone(settings):
    """LightZero took the value of an edge that was never visited from the tree before it in the batch."""
    table, starts = scene()
    together = TreeSearch(**settings).search(table.root(starts), table.expand, deterministic=True)
    for row, start in enumerate(starts):
        alone = TreeSearch(**settings).search(table.root(starts[row : row + 1]), table.expand, deterministic=True)
        for name in ("action", "policy", "value", "visits", "q"):
            assert np.array_equal(getattr(together, name)[row], getattr(alone, name)[0]), f"{name} from state {start}"
        for name, array in alone.tree._asdict().items():
            assert np.array_equal(getattr(together.tree, name)[row], array[0]), name


@pytest.mark.parametrize("kind", KINDS)
def test_noise_repeats_with_the_seed_and_differs_between_trees_and_calls(kind):
    once, again, other = run(kind, noise=1), run(kind, noise=1), run(kind, noise=2)
    assert np.array_equal(once.visits, again.visits)
    assert np.array_equal(once.action, again.action)
    assert not np.array_equal(once.visits, other.visits)
    table, _ = scene()
    rng = np.random.default_rng(0)
    same = table.root(np.zeros(64, int))
    calls = [TreeSearch(kind, num_simulations=8).search(same, table.expand, rng=rng) for _ in range(2)]
    assert not np.array_equal(calls[0].visits, calls[1].visits), "a stream continues from call to call"
    assert len({tuple(visits) for visits in calls[0].visits.tolist()}) > 1, "equal roots have noise of their own"


def equal_actions(n, rows):
    """Roots with logits ``-a / 10`` over actions that are all worth 0, and lead to more of the same."""
    logits = np.tile(-np.arange(n) / 10.0, (rows, 1)).astype(np.float32)
    zeros, ones = np.zeros(rows, np.float32), np.ones(rows, np.float32)
    return Leaf(th.zeros(rows, 1), logits, zeros, zeros, ones), lambda state, edge: Leaf(state, logits, zeros, zeros, ones)


def test_the_noise_of_gumbel_search_is_gumbel_noise_alone():
    """
    Where no action is better than another, the Gumbel-max trick draws exactly from the policy: with noise ten times as large,
    or with Dirichlet noise on top (LightZero has both), it does not.
    """
    root, expand = equal_actions(5, 20_000)
    result = TreeSearch(num_simulations=4).search(root, expand, rng=np.random.default_rng(0))
    policy = np.exp(root.logits[0]) / np.exp(root.logits[0]).sum()
    assert np.bincount(result.action, minlength=5) / 20_000 == pytest.approx(policy, abs=0.012)
    np.testing.assert_allclose(result.policy, np.tile(policy, (20_000, 1)), atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_each_of_many_actions_has_noise_and_an_edge_of_its_own(kind):
    """19 x 19 actions. LightZero's noise ended at 36, and indices of edges ran beyond their arrays."""
    root, expand = equal_actions(361, 300)
    flat = root._replace(logits=np.zeros((300, 361), np.float32))
    settings = {"max_considered_actions": 361} if kind == "gumbel" else {"dirichlet_alpha": 0.03}
    search = TreeSearch(kind, num_simulations=40, **settings)
    mask = np.ones((300, 361), bool)
    mask[:, ::7] = False
    result = search.search(flat, expand, mask=mask, rng=np.random.default_rng(0))
    assert (result.visits.sum(1) == 40).all()
    assert (result.visits.sum(0) > 0).tolist() == mask[0].tolist(), "in one tree or another, every legal action is tried"
    assert len(np.unique(result.action)) > 150
    assert mask[np.arange(300), result.action].all()


@pytest.mark.parametrize("kind", KINDS)
def test_deterministic_leaves_out_all_noise(kind):
    assert np.array_equal(run(kind, noise=1, deterministic=True).visits, run(kind, noise=2, deterministic=True).visits)


@pytest.mark.parametrize("kind", KINDS)
def test_masked_actions_are_never_visited(kind):
    mask = np.random.default_rng(1).random((7, 5)) < 0.4
    mask[np.arange(7), np.arange(7) % 5] = True
    for temperature in (0.0, 1.0, 100.0):
        result = run(kind, mask=mask, temperature=temperature)
        assert mask[np.arange(7), result.action].all()
        assert (result.visits[~mask] == 0).all()
        assert (result.policy[~mask] == 0).all()
        assert np.allclose(result.policy.sum(1), 1)
        assert (result.visits.sum(1) == 20).all()


@pytest.mark.parametrize("kind", KINDS)
def test_one_legal_action_gets_all_visits(kind):
    mask = np.zeros((7, 5), bool)
    mask[:, 3] = True
    result = run(kind, mask=mask)
    assert (result.action == 3).all()
    assert (result.policy[:, 3] == 1).all()
    assert (result.visits[:, 3] == 20).all()


def test_fewer_simulations_than_considered_actions_visit_the_most_likely_ones():
    table, starts = scene()
    result = TreeSearch(max_considered_actions=16).search(
        table.root(starts), table.expand, num_simulations=2, deterministic=True
    )
    likely = np.argsort(-table.logits[starts], axis=1)[:, :2]
    assert (np.take_along_axis(result.visits, likely, 1) == 1).all()
    assert (result.visits.sum(1) == 2).all()


def test_every_edge_has_the_value_of_its_definition():
    """``Q = r + d V(child)``, and a node's value is the mean of its own and of all returns through its edges."""
    tree = run(simulations=60).tree
    for row in range(7):
        for node in range(1, 61):
            if tree.total[row, node] == 0:
                continue  # the simulation visited an end once more
            parent, edge = tree.parent[row, node], tree.edge[row, node]
            assert tree.children[row, parent, edge] == node
            expected = tree.reward[row, node] + tree.discount[row, node] * tree.value[row, node]
            assert tree.q[row, parent, edge] == expected
        for node in np.flatnonzero(tree.total[row]):
            if (tree.discount[row, node] != 0) or node == 0:
                visits, q = tree.visits[row, node], tree.q[row, node]
                mean = (tree.raw_value[row, node] + (visits * q).sum()) / (1 + visits.sum())
                assert tree.value[row, node] == pytest.approx(mean, abs=1e-9)


def test_an_end_is_worth_its_reward_and_nothing_is_expanded_behind_it():
    """The value behind an edge of discount 0 is not counted, however large; both edges of the root end at once."""
    root = Leaf(th.zeros(1, 1), np.zeros((1, 2), np.float32), *(np.zeros(1, np.float32) for _ in range(3)))

    def expand(state, edge):
        reward = np.where(edge == 1, 1.0, 0.5).astype(np.float32)
        return Leaf(state + 1, np.zeros((1, 2), np.float32), np.full(1, 1e6, np.float32), reward, np.zeros(1, np.float32))

    result = TreeSearch().search(root, expand, num_simulations=10, deterministic=True)
    assert result.action.tolist() == [1]
    assert result.q.tolist() == [[0.5, 1.0]]
    assert result.tree.depth.tolist() == [1]
    assert (result.tree.total[0] > 0).sum() == 3
    assert result.tree.value[0, 1:3].tolist() == [0.0, 0.0]


def test_chance_nodes_are_visited_in_proportion_to_the_probabilities():
    """Action 0 leads to chance: 10 with probability 0.3, else 0. Action 1 leads to 2.5 for certain: 3 is more."""

    def leaf(state, reward, chance):
        rows = len(state)
        probabilities = np.where(chance[:, None], [[0.3, 0.7]], [[0.5, 0.5]])
        ones, value = np.ones(rows, np.float32), np.zeros(rows, np.float32)
        return Leaf(th.as_tensor(state), np.log(probabilities), value, reward.astype(np.float32), ones, chance)

    def expand(state, edge):
        state = state.numpy()
        reward = np.select([(state == 0) & (edge == 1), (state == 1) & (edge == 0)], [2.5, 10.0], 0.0)
        following = np.where((state == 0) & (edge == 0), 1, 2)
        return leaf(following, reward, following == 1)

    start = np.zeros(1, np.int64)
    result = TreeSearch(num_simulations=400).search(leaf(start, start, start == 1), expand, deterministic=True)
    tree = result.tree
    chance = tree.children[0, 0, 0]
    assert tree.chance[0, chance]
    visits = tree.visits[0, chance]
    assert visits[0] / visits.sum() == pytest.approx(0.3, abs=0.01)
    assert result.action.tolist() == [0]
    assert result.q[0, 0] == pytest.approx(3.0, abs=0.1)


def test_temperature_sharpens_the_choice():
    table, _ = scene()
    root = table.root(np.zeros(2000, int))
    actions = {}
    for temperature in (0.0, 1.0):
        result = TreeSearch("puct", num_simulations=8, exploration_fraction=0.0).search(
            root, table.expand, temperature=temperature, rng=np.random.default_rng(0)
        )
        actions[temperature] = np.bincount(result.action, minlength=5) / 2000
    assert actions[0.0].max() == 1
    assert actions[1.0] == pytest.approx(result.policy[0], abs=0.03), "at 1, actions are drawn by the shares of visits"


def test_states_are_kept_for_every_node():
    table, starts = scene()
    tree = TreeSearch().search(table.root(starts), table.expand, num_simulations=9, deterministic=True).tree
    assert tree.states.shape == (10, 7)
    assert tree.states[0].tolist() == starts.tolist()
    for row in range(7):
        for node in range(1, 10):
            if tree.total[row, node]:
                before = tree.states[tree.parent[row, node], row]
                assert tree.states[node, row] == table.following[before, tree.edge[row, node]]


@pytest.mark.parametrize("kind", KINDS)
def test_compiled_and_plain_are_the_same_to_the_last_bit(kind, monkeypatch):
    if not jit.COMPILED:
        pytest.skip("numba is not installed")
    from sb3_mbrl.planners.tree_search import kernels

    compiled = run(kind)
    for name, function in vars(kernels).copy().items():
        if hasattr(function, "py_func"):
            monkeypatch.setattr(kernels, name, function.py_func)
    monkeypatch.setattr(search, "advance", kernels.advance)
    monkeypatch.setattr(search, "root_values", kernels.root_values)
    plain = run(kind)
    for name, array in compiled.tree._asdict().items():
        assert np.array_equal(array, getattr(plain.tree, name)), name
    assert np.array_equal(compiled.policy, plain.policy)


# ---- refusals


def test_no_legal_action_is_refused():
    mask = np.ones((7, 5), bool)
    mask[4] = False
    with pytest.raises(ValueError, match="No action is legal at root 4"):
        run(mask=mask)


@pytest.mark.parametrize("shape", [(5,), (7, 4), (6, 5), (7, 5, 1)])
def test_a_mask_of_another_shape_is_refused(shape):
    with pytest.raises(ValueError, match=r"mask has the shape .*give \(7, 5\)"):
        run(mask=np.ones(shape, bool))


@pytest.mark.parametrize("name", ["logits", "value", "reward", "discount"])
def test_numbers_that_are_not_finite_are_refused(name):
    table, starts = scene()

    def expand(state, edge):
        leaf = table.expand(state, edge)
        broken = getattr(leaf, name).copy()
        broken[5] = np.nan
        return leaf._replace(**{name: broken})

    with pytest.raises(ValueError, match="not finite for tree 5 in simulation 1"):
        TreeSearch().search(table.root(starts), expand)


def test_nodes_of_another_shape_are_refused():
    table, starts = scene()
    with pytest.raises(ValueError, match=r"expand returned .*\(7, 5\)"):
        TreeSearch().search(table.root(starts), lambda state, edge: table.expand(state, edge)._replace(value=np.zeros(6)))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "uct"}, "kind='uct': choose one of 'gumbel', 'puct'"),
        ({"num_simulations": 0}, "num_simulations=0: give a whole number from 1 on"),
        ({"fpu": "parent"}, "fpu .*kind='puct'"),
        ({"kind": "puct", "c_scale": 1.0}, "c_scale .*kind='gumbel'"),
        ({"q_norm": "all"}, "q_norm='all': choose one of"),
    ],
)
def test_settings_are_checked(settings, message):
    with pytest.raises(ValueError, match=message):
        TreeSearch(**settings)


def test_plain_python_is_announced_once(monkeypatch, recwarn):
    monkeypatch.setattr(search.jit, "COMPILED", False)
    monkeypatch.setattr(search, "_said", False)
    TreeSearch()
    TreeSearch()
    assert [str(warning.message) for warning in recwarn if "plain Python" in str(warning.message)] == [
        "Tree search runs in plain Python, many times slower than compiled: pip install numba"
    ]
