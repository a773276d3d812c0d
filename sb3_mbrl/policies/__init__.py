"""Policies: those that have a state, and stronger networks for SAC, TD3, DDPG, DQN and their model-based classes."""

from sb3_mbrl.policies.aliases import policy_names
from sb3_mbrl.policies.stateful import StatefulPolicy

__all__ = ["StatefulPolicy", "policy_names"]
