"""
Fitting and stepping the ensemble, next to mbrl-lib (``mbrl==0.2.0``) and to the bare matrix products: HalfCheetah's sizes, 7
members of 4 x 200, SiLU.
"""

import json
import math
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from stable_baselines3.common.buffers import ReplayBuffer

from sb3_mbrl.buffers import ReplayData
from sb3_mbrl.contracts import FitBudget
from sb3_mbrl.models.ensemble import EnsembleModel
from sb3_mbrl.networks.ensemble import CHUNK
from tests.benchmarks.measure import THREADS, Work, Worker, interleave, ratio

OBS, ACT = gym.spaces.Box(-np.inf, np.inf, (17,)), gym.spaces.Box(-1, 1, (6,))
ROWS, BATCH, HOLDOUT, MEMBERS, ELITES, HIDDEN = 10_000, 256, 0.2, 7, 5, [200] * 4
EPOCHS = 3


def never(obs: th.Tensor, action: th.Tensor, next_obs: th.Tensor) -> th.Tensor:
    """No termination: HalfCheetah's, and mbrl-lib models none."""
    return th.zeros(len(action), dtype=th.bool)


def transitions(rows: int = ROWS) -> tuple[np.ndarray, ...]:
    """Observations, actions, next observations and rewards of a smooth random system."""
    rng = np.random.default_rng(0)
    obs, action = rng.normal(size=(rows, 17)).astype(np.float32), rng.uniform(-1, 1, (rows, 6)).astype(np.float32)
    mix = rng.normal(size=(23, 17)).astype(np.float32) / 23**0.5
    next_obs = obs + 0.1 * np.tanh(np.concatenate([obs, action], axis=1) @ mix)
    return obs, action, next_obs, next_obs[:, 0] - 0.1 * (action**2).sum(1)


def our_model() -> EnsembleModel:
    # By likelihood, as theirs.
    return EnsembleModel(
        OBS, ACT, members=MEMBERS, elites=ELITES, hidden=HIDDEN, nll_beta=0.0, termination_fn=never, device="cpu"
    )


def our_data() -> ReplayData:
    buffer = ReplayBuffer(ROWS, OBS, ACT, device="cpu")
    for obs, action, next_obs, reward in zip(*transitions(), strict=True):
        buffer.add(obs[None], next_obs[None], action[None], reward[None], np.zeros(1), [{}])
    return ReplayData(buffer)


def their_model() -> Any:
    """As ``examples/conf/dynamics_model/gaussian_mlp_ensemble.yaml`` and ``overrides/mbpo_halfcheetah.yaml`` set it up."""
    from mbrl.models import GaussianMLP, OneDTransitionRewardModel

    network = GaussianMLP(
        in_size=23,
        out_size=18,
        device="cpu",
        num_layers=4,
        ensemble_size=MEMBERS,
        hid_size=200,
        propagation_method="random_model",
        learn_logvar_bounds=False,
        activation_fn_cfg={"_target_": "torch.nn.SiLU"},
    )
    network.set_elite(range(ELITES))
    return OneDTransitionRewardModel(network, target_is_delta=True, normalize=True, learned_rewards=True, num_elites=ELITES)


# ---- fit


def our_fit() -> Work:
    model, data = our_model(), our_data()
    budget = FitBudget(max_epochs=EPOCHS, patience=EPOCHS, batch_size=BATCH, holdout_ratio=HOLDOUT)
    generator = th.Generator().manual_seed(0)
    return lambda: model.fit(data, budget, generator=generator)["batches"]


def their_fit() -> Work:
    """Train as ``mbrl.util.common.train_model_and_save_model_and_data`` does, without the files."""
    from mbrl.models import ModelTrainer
    from mbrl.util import ReplayBuffer as TheirBuffer
    from mbrl.util.common import get_basic_buffer_iterators

    model = their_model()
    trainer = ModelTrainer(model, optim_lr=1e-3, weight_decay=1e-5)
    buffer = TheirBuffer(ROWS, OBS.shape, ACT.shape, rng=np.random.default_rng(0))
    buffer.add_batch(*transitions(), np.zeros(ROWS, bool), np.zeros(ROWS, bool))

    def fit() -> float:
        train, holdout = get_basic_buffer_iterators(
            buffer, BATCH, HOLDOUT, ensemble_size=MEMBERS, shuffle_each_epoch=True, bootstrap_permutes=False
        )
        model.update_normalizer(buffer.get_all())
        losses, _ = trainer.train(train, dataset_val=holdout, num_epochs=EPOCHS, patience=EPOCHS, silent=True)
        return float(len(losses) * len(train))

    return fit


# ---- step


