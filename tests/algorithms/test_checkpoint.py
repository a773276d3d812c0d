"""What a checkpoint brings back, what a resumed run does, and the words where it cannot."""

import io
import json
import pickle
import sys
import textwrap
import types
import zipfile

import cloudpickle
import numpy as np
import pytest
import torch as th
from stable_baselines3 import SAC
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.sac.policies import SACPolicy

import sb3_mbrl
from sb3_mbrl import MBPO, hookimpl
from sb3_mbrl.contracts import FitBudget, WorldModelSpec
from sb3_mbrl.envs.functions.classic_control import PendulumReward
from sb3_mbrl.imagination import BranchedRollouts
from sb3_mbrl.models.ensemble import EnsembleModel
from sb3_mbrl.models.known import PendulumModel
from sb3_mbrl.models.mlp import MLPModel
from sb3_mbrl.plugins import UnknownPartError, reset_registry
from sb3_mbrl.states import leaves
from sb3_mbrl.testing import NeighbourToy
from tests.algorithms.common import LEARNED, TINY, learned, tiny

QUICK = {
    "learning_starts": 20,
    "fit_freq": 20,
    "batch_size": 16,
    "fit_kwargs": {"max_batches": 40, "batch_size": 16},
    "imagination_kwargs": {"freq": 10, "starts_per_step": 4, "max_age": 30, "horizon": 2},
}
OBS = np.array([[1.0, 0.0, 0.5], [0.0, -1.0, -3.0]], np.float32)


def quick(**kwargs) -> MBPO:
    return learned(**{**QUICK, **kwargs})


class ScaledModel(EnsembleModel):
    """A model that an example's plugin offers."""


class Offers:
    """A plugin given to an agent."""

    @hookimpl
    def sb3_mbrl_world_models(self):
        return [WorldModelSpec(name="scaled", factory=ScaledModel)]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """An agent after 50 steps, and where it and its replay buffer were saved."""
    folder = tmp_path_factory.mktemp("agent")
    agent = quick(reward_fn="auto").learn(50)
    assert agent._trusted
    agent.save(folder / "agent")
    agent.save_replay_buffer(folder / "buffer")
    return agent, folder


@pytest.fixture
def agent(saved):
    return saved[0]


@pytest.fixture
def path(saved):
    return saved[1] / "agent"


def same_parameters(one: MBPO, other: MBPO) -> None:
    a, b = one.get_parameters(), other.get_parameters()
    assert list(a) == list(b)
    for name in a:
        # Optimisers too: groups hold numbers, states tensors.
        tensors = [list(_values(params[name])) for params in (a, b)]
        assert len(tensors[0]) == len(tensors[1]) > 0
        assert all(np.array_equal(x, y) for x, y in zip(*tensors, strict=True)), name


def _values(value):
    if isinstance(value, dict):
        for child in value.values():
            yield from _values(child)
    elif isinstance(value, (list, tuple)):
        for child in value:
            yield from _values(child)
    else:
        yield value.numpy() if isinstance(value, th.Tensor) else value


# ---- what comes back


def test_everything_comes_back(agent, path):
    loaded = MBPO.load(path, device="cpu")
    same_parameters(agent, loaded)
    old, new = agent.world_model, loaded.world_model
    assert type(new) is EnsembleModel
    assert new.fitted
    assert new.n_fits == old.n_fits == 2
    assert new.elites == old.elites
    assert new.holdout_scores == old.holdout_scores
    assert new.heads.can_terminate == old.heads.can_terminate
    assert th.equal(new.standardiser.mean, old.standardiser.mean)
    assert th.equal(new.heads.standardiser.std, old.heads.standardiser.std)
    assert loaded._trusted
    for name in (
        "_fit_at",
        "_fit_rows",
        "_imagined_at",
        "num_timesteps",
        "real_ratio",
        "fit_freq",
        "fit_budget",
        "_n_updates",
    ):
        assert getattr(loaded, name) == getattr(agent, name), name
    assert loaded.part_references == agent.part_references
    assert loaded.imagination.horizon(0) == 2
    assert isinstance(new.reward_fn, PendulumReward)
    assert new.reward_fn == old.reward_fn


