"""
Does training on own predictions, or on disturbed inputs, lower a model's error after many steps?

::

    python examples/reproduce/correction.py pendulum            # every seed and variant; appends to its record
    python examples/reproduce/correction.py halfcheetah

A SAC agent makes the data while it learns. An ensemble is fitted to all of it but the last episodes, in which it is then
rolled out along the real actions. The error is the mean squared difference between its mean prediction and the real
observation, each number in units of its standard deviation.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # one thread for each run, before torch is imported

import argparse
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch as th
from records import HERE, Record, read_record, write_record
from run import machine, versions
from stable_baselines3 import SAC
from stable_baselines3.common.buffers import ReplayBuffer

from sb3_mbrl.buffers import ReplayData
from sb3_mbrl.contracts import FitBudget
from sb3_mbrl.models.ensemble import EnsembleModel

RESULTS = HERE / "results-of-models"
SEEDS = (0, 1, 2)
STEPS = (1, 5, 10, 20)
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "multi-step": {"multi_step": 5},
    "demonstrator": {"multi_step": 5, "multi_step_gradient": False},
    "input-noise": {"input_noise": 0.03},
}


class Case(NamedTuple):
    """An environment, the steps of data, and the networks."""

    env_id: str
    rows: int
    held_out: int
    settings: dict[str, Any]
    budget: FitBudget


CASES = {
    "pendulum": Case(
        "Pendulum-v1", 2_000, 1_000, {"members": 5, "elites": 5, "hidden": [64, 64]}, FitBudget(max_batches=3_000)
    ),
    "halfcheetah": Case(
        "HalfCheetah-v5", 6_000, 2_000, {"members": 5, "elites": 5, "hidden": [200, 200, 200]}, FitBudget(max_batches=3_000)
    ),
}


def collect(case: Case, seed: int) -> ReplayBuffer:
    """Collect whole episodes of an agent that learns."""
    agent = SAC("MlpPolicy", case.env_id, seed=seed, learning_starts=500, buffer_size=case.rows + case.held_out, device="cpu")
    agent.learn(case.rows + case.held_out)
    assert isinstance(agent.replay_buffer, ReplayBuffer)
    return agent.replay_buffer


def part(buffer: ReplayBuffer, rows: slice) -> ReplayBuffer:
    """Copy some rows into a buffer of their own."""
    new = ReplayBuffer(rows.stop - rows.start, buffer.observation_space, buffer.action_space, device="cpu")
    for name in ("observations", "next_observations", "actions", "rewards", "dones", "timeouts"):
        getattr(new, name)[:] = getattr(buffer, name)[rows]
    new.full = True
    return new


@th.no_grad()
def open_loop_errors(model: EnsembleModel, rows: ReplayBuffer, steps: Sequence[int] = STEPS) -> list[float]:
    """Return the error after each of some numbers of steps, from every state from which the episode goes on for the most."""
    obs, action, after = (th.as_tensor(np.array(x[:, 0])) for x in (rows.observations, rows.actions, rows.next_observations))
    scale, ends, errors = after.std(0), np.flatnonzero(rows.dones[:, 0]), []
    last = np.array([ends[ends >= t].min(initial=len(obs) - 1) for t in range(len(obs))])
    starts = th.as_tensor(np.flatnonzero(np.arange(len(obs)) + max(steps) - 1 <= last))
    state = model.initial(obs[starts])
    for step in range(max(steps)):
        state = model.step(state, action[starts + step], deterministic=True).state
        if step + 1 in steps:
            errors.append(float(((state["obs"] - after[starts + step]) / scale).square().mean()))
    return errors


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("case", choices=CASES)
    arguments = parser.parse_args()
    th.set_num_threads(1)
    case, path = CASES[arguments.case], RESULTS / f"{arguments.case}.json"
    record: Record = read_record(path) or {
        "env_id": case.env_id,
        "rows": case.rows,
        "held_out": case.held_out,
        "settings": case.settings,
        "max_batches": case.budget.max_batches,
        "variants": VARIANTS,
        "steps": list(STEPS),
        "versions": versions(),
        "machine": machine(),
        "errors": [],
    }
    done = {(entry["variant"], entry["seed"]) for entry in record["errors"]}
    for seed in SEEDS:
        if all((variant, seed) in done for variant in VARIANTS):
            continue
        buffer = collect(case, seed)
        train, test = part(buffer, slice(0, case.rows)), part(buffer, slice(case.rows, case.rows + case.held_out))
        for variant, options in VARIANTS.items():
            if (variant, seed) in done:
                continue
            th.manual_seed(seed)
            model = EnsembleModel(buffer.observation_space, buffer.action_space, device="cpu", **case.settings, **options)
            begin = time.process_time()
            fit = model.fit(ReplayData(train), case.budget, generator=th.Generator().manual_seed(seed))
            errors = open_loop_errors(model, test)
            cpu = round(time.process_time() - begin, 1)
            entry = {"variant": variant, "seed": seed, "errors": errors, "batches": fit["batches"], "cpu_s": cpu}
            record["errors"].append(entry)
            print(arguments.case, entry, flush=True)
            write_record(path, record)


if __name__ == "__main__":
    main()
