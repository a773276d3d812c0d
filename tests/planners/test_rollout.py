"""Returns of sequences in a model, by hand; and rollouts of a policy."""

import pytest
import torch as th
from gymnasium import spaces

from sb3_mbrl.contracts import Prediction, WorldModel
from sb3_mbrl.planners.rollout import evaluate, rollout_prior
from tests.planners.problems import ONE, Line, rng


class Scripted(WorldModel):
    """A model that counts its steps, and predicts a given reward, termination and discount at each."""

    def __init__(self, reward, terminated, discount=None):
        super().__init__(spaces.Box(-9, 9, (1,)), ONE, device="cpu")
        self.fitted, self.script = True, (reward, terminated, discount)

    def initial(self, obs, snapshot=None):
        return obs

    def step(self, state, action, *, deterministic=False, generator=None):
        time = state[:, 0].long()
        reward, terminated, discount = (None if part is None else th.tensor(part)[time] for part in self.script)
        return Prediction(state + 1, reward, terminated, discount)


def returns(model, steps, **kwargs):
    evaluation = evaluate(model, th.zeros(1, 1), th.zeros(1, 1, steps, 1), **kwargs)
    return float(evaluation.returns), bool(evaluation.diverged)


# ---- the weights of rewards


def test_rewards_are_discounted():
    assert returns(Scripted([1.0, 2.0, 4.0], [0.0] * 3), 3, gamma=0.5)[0] == pytest.approx(1 + 0.5 * 2 + 0.25 * 4)


def test_a_reward_has_the_weight_of_the_chance_to_reach_it():
    """A chance of 0.25 to end at the first step: its own reward counts fully, the others for three quarters."""
    model = Scripted([1.0, 2.0, 4.0], [0.25, 0.0, 0.0])
    assert returns(model, 3, gamma=0.5)[0] == pytest.approx(1 + 0.75 * (0.5 * 2 + 0.25 * 4))
    assert returns(Scripted([1.0, 2.0, 4.0], [0.0, 1.0, 0.0]), 3)[0] == pytest.approx(3.0), "certain: the third does not count"


def test_predicted_discounts_replace_gamma_and_terminations():
    """Two players: -gamma at a move, 0 where the game is over."""
    model = Scripted([0.0, 0.0, 1.0], [0.9, 0.9, 1.0], [-0.9, -0.9, 0.0])
    assert returns(model, 3, gamma=0.1, value=lambda state: th.full((1,), 100.0))[0] == pytest.approx(0.81)


def test_the_last_states_value_has_the_weight_of_all_steps():
    model = Scripted([1.0, 1.0], [0.0, 0.5])
    assert returns(model, 2, gamma=0.9, value=lambda state: 10.0 * state[:, 0])[0] == pytest.approx(1.9 + 0.81 * 0.5 * 20)
    ended = Scripted([1.0, 1.0], [1.0, 0.0])
    assert returns(ended, 2, value=lambda state: th.full((1,), th.nan)) == (1.0, False), "nobody comes to the last state"


def test_every_environment_has_its_own_sequences():
    """Places 0 and 10; sequences +1, -1 and 0 for two steps."""
    actions = th.tensor([1.0, -1.0, 0.0]).view(1, 3, 1, 1).expand(2, 3, 2, 1)
    model = Line()
    evaluation = evaluate(model, model.initial(th.tensor([[0.0], [10.0]])), actions)
    assert evaluation.returns.tolist() == [[3.0, -3.0, 0.0], [23.0, 17.0, 20.0]]
    assert not evaluation.diverged.any()


def test_returns_are_differentiable_in_the_actions():
    """From any place, a_t counts in every reward from t on."""
    actions = th.zeros(1, 1, 4, 1, requires_grad=True)
    model = Line()
    evaluate(model, model.initial(th.zeros(1, 1)), actions, gamma=0.5).returns.sum().backward()
    assert actions.grad.flatten().tolist() == pytest.approx([1.875, 0.875, 0.375, 0.125])


# ---- divergence


@pytest.mark.parametrize("part", range(3))
def test_what_is_not_finite_never_wins(part):
    script = [[1.0, 1.0], [0.0, 0.0], [0.9, 0.9]]
    script[part] = [1.0 if part == 0 else 0.5, float("nan")]
    assert returns(Scripted(*script), 2) == (-float("inf"), True)


def test_nothing_matters_after_a_certain_end():
    assert returns(Scripted([1.0, float("nan")], [1.0, float("nan")]), 2) == (1.0, False)


def test_a_sum_that_overflows_diverges():
    assert returns(Scripted([3e38, 3e38], [0.0, 0.0]), 2) == (-float("inf"), True)
    assert returns(Scripted([-3e38, -3e38], [0.0, 0.0]), 2) == (-float("inf"), True)


def test_a_diverged_rollout_keeps_a_finite_state_and_its_neighbours_are_not_touched():
    model, seen = Line(break_at=1.5), []
    actions = th.tensor([[[[1.0]] * 3, [[0.0]] * 3]])
    evaluation = evaluate(
        model, model.initial(th.zeros(1, 1)), actions, value=lambda state: (seen.append(state["obs"]), state["obs"][:, 0])[1]
    )
    assert evaluation.returns.tolist() == [[-float("inf"), 0.0]]
    assert evaluation.diverged.tolist() == [[True, False]]
    assert seen[0].isfinite().all()


# ---- a policy in the model


def test_a_policy_acts_on_the_states_that_it_reaches():
    """It moves half the distance to 8: 0, 4, 6, 7 would be the places, but steps are clipped to 1."""
    model = Line()
    prior = lambda state, generator: 0.5 * (8 - state["obs"])  # noqa: E731
    near, far = rollout_prior(model, model.initial(th.tensor([[7.0], [0.0]])), prior, 2, 3, rng())
    assert near[:, :, 0].tolist() == [[0.5, 0.25, 0.125]] * 2
    assert far[:, :, 0].tolist() == [[1.0, 1.0, 1.0]] * 2


def test_integer_actions_are_not_clipped():
    space = spaces.Discrete(3)
    model = Line(space)
    sequences = rollout_prior(
        model, model.initial(th.zeros(1, 1)), lambda state, generator: th.full((len(state["obs"]), 1), 2), 4, 2, rng()
    )
    assert sequences.shape == (1, 4, 2, 1)
    assert sequences.unique().tolist() == [2]
    assert not sequences.is_floating_point()


def test_random_priors_draw_from_the_generator_that_they_are_given():
    model = Line()
    prior = lambda state, generator: th.rand(len(state["obs"]), 1, generator=generator)  # noqa: E731
    rolled = [rollout_prior(model, model.initial(th.zeros(1, 1)), prior, 2, 3, rng(seed)) for seed in (0, 0, 1)]
    assert th.equal(rolled[0], rolled[1])
    assert not th.equal(rolled[0], rolled[2])
    assert not th.equal(rolled[0][0, 0], rolled[0][0, 1]), "candidates differ"


def test_where_the_model_breaks_the_policy_stays_in_the_last_finite_state():
    class Breaking(Line):
        def step(self, state, action, **kwargs):
            prediction = super().step(state, action, **kwargs)
            x = prediction.state["obs"]
            return prediction._replace(state={"obs": th.where(x > 1.5, th.nan, x)})

    model = Breaking()
    prior = lambda state, generator: 1.0 + 0.0 * state["obs"]  # noqa: E731
    assert rollout_prior(model, model.initial(th.zeros(1, 1)), prior, 1, 4, None).flatten().tolist() == [1.0] * 4