def test_predictions_are_the_same_without_an_environment(agent, path):
    loaded = MBPO.load(path)
    assert loaded.env is None
    np.testing.assert_array_equal(loaded.predict(OBS, deterministic=True)[0], agent.predict(OBS, deterministic=True)[0])
    state, action = th.as_tensor(OBS), th.tensor([[0.3], [-1.0]])
    draws = []
    for model in (agent.world_model, loaded.world_model):
        draws.append(model.step(model.initial(state), action, generator=th.Generator().manual_seed(3)))
    assert all(th.equal(a, b) for a, b in zip(leaves(draws[0]), leaves(draws[1]), strict=True))


def test_the_random_stream_goes_on_where_it_was(agent, path):
    # Building the parts anew must not draw from it.
    loaded = MBPO.load(path)
    assert th.equal(loaded._random.generator.get_state(), agent._random.generator.get_state())


def test_set_random_seed_starts_the_stream_anew(path):
    loaded = MBPO.load(path)
    loaded.set_random_seed(5)
    draw = th.randint(10**6, (8,), generator=loaded._random.generator)
    assert th.equal(draw, th.randint(10**6, (8,), generator=th.Generator().manual_seed(5)))


def test_the_agent_itself_is_not_changed_by_saving(agent, tmp_path):
    before = set(vars(agent))
    agent.save(tmp_path / "again")
    assert set(vars(agent)) == before
    assert agent.world_model_class == "auto"


def test_what_is_in_the_zip(path):
    with zipfile.ZipFile(path.with_suffix(".zip")) as archive:
        files, data = set(archive.namelist()), json.loads(archive.read("data"))
    assert {"world_model.pth", "world_model.optimizer.pth", "policy.pth"} <= files
    assert data["part_references"]["world_model"]["name"] == "ensemble"
    assert {"world_model", "imagination", "imagined", "registry", "plugins", "replay_buffer"}.isdisjoint(data)


def test_parameters_are_what_sb3s_own_suite_asks_for(agent):
    names = list(agent.get_parameters())
    assert names[-2:] == ["world_model", "world_model.optimizer"]
    for name, values in agent.get_parameters().items():
        if "optim" not in name:
            assert len(values) > 0
            assert all(value.is_floating_point() for value in values.values()), name
    params = agent.get_parameters()
    params.pop("world_model.optimizer")
    with pytest.raises(ValueError, match=r"Names of parameters do not match"):
        MBPO("MlpPolicy", "Pendulum-v1", **{**TINY, **LEARNED, "reward_fn": "auto"}).set_parameters(params)


def test_parameters_of_one_agent_in_another(agent):
    other = quick(reward_fn="auto", seed=7)
    other.set_parameters(agent.get_parameters())
    same_parameters(agent, other)


def test_parameters_bring_the_choice_of_elites(tmp_path):
    """The weights of one agent with the elites of another: members that nobody chose would be rolled out."""
    model = {"world_model_kwargs": {"members": 3, "elites": 2, "hidden": [8]}}
    old, new, third = (quick(**model, seed=seed) for seed in (0, 1, 2))
    old.world_model.elites = [2, 0]
    old.world_model.heads.saw_termination.fill_(0.0)
    old.save(tmp_path / "old")
    new.set_parameters(old.get_parameters())
    third.set_parameters(tmp_path / "old.zip")
    for agent in (new, third):
        assert agent.world_model.elites == [2, 0]
        assert not agent.world_model.heads.can_terminate


def randomised(agent: MBPO) -> dict:
    g = th.Generator().manual_seed(1)
    return {
        name: values if "optim" in name else {key: th.rand(value.shape, generator=g) for key, value in values.items()}
        for name, values in agent.get_parameters().items()
    }