def our_step(rows: int) -> Callable[[], None]:
    model, generator = our_model(), th.Generator().manual_seed(0)
    obs, action, _, _ = transitions(rows)
    state, actions = model.initial(th.as_tensor(obs)), th.as_tensor(action)

    @th.no_grad()
    def step() -> None:
        model.step(state, actions, generator=generator)

    return step


def their_step(rows: int) -> Callable[[], None]:
    """``ModelEnv.step`` on tensors, its faster way; every member takes the same number of rows."""
    from mbrl.models import ModelEnv

    env = gym.Env()
    env.observation_space, env.action_space = OBS, ACT
    model_env = ModelEnv(env, their_model(), lambda action, next_obs: th.zeros(len(action), 1, dtype=th.bool))
    obs, action, _, _ = transitions(rows)
    actions = th.as_tensor(action)

    def step() -> None:
        state = model_env.reset(obs, return_as_np=False)
        model_env.step(actions, state, sample=True)

    return step


# ---- the limit: the matrix products of these networks and nothing else


def _layers(rows: int) -> list[tuple[th.Tensor, th.Tensor, th.Tensor]]:
    """Inputs, weights and outputs of every layer of every member; 23 numbers in, 18 means and 18 log-variances out."""
    sizes = [23, *HIDDEN, 36]
    return [
        (th.randn(MEMBERS, rows, fan_in), th.randn(MEMBERS, fan_in, fan_out), th.randn(MEMBERS, rows, fan_out))
        for fan_in, fan_out in pairwise(sizes)
    ]


def bare_fit() -> Work:
    """Forward and backward products of as many batches as the fits have, without their looks at the holdout data."""
    layers = _layers(BATCH)
    batches = EPOCHS * math.ceil(ROWS * (1 - HOLDOUT) / BATCH)

    @th.no_grad()
    def products() -> float:
        for _ in range(batches):
            for i, (inputs, weights, outputs) in enumerate(layers):
                th.bmm(inputs, weights)
                th.bmm(inputs.transpose(1, 2), outputs)
                if i:
                    th.bmm(outputs, weights.transpose(1, 2))
        return float(batches)

    return products


def bare_step(rows: int) -> Callable[[], None]:
    """Forward products, every row by one member, in pieces that suit the processor's cache."""
    layers = _layers(CHUNK)

    @th.no_grad()
    def products() -> None:
        for i in range(math.ceil(rows / CHUNK)):
            size = min(CHUNK, rows - i * CHUNK)
            for inputs, weights, _ in layers:
                th.mm(inputs[i % MEMBERS, :size], weights[i % MEMBERS])

    return products


SIDES = {"sb3_mbrl": our_step, "mbrl": their_step}
TURN = 100_000
"""Rows of a turn: as many steps as that takes"""


def steps(side: str, rows: int) -> Work:
    step = {**SIDES, "limit": bare_step}[side](rows)

    def turn() -> float:
        for _ in range(TURN // rows):
            step()
        return float(TURN)

    return turn


def extra_megabytes(side: str, rows: int) -> float:
    """Growth of a fresh process's peak memory by one step, from when the model, the data and a small step are there."""
    command = [sys.executable, "-m", "tests.benchmarks.bench_world_model", side, str(rows)]
    return float(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))


def _measure_memory(side: str, rows: int) -> float:
    SIDES[side](100)()
    step = SIDES[side](rows)
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak that making the data has left (Linux)
    before = _peak_kilobytes()
    step()
    return (_peak_kilobytes() - before) / 1024


def _peak_kilobytes() -> float:
    status = Path("/proc/self/status").read_text().splitlines()
    return float(next(line.split()[1] for line in status if line.startswith("VmHWM")))


def run(quick: bool = False) -> dict[str, Any]:
    """
    :param quick: few repeats, to see that everything runs
    """
    th.manual_seed(0)
    rounds = 3 if quick else 15
    fit = interleave(rounds, {"sb3_mbrl": Worker(our_fit), "mbrl": Worker(their_fit), "limit": Worker(bare_fit)})
    results: dict[str, Any] = {"fit": {**fit, "unit": "batches", "ratio": ratio(fit, "sb3_mbrl", "mbrl"), "required": 1.5}}
    for rows in (10_000, 100_000):
        step = interleave(rounds, {side: Worker(steps, side, rows) for side in (*SIDES, "limit")})
        results[f"step_{rows}"] = {**step, "unit": "transitions", "ratio": ratio(step, "sb3_mbrl", "mbrl"), "required": 2.0}
    megabytes = {side: round(extra_megabytes(side, 100_000), 1) for side in SIDES}
    results["step_memory_100000"] = {**megabytes, "unit": "MB of extra peak memory", "required_below": 1000}
    return results


if __name__ == "__main__":
    th.set_num_threads(THREADS)
    print(json.dumps(_measure_memory(sys.argv[1], int(sys.argv[2]))))
