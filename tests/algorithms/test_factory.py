"""``model_based``: every off-policy class of SB3 and sb3-contrib, with a model and without."""

import inspect
import pickle
import subprocess
import sys

import cloudpickle
import gymnasium as gym
import numpy as np
import pytest
import torch as th
from sb3_contrib import ARS, QRDQN, TQC, TRPO, CrossQ
from stable_baselines3 import A2C, DDPG, DQN, PPO, SAC, TD3
from stable_baselines3.common.noise import NormalActionNoise, OrnsteinUhlenbeckActionNoise, VectorizedActionNoise
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

from sb3_mbrl import MBPO, PETS, Dyna, DynaQ, model_based
from sb3_mbrl.algorithms import model_based as factory
from sb3_mbrl.algorithms.base import ModelBasedMixin
from sb3_mbrl.imagination import BranchedRollouts
from sb3_mbrl.imagination.acting import act_in_imagination, explore, sample_actions
from sb3_mbrl.testing import LinearToy
from tests.algorithms.common import LEARNED

BASES = [SAC, TD3, DDPG, DQN, TQC, CrossQ, QRDQN]
IMAGINE = {"imagination_kwargs": {"freq": 20, "starts_per_step": 4, "max_age": 100}, "fit_freq": 60}


def quick_settings() -> dict:
    """Anew each time: SB3 writes into ``policy_kwargs``."""
    return {
        "policy_kwargs": {"net_arch": [16]},
        "learning_starts": 60,
        "batch_size": 16,
        "buffer_size": 3000,
        "seed": 3,
        "device": "cpu",
    }


def env_id(base: type) -> str:
    return "CartPole-v1" if base in (DQN, QRDQN) else "Pendulum-v1"


@pytest.mark.parametrize("base", BASES)
def test_with_the_model_off_it_is_its_base_to_the_last_bit(base):
    """1,000 steps; the issue's promise for all seven."""
    plain = base("MlpPolicy", env_id(base), **quick_settings()).learn(1_000)
    ours = model_based(base)("MlpPolicy", env_id(base), **quick_settings(), gradient_steps=1, world_model=None).learn(1_000)
    assert isinstance(ours, base)
    assert ours.num_timesteps == plain.num_timesteps
    assert ours._n_updates == plain._n_updates > 0
    for name, state in plain.policy.state_dict().items():
        assert th.equal(state, ours.policy.state_dict()[name]), name


def test_settings_are_not_written_into():
    """SB3 adds ``use_sde`` to the dictionary it is given, which then breaks TD3."""
    settings = quick_settings()
    for base in (SAC, TD3, TQC):
        model_based(base)("MlpPolicy", "Pendulum-v1", **settings)
    assert settings == quick_settings()


@pytest.mark.parametrize("base", BASES)
def test_it_fits_imagines_trains_saves_and_loads(base, tmp_path):
    cls = model_based(base)
    agent = cls("MlpPolicy", env_id(base), **{**quick_settings(), **LEARNED, **IMAGINE})
    agent._trusted = True
    agent._judge = lambda *_: {}  # two epochs make no good model; what is imagined is not the point here
    agent.learn(200)
    assert agent.world_model.n_fits >= 2
    assert agent._n_updates > 0
    actions = agent.imagined.draw(50)["action"]
    assert actions.shape == (50, 1)
    assert actions.is_floating_point() == isinstance(agent.action_space, gym.spaces.Box)
    del agent._judge
    agent.save(tmp_path / "agent")
    loaded = cls.load(tmp_path / "agent", env=gym.make(env_id(base)))
    obs = np.stack([agent.observation_space.sample() / 1e3 for _ in range(8)])
    assert np.array_equal(agent.predict(obs, deterministic=True)[0], loaded.predict(obs, deterministic=True)[0])
    assert th.equal(agent.world_model.network.layers[0].weight, loaded.world_model.network.layers[0].weight)
    loaded.learn(30, reset_num_timesteps=False)


