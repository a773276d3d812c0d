"""``ModelBasedMixin``: the replay hook, the order of ``train``, and what its settings may be."""

import pytest
import torch as th
from stable_baselines3 import DQN, SAC

from sb3_mbrl import MBPO, Dyna, hookimpl
from sb3_mbrl.algorithms.base import augmented_replay
from sb3_mbrl.contracts import Imagination
from tests.helpers.agents import TINY, tiny

# ---- the replay hook


class Sampler:
    def sample(self, batch_size, env=None):
        raise NotImplementedError


def test_a_sampler_stands_in_for_the_buffer_of_any_class_and_leaves_it_again():
    agent, sampler = SAC("MlpPolicy", "Pendulum-v1", buffer_size=10, device="cpu"), Sampler()
    real = agent.replay_buffer
    with augmented_replay(agent, sampler):
        assert agent.replay_buffer is sampler
    assert agent.replay_buffer is real
    with pytest.raises(RuntimeError, match="in between"), augmented_replay(agent, sampler):
        raise RuntimeError("in between")
    assert agent.replay_buffer is real


def test_no_sampler_leaves_the_buffer_alone():
    agent = SAC("MlpPolicy", "Pendulum-v1", buffer_size=10, device="cpu")
    real = agent.replay_buffer
    with augmented_replay(agent, None):
        assert agent.replay_buffer is real


# ---- train


class Diary:
    """A plug-in that notes the phases of ``train`` in their order."""

    def __init__(self):
        self.lines = []

    @hookimpl
    def sb3_mbrl_before_model_fit(self, agent):
        self.lines.append("fit")

    @hookimpl
    def sb3_mbrl_before_imagination(self, agent, horizon, n_starts):
        self.lines.append(f"imagine {n_starts} x {horizon}")

    @hookimpl
    def sb3_mbrl_before_policy_update(self, agent, gradient_steps, batch_size):
        self.lines.append(f"update {gradient_steps} x {batch_size}")


def test_train_fits_then_imagines_then_updates():
    """4 starts a step, of the 75 before the first update, and then of the 25 since."""
    diary = Diary()
    settings = {"freq": 25, "starts_per_step": 4, "max_age": 200, "horizon": 2}
    agent = tiny(plugins=[diary], train_freq=25, learning_starts=50, gradient_steps=3, imagination_kwargs=settings)
    agent.learn(100)
    update = "update 3 x 32"
    assert diary.lines == ["fit", "imagine 300 x 2", update, "imagine 100 x 2", update]


def test_batches_are_real_while_the_model_is_not_trusted():
    agent = tiny().learn(100)
    sampler = agent._sampler()
    assert (sampler.real, sampler.imagined) == (agent.replay_buffer, agent.imagined)
    agent.trainer.trusted = False
    assert agent._sampler() is None
    assert not agent._imagination_is_due()


def test_another_model_leaves_no_imagined_rows():
    agent = tiny().learn(100)
    assert len(agent.imagined) > 0
    agent._on_new_model()
    assert len(agent.imagined) == 0


class Relabel(Imagination):
    """An imagination without rollouts: the batches are the real ones, with a reward of 7."""

    def sampler(self, learner, real):
        class Sevens:
            def sample(self, batch_size, env=None):
                batch = real.sample(batch_size, env=env)
                return batch._replace(rewards=th.full_like(batch.rewards, 7.0))

        return Sevens()


def test_an_imagination_without_rollouts_changes_batches_alone():
    agent = tiny(imagination=Relabel(), imagination_kwargs=None).learn(60)
    assert agent.imagined is None
    assert agent._sampler().sample(5).rewards.flatten().tolist() == [7.0] * 5


# ---- settings


@pytest.mark.parametrize("ratio", [-0.1, 1.1, "0.5", None, True, float("nan")])
def test_a_ratio_is_a_share(ratio):
    with pytest.raises(ValueError, match=r"real_ratio=.*: give the share of real rows in a batch, from 0 to 1"):
        tiny(real_ratio=ratio)


def test_a_ratio_of_one_builds_no_model():
    assert tiny(real_ratio=1.0).world_model is None
    assert tiny(real_ratio=0.99).world_model is not None


def test_features_are_no_observations_of_the_policy():
    with pytest.raises(ValueError, match=r"MBPO's policy acts on observations, so imagined rows must be decoded ones"):
        tiny(imagination_kwargs={"observation": "features"})


@pytest.mark.parametrize(("cls", "env", "base"), [(MBPO, "CartPole-v1", SAC), (Dyna, "Pendulum-v1", DQN)])
def test_actions_that_the_base_class_refuses_name_the_class_to_take(cls, env, base):
    with pytest.raises(AssertionError) as caught:
        cls("MlpPolicy", env, device="cpu")
    assert caught.value.__notes__ == [
        "For Discrete actions there are Dyna (DQN) and model_based(QRDQN), for Box actions MBPO (SAC)"
    ]


def test_policy_kwargs_are_copied():
    """SB3 writes ``use_sde`` into the dictionary."""
    given = {"net_arch": [8]}
    agent = MBPO("MlpPolicy", "Pendulum-v1", **{**TINY, "policy_kwargs": given})
    assert agent.policy_kwargs is not given
    assert given == {"net_arch": [8]}
