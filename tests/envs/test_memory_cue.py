"""The memory cue: rules and optimum."""

import sb3_mbrl  # noqa: F401  (registers them)
from sb3_mbrl.envs.memory_cue import MemoryCueEnv


def test_the_cue_is_shown_once_and_decides():
    env = MemoryCueEnv(4)
    for seed in range(6):
        obs, _ = env.reset(seed=seed)
        cue = obs[0]
        assert cue in (-1, 1)
        shown = [env.step(0)[0].tolist() for _ in range(3)]
        assert shown == [[0, 0], [0, 0], [0, 1]]
        _, reward, over, _, _ = env.step(seed % 2)
        assert over
        assert reward == float((cue == 1) == (seed % 2 == 1))
