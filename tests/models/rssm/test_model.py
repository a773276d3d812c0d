"""The RSSM: its size, its sequences, and the contract."""

import numpy as np
import pytest
import torch as th
from gymnasium import spaces

from sb3_mbrl.contracts import Timesteps
from sb3_mbrl.models.rssm import RSSM, SIZES
from sb3_mbrl.testing import world_model_checks
from sb3_mbrl.testing.kit import Subject
from sb3_mbrl.timesteps import to_timesteps
from sb3_mbrl.trees import tree_leaves, tree_map
from tests.buffers.filled import windows
from tests.models.rssm.small import mixed, vector

BOX = spaces.Box(-1.0, 1.0, (6,))


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


def test_size1m_has_the_authors_number_of_parameters():
    """
    640,867 with the actor (50,316) and the critic (66,111), which are not the model's (size1m on walker's proprioception).
    """
    space = spaces.Dict({"height": vector(1), "orientations": vector(14), "velocity": vector(9)})
    model = RSSM(space, BOX, size="size1m", device="cpu")
    parts = {
        "encoder": count(model.encoder),
        "dynamics": count(model.cell) + count(model.prior_head) + count(model.post_head),
        "decoder": count(model.decoder),
        "reward": count(model.reward_head),
        "continue": count(model.continue_head),
    }
    assert parts == {"encoder": 10_112, "dynamics": 364_416, "decoder": 51_096, "reward": 57_663, "continue": 41_153}
    assert count(model) == 640_867 - 50_316 - 66_111


def test_images_add_what_the_report_says():
    """0.69 million with actor and critic, for 64 x 64 x 3 and 6 actions."""
    model = RSSM(spaces.Box(0, 255, (3, 64, 64), np.uint8), BOX, size="size1m", device="cpu")
    assert round((count(model) + 50_316 + 66_111) / 1e6, 2) == 0.69


def test_bigger_sizes_are_the_reports():
    """By closed form: millions with actor and critic for vectors of 24 and 6 actions."""
    for size, millions in (("size12m", 9.74), ("size25m", 21.78)):
        model = RSSM(vector(24), BOX, size=size, device="cpu")
        units, features = SIZES[size]["units"], SIZES[size]["deter"] + 32 * SIZES[size]["classes"]
        body = features * units + 2 * units + 2 * (units * units + 2 * units)
        actor, critic = body + 2 * (units + 1) * 6, body + (units + 1) * 255
        assert round((count(model) + actor + critic) / 1e6, 2) == pytest.approx(millions, abs=0.02)


# ---- sequences


def random_rows(generator):
    first = th.zeros(4, 12, dtype=th.bool)
    first[:, 0] = True
    obs, action = th.randn((4, 12, 3), generator=generator), 2 * th.rand((4, 12, 6), generator=generator) - 1
    return Timesteps(obs, action, th.zeros(4, 12), first, first & False, th.zeros(4, 12))


def mixed_rows():
    """Rows with an observation of ``mixed(1, 12)``."""
    rows = random_rows(th.Generator().manual_seed(0))
    obs = {"camera": th.zeros(4, 12, 1, 12, 12, dtype=th.uint8), "speed": th.ones(4, 12, 2)}
    return rows._replace(obs={**obs, "gear": th.ones(4, 12, 1, dtype=th.int64), "lamps": th.ones(4, 12, 2, dtype=th.int8)})


def small(observation_space=None, action_space=BOX, **kwargs):
    th.manual_seed(0)
    settings = {"size": "tiny", "deter": 16, "units": 8, "stoch": 3, "classes": 4, "hidden": 8, "blocks": 4}
    return RSSM(observation_space or vector(3), action_space, device="cpu", **{**settings, **kwargs})


def test_acting_step_by_step_is_filtering_the_sequence(generator):
    model = small()
    obs, action = th.randn((2, 7, 3), generator=generator), th.rand((2, 7, 6), generator=generator)
    first = th.zeros(2, 7, dtype=th.bool)
    first[:, 0] = first[1, 4] = True
    sequence, _ = model.observe_sequence(obs, action, first, deterministic=True)
    state = model.initial(obs[:, 0])
    for t in range(1, 7):
        state = model.observe(state, action[:, t], obs[:, t], first[:, t])
        th.testing.assert_close(state["deter"], sequence["deter"][:, t])
        th.testing.assert_close(state["stoch"], sequence["stoch"][:, t])