def test_random_weights_do_no_harm(tmp_path):
    """As SB3's test_save_load does; weights in [0, 1] make a world model that predicts enormous rewards."""
    agent = quick().learn(30)
    assert agent._trusted
    agent.imagined = None
    agent.set_parameters(randomised(agent))
    agent.save(tmp_path / "agent")
    agent.save_replay_buffer(tmp_path / "buffer")
    loaded = MBPO.load(tmp_path / "agent", env=make_vec_env("Pendulum-v1"))
    loaded.load_replay_buffer(tmp_path / "buffer")
    for model in (agent, loaded):
        # The verdict was about other weights: they are judged before they are rolled out.
        model.fit_freq = 10**6
        model._fit_rows = 10**6
        model.learn(20, reset_num_timesteps=False)
        assert not model._trusted
        assert model.imagined is None
        assert model.logger.name_to_value["model/vs_trivial"] > 1
    agent.fit_freq = 20
    agent.learn(128, reset_num_timesteps=False)
    assert all(value.isfinite().all() for value in agent.policy.state_dict().values())


def test_loading_with_another_number_of_environments(path):
    env = make_vec_env("Pendulum-v1", n_envs=3)
    loaded = MBPO.load(path, env=env)
    assert loaded.replay_buffer.n_envs == 3
    loaded.learn(60, reset_num_timesteps=False)
    assert loaded.num_timesteps == 110
    assert loaded.world_model.n_fits > 2


def test_custom_objects_and_changed_attributes(path):
    loaded = MBPO.load(
        path, custom_objects={"learning_rate": 1e-5, "dummy": 1.0}, fit_freq=77, imagination_kwargs={"horizon": 5}
    )
    assert loaded.learning_rate == 1e-5
    assert not hasattr(loaded, "dummy")
    assert loaded.fit_freq == 77
    assert loaded.imagination.horizon(0) == 5


def test_exclude_and_include(agent, tmp_path):
    agent.save(tmp_path / "agent", exclude=["fit_freq", "_trusted"], include=["imagined", "replay_buffer"])
    loaded = MBPO.load(tmp_path / "agent")
    assert (loaded.fit_freq, loaded._trusted) == (250, False)  # the defaults
    assert len(loaded.replay_buffer.observations) == agent.replay_buffer.buffer_size
    g, h = th.Generator().manual_seed(0), th.Generator().manual_seed(0)
    old, new = agent.imagined.draw(20, g), loaded.imagined.draw(20, h)
    assert len(loaded.imagined) == len(agent.imagined) > 0
    assert all(th.equal(a, b) for a, b in zip(leaves(old), leaves(new), strict=True))


def test_streams_instead_of_paths(agent):
    buffer = io.BytesIO()
    agent.save(buffer)
    same_parameters(agent, MBPO.load(buffer))
    buffer.seek(0)
    same_parameters(agent, MBPO.load(buffer))


def test_the_policy_alone_is_a_policy_of_sac(agent, tmp_path):
    agent.policy.save(tmp_path / "policy")
    policy = SACPolicy.load(tmp_path / "policy")
    np.testing.assert_array_equal(policy.predict(OBS, deterministic=True)[0], agent.predict(OBS, deterministic=True)[0])


def test_the_class_pickles(agent):
    assert pickle.loads(pickle.dumps(MBPO)) is MBPO
    assert cloudpickle.loads(cloudpickle.dumps(MBPO)) is MBPO


def test_a_model_that_is_data(tmp_path):
    agent = quick(world_model=NeighbourToy, world_model_kwargs={"k": 2}).learn(50)
    model = agent.world_model
    assert len(model._inputs) == 40  # the second fit was at step 40
    agent.save(tmp_path / "agent")
    loaded = MBPO.load(tmp_path / "agent", env=make_vec_env("Pendulum-v1"))
    assert th.equal(loaded.world_model._inputs, model._inputs)
    assert th.equal(loaded.world_model._outputs, model._outputs)
    assert loaded.world_model.k == 2
    # Large data is not kept a second time.
    assert not hasattr(loaded, "world_model_extra")
    loaded.learn(5, reset_num_timesteps=False)


def test_a_known_model_and_a_model_that_is_off(tmp_path):
    for i, agent in enumerate((tiny(**QUICK).learn(40), quick(world_model=None).learn(30))):
        agent.save(tmp_path / str(i))
        loaded = MBPO.load(tmp_path / str(i), env=make_vec_env("Pendulum-v1"))
        assert type(loaded.world_model) is type(agent.world_model)
        loaded.learn(10, reset_num_timesteps=False)