def test_one_class_for_each_base():
    assert model_based(SAC) is MBPO
    assert model_based(DQN) is Dyna
    assert model_based(TQC) is model_based(TQC)
    assert model_based(TQC).__name__ == "ModelBasedTQC"
    assert model_based(model_based(TQC)) is model_based(TQC)
    assert model_based(TD3) is not model_based(DDPG)


@pytest.mark.parametrize("base", BASES)
def test_the_class_pickles(base):
    cls = model_based(base)
    assert pickle.loads(pickle.dumps(cls)) is cls
    assert cloudpickle.loads(cloudpickle.dumps(cls)) is cls


def test_a_pickled_class_is_found_in_a_fresh_process(tmp_path):
    (tmp_path / "cls.pkl").write_bytes(pickle.dumps(model_based(CrossQ)))
    code = f"import pickle; print(pickle.load(open({str(tmp_path / 'cls.pkl')!r}, 'rb')))"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert told.strip() == "<class 'sb3_mbrl.algorithms.model_based.ModelBasedCrossQ'>"
    with pytest.raises(AttributeError, match=r"call model_based\(MyOwn\) before unpickling"):
        factory.ModelBasedMyOwn  # noqa: B018
    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        factory.nonsense  # noqa: B018


@pytest.mark.parametrize("base", BASES)
def test_the_signature_is_the_true_one(base):
    """Every argument of the base with its default, in its order, then the model's by keyword."""
    of_base = inspect.signature(base).parameters
    ours = inspect.signature(model_based(base)).parameters
    assert list(ours)[: len(of_base)] == list(of_base)
    for name, parameter in of_base.items():
        if base in (SAC, DQN) and name in ("learning_starts", "gradient_steps"):
            continue
        assert ours[name].default == parameter.default, name
    extra = list(ours)[len(of_base) :]
    assert extra[0] == "world_model"
    assert set(extra) == {p.name for p in inspect.signature(MBPO).parameters.values() if p.kind is p.KEYWORD_ONLY}
    assert all(ours[name].kind is inspect.Parameter.KEYWORD_ONLY for name in extra)


def test_the_docstring_tells_of_both():
    doc = inspect.getdoc(model_based(TQC))
    assert "world_model" in doc
    assert ":param top_quantiles_to_drop_per_net:" in doc


def test_a_class_of_ones_own(tmp_path):
    class Careful(TD3):
        """Takes smaller steps."""

        def __init__(self, *args, care=0.5, **kwargs):
            self.care = care
            super().__init__(*args, **kwargs)

    cls = model_based(Careful)
    agent = cls("MlpPolicy", "Pendulum-v1", care=0.25, **{**quick_settings(), **LEARNED, **IMAGINE})
    agent.learn(80)
    assert agent.care == 0.25
    assert agent.world_model.fitted
    assert pickle.loads(pickle.dumps(cls)) is cls


@pytest.mark.parametrize("base", [PPO, A2C, TRPO])
def test_on_policy_classes_are_refused_with_a_way_out(base):
    with pytest.raises(TypeError, match=rf"{base.__name__}.*have no replay buffer.*ModelVecEnv"):
        model_based(base)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (ARS, "it is no off-policy algorithm class"),
        (dict, "it is no off-policy algorithm class"),
        (OffPolicyAlgorithm, "it is no off-policy algorithm class"),
        ("SAC", "give a class"),
        (None, "give a class"),
    ],
)
def test_anything_else_is_refused(given, words):
    with pytest.raises(TypeError, match=words):
        model_based(given)


# ------------------------------------------------------------------------------------------------------ acting in imagination


def test_epsilon_greedy_explores_row_by_row():
    """SB3's predict tosses one coin for the whole batch: all rows random, or none."""
    agent = Dyna("MlpPolicy", "CartPole-v1", **quick_settings())
    obs = th.zeros(4_000, 4)
    greedy = int(agent.policy._predict(obs[:1]))
    agent.exploration_rate = 0.3
    actions = act_in_imagination(agent, obs, th.Generator().manual_seed(0))
    assert actions.shape == (4_000, 1)
    assert not actions.is_floating_point()
    # Half of the random ones are the greedy action too: 0.15 +- 4 standard errors.
    assert float((actions != greedy).float().mean()) == pytest.approx(0.15, abs=0.023)
    agent.exploration_rate = 0.0
    assert bool((act_in_imagination(agent, obs, None) == greedy).all())


