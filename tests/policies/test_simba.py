"""SimBa's networks: running statistics, residual blocks, defaults, saving."""

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import DQN, SAC, TD3

from sb3_mbrl.policies.simba import (
    DQNSimbaPolicy,
    NormalisedFeatures,
    ResidualBlock,
    RunningNorm,
    SACSimbaPolicy,
    TD3SimbaPolicy,
    simba_body,
    simba_network,
)

CASES = {
    "SAC": (SAC, SACSimbaPolicy, "Pendulum-v1"),
    "TD3": (TD3, TD3SimbaPolicy, "Pendulum-v1"),
    "DQN": (DQN, DQNSimbaPolicy, "CartPole-v1"),
}


def made(case):
    cls, policy, env_id = CASES[case]
    return cls(policy, env_id, learning_starts=20, seed=0, device="cpu", policy_kwargs={"net_arch": [16, 16]})


def test_statistics_are_those_of_all_batches_together():
    generator = th.Generator().manual_seed(0)
    batches = [th.randn(n, 3, generator=generator) * 5 + 2 for n in (1, 7, 64)]
    norm = RunningNorm(3).train()
    for batch in batches:
        norm(batch)
    rows = th.cat(batches)
    assert th.allclose(norm.running_mean, rows.mean(0), atol=1e-4)
    assert th.allclose(norm.running_var, rows.var(0, unbiased=False), atol=1e-3)
    assert float(norm.running_count) == 72
    before = norm.running_mean.clone()
    with th.no_grad():
        norm(batches[0])
    norm.eval()(batches[0])
    assert th.equal(norm.running_mean, before), "only learning moves them"
    assert th.allclose(norm(rows).mean(0), th.zeros(3), atol=1e-3)


def test_a_block_adds_to_its_input():
    block = ResidualBlock(4)
    x = th.randn(5, 4)
    by_hand = x + block.down(th.relu(block.up(th.nn.functional.layer_norm(x, (4,)))))
    assert th.allclose(block(x), by_hand, atol=1e-6)
    assert block.up.weight.shape == (16, 4)


def test_one_block_per_entry_of_net_arch():
    body = simba_body(3, [8, 8, 8])
    assert sum(isinstance(layer, ResidualBlock) for layer in body) == 3
    out = body(th.randn(50, 3))
    assert th.allclose(out.mean(1), th.zeros(50), atol=1e-5), "a layer norm is last"
    assert simba_network(3, 2, [8])(th.zeros(4, 3)).shape == (4, 2)
    for wrong in ([], [8, 16]):
        with pytest.raises(ValueError, match="blocks with residual connections have equal units"):
            simba_body(3, wrong)


def test_observations_of_any_shape_are_flattened():
    features = NormalisedFeatures(spaces.Box(-1, 1, (2, 3)))
    assert features.eval()(th.ones(4, 2, 3)).shape == (4, 6)


@pytest.mark.parametrize("case", CASES)
def test_it_learns_with_statistics_that_targets_share(case):
    agent = made(case).learn(60)
    pairs = [(agent.q_net, agent.q_net_target)] if case == "DQN" else [(agent.critic, agent.critic_target)]
    if case == "DQN":
        agent.target_update_interval = 1
        agent._on_step()  # between two rollouts, the target is copied
    for own, target in pairs:
        norm, copied = own.features_extractor.norm, target.features_extractor.norm
        assert float(norm.running_count) >= 32
        assert th.equal(norm.running_mean, copied.running_mean)
        assert th.equal(norm.running_var, copied.running_var)
    optimizer = agent.policy.optimizer if case == "DQN" else agent.critic.optimizer
    assert isinstance(optimizer, th.optim.AdamW)
    assert optimizer.param_groups[0]["weight_decay"] == 0.01


def test_the_sizes_of_the_paper_are_the_defaults():
    agent = SAC(SACSimbaPolicy, "Pendulum-v1", device="cpu")
    assert agent.actor.latent_pi[0].out_features == 128
    assert [type(layer).__name__ for layer in agent.critic.qf0[0]] == ["Linear", "ResidualBlock", "ResidualBlock", "LayerNorm"]
    assert agent.critic.qf0[0][0].weight.shape == (512, 4)


@pytest.mark.parametrize("case", CASES)
def test_a_loaded_agent_predicts_the_same(case, tmp_path):
    agent = made(case).learn(40)
    agent.save(tmp_path / "agent")
    loaded = CASES[case][0].load(tmp_path / "agent", device="cpu")
    obs = np.random.default_rng(0).uniform(-1, 1, (6, *agent.observation_space.shape)).astype(np.float32)
    assert np.array_equal(agent.predict(obs, deterministic=True)[0], loaded.predict(obs, deterministic=True)[0])
