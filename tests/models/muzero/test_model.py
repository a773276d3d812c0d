"""The value-equivalent world model: its networks' equations and its loss, by hand."""

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces

from sb3_mbrl.contracts import LatentModel, MissingCapability, Sequences
from sb3_mbrl.models.muzero import MuZeroModel
from sb3_mbrl.models.muzero.networks import min_max
from sb3_mbrl.testing import check_world_model

OBS, ACTIONS = spaces.Box(-1, 1, (3,)), spaces.Discrete(4, start=2)


def model(**settings):
    th.manual_seed(0)
    return MuZeroModel(OBS, ACTIONS, device="cpu", **{"latent": 8, "units": 16, "bins": 11, "value_range": 10.0, **settings})


def windows(n=5, steps=3, **extra):
    generator = th.Generator().manual_seed(1)
    obs = th.rand(n, steps, 3, generator=generator)
    action = th.randint(2, 6, (n, steps, 1), generator=generator)
    reward = th.randn(n, steps, generator=generator)
    none = th.zeros(n, steps, dtype=th.bool)
    return Sequences(obs, action, obs.roll(-1, 1), reward, th.zeros(n, steps), none, none, extra)


def targets(n=5, steps=3):
    generator = th.Generator().manual_seed(2)
    policy = th.rand(n, steps + 1, 4, generator=generator)
    return {
        "policy": policy / policy.sum(-1, keepdim=True),
        "policy_weight": th.ones(n, steps + 1),
        "value": th.randn(n, steps + 1, generator=generator),
        "value_weight": th.ones(n, steps + 1),
    }


def test_latents_are_scaled_to_the_unit_interval():
    scaled = min_max(th.tensor([[1.0, 3.0, 2.0], [5.0, 5.0, 5.0]]))
    assert th.allclose(scaled, th.tensor([[0.0, 1.0, 0.5], [0.0, 0.0, 0.0]]), atol=1e-4)


def test_it_is_a_latent_model_that_does_not_decode():
    world = model()
    assert isinstance(world, LatentModel)
    assert not world.decodes
    state = world.initial(th.zeros(2, 3))
    with pytest.raises(MissingCapability, match="does not decode"):
        world.decode(state)
    prediction = world.step(state, th.tensor([[2], [5]]))
    assert prediction.state["latent"].shape == (2, 8)
    assert th.all(prediction.reward == 0.0), "rewards begin at exactly 0"
    logits, value = world.policy_value(state)
    assert th.all(logits == 0.0)
    assert th.all(value == 0.0)


def test_the_discount_of_two_players_is_negative():
    with th.no_grad():
        prediction = model(players=2, gamma=0.5).step({"latent": th.zeros(1, 8)}, th.tensor([[2]]))
    assert float(prediction.discount) == pytest.approx(-0.5 * (1 - float(prediction.terminated)))


def test_the_first_losses_are_those_of_uniform_distributions():
    """Every head begins with equal logits: ln of the number of bins, and of actions; steps after the first count 1 / K."""
    loss = model(consistency=0.0).loss(windows(**targets()))
    ones = th.ones(5)
    assert th.allclose(loss.rows["reward"], np.log(11) * ones)  # 3 steps of weight 1 / 3
    assert th.allclose(loss.rows["value"], 2 * np.log(11) * ones)  # the first state, and 3 of weight 1 / 3
    assert th.allclose(loss.rows["policy"], 2 * np.log(4) * ones)
    assert loss.weights == {"value": 0.25}
    assert float(loss.total()) == pytest.approx(
        np.log(11) + 0.5 * np.log(11) + 2 * np.log(4) + float(loss.rows["termination"].mean())
    )


def test_unknown_steps_have_no_loss():
    extra = targets()
    extra["known"] = th.tensor([True, False, False]).expand(5, 3)
    extra["value_weight"] = th.tensor([1.0, 1.0, 0.0, 0.0]).expand(5, 4)
    extra["policy_weight"] = th.tensor([1.0, 0.0, 0.0, 0.0]).expand(5, 4)
    loss = model(consistency=0.0).loss(windows(**extra))
    assert th.allclose(loss.rows["reward"], th.full((5,), np.log(11) / 3))
    assert th.allclose(loss.rows["value"], th.full((5,), np.log(11) * 4 / 3))
    assert th.allclose(loss.rows["policy"], th.full((5,), np.log(4)))


def test_steps_of_the_next_episode_are_unknown():
    batch = windows()
    last = th.tensor([False, True, False]).expand(5, 3)
    loss = model(consistency=0.0).loss(batch._replace(is_last=last))
    assert th.allclose(loss.rows["reward"], th.full((5,), np.log(11) * 2 / 3))