def test_an_episode_in_the_middle_is_one_of_its_own(generator):
    model = small()
    obs, action = th.randn((1, 8, 3), generator=generator), th.rand((1, 8, 6), generator=generator)
    first = th.zeros(1, 8, dtype=th.bool)
    first[:, 0] = first[:, 5] = True
    sequence, _ = model.observe_sequence(obs, action, first, deterministic=True)
    apart, _ = model.observe_sequence(obs[:, 5:], action[:, 5:], first[:, 5:], deterministic=True)
    th.testing.assert_close(sequence["deter"][:, 5:], apart["deter"])


def test_a_context_ends_in_the_state_of_its_last_observation(generator):
    """``filter`` is given actions taken *in* each observation, the last of which is not known."""
    model = small()
    obs, taken = th.randn((2, 4, 3), generator=generator), th.rand((2, 4, 6), generator=generator)
    state = model.filter(obs, taken, th.zeros(2, 4, dtype=th.bool))
    expected = model.initial(obs[:, 0])
    for t in range(1, 4):
        expected = model.observe(expected, taken[:, t - 1], obs[:, t], th.zeros(2, dtype=th.bool))
    th.testing.assert_close(state["deter"], expected["deter"])


def test_the_discount_is_in_the_continue_head():
    model = small(gamma=0.99)
    with th.no_grad():
        model.continue_head.out.weight.zero_()
        model.continue_head.out.bias.fill_(float(np.log(99)))  # 0.99
    prediction = model.step(model.initial(th.zeros(2, 3)), th.zeros(2, 6))
    th.testing.assert_close(prediction.discount, th.full((2,), 0.99))
    th.testing.assert_close(prediction.terminated, th.zeros(2), atol=1e-6, rtol=0)
    assert prediction.reward.tolist() == [0.0, 0.0], "the reward head begins at exactly 0"


def test_without_a_continue_head_episodes_never_end():
    """Regression: an untrained head ended every second one."""
    model = small(continue_scale=0.0, gamma=0.99)
    th.nn.init.normal_(model.continue_head.out.weight)
    state, action = model.initial(th.zeros(4, 3)), th.zeros(4, 6)
    dream = model.imagine(state, lambda features: th.zeros(4, 6), 5)
    th.testing.assert_close(dream.discount, th.full((4, 6), 0.99))
    prediction = model.step(state, action)
    assert prediction.terminated.tolist() == [0.0] * 4
    assert prediction.discount.tolist() == pytest.approx([0.99] * 4)


def test_every_loss_has_its_scale():
    """Among observations, vectors of continuous values have one; images and categories count in full."""
    scales = {
        "vector_scale": 2.0,
        "reward_scale": 3.0,
        "continue_scale": 5.0,
        "dynamics_scale": 7.0,
        "representation_scale": 11.0,
    }
    expected = {"obs_speed": 2.0, "reward": 3.0, "continue": 5.0, "dynamics": 7.0, "representation": 11.0}
    loss = small(mixed(1, 12), depth=1, **scales).loss(mixed_rows())
    assert loss.weights == expected
    keys = ["camera", "gear", "lamps", "speed"]
    assert list(loss.rows) == [*(f"obs_{key}" for key in keys), "reward", "continue", "dynamics", "representation"]
    weighted = [expected.get(name, 1.0) * float(value.mean()) for name, value in loss.rows.items()]
    assert float(loss.total()) == pytest.approx(sum(weighted), rel=1e-5)
    assert small(**scales).loss(random_rows(th.Generator().manual_seed(0))).weights["obs"] == 2.0, "the only key is a vector"


def test_imagining_is_stepping(generator):
    model = small()
    obs, action = th.randn((2, 3), generator=generator), th.rand((2, 4, 6), generator=generator)
    with th.no_grad():
        for head in (model.reward_head, model.continue_head):
            head.out.weight.normal_(generator=generator)
    plan, state = iter(action.unbind(1)), model.initial(obs)
    dream = model.imagine(state, lambda features: next(plan), 4, deterministic=True)
    assert dream.state["deter"].shape == (2, 5, 16)
    for t in range(4):
        prediction = model.step(state, action[:, t], deterministic=True)
        state = prediction.state
        th.testing.assert_close(dream.state["deter"][:, t + 1], state["deter"])
        th.testing.assert_close(dream.reward[:, t + 1], prediction.reward)
        terminated = (1 - dream.discount[:, t + 1] / model.discount).clamp(0, 1)
        th.testing.assert_close(terminated, prediction.terminated)
    th.testing.assert_close(dream.action, action)


