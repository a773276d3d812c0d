"""The networks of MuZero: shapes and first outputs; their equations are tested with the model."""

import torch as th

from sb3_mbrl.models.muzero.networks import Dynamics, Predictions, Projection


def test_the_first_layer_of_the_dynamics_is_one_layer_on_state_and_action():
    dynamics = Dynamics(4, 3, 8, 1, 5, "none")
    latent, action = th.rand(6, 4), th.eye(3)[[0, 1, 2, 0, 1, 2]]
    both = th.cat([dynamics.of_latent.weight, dynamics.of_action.weight], 1)
    plain = th.cat([latent, action], 1) @ both.T + dynamics.of_latent.bias
    assert th.allclose(dynamics.of_latent(latent) + dynamics.of_action(action), plain, atol=1e-6)
    following, reward, ended = dynamics(latent, action)
    assert following.shape == (6, 4)
    assert th.equal(reward, th.zeros(6, 5))
    assert th.equal(ended, th.zeros(6))


def test_predictions_begin_uniform():
    policy, value = Predictions(4, 8, 2, 3, 7, "layer")(th.rand(5, 4))
    assert th.equal(policy, th.zeros(5, 3))
    assert th.equal(value, th.zeros(5, 7))


def test_the_distance_of_a_projection_to_itself_is_small_only_if_predicted():
    th.manual_seed(0)
    projection = Projection(4, 8)
    x = th.rand(10, 4)
    optimizer = th.optim.Adam(projection.predict.parameters(), lr=1e-2)
    first = float(projection.distance(x, x).mean())
    for _ in range(100):
        loss = projection.distance(x, x).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float(loss) < 0.2 * first