def test_gradients_are_halved_at_every_step():
    """The reward of step 2 reaches the first latent state through one step of the dynamics, scaled by 1/2."""

    def gradient(scale):
        world = model(gradient_scale=scale, consistency=0.0)
        with th.no_grad():
            world.dynamics.out.weight.normal_()  # rewards begin with weights of 0
        rows = windows(n=1, steps=2)
        extra = {"known": th.tensor([[False, True]])}
        loss = world.loss(rows._replace(extra=extra)).rows["reward"].sum()
        return th.autograd.grad(loss, world.representation.out.weight)[0]

    assert th.allclose(gradient(0.5), 0.5 * gradient(1.0), atol=1e-6)
    assert gradient(1.0).abs().max() > 1e-4


def test_consistency_has_a_target_without_gradients():
    world = model(consistency=1.0)
    imagined = th.rand(4, 8, requires_grad=True)
    true = th.rand(4, 8, requires_grad=True)
    distance = world.projection.distance(imagined, true)
    assert ((distance >= 0) & (distance <= 2)).all()
    distance.sum().backward()
    assert true.grad is None
    assert imagined.grad.abs().sum() > 0
    assert "consistency" in world.loss(windows()).rows


@pytest.mark.parametrize("codes", [0, 3])
def test_windows_are_unrolled_step_by_step(codes):
    """Action ``k`` leads from state ``k`` to state ``k + 1``, with the outcome that is seen in the observation after it."""
    world, rows = model(chance_codes=codes, consistency=0.0), windows()
    latents, rewards, _, chance = world._unroll(rows)
    latent = world.initial(rows.obs[:, 0])["latent"]
    for k in range(3):
        assert th.allclose(latents[:, k], latent, atol=1e-6)
        inputs = world.actions.encode(rows.action[:, k])
        if codes:
            latent = world.chance.afterstate(latent, inputs)[0]
            assert th.allclose(chance["outcomes"][:, k], world.chance.predictions(latent)[0])
            scores = world.chance.encode(rows.next_obs[:, k])[1]
            assert th.allclose(chance["scores"][:, k], scores)
            inputs = th.nn.functional.one_hot(scores.argmax(-1), 3).float()
        latent, reward, _ = world.dynamics(latent, inputs)
        assert th.allclose(rewards[:, k], reward, atol=1e-6)
    assert th.allclose(latents[:, 3], latent, atol=1e-6)
    assert th.allclose(latents.amin(-1), th.zeros(5, 4), atol=1e-6)
    assert th.allclose(latents.amax(-1), th.ones(5, 4), atol=1e-3), "dynamics are scaled as representations are"


def test_consistency_compares_each_imagined_state_with_what_was_seen_after_the_step(monkeypatch):
    world, real = model(consistency=1.0), th.tensor([[True, True, True], [True, True, False], [True, False, False]])
    rows = windows(n=3, real=real)
    monkeypatch.setattr(world.projection, "distance", lambda imagined, true: (imagined - true).abs().sum(-1))
    expected = th.zeros(3)
    for row in range(3):
        state = world.initial(rows.obs[row, :1])
        for k in range(int(real[row].sum())):
            state = world.step(state, rows.action[row, k : k + 1]).state
            seen = world.initial(rows.next_obs[row, k : k + 1])["latent"]
            expected[row] += (state["latent"] - seen).abs().sum() / 3
    assert th.allclose(world.loss(rows).rows["consistency"], expected, atol=1e-5)


