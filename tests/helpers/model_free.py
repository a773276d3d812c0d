"""Every off-policy class of SB3 and sb3-contrib, with settings for short runs."""

from sb3_contrib import QRDQN, TQC, CrossQ
from stable_baselines3 import DDPG, DQN, SAC, TD3

BASES = [SAC, TD3, DDPG, DQN, TQC, CrossQ, QRDQN]


def quick_settings() -> dict:
    """Make new settings each time, since SB3 writes into ``policy_kwargs``."""
    return {
        "policy_kwargs": {"net_arch": [16]},
        "learning_starts": 60,
        "batch_size": 16,
        "buffer_size": 3000,
        "seed": 3,
        "device": "cpu",
    }


def env_id(base: type) -> str:
    return "CartPole-v1" if base in (DQN, QRDQN) else "Pendulum-v1"
