"""Ladder, level 1: from random data of CartPole the model learns what actions do, in episodes that it has not seen."""

import gymnasium as gym
import numpy as np
import torch as th
from stable_baselines3.common.buffers import ReplayBuffer

from sb3_mbrl.buffers.replay_view import ReplayData
from sb3_mbrl.contracts import FitBudget
from sb3_mbrl.fitting import fit_world_model
from sb3_mbrl.models.rssm import RSSM

CONTEXT, HORIZON = 4, 10


def episodes(seed, steps):
    """Collect episodes of random actions: the observations ``(T + 1, 4)`` and actions ``(T, 1)`` of each."""
    env = gym.make("CartPole-v1")
    env.action_space.seed(seed)
    episodes = []
    while sum(len(actions) for _, actions in episodes) < steps:
        obs, over, actions = [env.reset(seed=seed if not episodes else None)[0]], False, []
        while not over:
            actions.append([env.action_space.sample()])
            following, _, terminated, truncated, _ = env.step(actions[-1][0])
            obs.append(following)
            over = terminated or truncated
        episodes.append((np.array(obs), np.array(actions)))
    return episodes


def test_it_beats_persistence_and_actions_of_others(generator):
    env = gym.make("CartPole-v1")
    buffer = ReplayBuffer(2_000, env.observation_space, env.action_space, device="cpu", handle_timeout_termination=True)
    for obs, actions in episodes(0, 1_000):
        for t, action in enumerate(actions):
            done = np.array([t + 1 == len(actions)])
            buffer.add(obs[t], obs[t + 1], action, np.ones(1), done, [{}])
    th.manual_seed(0)
    sizes = {"deter": 64, "hidden": 32, "units": 32, "stoch": 4, "classes": 8, "blocks": 4, "bins": 15}
    model = RSSM(env.observation_space, env.action_space, size="tiny", device="cpu", lr=2e-3, warmup=20, **sizes)
    fit_world_model(model, ReplayData(buffer), FitBudget(max_batches=300, batch_size=64), generator=generator)
    model.eval()

    new = [(obs, actions) for obs, actions in episodes(1, 1_000) if len(actions) >= CONTEXT + HORIZON]
    seen = th.as_tensor(np.stack([obs[:CONTEXT] for obs, _ in new]))
    true = th.as_tensor(np.stack([obs[CONTEXT : CONTEXT + HORIZON] for obs, _ in new]))
    done = th.as_tensor(np.stack([actions[: CONTEXT + HORIZON - 1] for _, actions in new]))
    spread = true.std((0, 1))

    def error(predicted):
        return float(((predicted - true) / spread).square().mean())

    @th.no_grad()
    def imagined(actions):
        first = th.zeros(len(new), CONTEXT, dtype=th.bool)
        state, decoded = model.filter(seen, done[:, :CONTEXT], first), []
        for t in range(CONTEXT - 1, CONTEXT + HORIZON - 1):
            state = model.step(state, actions[:, t], deterministic=True).state
            decoded.append(model.decode(state))
        return th.stack(decoded, 1)

    assert len(new) > 20
    right = error(imagined(done))
    assert right < 0.7 * error(seen[:, -1:]), "persistence: everything stays where it is"
    assert right < 0.5 * error(imagined(done.roll(1, 0))), "the actions of another episode"
