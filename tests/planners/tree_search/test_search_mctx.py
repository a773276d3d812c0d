"""The search against DeepMind's ``mctx`` (the extra ``mctx``), on random tables. Skipped where it is not installed."""

import functools

import numpy as np
import pytest

from sb3_mbrl.planners.tree_search import TreeSearch
from sb3_mbrl.planners.tree_search.root import considered_visits
from tests.planners.tree_search.games import Table

jax = pytest.importorskip("jax")
mctx = pytest.importorskip("mctx")

ROWS, STATES, ACTIONS = 6, 40, 5


def reference(policy, table, starts, mask, simulations, **kwargs):
    """The result of one of mctx's policies on a table, its tree's summary, and the Gumbel noise that it drew."""
    jnp = jax.numpy
    logits, value, reward, discount, following = (
        jnp.asarray(part) for part in (table.logits, table.value, table.reward, table.discount, table.following)
    )

    def recurrent(_params, _key, action, state):
        to = following[state, action]
        output = mctx.RecurrentFnOutput(
            reward=reward[state, action], discount=discount[state, action], prior_logits=logits[to], value=value[to]
        )
        return output, to

    root = mctx.RootFnOutput(prior_logits=logits[starts], value=value[starts], embedding=jnp.asarray(starts))
    key = jax.random.PRNGKey(7)
    run = jax.jit(functools.partial(policy, recurrent_fn=recurrent, num_simulations=simulations, **kwargs))
    output = run(params=(), rng_key=key, root=root, invalid_actions=jnp.asarray(~mask))
    noise = jax.random.gumbel(jax.random.split(key)[1], shape=mask.shape, dtype=np.float32)
    return output, output.search_tree.summary(), np.asarray(noise)


class Drawn:
    """A stand-in for numpy's generator that returns given Gumbel noise."""

    def __init__(self, noise):
        self.noise = noise

    def gumbel(self, size):
        assert size == self.noise.shape
        return self.noise


def scene(seed, players):
    rng = np.random.default_rng(seed)
    table = Table.random(rng, STATES, ACTIONS, players=players)
    mask = rng.random((ROWS, ACTIONS)) < 0.7
    mask[np.arange(ROWS), rng.integers(ACTIONS, size=ROWS)] = True
    mask[0] = np.arange(ACTIONS) == 2  # one legal action
    return table, rng.integers(STATES, size=ROWS).astype(np.int32), mask


@pytest.mark.parametrize(("seed", "simulations", "considered", "scale"), [(0, 3, 16, 1.0), (1, 16, 4, 1.0), (2, 50, 16, 0.0)])
@pytest.mark.parametrize("players", [1, 2])
def test_gumbel_search_is_that_of_mctx(seed, simulations, considered, scale, players):
    table, starts, mask = scene(seed, players)
    output, summary, noise = reference(
        mctx.gumbel_muzero_policy,
        table,
        starts,
        mask,
        simulations,
        gumbel_scale=scale,
        max_num_considered_actions=considered,
    )
    search = TreeSearch(num_simulations=simulations, max_considered_actions=considered, gumbel_scale=scale)
    result = search.search(table.root(starts), table.expand, mask=mask, rng=Drawn(noise))
    assert np.array_equal(result.visits, summary.visit_counts)
    assert np.array_equal(result.action, output.action)
    np.testing.assert_allclose(result.policy, output.action_weights, atol=1e-5)
    np.testing.assert_allclose(result.value, summary.value, atol=1e-5)
    visited = result.visits > 0
    np.testing.assert_allclose(result.q[visited], np.asarray(summary.qvalues)[visited], atol=1e-5)
    # Without rescaling, mctx's transform is (50 + the most visits) times the completed values.
    transform = functools.partial(mctx.qtransform_completed_by_mix_value, rescale_values=False, value_scale=1.0)
    completed = jax.vmap(transform, (0, None))(output.search_tree, 0) / (50.0 + result.visits.max(1, keepdims=True))
    np.testing.assert_allclose(result.q, completed, atol=1e-5)


@pytest.mark.parametrize("players", [1, 2])
def test_puct_search_is_that_of_mctx(players):
    table, starts, mask = scene(3, players)
    output, summary, _ = reference(mctx.muzero_policy, table, starts, mask, 40, dirichlet_fraction=0.0)
    search = TreeSearch("puct", num_simulations=40, q_norm="siblings", exploration_fraction=0.0)
    result = search.search(table.root(starts), table.expand, mask=mask, rng=np.random.default_rng(0))
    assert np.array_equal(result.visits, summary.visit_counts)
    np.testing.assert_allclose(result.policy, output.action_weights, atol=1e-5)
    np.testing.assert_allclose(result.value, summary.value, atol=1e-5)


def test_the_plan_of_sequential_halving_is_that_of_mctx():
    from mctx._src.seq_halving import get_table_of_considered_visits

    for most, simulations in ((1, 5), (2, 7), (7, 3), (16, 50), (16, 200)):
        assert np.array_equal(considered_visits(most, simulations), get_table_of_considered_visits(most, simulations))