# ---- going on


def steps_of_fits_and_imagination(agent: MBPO, steps: int) -> dict[str, list[int]]:
    seen = {"fit": [], "imagine": []}
    fit, imagine = agent.fit_world_model, agent._imagine

    def fitting(*args, **kwargs):
        seen["fit"].append(agent.num_timesteps)
        return fit(*args, **kwargs)

    def imagining():
        imagine()
        seen["imagine"].append(agent.num_timesteps)
        seen.setdefault("rows", []).append(len(agent.imagined))

    agent.fit_world_model, agent._imagine = fitting, imagining
    try:
        agent.learn(steps, reset_num_timesteps=False)
    finally:
        del agent.fit_world_model, agent._imagine
    return seen


def test_a_resumed_run_goes_on(saved):
    agent, folder = saved
    assert (agent.num_timesteps, agent._fit_at) == (50, 40)
    loaded = MBPO.load(folder / "agent", env=make_vec_env("Pendulum-v1"))
    loaded.load_replay_buffer(folder / "buffer")
    seen = steps_of_fits_and_imagination(loaded, 15)
    assert loaded.num_timesteps == 65
    assert loaded.replay_buffer.pos == 65
    # Not before it is due: when 60 is crossed.
    assert seen["fit"] == [60]
    # At once, what max_age = 30 steps would have kept: 4 starts a step, 2 steps deep; then when 60 is crossed.
    assert seen["imagine"] == [51, 60]
    assert seen["rows"][0] == 30 * 4 * 2
    assert loaded.world_model.n_fits == 3


def test_without_the_replay_buffer_training_goes_on_with_real_rows(path, capsys):
    loaded = MBPO.load(path, env=make_vec_env("Pendulum-v1"), verbose=1)
    updates = loaded._n_updates
    seen = steps_of_fits_and_imagination(loaded, 12)
    # 12 rows are neither enough to refit what was fitted on 40, nor (learning_starts is 20) to start from.
    assert seen == {"fit": [], "imagine": []}
    assert loaded._n_updates == updates + 12
    assert loaded.world_model.n_fits == 2
    assert "The replay buffer is empty" in capsys.readouterr().out
    loaded.verbose = 0
    seen = steps_of_fits_and_imagination(loaded, 20)
    assert seen["imagine"][0] == 70  # 20 rows
    assert seen["rows"][0] <= 4 * 20 * 2  # for the experience there is
    assert loaded.world_model.n_fits > 2


def test_a_fresh_count_of_steps_keeps_what_was_learned(saved):
    _, folder = saved
    loaded = MBPO.load(folder / "agent", env=make_vec_env("Pendulum-v1"))
    loaded.load_replay_buffer(folder / "buffer")
    loaded.learn(22)
    assert loaded.num_timesteps == 22
    assert loaded.world_model.n_fits >= 3
    assert len(loaded.imagined) > 0


class Interrupted(EnsembleModel):
    """Ctrl-C in the middle of its second fit."""

    def _epoch(self, *args):
        for i, loss in enumerate(super()._epoch(*args)):
            yield loss
            if self.n_fits == 1 and i == 1:
                raise KeyboardInterrupt


def test_an_interrupted_fit_leaves_an_agent_that_can_be_saved_and_goes_on(tmp_path):
    agent = quick(world_model=Interrupted, world_model_kwargs={"members": 2, "elites": 1, "hidden": [16]})
    buffer = agent.replay_buffer
    with pytest.raises(KeyboardInterrupt):
        agent.learn(100)
    assert agent.num_timesteps == 40
    assert agent.replay_buffer is buffer
    assert agent.replay_buffer.pos == 40
    assert not agent.world_model.training
    assert agent.world_model.fitted
    # Held-out errors never got worse than at the start of the fit: the best weights are back.
    figures = agent._judge(agent.model_data.transitions(), agent.model_data, agent.fit_budget)
    assert figures["vs_trivial"] < 1
    agent.save(tmp_path / "agent")
    agent.save_replay_buffer(tmp_path / "buffer")
    loaded = MBPO.load(tmp_path / "agent", env=make_vec_env("Pendulum-v1"))
    loaded.load_replay_buffer(tmp_path / "buffer")
    np.testing.assert_array_equal(loaded.predict(OBS, deterministic=True)[0], agent.predict(OBS, deterministic=True)[0])
    seen = steps_of_fits_and_imagination(loaded, 5)
    # The fit that was interrupted is made up for.
    assert seen["fit"] == [41]
    assert loaded.num_timesteps == 45
    # So does the interrupted agent itself.
    assert steps_of_fits_and_imagination(agent, 5)["fit"] == [41]


