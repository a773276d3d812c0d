"""The presets against the authors' table: numbers written by hand, not read from the file under test."""

import inspect
from dataclasses import dataclass

import gymnasium as gym
import pytest
import yaml

from sb3_mbrl import MBPO, PETS
from sb3_mbrl.contracts import FitBudget
from sb3_mbrl.hyperparams import load_preset, preset_algorithms, preset_names
from sb3_mbrl.imagination import BranchedRollouts
from sb3_mbrl.imagination.infoprop import InformedRollouts
from sb3_mbrl.imagination.m2ac import MaskedRollouts
from sb3_mbrl.imagination.macura import TrustedRollouts
from sb3_mbrl.models.ensemble import EnsembleModel
from sb3_mbrl.models.mlp import MLPModel


@dataclass(frozen=True)
class Paper:
    """A row of the authors' configuration, with the number of observations that they train on."""

    updates: int
    target_entropy: float
    warm_up: int
    freq: int
    kept_epochs: int
    epoch: int
    hidden: int
    steps: int
    observations: int
    horizons: dict[int, int]
    """Horizon by real steps taken in all, the warm-up included"""


ONE = {0: 1, 5_001: 1, 25_000: 1, 100_000: 1, 1_000_000: 1}
PAPER = {
    "InvertedPendulum": Paper(10, -0.05, 500, 250, 1, 250, 200, 20_000, 4, ONE),
    "InvertedDoublePendulum": Paper(20, -0.5, 500, 250, 1, 250, 200, 20_000, 9, ONE),
    # 1 + 14 * (epoch - 20) / 130: epoch 85 is half way, 1 + 7.
    "Hopper": Paper(
        20, -1, 5_000, 250, 1, 1_000, 200, 125_000, 11, {25_000: 1, 34_000: 1, 35_000: 2, 90_000: 8, 155_000: 15, 400_000: 15}
    ),
    "Walker2d": Paper(20, -3, 5_000, 250, 1, 1_000, 200, 300_000, 17, ONE),
    "HalfCheetah": Paper(40, -3, 5_000, 250, 1, 1_000, 200, 400_000, 17, ONE),
    # 1 + 24 * (epoch - 20) / 80
    "Ant": Paper(
        20, -4, 5_000, 250, 1, 1_000, 200, 300_000, 27, {25_000: 1, 28_000: 1, 29_000: 2, 65_000: 13, 105_000: 25, 300_000: 25}
    ),
    # 1 + 24 * (epoch - 20) / 280
    "Humanoid": Paper(
        20, -2, 5_000, 1_000, 5, 1_000, 400, 300_000, 45, {25_000: 1, 36_000: 1, 37_000: 2, 165_000: 13, 305_000: 25}
    ),
}
RULES = ("macura/HalfCheetah-v5", "macura/Hopper-v5", "m2ac/HalfCheetah-v5", "infoprop/HalfCheetah-v5")
"""Presets of other rules for rollouts"""

IDS = [f"{name}-v{version}" for name in PAPER for version in (4, 5)]


def test_every_environment_of_the_paper_has_a_preset():
    ours = {"Pendulum-v1", *(f"dmc/{task}-v0" for task in ("cartpole-swingup", "cheetah-run", "finger-spin"))}
    assert set(preset_names("mbpo")) == {*IDS, *ours, *RULES}


@pytest.mark.parametrize("env_id", IDS)
def test_settings_are_the_authors(env_id):
    paper, preset = PAPER[env_id[:-3]], load_preset("mbpo", env_id)
    kwargs = preset.kwargs
    assert preset.policy == "MlpPolicy"
    assert preset.n_timesteps == paper.steps
    assert kwargs["gradient_steps"] == paper.updates
    assert kwargs["target_entropy"] == paper.target_entropy
    assert kwargs["learning_starts"] == paper.warm_up
    assert kwargs["fit_freq"] == paper.freq
    assert kwargs["real_ratio"] == 0.05
    assert [kwargs[key] for key in ("learning_rate", "batch_size", "tau", "gamma")] == [3e-4, 256, 0.005, 0.99]
    assert kwargs["world_model"] == "ensemble"
    model = kwargs["world_model_kwargs"]
    assert (model["members"], model["elites"], model["hidden"]) == (7, 5, [paper.hidden] * 4)
    assert (model["target"], model["normalize_targets"], model["learning_rate"]) == ("delta", False, 1e-3)
    assert model["weight_decay"] == [2.5e-5, 5e-5, 7.5e-5, 7.5e-5, 1e-4]
    budget = FitBudget(**kwargs["fit_kwargs"])
    assert budget == FitBudget(
        None, None, patience=5, min_improvement=0.01, batch_size=256, holdout_ratio=0.2, max_holdout=5000
    )


