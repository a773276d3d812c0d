"""The names by which model-based classes know further policies: ``MBPO("DroQPolicy", env)``."""

from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.dqn.policies import DQNPolicy
from stable_baselines3.sac.policies import SACPolicy
from stable_baselines3.td3.policies import TD3Policy

from sb3_mbrl.policies import droq, simba

POLICIES: dict[type[BasePolicy], dict[str, type[BasePolicy]]] = {
    SACPolicy: {"DroQPolicy": droq.SACDroQPolicy, "SimbaPolicy": simba.SACSimbaPolicy},
    TD3Policy: {"DroQPolicy": droq.TD3DroQPolicy, "SimbaPolicy": simba.TD3SimbaPolicy},
    DQNPolicy: {"DroQPolicy": droq.DQNDroQPolicy, "SimbaPolicy": simba.DQNSimbaPolicy},
}
"""By the policy that an algorithm calls ``"MlpPolicy"``"""


def policy_names(aliases: dict[str, type[BasePolicy]]) -> dict[str, type[BasePolicy]]:
    """
    Add the further policies that fit an algorithm to its own.

    :param aliases: the policies of the algorithm by name (SB3's ``policy_aliases``)
    """
    usual = aliases.get("MlpPolicy")
    return dict(aliases) if usual is None else {**POLICIES.get(usual, {}), **aliases}
