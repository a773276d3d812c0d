"""Imagined observations are members of their space."""

from sb3_mbrl import MBPO
from tests.helpers.agents import TINY, DictEnv


def test_dict_observations_are_imagined_as_members_of_their_space():
    model = {"members": 2, "elites": 2, "hidden": [32]}
    agent = MBPO("MultiInputPolicy", DictEnv(), **{**TINY, "world_model_kwargs": model})
    agent.learn(400)
    rows = agent.imagined.draw(200)["next_obs"]
    for i in range(200):
        row = {key: value[i].numpy() for key, value in rows.items()}
        row["side"] = row["side"][0]
        assert DictEnv.observation_space.contains(row), row