@pytest.mark.parametrize("env_id", IDS)
def test_imagination_is_the_authors(env_id):
    paper = PAPER[env_id[:-3]]
    imagination = BranchedRollouts(**load_preset("mbpo", env_id).kwargs["imagination_kwargs"])
    assert imagination.freq == paper.freq
    assert imagination.starts_per_step * imagination.freq == 100_000  # start states per rollout
    assert imagination.max_age == paper.kept_epochs * paper.epoch
    assert {step: imagination.horizon(step) for step in paper.horizons} == paper.horizons


@pytest.mark.filterwarnings("ignore")  # the old versions say that there are newer ones
@pytest.mark.parametrize("env_id", IDS)
def test_observations_are_the_papers_and_an_agent_can_be_built(env_id):
    paper, preset = PAPER[env_id[:-3]], load_preset("mbpo", env_id)
    env = gym.make(env_id, **preset.env_kwargs)
    # Version 4 has more observations where nothing can be left out: constraint forces, and everything of the humanoid's.
    expected = {"InvertedDoublePendulum-v4": 11, "Humanoid-v4": 376}.get(env_id, paper.observations)
    assert env.observation_space.shape == (expected,)
    agent = MBPO(preset.policy, env, buffer_size=10, device="cpu", **preset.kwargs)
    assert isinstance(agent.world_model, EnsembleModel)
    assert agent.target_entropy == paper.target_entropy
    assert [layer.weight.shape[2] for layer in agent.world_model.network.layers[:-1]] == [paper.hidden] * 4
    assert agent.world_model.termination_fn is not None, "the authors' termination is known, so must ours be"
    assert not agent.world_model.heads.normalize_targets


@pytest.mark.parametrize("name", RULES)
def test_presets_of_rules_build(name):
    rule, env_id = name.split("/")
    agent = MBPO("MlpPolicy", env_id, buffer_size=10, device="cpu", **MBPO.preset(name))
    assert isinstance(
        agent.imagination, {"macura": TrustedRollouts, "m2ac": MaskedRollouts, "infoprop": InformedRollouts}[rule]
    )
    assert agent.gradient_steps == (30 if env_id == "Hopper-v5" else 10)


def test_the_settings_of_macura_are_the_authors():
    cheetah, hopper = (MBPO.preset(f"macura/{env_id}") for env_id in ("HalfCheetah-v5", "Hopper-v5"))
    for preset, factor, quantile, starts, entropy in ((cheetah, 2.0, 0.95, 200, -4.0), (hopper, 30.0, 0.9, 400, 0.0)):
        rule = TrustedRollouts(**preset["imagination_kwargs"])
        assert (rule.factor, rule.quantile, rule.starts_per_step, rule.horizon(10**6)) == (factor, quantile, starts, 10)
        assert preset["target_entropy"] == entropy
        assert preset["policy_kwargs"]["net_arch"] == [1024, 1024]
        assert preset["world_model_kwargs"]["learning_rate"] == 3e-4


def test_pendulum_builds_and_has_no_settings_of_the_papers():
    agent = MBPO("MlpPolicy", "Pendulum-v1", device="cpu", **MBPO.preset("Pendulum-v1"))
    assert agent.target_entropy == -1.0
    assert agent.fit_freq <= 250
    assert len(agent.world_model.elites) <= agent.world_model.n_members


def test_presets_hold_arguments_of_the_constructor_only():
    """rl-zoo3's other keys (n_timesteps, env_kwargs) must not slip through to the constructor."""
    known = set(inspect.signature(MBPO).parameters)
    for name in preset_names("mbpo"):
        assert set(MBPO.preset(name)) <= known, name


def test_no_preset_shares_its_values_with_another_call():
    MBPO.preset("Hopper-v5")["world_model_kwargs"]["hidden"].append(1)
    assert MBPO.preset("Hopper-v5")["world_model_kwargs"]["hidden"] == [200, 200, 200, 200]