@pytest.mark.parametrize("wrap", [False, True])
def test_deterministic_actors_get_their_gaussian_noise(wrap):
    noise = NormalActionNoise(np.array([0.1]), np.array([0.2]))
    agent = model_based(TD3)("MlpPolicy", "Pendulum-v1", **quick_settings(), action_noise=noise)
    if wrap:
        agent.action_noise = VectorizedActionNoise(noise, 2)
    obs = th.zeros(4_000, 3)
    difference = act_in_imagination(agent, obs, th.Generator().manual_seed(0)) - agent.policy._predict(obs)
    assert float(difference.mean()) == pytest.approx(0.1, abs=0.013)
    assert float(difference.std()) == pytest.approx(0.2, abs=0.01)
    agent.action_noise = NormalActionNoise(np.zeros(1), np.full(1, 50.0))
    assert float(act_in_imagination(agent, obs, None).abs().max()) == 1.0
    agent.action_noise = OrnsteinUhlenbeckActionNoise(np.zeros(1), np.ones(1))
    assert th.equal(act_in_imagination(agent, obs, None), agent.policy._predict(obs))


@pytest.mark.parametrize(
    ("space", "members"),
    [
        (gym.spaces.Discrete(3, start=2), {2, 3, 4}),
        (gym.spaces.MultiDiscrete([2, 3]), {0, 1, 2}),
        (gym.spaces.MultiBinary(2), {0, 1}),
    ],
)
def test_random_actions_are_uniform_members(space, members):
    actions = sample_actions(space, 3_000, th.Generator().manual_seed(0), th.device("cpu"))
    assert set(actions.unique().tolist()) == members
    counts = actions[:, 0].bincount()
    counts = counts[counts > 0]
    assert float(counts.max() - counts.min()) / 3_000 < 0.06
    for row in actions[:50]:
        member = int(row) if isinstance(space, gym.spaces.Discrete) else row.numpy().astype(space.dtype)
        assert space.contains(member)


def test_random_box_actions_fill_the_scaled_range():
    actions = sample_actions(gym.spaces.Box(-5, 7, (2, 2)), 4_000, th.Generator().manual_seed(0), th.device("cpu"))
    assert actions.shape == (4_000, 4)
    assert float(actions.min()) == pytest.approx(-1, abs=0.01)
    assert float(actions.max()) == pytest.approx(1, abs=0.01)
    assert float(actions.var()) == pytest.approx(1 / 3, abs=0.02)


def test_exploring_rows_share():
    space, action = gym.spaces.Box(-1, 1, (2,)), th.full((4_000, 2), 2.0)
    mixed = explore(action, 0.25, space, th.Generator().manual_seed(0))
    own = (mixed == 2.0).all(1)
    assert float(own.float().mean()) == pytest.approx(0.75, abs=0.03)
    assert bool((mixed[~own].abs() <= 1).all())
    assert explore(action, 0.0, space, None) is action


def test_branched_rollouts_explore():
    model = LinearToy(gym.spaces.Box(-np.inf, np.inf, (2,)), gym.spaces.Box(-1, 1, (1,)), device="cpu")
    rollouts = BranchedRollouts(horizon=2, exploration=0.5)
    imagined = rollouts.imagine(
        model, th.zeros(2_000, 2), lambda obs: th.full((len(obs), 1), 0.5), 2, generator=th.Generator()
    )
    own = (imagined.action == 0.5).float().mean()
    assert float(own) == pytest.approx(0.5, abs=0.04)
    with pytest.raises(ValueError, match=r"exploration=2: give a number from 0 up to 1"):
        BranchedRollouts(exploration=2)


# ---- classes of one's own


class Named:
    """A namespace for a class with a well-known name."""

    class TD3(TD3):
        mine = True


