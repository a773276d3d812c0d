"""Checkpoints: what they restore, how a run resumes, and which errors explain what cannot be restored."""

import base64
import io
import json
import pickle
import pickletools
import zipfile

import cloudpickle
import numpy as np
import pytest
import torch as th
from stable_baselines3 import SAC
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.sac.policies import SACPolicy

from sb3_mbrl import MBPO, PETS, DreamerV3, Dyna, DynaQ
from sb3_mbrl.agent.agent import make_budget
from sb3_mbrl.envs.known_functions.classic_control import PendulumReward
from sb3_mbrl.envs.known_functions.common import Never
from sb3_mbrl.holdout import Trial
from sb3_mbrl.models.ensemble import EnsembleModel
from sb3_mbrl.models.rssm import RSSM
from sb3_mbrl.planners import CEM
from sb3_mbrl.testing import NeighbourToy
from sb3_mbrl.trees import tree_leaves
from tests.helpers.agents import LEARNED, TINY, tiny
from tests.helpers.saved_agents import OBS, QUICK, quick, same_parameters

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
    assert loaded.trainer.trusted
    for name in (
        "num_timesteps",
        "real_ratio",
        "fit_freq",
        "fit_kwargs",
        "_n_updates",
    ):
        assert getattr(loaded, name) == getattr(agent, name), name
    assert loaded.trainer.state_dict() == agent.trainer.state_dict()
    assert loaded.augmenter.imagined_at == agent.augmenter.imagined_at
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
    assert all(th.equal(a, b) for a, b in zip(tree_leaves(draws[0]), tree_leaves(draws[1]), strict=True))


def test_the_random_stream_goes_on_where_it_was(agent, path):
    # Building the parts anew must not draw from it.
    loaded = MBPO.load(path)
    assert th.equal(loaded.random.generator.get_state(), agent.random.generator.get_state())


def test_set_random_seed_starts_the_stream_anew(path):
    loaded = MBPO.load(path)
    loaded.set_random_seed(5)
    draw = th.randint(10**6, (8,), generator=loaded.random.generator)
    assert th.equal(draw, th.randint(10**6, (8,), generator=th.Generator().manual_seed(5)))


def test_the_agent_itself_is_not_changed_by_saving(agent, tmp_path):
    before = set(vars(agent))
    agent.save(tmp_path / "again")
    assert set(vars(agent)) == before
    assert agent.world_model_class == "auto"


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
    """With the weights of one agent and the elites of another, the wrong members would be rolled out."""
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
    agent = quick(fit_kwargs={"max_batches": 300}).learn(30)
    assert agent.trainer.trusted
    agent.augmenter.imagined = None
    agent.set_parameters(randomised(agent))
    agent.save(tmp_path / "agent")
    agent.save_replay_buffer(tmp_path / "buffer")
    loaded = MBPO.load(tmp_path / "agent", env=make_vec_env("Pendulum-v1"))
    loaded.load_replay_buffer(tmp_path / "buffer")
    for model in (agent, loaded):
        # The verdict was about other weights: they are evaluated before they are rolled out.
        model.fit_freq = 10**6
        model.trainer.fit_rows = 10**6
        model.learn(20, reset_num_timesteps=False)
        assert not model.trainer.trusted
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
    agent.save(tmp_path / "agent", exclude=["fit_freq"], include=["imagined", "replay_buffer"])
    loaded = MBPO.load(tmp_path / "agent")
    assert (loaded.fit_freq, loaded.trainer.trusted) == (250, True)  # the default, and the saved verdict
    assert len(loaded.replay_buffer.observations) == agent.replay_buffer.buffer_size
    g, h = th.Generator().manual_seed(0), th.Generator().manual_seed(0)
    old, new = agent.imagined.draw(20, g), loaded.imagined.draw(20, h)
    assert len(loaded.imagined) == len(agent.imagined) > 0
    assert all(th.equal(a, b) for a, b in zip(tree_leaves(old), tree_leaves(new), strict=True))


def test_saved_single_steps_make_room_for_returns_of_several(agent, tmp_path):
    """Regression: training ended with an error, since rows of n-step returns have a discount and single steps have none."""
    agent.save(tmp_path / "agent", include=["imagined", "replay_buffer"])
    more = dict(agent.imagination_kwargs or {}) | {"n_steps": 3, "horizon": 3}
    loaded = MBPO.load(tmp_path / "agent", agent.get_env(), imagination_kwargs=more)
    assert loaded.imagined.draw(1)["discount"] is None
    freq = loaded.imagination.freq
    loaded.learn(2 * freq, reset_num_timesteps=False)
    discounts = loaded.imagined.draw(200)["discount"]
    assert float(discounts.min()) == pytest.approx(loaded.gamma**3)


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
    assert 25 < len(model._inputs) < 40  # the second fit was at step 40, and about a fifth of the rows is held out
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
    assert (agent.num_timesteps, agent.trainer.fit_at) == (50, 40)
    loaded = MBPO.load(folder / "agent", env=make_vec_env("Pendulum-v1"))
    loaded.load_replay_buffer(folder / "buffer")
    seen = steps_of_fits_and_imagination(loaded, 15)
    assert loaded.num_timesteps == 65
    assert loaded.replay_buffer.pos == 65
    # Not before it is due: when 60 is crossed.
    assert seen["fit"] == [60]
    # The saved rows came with the buffer, so the next ones are due when 60 is crossed.
    assert seen["imagine"] == [60]
    assert loaded.world_model.n_fits == 3


