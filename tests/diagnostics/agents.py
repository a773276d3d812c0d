"""Agents that plan."""

from sb3_mbrl import PETS

PLANNER = {"horizon": 8, "population": 16}


def planning(**kwargs):
    return PETS(
        "MlpPolicy", "Pendulum-v1", planner="random", planner_kwargs=PLANNER, seed=0, **{"world_model": "pendulum", **kwargs}
    )