def test_it_learns_rewards_by_itself():
    """``fit`` of the contract: without targets of searches, rewards and terminations are learned."""
    world = model(units=32, latent=16, lr=3e-3)
    batch = windows(n=64, steps=2)
    batch = batch._replace(reward=(batch.action[..., 0] - 4).float())
    errors = []
    for _ in range(150):
        loss = world.loss(batch)
        world.optimizer.zero_grad()
        loss.total().backward()
        world.optimizer.step()
        errors.append(float(loss.metrics["reward_error_1"]))
    assert errors[-1] < 0.2 < 0.8 < errors[0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"players": 3}, "players=3: give 1 or 2"),
        ({"reward_fn": lambda *a: 0}, "nothing to be computed from"),
        ({"bins": 10}, "odd number"),
        ({"latent": 0}, "latent=0"),
        ({"consistency": -1.0}, "consistency=-1.0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        model(**settings)


def test_images_are_represented():
    env = gym.make("Catch-v0", pixels=2)
    space = env.observation_space
    shape = (space.shape[2], *space.shape[:2])
    image = spaces.Box(0, 255, shape, np.uint8)
    world = MuZeroModel(image, env.action_space, device="cpu", latent=8, units=16, depth=2)
    assert world.initial(th.zeros(2, *shape, dtype=th.uint8))["latent"].shape == (2, 8)


def test_a_step_of_chance_is_an_afterstate_and_an_outcome():
    world = model(chance_codes=3, consistency=0.0)
    latent, action = world.initial(th.rand(4, 3))["latent"], th.tensor([[2], [3], [4], [5]])
    after, outcomes, value = world.predict_afterstate(latent, action)
    assert th.equal(outcomes, th.zeros(4, 3)), "all outcomes are equally likely at first"
    assert th.all(value == 0.0)
    following, reward, policy, _ = world.predict_outcome(after, th.tensor([0, 1, 2, 0]))
    assert following.shape == (4, 8)
    assert policy.shape == (4, 4)
    assert th.all(reward == 0.0)
    draws = [
        world.step({"latent": latent}, action, generator=th.Generator().manual_seed(i)).state["latent"] for i in range(12)
    ]
    assert len({tuple(draw[0].tolist()) for draw in draws}) == 3, "three outcomes lead to three states"
    fixed = [world.step({"latent": latent}, action, deterministic=True).state["latent"] for _ in range(2)]
    assert th.equal(*fixed)


def test_the_losses_of_chance_by_hand():
    world = model(chance_codes=3, consistency=0.0)
    loss = world.loss(windows(**targets()))
    assert th.allclose(loss.rows["chance"], np.log(3) * th.ones(5))
    assert th.allclose(loss.rows["afterstate_value"], np.log(11) * th.ones(5))
    # Steps that were not taken have no outcome.
    untaken = world.loss(windows(**targets(), real=th.tensor([True, False, False]).expand(5, 3)))
    assert th.allclose(untaken.rows["chance"], np.log(3) / 3 * th.ones(5))
    assert (untaken.rows["commitment"] < loss.rows["commitment"]).all()
    # Scores that are the one-hot codes themselves have no distance to them.
    code, scores = world.chance.encode(th.rand(6, 3))
    assert th.allclose(code, th.nn.functional.one_hot(scores.argmax(-1), 3).float(), atol=1e-6)
    code[:, 0].sum().backward()
    assert th.allclose(world.chance.code.bias.grad, th.tensor([6.0, 0.0, 0.0])), "straight through"


def test_chance_learns_what_happens_how_often():
    """After action 2 comes -1 or 1, with a probability of 0.25 and 0.75; after all others 0."""
    world = model(chance_codes=4, units=32, latent=16, lr=3e-3)
    generator = th.Generator().manual_seed(0)
    for _ in range(200):
        action = th.randint(2, 4, (128, 1, 1), generator=generator)
        coin = 2.0 * (th.rand(128, 1, generator=generator) < 0.75) - 1
        reward = th.where(action[..., 0] == 2, coin, th.zeros(128, 1))
        next_obs = reward[..., None].expand(128, 1, 3)
        none = th.zeros(128, 1, dtype=th.bool)
        loss = world.loss(Sequences(th.zeros(128, 1, 3), action, next_obs, reward, th.zeros(128, 1), none, none))
        world.optimizer.zero_grad()
        loss.total().backward()
        world.optimizer.step()
    latent = world.initial(th.zeros(1, 3))["latent"]
    after, outcomes, _ = world.predict_afterstate(latent, th.tensor([[2]]))
    probs = outcomes.softmax(-1)[0]
    rewards = world.predict_outcome(after.expand(4, -1), th.arange(4))[1]
    assert float((probs * rewards).sum()) == pytest.approx(0.5, abs=0.15)
    assert float(probs[rewards > 0.5].sum()) == pytest.approx(0.75, abs=0.1)
    assert float(probs[rewards < -0.5].sum()) == pytest.approx(0.25, abs=0.1)


def test_it_keeps_the_contract():
    check_world_model(lambda *spaces, **known: MuZeroModel(*spaces, latent=16, units=32, **known))


def test_errors_are_logged_for_every_unrolled_step():
    """A new model predicts 0 for rewards and values, so its errors are the means of the targets, where these are known."""
    batch = windows(n=2, steps=3)
    known = th.tensor([[1.0, 1.0, 1.0], [1.0, 0.0, 0.0]])
    value = th.tensor([[4.0, 3.0, 2.0, 1.0], [2.0, -1.0, 9.0, 9.0]])
    weight = th.tensor([[1.0, 1.0, 1.0, 1.0], [1.0, 1.0, 0.0, 0.0]])
    reward = th.tensor([[1.0, -2.0, 3.0], [3.0, 9.0, 9.0]])
    extra = {"known": known, "value": value, "value_weight": weight}
    metrics = model().loss(batch._replace(reward=reward, extra=extra)).metrics
    found = {name: round(float(error), 4) for name, error in metrics.items()}
    assert found == {
        "reward_error_1": 2.0, "reward_error_2": 2.0, "reward_error_3": 3.0,
        "value_error_0": 3.0, "value_error_1": 2.0, "value_error_2": 2.0, "value_error_3": 1.0,
    }  # fmt: skip