def test_a_class_of_a_well_known_name_is_not_taken_for_it(tmp_path):
    """Pickle looked it up by its name, and found Stable-Baselines3's."""
    own, known = model_based(Named.TD3), model_based(TD3)
    assert own is not known
    assert own.__name__ != known.__name__
    assert pickle.loads(pickle.dumps(own)) is own
    assert pickle.loads(pickle.dumps(known)) is known
    own("MlpPolicy", "Pendulum-v1", buffer_size=10).save(tmp_path / "agent")
    with pytest.raises(ValueError, match=rf"was saved by {own.__name__}, not by ModelBasedTD3: load it with model_based"):
        known.load(tmp_path / "agent")


def test_an_argument_of_the_same_name_is_refused():
    class Own(SAC):
        def __init__(self, policy, env, real_ratio=3, **kwargs):
            super().__init__(policy, env, **kwargs)

    with pytest.raises(TypeError, match=r"model_based\(Own\): its constructor has arguments of its own called real_ratio"):
        model_based(Own)


@pytest.mark.parametrize("cls", [PETS, DynaQ])
def test_what_plans_with_a_model_already_is_refused(cls):
    with pytest.raises(TypeError, match=rf"model_based\({cls.__name__}\): it plans with a world model already"):
        model_based(cls)


def test_the_mixin_is_no_algorithm():
    with pytest.raises(TypeError, match=r"give an algorithm, e\.g\. TQC"):
        model_based(ModelBasedMixin)


class Noted(TD3):
    def learn(self, total_timesteps, callback=None, note="", **options):
        self.note, self.options = note, options
        return super().learn(total_timesteps, callback, **options)


class Plain(TD3):
    def learn(self, total_timesteps, callback=None, log_interval=4, tb_log_name="Plain", *args):
        self.logged_as = tb_log_name
        return self


def test_a_learn_of_ones_own_keeps_its_arguments():
    cls = model_based(Noted)
    assert list(inspect.signature(cls.learn).parameters) == ["self", "total_timesteps", "callback", "note", "options"]
    agent = cls("MlpPolicy", "Pendulum-v1", buffer_size=30, learning_starts=50, device="cpu")
    assert agent.learn(10, note="mine", log_interval=1).note == "mine"
    assert agent.options == {"log_interval": 1, "tb_log_name": "ModelBasedNoted"}
    assert agent.learn(10, tb_log_name="other").options == {"tb_log_name": "other"}
    agent = model_based(Plain)("MlpPolicy", "Pendulum-v1", buffer_size=30)
    assert agent.learn(10).logged_as == "ModelBasedPlain"
    assert agent.learn(10, None, 1, "other").logged_as == "other"


@pytest.mark.parametrize("base", BASES)
def test_learn_has_the_base_class_arguments(base):
    ours, theirs = (inspect.signature(cls.learn).parameters for cls in (model_based(base), base))
    assert list(ours) == list(theirs)
    assert ours["tb_log_name"].default == model_based(base).__name__
    assert ours["log_interval"].default == theirs["log_interval"].default


def own_class(init):
    return type("Own", (TD3,), {"__init__": init})


@pytest.mark.parametrize(
    "init",
    [
        lambda self, env, **kwargs: TD3.__init__(self, "MlpPolicy", env, **kwargs),
        lambda self, env, *args, **kwargs: TD3.__init__(self, "MlpPolicy", env, *args, **kwargs),
        lambda self, policy, env, learning_rate=1e-3: TD3.__init__(self, policy, env, learning_rate),
    ],
    ids=["no policy", "no policy, others", "no _init_setup_model"],
)
def test_constructors_that_leave_no_room_for_a_model_are_refused(init):
    with pytest.raises(TypeError, match=r"It has to begin with \(policy, env\) and to take _init_setup_model"):
        model_based(own_class(init))


def test_a_class_that_is_defined_again_pickles():
    """As in a notebook, whose cell is run a second time."""

    def define():
        return type("DefinedAgain", (TD3,), {})

    first, second = model_based(define()), model_based(define())
    assert first is not second
    assert pickle.loads(pickle.dumps(second)) is second
