"""``Particles`` against the analytic moments of a linear Gaussian ensemble."""

import numpy as np
import pytest
import torch as th
from gymnasium import spaces

from sb3_mbrl.contracts import MemberPrediction, MissingCapability, Prediction, UnsupportedSpace
from sb3_mbrl.models.ensemble import EnsembleModel
from sb3_mbrl.models.particles import Particles
from sb3_mbrl.planners.rollout import evaluate
from sb3_mbrl.testing import LinearToy
from sb3_mbrl.trees import batch_size
from tests.planners.problems import Drifting, Line

STEPS = 5


def cloud(propagation, n=200_000, **kwargs):
    """The particles after some steps from 0, and the rewards on the way."""
    model = Particles(Drifting(), n, propagation, **kwargs)
    state, generator, rewards = model.initial(th.zeros(1, 1)), th.Generator().manual_seed(0), []
    for _ in range(STEPS):
        prediction = model.step(state, th.zeros(1, 1), generator=generator)
        state = prediction.state
        rewards.append(float(prediction.reward))
    return state["particles"]["obs"][0, :, 0], rewards


@pytest.mark.parametrize(("propagation", "kept"), [("ts1", False), ("tsinf", True), ("moment", False)])
def test_the_analytic_moments(propagation, kept):
    particles, rewards = cloud(propagation)
    mean, variance = Drifting.moments(STEPS, kept)
    assert float(particles.mean()) == pytest.approx(mean, abs=0.02)
    assert float(particles.var()) == pytest.approx(variance, rel=0.02)
    assert rewards[-1] == pytest.approx(mean, abs=0.02)


def test_the_mean_alone():
    particles, rewards = cloud("mean")
    assert len(particles) == 1
    assert rewards == pytest.approx([Drifting.moments(t + 1, False)[0] for t in range(STEPS)], rel=1e-5)


def test_after_moment_matching_the_particles_are_normal():
    """Particles of TSinf are a mixture of four members that are far apart; matched ones have no excess kurtosis."""

    def excess(particles):
        standard = (particles - particles.mean()) / particles.std()
        return float(standard.pow(4).mean()) - 3.0

    assert excess(cloud("moment")[0]) == pytest.approx(0.0, abs=0.05)
    assert abs(excess(cloud("tsinf")[0])) > 0.3


def test_tsinf_deals_members_out_evenly_and_keeps_them():
    model = Particles(Drifting(), 8, "tsinf")
    state = model.initial(th.zeros(3, 1))
    assert state["member"].tolist() == [[0, 1, 2, 3, 0, 1, 2, 3]] * 3
    assert th.equal(model.step(state, th.zeros(3, 1)).state["member"], state["member"])


@pytest.mark.parametrize("penalty", [2.0, -1.0])
def test_the_penalty_is_the_disagreement(penalty):
    """Below 0 it is optimism."""
    plain, changed = cloud("ts1")[1], cloud("ts1", penalty=penalty)[1]
    expected = penalty * float(Drifting.OFFSETS.std(correction=0))
    assert np.subtract(plain, changed) == pytest.approx([expected] * STEPS, rel=1e-4)


class Lottery(Line):
    """Member 0 ends at once, member 1 never; every step pays 1."""

    n_choices = 2

    def member_step(self, state, action, member, *, deterministic=False, generator=None):
        return Prediction(state, th.ones(len(action)), (member == 0).float())


def test_the_return_is_the_mean_over_particles_terminations_included():
    """Half of the particles earn 1, the others 1 at each of five steps; a planner adds these up."""
    evaluation = evaluate(
        Particles(Lottery(), 10, "tsinf"), Particles(Lottery(), 10, "tsinf").initial(th.zeros(1, 1)), th.zeros(1, 1, 5, 1)
    )
    assert float(evaluation.returns) == pytest.approx(0.5 * 1 + 0.5 * 5)


class HalfEnds(EnsembleModel):
    """An ensemble of two members: one predicts a termination now, the other none; every step earns 1."""

    def __init__(self):
        super().__init__(spaces.Box(-9, 9, (1,)), spaces.Box(-1, 1, (1,)), members=2, elites=2, hidden=(4,), device="cpu")
        self.steps = 0

    def members(self, state, action):
        mean, self.steps = state["obs"].expand(2, -1, -1), self.steps + 1
        ends = th.stack([th.full((len(action),), float(self.steps == 1)), th.zeros(len(action))])
        return MemberPrediction(mean, th.full_like(mean, 0.01), th.ones(2, len(action)), ends)

    def step(self, state, action, *, deterministic=False, generator=None):
        ends = th.full((len(action),), 0.5 * float(self.steps == 0))
        return Prediction(state, th.ones(len(action)), ends)


def test_moment_matching_counts_an_end_once():
    """Half of the weight ends at the first of five steps: 1 + 4 / 2. Redrawn, the survivors must not end again."""
    model = Particles(HalfEnds(), 1_000, "moment")
    evaluation = evaluate(model, model.initial(th.zeros(1, 1)), th.zeros(1, 1, 5, 1), generator=th.Generator().manual_seed(0))
    assert float(evaluation.returns) == pytest.approx(3.0, abs=0.01)


def test_the_value_of_a_cloud_is_the_mean_over_those_that_go_on():
    """Not that of the first particle."""
    model = Particles(Lottery(), 4, "tsinf")
    state = model.initial(th.zeros(1, 1))
    state["alive"] = th.tensor([[0.0, 1.0, 1.0, 2.0]])
    states = []

    def value(inner):
        states.append(inner)
        return th.tensor([th.nan, 10.0, 20.0, 30.0])

    assert float(model.mean_value(state, value)) == pytest.approx((10 + 20 + 60) / 4)
    assert batch_size(states[0]) == 4


