"""
An update of DreamerV3: size1m on walker-like proprioception (vectors of 1, 14 and 9 numbers, 6 actions), 16 sequences of 64
steps, everything included (losses, imagination from all states, both backward passes, the optimiser, the slow critic), next to
``dreamer_v3_5`` of sheeprl 0.8.4, which lives in an environment of its own::

    python -m venv sheeprl-env && sheeprl-env/bin/python -m pip install torch==2.13.0 sheeprl==0.8.4
    SHEEPRL_PYTHON=sheeprl-env/bin/python python -m tests.benchmarks dreamer

Ours also draws the batch from the replay buffer and writes the latent states back.
"""

import os
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

from sb3_mbrl import DreamerV3
from tests.benchmarks.measure import THREADS, External, Work, Worker, interleave, ratio

BATCH, LENGTH, UPDATES = 16, 64, 3
SIZES, ACTIONS = {"height": 1, "orientations": 14, "velocity": 9}, 6


class Walker(gym.Env[dict[str, np.ndarray], np.ndarray]):
    """Noise of the walker's sizes."""

    observation_space = gym.spaces.Dict({key: gym.spaces.Box(-np.inf, np.inf, (n,)) for key, n in SIZES.items()})
    action_space = gym.spaces.Box(-1, 1, (ACTIONS,))

    def _noise(self) -> dict[str, np.ndarray]:
        return {key: self.np_random.normal(size=n).astype(np.float32) for key, n in SIZES.items()}

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        super().reset(seed=seed)
        return self._noise(), {}

    def step(self, action: np.ndarray) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        return self._noise(), 0.0, False, False, {}


def ours(compile: Any = False) -> Work:
    agent = DreamerV3(
        "MultiInputPolicy", Walker(), seed=0, device="cpu", compile=compile, buffer_size=2000, **settings()
    ).learn(1500)

    def update() -> float:
        agent.train(UPDATES, BATCH)
        return float(UPDATES)

    return update


def settings() -> dict[str, Any]:
    """The authors', without updates while steps are collected."""
    chosen = DreamerV3.preset("size1m")
    return {**chosen, "batch_size": BATCH, "batch_length": LENGTH, "learning_starts": 10**6}


def run(quick: bool = False) -> dict[str, Any]:
    """
    :param quick: few repeats, to see that everything runs
    :raises RuntimeError: where ``SHEEPRL_PYTHON`` does not say which interpreter has sheeprl
    """
    python = os.environ.get("SHEEPRL_PYTHON")
    if not python:
        raise RuntimeError("SHEEPRL_PYTHON: say which interpreter has sheeprl==0.8.4 (tests/benchmarks/bench_dreamer.py)")
    worker = Path(__file__).with_name("sheeprl_worker.py")
    command = [python, str(worker), *(str(number) for number in (THREADS, UPDATES, BATCH, LENGTH))]
    theirs = External(command, {"OMP_NUM_THREADS": str(THREADS)})
    times = interleave(3 if quick else 15, {"sb3_mbrl": Worker(ours), "sheeprl": theirs})
    return {
        "dreamer_update": {
            **times,
            "unit": "updates",
            "theirs": theirs.greeting,
            "ratio": ratio(times, "sb3_mbrl", "sheeprl"),
            "required": 1.5,
        }
    }
