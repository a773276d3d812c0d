"""
LightZero's side of ``bench_search.py``, for an interpreter of its own: a line comes in, one turn of work is done, and a line
goes out with its units, the seconds, and the processor's (user, system). Imports nothing of ours.

The arguments: ``tree`` (searches with children that cost nothing), ``search`` (with its MLP; ``search_scalar``: whose values
and rewards are numbers and not distributions) or ``learner`` (training steps), the threads, the rows of a batch, and the
repeats of a turn.
"""

import logging
import resource
import sys
import time
import warnings
from collections.abc import Callable
from importlib import metadata
from typing import Any

import numpy as np
import torch as th

warnings.simplefilter("ignore")
logging.disable(logging.WARNING)

from lzero.mcts.ctree.ctree_muzero import mz_tree  # noqa: E402
from lzero.mcts.tree_search.mcts_ctree import MuZeroMCTSCtree  # noqa: E402
from lzero.policy import InverseScalarTransform, mz_network_output_unpack  # noqa: E402
from lzero.policy.muzero import MuZeroPolicy  # noqa: E402

WORK, THREADS, ROWS, REPEATS = sys.argv[1], *(int(argument) for argument in sys.argv[2:5])
ACTIONS, SIMULATIONS, OBSERVATION, UNITS, HALF_BINS, UNROLL = 6, 50, 8, 64, 25, 5
CATEGORICAL = WORK != "search_scalar"


def config() -> Any:
    """Its defaults for vectors, with our sizes: 51 bins, 64 units, no consistency loss unless it learns."""
    cfg = MuZeroPolicy.default_config()
    cfg.model.update(
        model_type="mlp",
        observation_shape=OBSERVATION,
        action_space_size=ACTIONS,
        latent_state_dim=UNITS,
        support_scale=HALF_BINS,
        reward_support_size=2 * HALF_BINS + 1,
        value_support_size=2 * HALF_BINS + 1,
        categorical_distribution=CATEGORICAL,
        self_supervised_learning_loss=WORK == "learner",
        proj_hid=UNITS,
        proj_out=UNITS,
        pred_hid=UNITS // 2,
        pred_out=UNITS,
    )
    cfg.update(
        cuda=False,
        device="cpu",
        batch_size=ROWS,
        num_simulations=SIMULATIONS,
        num_unroll_steps=UNROLL,
        optim_type="Adam",
        learning_rate=1e-3,
        piecewise_decay_lr_scheduler=False,
        ssl_loss_weight=2,
    )
    return cfg


def tree() -> float:
    """Search as its ``MuZeroMCTSCtree.search`` does, without the networks and without latent states."""
    legal = [list(range(ACTIONS))] * ROWS
    players = [-1] * ROWS
    for _ in range(REPEATS):
        roots = mz_tree.Roots(ROWS, legal)
        noises = np.random.dirichlet([0.3] * ACTIONS, ROWS).astype(np.float32).tolist()
        reward, value, logits = CHILDREN[0]
        roots.prepare(0.25, noises, reward.tolist(), logits.tolist(), players)
        bounds = mz_tree.MinMaxStatsList(ROWS)
        bounds.set_delta(0.01)
        for i in range(SIMULATIONS):
            results = mz_tree.ResultsWrapper(num=ROWS)
            *_, to_play = mz_tree.batch_traverse(roots, 19652, 1.25, 0.997, bounds, results, players)
            reward, value, logits = CHILDREN[i + 1]
            numbers = (reward.reshape(-1).tolist(), value.reshape(-1).tolist(), logits.tolist())
            mz_tree.batch_backpropagate(i + 1, 0.997, *numbers, bounds, results, to_play)
        roots.get_distributions(), roots.get_values()
    return REPEATS * ROWS * SIMULATIONS


def search() -> float:
    """Search as its ``MuZeroPolicy._forward_collect`` does."""
    legal, players = [list(range(ACTIONS))] * ROWS, [-1] * ROWS
    for _ in range(REPEATS):
        with th.no_grad():
            output = POLICY._collect_model.initial_inference(OBS)
            latent, reward, value, logits = mz_network_output_unpack(output)
            value = INVERSE(value).detach().cpu().numpy()
            latent, logits = latent.detach().cpu().numpy(), logits.detach().cpu().numpy().tolist()
            roots = MuZeroMCTSCtree.roots(ROWS, legal)
            noises = [np.random.dirichlet([0.3] * ACTIONS).astype(np.float32).tolist() for _ in range(ROWS)]
            roots.prepare(0.25, noises, reward, logits, players)
            POLICY._mcts_collect.search(roots, POLICY._collect_model, latent, players)
            roots.get_distributions(), roots.get_values()
    return REPEATS * ROWS * SIMULATIONS


def learner() -> float:
    """Training steps on a batch that is already drawn."""
    for _ in range(REPEATS):
        POLICY._forward_learn(BATCH)
    return REPEATS


def batch() -> list[list[Any]]:
    rng, steps = np.random.default_rng(0), UNROLL + 1
    current = [
        rng.normal(size=(ROWS, steps * OBSERVATION)).astype(np.float32),
        rng.integers(ACTIONS, size=(ROWS, UNROLL)),
        np.ones((ROWS, steps)),
        np.arange(ROWS),
        np.ones(ROWS),
        np.zeros(ROWS),
    ]
    policies = rng.dirichlet(np.ones(ACTIONS), (ROWS, steps)).astype(np.float32)
    return [current, [rng.normal(size=(ROWS, steps, 1)), rng.normal(size=(ROWS, steps, 1)), policies]]


th.set_num_threads(THREADS)
RNG = np.random.default_rng(0)
CHILDREN = [
    tuple(RNG.normal(size=shape).astype(np.float32) for shape in (ROWS, (ROWS, 1), (ROWS, ACTIONS)))
    for _ in range(SIMULATIONS + 1)
]
OBS, INVERSE = th.randn(ROWS, OBSERVATION), InverseScalarTransform(HALF_BINS, "cpu", CATEGORICAL)
POLICY = None if WORK == "tree" else MuZeroPolicy(config(), enable_field=["learn", "collect"])
if POLICY:
    POLICY._collect_mcts_temperature = POLICY.collect_epsilon = 1.0  # what it logs
BATCH = batch()
TURN: Callable[[], float] = {"tree": tree, "search": search, "search_scalar": search, "learner": learner}[WORK]

if __name__ == "__main__":
    TURN()
    print("LightZero", metadata.version("LightZero"), "torch", th.__version__, flush=True)
    for _ in sys.stdin:
        before, start = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
        units = TURN()
        seconds, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF)
        print(units, seconds, after.ru_utime - before.ru_utime, after.ru_stime - before.ru_stime, flush=True)