def test_imagined_rows_of_another_step_are_imagined_again(saved):
    """As many as max_age = 30 steps would have kept: 4 starts a step, 2 steps deep."""
    _, folder = saved
    loaded = MBPO.load(folder / "agent", env=make_vec_env("Pendulum-v1"))
    loaded.augmenter.imagined_at = 40
    loaded.load_replay_buffer(folder / "buffer")
    assert loaded.imagined is None
    seen = steps_of_fits_and_imagination(loaded, 15)
    assert seen["imagine"] == [51, 60]
    assert seen["rows"][0] == 30 * 4 * 2


def test_without_the_replay_buffer_training_goes_on_with_real_rows(path):
    loaded = MBPO.load(path, env=make_vec_env("Pendulum-v1"))
    updates = loaded._n_updates
    with pytest.warns(UserWarning, match="The replay buffer is empty"):
        seen = steps_of_fits_and_imagination(loaded, 12)
    # 12 rows are neither enough to refit what was fitted on 40, nor (learning_starts is 20) to start from.
    assert seen == {"fit": [], "imagine": []}
    assert loaded._n_updates == updates + 12
    assert loaded.world_model.n_fits == 2
    loaded.trainer.judge = lambda model, trial: {}  # so few rows may not earn trust; the last verdict stays
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
    """A model that is interrupted by Ctrl-C in the middle of its second fit."""

    def _epoch(self, *args):
        for i, loss in enumerate(super()._epoch(*args)):
            yield loss
            if self.n_fits == 1 and i == 1:
                raise KeyboardInterrupt


def test_after_an_interrupted_fit_an_agent_can_be_saved_and_continued(tmp_path):
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
    trial = Trial(agent.world_model, agent.model_data, make_budget(agent.fit_kwargs))
    metrics = agent.trainer.judge(agent.world_model, trial)
    assert metrics["vs_trivial"] < 1
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
    assert not agent.trainer.trusted
    agent.save(tmp_path / "agent")
    assert MBPO.load(tmp_path / "agent", world_model=AtOnce).num_timesteps == 21
    agent.learn(5, reset_num_timesteps=False)
    assert agent.trainer.fit_at == 22


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
    assert (loaded.num_timesteps, loaded.trainer.fit_at, loaded.world_model.n_fits) == (35, 21, 1)


# ---- files of the library may be renamed


def pickled_names(path):
    """Return the modules and names that the pickles in a zip refer to."""
    with zipfile.ZipFile(path) as archive:
        data = json.loads(archive.read("data"))
    names = set()
    for value in data.values():
        if isinstance(value, dict) and ":serialized:" in value:
            for opcode, argument, _ in pickletools.genops(base64.b64decode(value[":serialized:"])):
                if opcode.name in ("SHORT_BINUNICODE", "BINUNICODE", "GLOBAL"):
                    names.add(str(argument))
    return names


def of_every_class():
    quick = {"policy_kwargs": {"net_arch": [8]}, "learning_starts": 10, "device": "cpu"}
    yield MBPO("MlpPolicy", "Pendulum-v1", reward_fn="auto", **quick)
    yield MBPO("MlpPolicy", "Pendulum-v1", termination_fn=Never(), world_model=EnsembleModel, **quick)
    yield Dyna("MlpPolicy", "CartPole-v1", **quick)
    yield DynaQ("QTablePolicy", "DynaMaze-v0", planning="prioritized_sweeping")
    yield PETS("MlpPolicy", "Pendulum-v1", planner=CEM, reward_fn="auto", device="cpu")
    yield DreamerV3("MlpPolicy", "CartPole-v1", world_model=RSSM, buffer_size=100, device="cpu")


def test_nothing_of_ours_is_pickled_by_the_name_of_its_module(tmp_path):
    for agent in of_every_class():
        agent.save(tmp_path / "agent.zip")
        named = {name for name in pickled_names(tmp_path / "agent.zip") if "sb3_mbrl" in name}
        assert named == set(), type(agent).__name__
        assert type(type(agent).load(tmp_path / "agent.zip")) is type(agent)


def test_a_checkpoint_of_before_the_first_release_is_one_clear_line(path, tmp_path):
    old = tmp_path / "old.zip"
    with zipfile.ZipFile(path.with_suffix(".zip")) as archive, zipfile.ZipFile(old, "w") as changed:
        for name in archive.namelist():
            content = archive.read(name)
            if name == "data":
                data = json.loads(content)
                data["part_references"] = data.pop("model_based")["parts"]["references"]
                content = json.dumps(data).encode()
            changed.writestr(name, content)
    with pytest.raises(ValueError, match=r"old.zip was saved by a version of sb3-mbrl before its first release"):
        MBPO.load(old)


class OwnPolicy(SACPolicy):
    """A policy class without a registered name."""


def test_a_custom_policy_class_comes_back(tmp_path):
    agent = MBPO(OwnPolicy, "Pendulum-v1", buffer_size=100, device="cpu")
    agent.save(tmp_path / "agent")
    assert MBPO.load(tmp_path / "agent").policy_class is OwnPolicy
    with pytest.raises(ValueError, match=r"saved by MBPO \(load it with MBPO.load\(path\)"):
        SAC.load(tmp_path / "agent")
