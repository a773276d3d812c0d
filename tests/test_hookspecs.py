"""Life-cycle hooks: each at its phase, with its arguments, for its own agent only; and every hook has a test."""

import re
from pathlib import Path

import pytest

import sb3_mbrl.plugins.loader as loader
from sb3_mbrl import MBPO, hookimpl
from tests.helpers.agents import learned, tiny

PHASES = [
    "on_setup",
    "before_model_fit",
    "after_model_fit",
    "before_imagination",
    "after_imagination",
    "before_policy_update",
    "after_policy_update",
    "on_save",
    "on_load",
]


class Diary:
    """A plug-in that notes every call of a life-cycle hook, with its arguments and the state of the agent."""

    def __init__(self):
        self.entries = []

    def note(self, phase, agent, **arguments):
        self.entries.append((phase, agent.num_timesteps, arguments))
        self.agent = agent

    def phases(self):
        return [phase for phase, _, _ in self.entries]

    def of(self, phase):
        return [(step, arguments) for name, step, arguments in self.entries if name == phase]

    @hookimpl
    def sb3_mbrl_on_setup(self, agent):
        self.note("on_setup", agent, policy=agent.policy, world_model=agent.world_model, buffer=agent.replay_buffer)

    @hookimpl
    def sb3_mbrl_before_model_fit(self, agent):
        self.note("before_model_fit", agent, n_fits=agent.world_model.n_fits, rows=len(agent.model_data))

    @hookimpl
    def sb3_mbrl_after_model_fit(self, agent, metrics):
        self.note(
            "after_model_fit", agent, n_fits=agent.world_model.n_fits, metrics=dict(metrics), trusted=agent.trainer.trusted
        )
        metrics["mine"] = 42.0

    @hookimpl
    def sb3_mbrl_before_imagination(self, agent, horizon, n_starts):
        rows = 0 if agent.imagined is None else len(agent.imagined)
        self.note("before_imagination", agent, horizon=horizon, n_starts=n_starts, rows=rows)

    @hookimpl
    def sb3_mbrl_after_imagination(self, agent, imagined):
        self.note("after_imagination", agent, imagined=imagined, rows=len(agent.imagined))

    @hookimpl
    def sb3_mbrl_before_policy_update(self, agent, gradient_steps, batch_size):
        self.note("before_policy_update", agent, steps=gradient_steps, size=batch_size, done=agent._n_updates)

    @hookimpl
    def sb3_mbrl_after_policy_update(self, agent, gradient_steps, batch_size):
        self.note("after_policy_update", agent, steps=gradient_steps, size=batch_size, done=agent._n_updates)

    @hookimpl
    def sb3_mbrl_on_save(self, agent, extra):
        extra["diary"] = self.phases()
        self.note("on_save", agent)

    @hookimpl
    def sb3_mbrl_on_load(self, agent, extra):
        self.note("on_load", agent, extra=extra, fitted=agent.world_model.fitted, weight=next(agent.world_model.parameters()))


IMAGINATION = {"freq": 10, "starts_per_step": 2, "max_age": 20, "horizon": 3}
ARGUMENTS = {
    "learning_starts": 20,
    "fit_freq": 20,
    "imagination_kwargs": IMAGINATION,
    "gradient_steps": 2,
    "batch_size": 16,
    "fit_kwargs": {"max_batches": 300, "batch_size": 16},
}


@pytest.fixture(scope="module")
def story(tmp_path_factory):
    """Train an agent for 50 steps, save and load it, and return its diary and that of the loaded one."""
    path = tmp_path_factory.mktemp("hooks") / "agent"
    diary, again = Diary(), Diary()
    agent = learned(plugins=[diary], **ARGUMENTS)
    agent.learn(50)
    logged = dict(agent.logger.name_to_value)
    agent.save(path)
    loaded = MBPO.load(path, plugins=[again])
    return agent, diary, loaded, again, logged


def test_every_phase_in_its_order(story):
    _, diary, _, _, _ = story
    phases = diary.phases()
    assert phases[0] == "on_setup"
    assert phases[-1] == "on_save"
    assert phases.count("on_setup") == phases.count("on_save") == 1
    # The first train: SB3 starts it after 20 steps of learning_starts.
    assert phases[1:7] == PHASES[1:7]
    for before in ("before_model_fit", "before_imagination", "before_policy_update"):
        for i, phase in enumerate(phases):
            if phase == before:
                assert phases[i + 1] == before.replace("before", "after")


def test_sb3_mbrl_on_setup(story):
    agent, diary, loaded, again, _ = story
    ((step, seen),) = diary.of("on_setup")
    assert step == 0
    assert (seen["policy"], seen["world_model"], seen["buffer"]) == (agent.policy, agent.world_model, agent.replay_buffer)
    # Also after load, before the weights are back.
    assert again.phases() == ["on_setup", "on_load"]
    assert again.of("on_setup")[0][1]["world_model"] is loaded.world_model


def test_sb3_mbrl_before_model_fit(story):
    _, diary, _, _, _ = story
    # First at step 21, where SB3 trains first, then when 40 is crossed; the data has not doubled before.
    assert [(step, seen["n_fits"], seen["rows"]) for step, seen in diary.of("before_model_fit")] == [(21, 0, 21), (40, 1, 40)]