def test_particles_may_follow_their_members_means():
    quiet, noisy = (Particles(Drifting(), 8, "tsinf", aleatoric=aleatoric) for aleatoric in (False, True))
    state, action = quiet.initial(th.zeros(1, 1)), th.zeros(1, 1)
    first, second = (quiet.step(state, action).state["particles"]["obs"][0] for _ in range(2))
    th.testing.assert_close(first, second)
    th.testing.assert_close(first[:4], first[4:])  # two particles of one member are one
    assert not th.allclose(first[0], first[1])
    drawn = noisy.step(state, action, generator=th.Generator().manual_seed(0)).state["particles"]["obs"][0]
    assert not th.allclose(drawn[:4], drawn[4:])


def test_drawn_members_are_followed_to_their_means_too():
    """It used to do nothing but under TSinf."""
    model, action = Particles(Drifting(), 1_000, "ts1", aleatoric=False), th.zeros(1, 1)
    prediction = model.step(model.initial(th.zeros(1, 1)), action, generator=th.Generator().manual_seed(0))
    places = prediction.state["particles"]["obs"].flatten().tolist()
    assert sorted(set(places)) == pytest.approx(sorted(Drifting.OFFSETS.tolist()))
    particles, _ = cloud("moment", aleatoric=False)
    within = Drifting.SIGMA**2 * (Drifting.DECAY ** (2 * np.arange(STEPS))).sum()
    assert float(particles.var()) == pytest.approx(Drifting.moments(STEPS, False)[1] - within, rel=0.02)


def test_the_reward_of_matched_particles_is_that_of_where_they_are():
    """Not that of the mixture: of x^4 they are different."""
    model = Drifting()
    model.reward_fn = lambda obs, action, next_obs: next_obs[:, 0] ** 4
    cloud = Particles(model, 400_000, "moment")
    prediction = cloud.step(cloud.initial(th.zeros(1, 1)), th.zeros(1, 1), generator=th.Generator().manual_seed(0))
    mean, variance = Drifting.moments(1, False)
    assert float(prediction.reward) == pytest.approx(mean**4 + 6 * mean**2 * variance + 3 * variance**2, rel=0.03)


class Discounting(Line):
    """Its own discounts, by place: ``0.9`` left of 0, ``0.5`` right of it."""

    def step(self, state, action, **kwargs):
        prediction = super().step(state, action, **kwargs)
        place = prediction.state["obs"][:, 0]
        return prediction._replace(discount=self.factor * th.where(place < 0, 0.9, 0.5))

    factor = 1.0


def test_discounts_of_the_model_are_kept():
    model, actions = Discounting(), th.tensor([[[[0.2], [0.3], [0.1]], [[-0.2], [-0.3], [1.0]]]])
    start = model.initial(th.zeros(1, 1))
    plain = evaluate(model, start, actions)
    assert plain.returns.flatten().tolist() == pytest.approx([0.2 + 0.5 * 0.5 + 0.25 * 0.6, -0.2 - 0.9 * 0.5 + 0.81 * 0.5])
    particles = Particles(model, 4, "ts1")
    evaluation = evaluate(particles, particles.spread(start), actions)
    th.testing.assert_close(evaluation.returns, plain.returns)
    model.factor = -1.0
    with pytest.raises(MissingCapability, match="predicts negative discounts"):
        evaluate(particles, particles.spread(start), actions)


def test_one_particle_that_diverges_spoils_the_sequence():
    model = Particles(Line(break_at=0.5), 4, "ts1")
    evaluation = evaluate(model, model.initial(th.zeros(1, 1)), th.tensor([[[[0.2]], [[0.9]]]]))
    assert evaluation.diverged.tolist() == [[False, True]]
    assert evaluation.returns.tolist() == [[pytest.approx(0.2), -np.inf]]


def test_an_ensemble_steps_by_the_members_it_is_told():
    space = spaces.Box(-1.0, 1.0, (2,))
    model = EnsembleModel(space, space, members=4, elites=3, hidden=[8], device="cpu")
    model.elites = [2, 0, 3]
    state, action = model.initial(th.rand(6, 2)), th.rand(6, 2)
    member = th.tensor([0, 1, 2, 0, 1, 2])
    chosen = model.member_step(state, action, member, deterministic=True).state["obs"]
    everyone = model.members(state, action).mean.clamp(-1, 1)
    assert th.allclose(chosen, everyone[member, th.arange(6)], atol=1e-5)


def test_what_a_model_lacks_is_said():
    toy = LinearToy(spaces.Box(-1.0, 1.0, (3,)), spaces.Box(-1.0, 1.0, (2,)), device="cpu")
    with pytest.raises(MissingCapability, match="'tsinf' needs members to keep to, and LinearToy has none: take 'ts1'"):
        Particles(toy, 4, "tsinf")
    with pytest.raises(MissingCapability, match="'moment' needs several members"):
        Particles(toy, 4, "moment")
    with pytest.raises(MissingCapability, match=r"penalty=1\.0 needs several members"):
        Particles(toy, 4, "ts1", penalty=1.0)
    discrete = EnsembleModel(spaces.Discrete(3), spaces.Discrete(2), members=2, elites=2, hidden=[4], device="cpu")
    with pytest.raises(UnsupportedSpace, match="'moment' draws from Gaussians"):
        Particles(discrete, 4, "moment")
    with pytest.raises(ValueError, match="propagation='ts2': choose"):
        Particles(Drifting(), 4, "ts2")
    with pytest.raises(ValueError, match="n=0: give a whole number from 1 on"):
        Particles(Drifting(), 0, "ts1")