def test_an_interrupted_first_fit(tmp_path):
    class AtOnce(Interrupted):
        def _epoch(self, *args):
            for loss in EnsembleModel._epoch(self, *args):
                yield loss
                if self.n_fits == 0:
                    raise KeyboardInterrupt

    agent = quick(world_model=AtOnce, world_model_kwargs={"members": 2, "elites": 1, "hidden": [16]})
    with pytest.raises(KeyboardInterrupt):
        agent.learn(100)
    assert not agent._trusted
    agent.save(tmp_path / "agent")
    assert MBPO.load(tmp_path / "agent", world_model=AtOnce).num_timesteps == 21
    agent.learn(5, reset_num_timesteps=False)
    assert agent._fit_at == 22


def test_interrupted_in_an_update(tmp_path, monkeypatch):
    agent = quick().learn(30)
    buffer = agent.replay_buffer

    def interrupt(self, gradient_steps, batch_size):
        raise KeyboardInterrupt

    monkeypatch.setattr(SAC, "train", interrupt)
    with pytest.raises(KeyboardInterrupt):
        agent.learn(30, reset_num_timesteps=False)
    assert agent.replay_buffer is buffer
    agent.save(tmp_path / "agent")
    assert MBPO.load(tmp_path / "agent").num_timesteps == 31


def test_saving_in_the_middle_of_learning(tmp_path):
    class Save(BaseCallback):
        def _on_step(self):
            if self.n_calls == 35:
                self.model.save(tmp_path / "agent")
            return True

    quick().learn(50, callback=Save())
    loaded = MBPO.load(tmp_path / "agent")
    assert (loaded.num_timesteps, loaded._fit_at, loaded.world_model.n_fits) == (35, 21, 1)


# ---- parts that are not in the zip


def test_a_world_model_given_as_an_instance(tmp_path):
    model = EnsembleModel(
        PendulumModel.env_spaces[0], PendulumModel.env_spaces[1], members=2, elites=1, hidden=[16], device="cpu"
    )
    agent = quick(world_model=model, world_model_kwargs=None).learn(30)
    agent.save(tmp_path / "agent")
    assert agent.world_model_class is model
    with pytest.raises(
        UnknownPartError,
        match=r"was given as an instance of sb3_mbrl.models.ensemble:EnsembleModel, which is not stored. Give it",
    ):
        MBPO.load(tmp_path / "agent")
    with pytest.raises(ValueError, match=r"was saved with the world model 'EnsembleModel' .* and load.. was given 'pendulum'"):
        MBPO.load(tmp_path / "agent", world_model="pendulum")
    fresh = EnsembleModel(model.observation_space, model.action_space, members=2, elites=1, hidden=[16], device="cpu")
    loaded = MBPO.load(tmp_path / "agent", world_model=fresh, env=make_vec_env("Pendulum-v1"))
    assert loaded.world_model is fresh
    same_parameters(agent, loaded)
    assert fresh.elites == model.elites
    loaded.learn(5, reset_num_timesteps=False)
    loaded.save(tmp_path / "again")
    same_parameters(loaded, MBPO.load(tmp_path / "again", world_model=fresh))


def test_an_instance_in_the_place_of_the_class_it_was_saved_with(agent, path):
    fresh = EnsembleModel(
        agent.observation_space, agent.action_space, members=2, elites=1, hidden=[16], reward_fn=PendulumReward(2.0),
        termination_fn=agent._known.termination_fn, device="cpu",
    )  # fmt: skip
    loaded = MBPO.load(path, world_model=fresh)
    assert loaded.world_model is fresh
    same_parameters(agent, loaded)