def test_sb3_mbrl_after_model_fit(story):
    _, diary, _, _, logged = story
    fits = diary.of("after_model_fit")
    assert [seen["n_fits"] for _, seen in fits] == [1, 2]
    for _, seen in fits:
        assert seen["trusted"] == (seen["metrics"]["vs_trivial"] < 1)
    # Every figure is logged under model/, and what the hook added too.
    assert logged["model/mine"] == 42.0
    assert {name: logged[f"model/{name}"] for name in fits[-1][1]["metrics"]} == fits[-1][1]["metrics"]


def test_sb3_mbrl_before_imagination(story):
    _, diary, _, _, _ = story
    assert diary.of("before_imagination") == [
        # Nothing yet: as much as max_age would have kept; then for the steps since.
        (21, {"horizon": 3, "n_starts": 40, "rows": 0}),
        (30, {"horizon": 3, "n_starts": 18, "rows": 120}),
        (40, {"horizon": 3, "n_starts": 20, "rows": 120}),
        (50, {"horizon": 3, "n_starts": 20, "rows": 120}),
    ]


def test_sb3_mbrl_after_imagination(story):
    _, diary, _, _, _ = story
    for (_, before), (_, after) in zip(diary.of("before_imagination"), diary.of("after_imagination"), strict=True):
        assert after["imagined"].valid.shape == (before["horizon"], before["n_starts"])
        assert after["imagined"].obs.shape[2:] == (3,)
    # Stored already, and at most what the age allows: 2 starts a step for 20 steps, 3 steps deep.
    assert diary.of("after_imagination")[0][1]["rows"] == 120


def test_sb3_mbrl_before_policy_update(story):
    _, diary, _, _, _ = story
    updates = diary.of("before_policy_update")
    assert [step for step, _ in updates] == list(range(21, 51))
    assert [seen for _, seen in updates] == [{"steps": 2, "size": 16, "done": 2 * i} for i in range(30)]


def test_sb3_mbrl_after_policy_update(story):
    _, diary, _, _, _ = story
    updates = [seen for _, seen in diary.of("after_policy_update")]
    assert updates == [{"steps": 2, "size": 16, "done": 2 * i + 2} for i in range(30)]


def test_sb3_mbrl_on_save(story):
    agent, diary, _, _, _ = story
    assert diary.of("on_save") == [(50, {})]
    # What the plugin gave is in the zip, not on the agent.
    assert not hasattr(agent, "plugin_extra")


def test_sb3_mbrl_on_load(story):
    agent, diary, loaded, again, _ = story
    ((step, seen),) = again.of("on_load")
    assert step == 50
    assert seen["extra"] == {"diary": diary.phases()[:-1]}
    # The agent is complete: fitted, and with its weights.
    assert seen["fitted"]
    assert seen["weight"].equal(next(agent.world_model.parameters()))
    assert again.agent is loaded


def test_plugins_of_two_agents_do_not_mix():
    one, other = Diary(), Diary()
    first = tiny(plugins=[one])
    second = tiny(plugins=[other])
    third = tiny()
    first.registry.hook.sb3_mbrl_on_save(agent=first, extra={})
    third.registry.hook.sb3_mbrl_on_save(agent=third, extra={})
    assert one.phases() == ["on_setup", "on_save"]
    assert other.phases() == ["on_setup"]
    assert (one.agent, other.agent) == (first, second)


def test_a_plugin_class_and_several_plugins():
    class Marks:
        @hookimpl
        def sb3_mbrl_on_setup(self, agent):
            agent.marked = True

    diary = Diary()
    agent = tiny(plugins=[Marks, diary])
    assert agent.marked
    assert diary.phases() == ["on_setup"]


def test_an_error_in_a_hook_reaches_the_user_and_the_buffer_is_back():
    class Fails:
        @hookimpl
        def sb3_mbrl_after_policy_update(self, agent):
            raise RuntimeError("my own mistake")

    agent = tiny(plugins=[Fails], learning_starts=20)
    buffer = agent.replay_buffer
    with pytest.raises(RuntimeError, match="my own mistake"):
        agent.learn(50)
    assert agent.replay_buffer is buffer
    assert agent.num_timesteps == 21


def test_with_the_model_off_no_phase_of_it_is_called():
    diary = Diary()
    learned(world_model=None, plugins=[diary], learning_starts=5).learn(10)
    assert diary.phases() == ["on_setup"]


@pytest.mark.parametrize("hook", sorted(loader.HOOKS))
def test_every_hook_has_a_test(hook):
    tests = Path(__file__).parent.rglob("*.py")
    assert any(re.search(rf"def test_{hook}(_|\b)", path.read_text()) for path in tests), f"write a test named test_{hook}"


def test_the_list_of_hooks_is_complete():
    assert set(loader.HOOKS) == set(vars(loader.new_manager().hook))
    assert loader.HOOKS["sb3_mbrl_after_model_fit"] == ("agent", "metrics")