def test_a_dream_with_gradients_is_the_same_dream(generator):
    """Without gradients, states are written in place; an actor may still keep features for gradients of its own."""
    model, kept = small(), []
    state, actor = model.initial(th.randn((2, 3), generator=generator)), th.nn.Linear(16 + model.latent.flat, 6)

    def act(features):
        with th.enable_grad():
            kept.append(actor(features).tanh())
        return kept[-1].detach()

    with th.no_grad():
        without = model.imagine(state, act, 3, generator=th.Generator().manual_seed(0))
    th.stack(kept).sum().backward()
    assert actor.weight.grad is not None
    assert actor.weight.grad.any()
    flowing = model.imagine(state, lambda seen: actor(seen).tanh(), 3, generator=th.Generator().manual_seed(0))
    assert flowing.reward.requires_grad
    for left, right in zip(tree_leaves(without), tree_leaves(flowing), strict=True):
        th.testing.assert_close(left, right.detach())


def test_latents_are_overfitted_to_one_batch():
    """Ladder, level 1: the model reconstructs a batch that it was trained on; shuffled actions make it worse."""
    model = small(deter=32, units=32, hidden=32, lr=3e-3, warmup=0)
    generator = th.Generator().manual_seed(1)
    action = 2 * th.rand((4, 12, 6), generator=generator) - 1
    obs = action[..., :3].cumsum(1)
    first = th.zeros(4, 12, dtype=th.bool)
    first[:, 0] = True
    nothing = th.zeros(4, 12)
    rows = Timesteps(obs, action, obs[..., 0], first, first & False, nothing)
    losses = []
    th.manual_seed(0)
    for _ in range(300):
        loss = model.loss(rows)
        model.optimizer.zero_grad()
        loss.total().backward()
        model.optimizer.step()
        losses.append(float(loss.rows["obs"].detach().mean()))
    assert losses[-1] < 0.01 * losses[0]
    shuffled = rows._replace(action=action.flip(0))
    with th.no_grad():
        model.eval()
        right, wrong = (open_loop_error(model, one) for one in (rows, shuffled))
    assert right < 0.7 * wrong


def open_loop_error(model, rows):
    """Filter four rows, then imagine under the actions that were taken; squared error of the rest."""
    context, _ = model.observe_sequence(rows.obs[:, :4], rows.action[:, :4], rows.is_first[:, :4], deterministic=True)
    state = tree_map(lambda leaf: leaf[:, -1], context)
    plan = iter(rows.action[:, 4:].unbind(1))
    dream = model.imagine(state, lambda features: next(plan), 8, deterministic=True)
    decoded = model.decode(tree_map(lambda leaf: leaf[:, 1:].flatten(0, 1), dream.state))
    return float((decoded - rows.obs[:, 4:].flatten(0, 1)).square().mean())


def test_the_divergence_is_logged_without_free_nats():
    """Regression: the logged losses were clamped, so values below one nat did not show."""
    batch = random_rows(th.Generator().manual_seed(0))
    for free in (0.0, 1e4):
        model = small(free_nats=free)
        loss = model.loss(batch, generator=th.Generator().manual_seed(1))
        kl = float(loss.metrics["kl"])
        sequence = batch.obs, batch.action, batch.is_first
        states, posterior = model.observe_sequence(*sequence, generator=th.Generator().manual_seed(1))
        th.testing.assert_close(states["deter"], loss.states["deter"])
        stats = posterior.flatten(0, 1), model.prior_head(states["deter"].flatten(0, 1))
        post, prior = (th.distributions.Categorical(model.latent.probs(values.detach())) for values in stats)
        assert kl == pytest.approx(float(th.distributions.kl_divergence(post, prior).sum(-1).mean()), rel=1e-4)
        expected = pytest.approx(kl, rel=1e-4) if free == 0.0 else 1e4
        assert float(loss.rows["dynamics"].detach().mean()) == expected


# ---- spaces


@pytest.mark.parametrize(
    "actions", [BOX, spaces.Discrete(3), spaces.MultiDiscrete([2, 3]), spaces.MultiBinary(2), spaces.Box(-2, 2, (2, 2))]
)
def test_observations_and_actions_of_every_kind(actions):
    space = mixed(1, 12)
    model = small(space, actions, depth=1)
    sample = space.sample()
    obs = {key: th.as_tensor(np.asarray(value))[None].repeat(2, *[1] * np.ndim(value)) for key, value in sample.items()}
    obs["gear"] = obs["gear"].reshape(2, 1)
    width = int(np.prod(actions.shape)) if isinstance(actions, spaces.Box) else model.actions._leaf.shape[0]
    action = th.zeros((2, width)) if isinstance(actions, spaces.Box) else th.zeros((2, width), dtype=th.int64)
    with th.no_grad():
        prediction = model.step(model.initial(obs), action)
        decoded = model.decode(prediction.state)
    for row in range(2):
        one = {key: value[row].numpy() for key, value in decoded.items()}
        one["gear"] = one["gear"][0]
        assert space.contains({**one, "lamps": one["lamps"].astype(np.int8)}), one