def test_a_world_model_given_as_a_local_function(tmp_path):
    def make(observation_space, action_space, **kwargs):
        return MLPModel(observation_space, action_space, hidden=[8], **kwargs)

    agent = quick(world_model=make, world_model_kwargs=None)
    agent.save(tmp_path / "agent")
    with pytest.raises(UnknownPartError, match=r"which cannot be imported. Give it again: load\(..., world_model=...\)"):
        MBPO.load(tmp_path / "agent")
    same_parameters(agent, MBPO.load(tmp_path / "agent", world_model=make))


def test_an_imagination_given_as_an_instance(tmp_path):
    mine = BranchedRollouts(horizon=3, starts_per_step=1)
    agent = quick(imagination=mine, imagination_kwargs=None)
    agent.save(tmp_path / "agent")
    with pytest.raises(
        UnknownPartError, match=r"imagination was given as an instance .* Give it again: load\(..., imagination=...\)"
    ):
        MBPO.load(tmp_path / "agent")
    assert MBPO.load(tmp_path / "agent", imagination=mine).imagination is mine


def test_a_plugin_given_to_the_agent_is_given_again(tmp_path):
    module = types.ModuleType("my_plugin")
    module.sb3_mbrl_world_models = Offers().sb3_mbrl_world_models
    agent = learned(world_model="scaled", plugins=[module])
    assert type(agent.world_model) is ScaledModel
    agent.save(tmp_path / "agent")
    with pytest.raises(UnknownPartError) as caught:
        MBPO.load(tmp_path / "agent")
    assert str(caught.value) == (
        "the saved agent's world model 'scaled' came from a plugin that was given to the agent. "
        "Give it again: load(..., plugins=[...])"
    )
    for again in ([module], [Offers]):
        same_parameters(agent, MBPO.load(tmp_path / "agent", plugins=again))


@pytest.fixture
def distribution(tmp_path, monkeypatch):
    """A distribution that offers the world model 'scaled', installed until it is called."""
    folder = tmp_path / "site"
    info = folder / "sb3_mbrl_scaled-1.2.dist-info"
    info.mkdir(parents=True)
    (folder / "sb3_mbrl_scaled.py").write_text(
        "from sb3_mbrl import hookimpl\nfrom sb3_mbrl.contracts import WorldModelSpec\n\n\n"
        "@hookimpl\ndef sb3_mbrl_world_models():\n"
        "    return [WorldModelSpec(name='scaled', factory='tests.algorithms.test_checkpoint:ScaledModel')]\n"
    )
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: sb3-mbrl-scaled\nVersion: 1.2\n")
    (info / "entry_points.txt").write_text("[sb3_mbrl]\nscaled = sb3_mbrl_scaled\n")
    with monkeypatch.context() as patch:
        patch.syspath_prepend(str(folder))
        reset_registry()

        def uninstall():
            patch.undo()
            reset_registry()

        yield uninstall
    reset_registry()


def test_a_checkpoint_names_the_distribution_that_is_missing(distribution, tmp_path):
    agent = learned(world_model="scaled")
    assert agent.part_references["world_model"]["distribution"] == "sb3-mbrl-scaled"
    agent.save(tmp_path / "agent")
    same_parameters(agent, MBPO.load(tmp_path / "agent"))
    distribution()
    with pytest.raises(UnknownPartError) as caught:
        MBPO.load(tmp_path / "agent")
    assert str(caught.value) == (
        "the saved agent's world model 'scaled' needs sb3-mbrl-scaled 1.2, which is not installed. "
        "Run `pip install sb3-mbrl-scaled`."
    )


# ---- what load refuses


def test_load_of_a_sac_file_says_what_to_do(tmp_path):
    SAC("MlpPolicy", "Pendulum-v1", buffer_size=10).save(tmp_path / "sac")
    with pytest.raises(
        ValueError, match=r"sac was not saved by a model-based class: it looks like a plain SAC file\. Load it with"
    ):
        MBPO.load(tmp_path / "sac")


