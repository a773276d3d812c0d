"""The policy of Dreamer: it filters observations, acts by samples or modes, and belongs to an agent."""

import numpy as np
import pytest
import torch as th
from gymnasium import spaces

from sb3_mbrl.algorithms.dreamer.policy import Actor, DreamerPolicy
from sb3_mbrl.contracts import MissingCapability
from tests.helpers.dreamers import ActionEnv, small


@pytest.fixture(scope="module")
def untrained():
    return small()


@pytest.fixture(scope="module")
def continuous():
    return small("Pendulum-v1")


def observations(*values):
    return th.tensor(values, dtype=th.float32)[:, None].expand(-1, 4)


def test_predict_is_recurrent(untrained):
    """Two histories that end in the same observation; and every environment has its own."""

    def act(first):
        _, state = untrained.predict(np.full((1, 4), first, np.float32), None, np.array([True]), deterministic=True)
        return untrained.predict(np.zeros((1, 4), np.float32), state, np.array([False]), deterministic=True)[1]["latent"][
            "deter"
        ]

    assert not th.allclose(act(1.0), act(-1.0))
    _, both = untrained.predict(np.array([[1.0] * 4, [-1.0] * 4], np.float32), None, np.ones(2, bool), deterministic=True)
    _, both = untrained.predict(np.zeros((2, 4), np.float32), both, np.array([False, True]), deterministic=True)
    th.testing.assert_close(both["latent"]["deter"][:1], act(1.0))
    _, alone = untrained.predict(np.zeros(4, np.float32), deterministic=True)
    th.testing.assert_close(both["latent"]["deter"][1:], alone["latent"]["deter"])
    with pytest.raises(ValueError, match="state is of 2 environments, and there are 1 observations"):
        untrained.predict(np.zeros((1, 4), np.float32), both)


def test_the_state_is_that_of_the_models_own_filter(untrained):
    """Step by step: the last action leads to the observation; where an episode begins, nothing before counts."""
    model, policy = untrained.world_model, untrained.policy
    first = policy.act(observations(1.0, 2.0), None, th.zeros(2, dtype=th.bool), deterministic=True)
    neutral = th.zeros(2, 1, dtype=th.long)
    expected = model.observe_step(None, neutral, observations(1.0, 2.0), th.ones(2, dtype=th.bool), deterministic=True)
    th.testing.assert_close(first["latent"], expected)
    is_first = th.tensor([False, True])
    second = policy.act(observations(3.0, 4.0), first, is_first, deterministic=True)
    expected = model.observe_step(first["latent"], first["action"], observations(3.0, 4.0), is_first, deterministic=True)
    th.testing.assert_close(second["latent"], expected)


def test_deterministic_actions_are_the_mode_of_the_actor(continuous):
    policy, obs = continuous.policy, th.ones(3, 3)
    state = policy.act(obs, None, th.ones(3, dtype=th.bool), deterministic=True)
    out = policy.actor(policy.world_model.features(state["latent"]))
    th.testing.assert_close(state["action"], policy.actor.output.mode(out).clamp(-1, 1))
    again = policy.act(obs, None, th.ones(3, dtype=th.bool), deterministic=True)
    th.testing.assert_close(again["action"], state["action"])


def test_samples_come_from_the_policys_stream_and_stay_in_bounds(continuous):
    policy, obs, first = continuous.policy, th.ones(200, 3), th.ones(200, dtype=th.bool)
    before = th.get_rng_state()
    policy.set_seed(5)
    drawn = policy.act(obs, None, first)["action"]
    assert drawn.abs().max() <= 1
    assert drawn.std() > 0.1
    policy.set_seed(5)
    th.testing.assert_close(policy.act(obs, None, first)["action"], drawn)
    assert not th.allclose(policy.act(obs, None, first)["action"], drawn)
    assert th.equal(th.get_rng_state(), before)


def test_an_untrained_actor_is_nearly_uniform(untrained):
    """The last layer's weights begin at a hundredth of the usual scale."""
    features = th.randn(50, untrained.world_model.n_features, generator=th.Generator().manual_seed(0))
    chances = untrained.policy.actor(features).softmax(-1)
    assert (chances - 0.5).abs().max() < 0.05


@pytest.mark.parametrize(
    ("action_space", "neutral"),
    [
        (spaces.Box(-3, 1, (2, 1)), [0.0, 0.0]),
        (spaces.Discrete(3, start=1), [1]),
        (spaces.MultiDiscrete([2, 3]), [0, 0]),
        (spaces.MultiBinary(2), [0, 0]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_the_action_before_an_episode(action_space, neutral):
    assert small(ActionEnv(action_space)).policy.neutral_action(2).tolist() == [neutral] * 2


def test_attaching_builds_actor_and_critics_for_the_models_features(untrained):
    policy, model = untrained.policy, untrained.world_model
    assert policy.actor.body(th.zeros(1, model.n_features)).shape[1] == policy.actor.body.outputs
    assert all(th.equal(a, b) for a, b in zip(policy.slow_critic.parameters(), policy.critic.parameters(), strict=True))
    assert not any(parameter.requires_grad for parameter in policy.slow_critic.parameters())
    assert not any(name.startswith("_world_model") for name in policy.state_dict()), "saved with the model, not twice"
    assert policy.critic.output.n_bins == 15, "policy_kwargs replaces the model's default"


def test_a_head_of_ones_own_size():
    actor = Actor(6, spaces.Discrete(4), units=5, layers=2, unimix=0.0)
    assert actor(th.zeros(3, 6)).shape == (3, 4)
    assert actor(th.zeros(3, 6)).dtype == th.float32


def test_action_masks_are_refused(untrained):
    with pytest.raises(MissingCapability, match="Dreamer's actor takes no action masks: leave out action_masks"):
        untrained.predict(np.zeros(4, np.float32), action_masks=np.ones(2, bool))


def test_the_policy_alone_cannot_be_saved(untrained, tmp_path):
    with pytest.raises(NotImplementedError, match=r"acts in the agent's world model: save the agent"):
        untrained.policy.save(tmp_path / "policy")


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"layers": -1}, "layers=-1: give a whole number from 0 on"),
        ({"units": 0}, "units=0: give a whole number from 1 on"),
        ({"unimix": 1.5}, "unimix=1.5: give a number from 0 up to 1"),
        ({"actor_scale": -1.0}, "actor_scale=-1.0"),
        ({"value_range": 0.0}, "value_range=0.0: give a number above 0"),
    ],
)
def test_settings_out_of_range(wrong, words):
    with pytest.raises(ValueError, match=words):
        DreamerPolicy(spaces.Box(-1, 1, (2,)), spaces.Discrete(2), **wrong)
