"""
sheeprl's side of ``bench_dreamer.py``, for an interpreter of its own: a line comes in, one turn of updates is made, and a line
goes out with how many, the seconds, and the processor's (user, system). Imports nothing of ours.
"""

import resource
import sys
import time
import warnings

import gymnasium as gym
import hydra
import numpy as np
import torch as th
from lightning.fabric import Fabric
from omegaconf import OmegaConf
from sheeprl.algos.dreamer_v3_5.agent import build_agent
from sheeprl.algos.dreamer_v3_5.dreamer_v3_5 import train, update_target_critic
from sheeprl.algos.dreamer_v3_5.utils import Moments
from sheeprl.utils.utils import dotdict

THREADS, UPDATES, BATCH, LENGTH = (int(argument) for argument in sys.argv[1:5])
SIZES, ACTIONS = {"height": 1, "orientations": 14, "velocity": 9}, 6


def main() -> None:
    warnings.simplefilter("ignore")
    th.set_num_threads(THREADS)
    keys = ",".join(SIZES)
    with hydra.initialize_config_module("sheeprl.configs", version_base="1.3"):
        composed = hydra.compose(
            "config",
            [
                "exp=dreamer_v3_5",
                "algo=dreamer_v3_5_1M",
                "env=dummy",
                "algo.cnn_keys.encoder=[]",
                f"algo.mlp_keys.encoder=[{keys}]",
                f"algo.per_rank_batch_size={BATCH}",
                f"algo.per_rank_sequence_length={LENGTH}",
                "metric.log_level=0",
            ],
        )
    cfg = dotdict(OmegaConf.to_container(composed, resolve=True, throw_on_missing=False))
    fabric = Fabric(accelerator="cpu", devices=1, precision="32-true")
    space = gym.spaces.Dict({key: gym.spaces.Box(-np.inf, np.inf, (n,), np.float32) for key, n in SIZES.items()})
    world_model, actor, critic, target_critic, _ = build_agent(fabric, (ACTIONS,), True, cfg, space)
    learned = [*world_model.parameters(), *actor.parameters(), *critic.parameters()]
    optimizer = fabric.setup_optimizers(hydra.utils.instantiate(cfg.algo.optimizer, params=learned, _convert_="all"))
    moments = Moments(0.99, 1.0, 0.05, 0.95)
    steps = LENGTH + cfg.algo.replay_context
    rng = np.random.default_rng(0)
    sizes = {**SIZES, "actions": ACTIONS, "rewards": 1}
    data = {key: th.as_tensor(rng.normal(size=(steps, BATCH, n)).astype(np.float32)) for key, n in sizes.items()}
    data["actions"].clamp_(-1, 1)
    data |= {key: th.zeros(steps, BATCH, 1) for key in ("terminated", "truncated", "is_first")}
    data["deter"] = th.zeros(steps, BATCH, cfg.algo.world_model.recurrent_model.recurrent_state_size, dtype=th.float16)
    data["stoch"] = th.zeros(steps, BATCH, cfg.algo.world_model.stochastic_size, dtype=th.uint8)
    print("parameters", sum(parameter.numel() for parameter in learned), flush=True)
    for _ in sys.stdin:
        before, start = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
        for _ in range(UPDATES):
            train(
                fabric,
                cfg,
                world_model,
                actor,
                critic,
                target_critic,
                optimizer,
                moments,
                dict(data),
                None,
                (ACTIONS,),
            )
            update_target_critic(critic, target_critic, cfg.algo.critic.tau)
        seconds, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF)
        print(UPDATES, seconds, after.ru_utime - before.ru_utime, after.ru_stime - before.ru_stime, flush=True)


if __name__ == "__main__":
    main()