@pytest.mark.parametrize("content", ["no zip", "another zip"])
def test_load_of_something_else(tmp_path, content):
    file = tmp_path / "thing.zip"
    if content == "no zip":
        file.write_text("hello")
    else:
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("notes.txt", "hello")
    with pytest.raises(ValueError, match=r"thing.zip is not an agent that was saved with save\(\)"):
        MBPO.load(file)
    with pytest.raises(FileNotFoundError):
        MBPO.load(tmp_path / "nothing")


def test_load_with_another_world_model(path):
    with pytest.raises(
        ValueError, match=r"saved with the world model 'ensemble' \(sb3_mbrl.models.ensemble:EnsembleModel\), and load\(\)"
    ):
        MBPO.load(path, world_model="mlp")
    assert type(MBPO.load(path, world_model="ensemble").world_model) is EnsembleModel
    with pytest.raises(ValueError, match=r"the checkpoint holds a world model"):
        MBPO.load(path, world_model=None)


def test_load_with_the_model_off_cannot_switch_it_on(tmp_path):
    quick(world_model=None).save(tmp_path / "agent")
    with pytest.raises(ValueError, match=r"was saved with its world model off"):
        MBPO.load(tmp_path / "agent", world_model="ensemble")


def test_load_with_other_known_functions(agent, path):
    def mine(obs, action, next_obs):
        return th.zeros(len(obs))

    # The reward was known, so no head was learned: another function may take its place.
    assert MBPO.load(path, reward_fn=mine).world_model.reward_fn is mine
    with pytest.raises(ValueError, match=r"saved with a known reward_fn: load\(..., reward_fn=None\) cannot learn it"):
        MBPO.load(path, reward_fn=None)


def test_load_cannot_replace_a_learned_reward(tmp_path):
    quick().save(tmp_path / "agent")
    with pytest.raises(ValueError, match=r"saved with a learned reward_fn: load\(..., reward_fn=...\) cannot replace it"):
        MBPO.load(tmp_path / "agent", reward_fn=PendulumReward(2.0))


def vanishing(tmp_path, **kwargs) -> types.ModuleType:
    """Save an agent some parts of which live in a module that is not there any more afterwards."""
    module = types.ModuleType("gone_tomorrow")
    source = """
        import torch
        from sb3_mbrl.models.mlp import MLPModel

        class Model(MLPModel):
            pass

        def reward(obs, action, next_obs):
            return torch.zeros(len(obs))
        """
    exec(textwrap.dedent(source), vars(module))
    sys.modules["gone_tomorrow"] = module
    try:
        quick(**{name: getattr(module, value) for name, value in kwargs.items()}, world_model_kwargs={"hidden": [8]}).save(
            tmp_path / "x"
        )
    finally:
        del sys.modules["gone_tomorrow"]
    return module


def test_a_class_whose_module_is_gone(tmp_path):
    module = vanishing(tmp_path, world_model="Model")
    with pytest.raises(
        UnknownPartError, match=r"there is no module 'gone_tomorrow'\)\. Give it again: load\(..., world_model=...\)"
    ):
        MBPO.load(tmp_path / "x")
    assert type(MBPO.load(tmp_path / "x", world_model=module.Model).world_model) is module.Model


def test_a_known_function_whose_module_is_gone(tmp_path):
    module = vanishing(tmp_path, world_model="Model", reward_fn="reward")
    with pytest.raises(ModuleNotFoundError, match=r"gone_tomorrow") as caught:
        MBPO.load(tmp_path / "x", world_model=module.Model)
    assert "give what was known again instead: load(..., reward_fn=..., termination_fn=...)" in caught.value.__notes__[0]

    def never(obs, action, next_obs):
        return th.zeros(len(obs), dtype=th.bool)

    again = {"reward_fn": module.reward, "termination_fn": never}
    loaded = MBPO.load(tmp_path / "x", world_model=module.Model, **again)
    assert (loaded.world_model.reward_fn, loaded.world_model.termination_fn) == tuple(again.values())


class Fragile:
    """A function that cannot be read by another version of its library."""

    def __call__(self, obs, action, next_obs):
        return th.zeros(len(obs))

    def __reduce__(self):
        return int, ("not", "at", "all")


