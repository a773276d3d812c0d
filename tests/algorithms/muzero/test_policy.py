"""The policy of MuZero: searches in a batch."""

import numpy as np
import pytest
import torch as th
from gymnasium import spaces

from sb3_mbrl.algorithms.muzero.policy import root_state, search_metrics
from sb3_mbrl.planners.tree_search import TreeSearch
from tests.algorithms.muzero.agents import SMALL, small


@pytest.fixture(scope="module")
def agent():
    made = small(num_simulations=8)
    with th.no_grad():
        made.latent_model.predictions.out.weight.normal_(std=0.5)  # else all values are 0
        made.latent_model.dynamics.out.weight.normal_(std=0.5)
    return made


OBS = np.random.default_rng(0).uniform(-1, 1, (6, 4)).astype(np.float32)


def test_a_batch_is_searched_as_each_row_alone(agent):
    """LightZero's batches once leaked values between their rows."""
    together = agent.search(OBS)
    for row in range(6):
        alone = agent.search(OBS[row])
        assert np.array_equal(alone.visits[0], together.visits[row])
        assert np.allclose(alone.policy[0], together.policy[row], atol=1e-5)


def test_deterministic_searches_repeat_and_leave_streams_alone(agent):
    before = agent.policy.generator.get_state()
    first, _ = agent.predict(OBS, deterministic=True)
    second, _ = agent.predict(OBS, deterministic=True)
    assert np.array_equal(first, second)
    assert th.equal(agent.policy.generator.get_state(), before)


def test_noise_differs_between_calls_and_repeats_with_the_seed():
    agent = small()

    def drawn():
        agent.policy.set_seed(3)
        return [agent.predict(OBS, deterministic=False)[0].tolist() for _ in range(8)]

    first = drawn()
    assert first == drawn()
    assert len({tuple(actions) for actions in first}) > 1


def test_more_simulations_when_asked_for(agent):
    assert agent.search(OBS, num_simulations=3).visits.sum(1).tolist() == [3] * 6
    action, state = agent.predict(OBS, num_simulations=2)
    assert action.shape == (6,)
    assert state is None


def test_masks_are_obeyed_and_checked(agent):
    for allowed in (0, 1):
        masks = np.zeros((6, 2), bool)
        masks[:, allowed] = True
        for deterministic in (True, False):
            action, _ = agent.predict(OBS, action_masks=masks, deterministic=deterministic)
            assert (action == allowed).all()
    assert agent.predict(OBS[0], action_masks=np.array([False, True]))[0] == 1
    with pytest.raises(ValueError, match=r"give \(6, 2\), with an allowed action in every row"):
        agent.predict(OBS, action_masks=np.zeros((6, 2), bool))
    with pytest.raises(ValueError, match="action_mask has the shape"):
        agent.predict(OBS, action_masks=np.ones((6, 3), bool))


def test_metrics_of_a_search(agent):
    result = agent.search(OBS)
    metrics = search_metrics(result)
    assert metrics["root_value"] == pytest.approx(float(result.value.mean()))
    prior = result.tree.prior[:, 0]
    divergence = (result.policy * np.log(result.policy / prior)).sum(1).mean()
    assert metrics["improvement"] == pytest.approx(float(divergence), rel=1e-4)
    assert 0 < metrics["network_share"] < 1
    assert 1 <= metrics["depth"] <= 8


def test_values_of_the_tree_are_those_of_the_model(agent):
    """Along any edge the arrays hold what the model predicts there."""
    result = agent.search(OBS)
    model, tree = agent.latent_model, result.tree
    for row in range(6):
        edge = int(tree.visits[row, 0].argmax())
        child = int(tree.children[row, 0, edge])
        state = {"latent": root_state(result)["latent"][row : row + 1]}
        with th.no_grad():
            prediction = model.step(state, th.tensor([[edge]]))
            logits, value = model.policy_value(prediction.state)
        assert float(tree.reward[row, child]) == pytest.approx(float(prediction.reward), abs=1e-4)
        assert float(tree.raw_value[row, child]) == pytest.approx(float(value), abs=1e-4)
        assert np.allclose(tree.prior[row, child], logits.softmax(1)[0], atol=1e-5)


@pytest.mark.parametrize("space", [spaces.Box(-2, 2, (2,)), spaces.MultiDiscrete([3, 2]), spaces.MultiBinary(2)], ids=str)
def test_actions_that_cannot_be_listed_are_sampled(space):
    class Env(__import__("gymnasium").Env):
        observation_space, action_space = spaces.Box(-1, 1, (4,)), space

        def reset(self, *, seed=None, options=None):
            return np.zeros(4, np.float32), {}

        def step(self, action):
            assert self.action_space.contains(action)
            return np.zeros(4, np.float32), 0.0, False, True, {}

    agent = small(Env(), n_sampled_actions=6).learn(30)
    action, _ = agent.predict(OBS, deterministic=True)
    assert action.shape == (6, *space.shape)
    assert all(space.contains(one) for one in action)


def test_the_search_is_that_of_the_agents_settings():
    agent = small(search="puct", search_kwargs={"dirichlet_alpha": 0.5}, num_simulations=5)
    assert isinstance(agent.policy.tree_search, TreeSearch)
    assert agent.policy.tree_search.kind == "puct"
    assert agent.search(OBS).visits.sum(1).tolist() == [5] * 6


@pytest.mark.parametrize("codes", [2, 3])
def test_agents_and_chance_take_turns_in_a_tree(codes):
    agent = small(num_simulations=20, world_model_kwargs={**SMALL["world_model_kwargs"], "chance_codes": codes})
    with th.no_grad():
        agent.latent_model.predictions.out.weight.normal_(std=0.5)
        agent.latent_model.chance.predictions.out.weight.normal_(std=0.5)
        agent.latent_model.dynamics.out.weight.normal_(std=0.5)
    result = agent.search(OBS)
    tree = result.tree
    assert result.policy.shape == result.visits.shape == (6, 2)
    assert set(result.action.tolist()) <= {0, 1}
    assert not tree.chance[:, 0].any()
    for row in range(6):
        for node in range(21):
            for edge in range(tree.children.shape[2]):
                child = tree.children[row, node, edge]
                if child < 0:
                    continue
                assert tree.chance[row, child] != tree.chance[row, node]
                if tree.chance[row, child]:
                    assert edge < 2
                    assert (tree.reward[row, child], tree.discount[row, child]) == (0.0, 1.0)
                else:
                    assert edge < codes
                    assert tree.discount[row, child] == pytest.approx(0.9)
                    after = tree.states["latent"][node, row][None]
                    with th.inference_mode():
                        _, reward, _, value = agent.latent_model.predict_outcome(after, th.tensor([edge]))
                    assert float(tree.reward[row, child]) == pytest.approx(float(reward), abs=1e-4)
                    assert float(tree.raw_value[row, child]) == pytest.approx(float(value), abs=1e-4)
    agent.learn(30)
    with pytest.raises(ValueError, match="chance is for Discrete actions"):
        small("Pendulum-v1", world_model_kwargs={**SMALL["world_model_kwargs"], "chance_codes": codes})