def test_decode_keeps_the_order_of_the_spaces_keys():
    """Regression: keys came back in alphabetical order and vectors after images, which agents refused."""
    parts = [("place", vector(2)), ("camera", spaces.Box(0, 255, (1, 12, 12), np.uint8)), ("flags", spaces.MultiBinary(2))]
    space = spaces.Dict(parts)
    assert list(space.spaces) == ["place", "camera", "flags"]
    model = small(space, depth=1)
    obs = {
        "place": th.ones(2, 2),
        "camera": th.zeros(2, 1, 12, 12, dtype=th.uint8),
        "flags": th.ones(2, 2, dtype=th.int8),
    }
    assert list(model.decode(model.initial(obs))) == ["place", "camera", "flags"]


@pytest.mark.parametrize("free_nats", [0.0, 1.0])
@pytest.mark.parametrize("kl", ["balanced", "joint", "per_step"])
def test_a_divergence_of_the_whole_batch_is_a_scalar_term(kl, free_nats):
    loss = small(kl=kl, kl_scale=3.0, free_nats=free_nats).loss(random_rows(th.Generator().manual_seed(0)))
    assert list(loss.rows) == ["obs", "reward", "continue"]
    assert {value.shape for value in loss.rows.values()} == {(4, 12)}
    assert list(loss.scalars) == ["kl"]
    assert loss.weights["kl"] == 3.0


def test_a_packed_state_comes_back():
    model = small()
    state = model.observe_step(None, th.zeros(2, 6), th.ones(2, 3), th.ones(2, dtype=th.bool))
    packed = model.pack(state)
    assert packed["stoch"].dtype == th.uint8
    back = model.unpack(packed)
    assert list(back) == list(state) == ["deter", "stoch"]
    for name, value in back.items():
        th.testing.assert_close(value, state[name])


@pytest.mark.parametrize("check", world_model_checks(), ids=lambda check: check.__name__)
def test_the_contract(check):
    def tiny(observation_space, action_space, **kwargs):
        settings = {"size": "tiny", "deter": 16, "units": 16, "stoch": 4, "classes": 4, "hidden": 16, "depth": 1, "blocks": 4}
        return RSSM(observation_space, action_space, reward_range=8.0, context=4, lr=3e-3, warmup=0, **settings, **kwargs)

    check(Subject("rssm", "world_model", tiny))


@pytest.mark.parametrize("cell", ["block_gru", "layer_norm_gru", "gru"])
def test_actions_beyond_their_bounds_count_as_the_bound(cell):
    """An actor's samples are not clipped; stored actions are."""
    model = small(cell=cell)
    state = model.initial(th.ones(1, 3))
    at, beyond = (model.step(state, th.full((1, 6), value), deterministic=True).state["deter"] for value in (1.0, 2.5))
    th.testing.assert_close(at, beyond)


def test_what_was_earned_before_a_window_is_not_a_target():
    model = small()
    with th.no_grad():
        model.reward_head.out.bias.copy_(-model.reward_head.output.bins.abs())  # sure of 0
    one = windows([0, 0, 0, 0], [0, 0, 0, 0])._replace(reward=th.zeros(1, 4))
    one = one._replace(
        obs=one.obs.expand(1, 4, 3), next_obs=one.next_obs.expand(1, 4, 3), action=one.action.expand(1, 4, 6) / 10
    )

    def loss_of_reward(last, first):
        rows = one._replace(reward=th.tensor([[first, 0.0, 0.0, last]]))
        loss = model.loss(rows, generator=th.Generator().manual_seed(0)).rows
        assert {value.shape for value in loss.values()} == {(1, 4)}, "one value per step, so that rows can be weighted"
        known = model.loss(to_timesteps(rows)[0], generator=th.Generator().manual_seed(0)).rows["reward"][:, 1:]
        th.testing.assert_close(loss["reward"].mean(), known.mean())
        return float(loss["reward"].mean().detach())

    sure = loss_of_reward(0.0, 0.0)
    assert loss_of_reward(9.0, 0.0) == pytest.approx(sure)
    assert loss_of_reward(0.0, 9.0) > sure + 1