def test_a_known_function_that_cannot_be_unpickled_is_asked_for(tmp_path):
    quick(reward_fn=Fragile(), termination_fn=None).save(tmp_path / "agent")
    with (
        pytest.warns(UserWarning, match=r"Could not deserialize object"),
        pytest.raises(ValueError, match=r"could not be unpickled .* Give it again: load\(..., reward_fn=...\)"),
    ):
        MBPO.load(tmp_path / "agent")
    mine = Fragile()
    assert MBPO.load(tmp_path / "agent", reward_fn=mine).world_model.reward_fn is mine


def test_the_version_is_in_the_reference(agent):
    assert agent.part_references["world_model"]["version"] == sb3_mbrl.__version__


# ---- a save that fails, and files that are damaged


class NoPickle:
    def __reduce__(self):
        raise TypeError("not this one")


class Leaves:
    """A plugin that puts something into the checkpoint."""

    @hookimpl
    def sb3_mbrl_on_save(self, agent, extra):
        extra["mine"] = agent.left


def test_a_save_that_fails_leaves_the_file_that_was_there(tmp_path):
    agent = tiny(plugins=[Leaves()])
    agent.left = NoPickle()
    (tmp_path / "agent.zip").write_bytes(b"the old one")
    with pytest.raises(TypeError, match="not this one") as caught:
        agent.save(tmp_path / "agent", exclude=["left"])
    assert "plugin_extra['mine'] (NoPickle) cannot be pickled" in caught.value.__notes__[0]
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("agent.zip", b"the old one")]
    agent.left = 5
    for name, file in (("agent", "agent.zip"), ("new/b.pt", "new/b.pt")):
        agent.save(str(tmp_path / name))
        assert zipfile.is_zipfile(tmp_path / file)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["agent.zip", "new"]


@pytest.mark.parametrize("name", ["part_references", "world_model_kwargs"])
def test_what_load_needs_cannot_be_excluded(agent, tmp_path, name):
    with pytest.raises(ValueError, match=rf"exclude=\['{name}'\]\): the agent could not be loaded again"):
        agent.save(tmp_path / "agent", exclude=[name])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("data", [b"{no json", b"[1, 2]", b"\xff\xfe\xfa"])
def test_a_zip_with_damaged_attributes(tmp_path, data):
    with zipfile.ZipFile(tmp_path / "agent.zip", "w") as archive:
        archive.writestr("data", data)
    with pytest.raises(ValueError, match=r"agent.zip is not an agent that was saved with save\(\): "):
        MBPO.load(tmp_path / "agent.zip")


# ---- attributes given to load


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"real_ratio": 5.0}, "real_ratio=5.0: give the share"),
        ({"real_ratio": "0.5"}, "real_ratio='0.5': give the share"),
        ({"fit_freq": 0}, "fit_freq=0: give the real"),
        ({"fit_freq": None}, "fit_freq=None: give the real"),
        ({"fit_kwargs": {"patience": -1}}, "FitBudget: patience=-1: give a whole number from 0 on"),
        ({"fit_kwargs": {"max_epoch": 1}}, "does not take 'max_epoch'. Did you mean 'max_epochs'"),
        ({"fit_kwargs": {"max_batches": "5"}}, "max_batches='5' is not a number"),
        ({"termination_fn": True}, "termination_fn=True: give a function"),
        ({"reward_fn": "zzz"}, "reward_fn='zzz': give a function"),
        ({"world_model_kwargs": {"members": 3}}, "world_model_kwargs=.*start a new agent for another model"),
    ],
)
def test_what_load_is_given_is_checked(path, given, words):
    with pytest.raises((ValueError, TypeError), match=words):
        MBPO.load(path, **given)


def test_fit_kwargs_given_to_load_become_the_budget(agent, path):
    loaded = MBPO.load(path, fit_kwargs={"max_batches": 7}, world_model_kwargs=agent.world_model_kwargs)
    assert loaded.fit_budget == FitBudget(max_batches=7)
    assert "fit_kwargs" not in vars(loaded)