def test_unknown_environment_names_the_nearest():
    with pytest.raises(KeyError, match=r"no preset of mbpo for 'Hoper-v5'.*Did you mean 'Hopper-v5'"):
        MBPO.preset("Hoper-v5")
    with pytest.raises(KeyError, match="no presets of 'nothing'"):
        load_preset("nothing", "Hopper-v5")


def test_the_file_is_in_rl_zoo3s_format():
    """Top-level keys are environments with a mapping each; the shared pieces begin with an underscore."""
    import sb3_mbrl.hyperparams

    text = (sb3_mbrl.hyperparams.resources.files("sb3_mbrl") / "hyperparams" / "mbpo.yml").read_text(encoding="utf-8")
    table = yaml.safe_load(text)
    assert all(isinstance(entry, dict) for entry in table.values())
    assert all({"n_timesteps", "policy"} <= set(entry) for key, entry in table.items() if not key.startswith("_"))


def test_overrides_come_on_top_of_a_preset():
    before = MBPO.preset("Pendulum-v1")
    changed = MBPO.preset("Pendulum-v1", gradient_steps=5, fit_kwargs={"patience": 2}, policy_kwargs={"n_critics": 3})
    assert changed["gradient_steps"] == 5
    assert changed["fit_kwargs"] == {"max_batches": 2000, "patience": 2}
    assert changed["policy_kwargs"] == {"net_arch": [64, 64], "n_critics": 3}
    assert {**before, **{key: changed[key] for key in ("gradient_steps", "fit_kwargs", "policy_kwargs")}} == changed
    assert MBPO.preset("Pendulum-v1") == before


@pytest.mark.parametrize("choice", [None, "mlp", "sb3_mbrl.models.mlp:MLPModel", MLPModel])
def test_a_preset_with_another_world_model_or_none(choice):
    """It was a TypeError about the ensemble's ``members``, which suggested the private name ``_members``."""
    settings = MBPO.preset("Pendulum-v1", world_model=choice, seed=0, device="cpu")
    assert "world_model_kwargs" not in settings
    assert settings["gradient_steps"] == 20, "the control makes the same updates"
    agent = MBPO("MlpPolicy", "Pendulum-v1", **settings)
    assert (agent.world_model is None) == (choice is None)
    own = MBPO.preset("Pendulum-v1", world_model=choice, world_model_kwargs={"hidden": [8]})
    assert own["world_model_kwargs"] == {"hidden": [8]}


def test_naming_the_same_part_keeps_its_settings():
    assert MBPO.preset("Hopper-v5", imagination="branched") == {**MBPO.preset("Hopper-v5"), "imagination": "branched"}
    assert MBPO.preset("Hopper-v5", world_model="ensemble") == MBPO.preset("Hopper-v5")
    assert PETS.preset("CartPoleSwingUp-v0", planner="icem")["planner_kwargs"] == {"horizon": 30}
    assert "planner_kwargs" not in PETS.preset("CartPoleSwingUp-v0", planner="cem")
    assert PETS.preset("Pendulum-v1", world_model="ensemble") == PETS.preset("Pendulum-v1")


@pytest.mark.parametrize("wrong", ["graident_steps", "_init_setup_model", "env_kwargs"])
def test_overrides_that_no_constructor_takes_are_refused(wrong):
    with pytest.raises(TypeError, match=f"{wrong}=.*no such argument"):
        MBPO.preset("Pendulum-v1", **{wrong: 1})


def test_private_names_are_never_suggested():
    with pytest.raises(TypeError, match=r"does not take 'members'\.\n  world_model_kwargs: hidden") as caught:
        MBPO("MlpPolicy", "Pendulum-v1", world_model="mlp", world_model_kwargs={"members": 3})
    assert "_members" not in str(caught.value)


def test_algorithms_with_presets_are_listed():
    assert {"mbpo", "pets", "dreamer_v3"} <= set(preset_algorithms())


@pytest.mark.parametrize("name", [None, 3, ["Hopper-v5"]])
def test_a_name_that_is_no_text(name):
    """TypeError: 'NoneType' object is not iterable."""
    with pytest.raises(KeyError, match="is no name of a preset: give a Gymnasium id"):
        MBPO.preset(name)
