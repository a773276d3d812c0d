"""The learning benchmarks: their environments, lengths, seeds and settings.

Seeds and thresholds are fixed here before any run. Every task has three variants: its algorithm (``mbpo``); the control
``model-off``, the same call with ``world_model=None``, so that a difference is due to the model and not to the number of
updates; and the algorithm's base class at its defaults (``sac``). Planners have no such control; their variant ``true-model``
is the same call with the environment itself as the model, an upper bound.
"""

import ast
import json
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, fields, replace
from typing import Any

from sb3_mbrl.hyperparams import load_preset

MODEL_OFF = "model-off"
BASES = {"mbpo": "sac", "dhmbpo": "sac", "svg": "sac", "dyna": "dqn", "mb_td3": "td3", "mb_tqc": "tqc", "mb_crossq": "crossq"}
"""Algorithms with a model-free base class, by their names on command lines, and the names of their base classes"""

TRUE_MODEL = "true-model"
ALONE = ("pets", "dreamer_v3", "muzero")
"""Algorithms that do not work without a world model"""

VARIANTS = tuple(dict.fromkeys((*BASES, *ALONE, MODEL_OFF, TRUE_MODEL, *BASES.values())))
"""All variants, in the order of tables"""


@dataclass(frozen=True)
class Task:
    """
    A task of the learning benchmarks.

    :param name: the name of the task, of its folder and of its plot
    :param env_id: the Gymnasium id of the environment
    :param env_kwargs: the arguments of ``gymnasium.make``
    :param total_steps: the number of real environment steps of a run
    :param eval_every: the number of real environment steps between two evaluations
    :param eval_episodes: the number of episodes per evaluation, with the deterministic policy and always from the same start
        states; 0: the episodes of training are the curve, as is usual for planners, which improve from one to the next
    :param threshold: the mean return that two evaluations in a row (or one training episode) must have; ``None``: no threshold
    :param deadline: the number of real steps within which the threshold must be reached; ``None``: ``total_steps``
    :param seeds: the seeds of the runs
    :param settings: the constructor arguments of the algorithm and of ``model-off``
    :param algo: the name of the algorithm
    :param true_model: the settings that replace the world model's, so that the model is the environment itself; ``None``: the
        task has no such variant
    :param n_envs: the number of environments that are stepped together; their steps are counted one by one
    """

    name: str
    env_id: str
    total_steps: int
    eval_every: int
    eval_episodes: int
    seeds: tuple[int, ...]
    settings: Mapping[str, Any]
    threshold: float | None = None
    deadline: int | None = None
    env_kwargs: Mapping[str, Any] = field(default_factory=dict)
    algo: str = "mbpo"
    true_model: Mapping[str, Any] | None = None
    n_envs: int = 1

    @property
    def variants(self) -> tuple[str, ...]:
        """The algorithm and the variants that it is compared with."""
        if self.algo in BASES:
            return self.algo, MODEL_OFF, BASES[self.algo]
        return (self.algo,) if self.true_model is None else (self.algo, TRUE_MODEL)

    @property
    def in_a_row(self) -> int:
        """The number of evaluations in a row that must reach the threshold."""
        return 2 if self.eval_episodes else 1

    def __post_init__(self) -> None:
        if self.eval_every < 1 or self.total_steps % self.eval_every:
            raise ValueError(f"{self.name}: total_steps={self.total_steps} must be a multiple of eval_every={self.eval_every}")
        if self.eval_episodes < 0:
            raise ValueError(f"{self.name}: eval_episodes={self.eval_episodes}: give at least 0")


SMALL: dict[str, Any] = {
    "learning_rate": 1e-3,
    "learning_starts": 200,
    "gradient_steps": 20,
    "tau": 0.02,
    "policy_kwargs": {"net_arch": [64, 64]},
    "real_ratio": 0.5,
    "world_model_kwargs": {"members": 5, "elites": 5, "hidden": [128, 128], "nll_beta": 0.0},
    "imagination_kwargs": {"freq": 10, "horizon": 10, "starts_per_step": 20, "max_age": 200},
    "fit_freq": 50,
    "fit_kwargs": {"max_batches": 2_000},
}
"""Settings for low-dimensional tasks that are solved within a few thousand steps"""

LOCOMOTION: dict[str, Any] = {
    "learning_rate": 3e-4,
    "learning_starts": 1000,
    "gradient_steps": 10,
    "policy_kwargs": {"net_arch": [128, 128], "optimizer_kwargs": {"fused": True}},
    "real_ratio": 0.05,
    "world_model_kwargs": {"nll_beta": 0.0},
    "imagination_kwargs": {"freq": 250, "starts_per_step": 100, "max_age": 1000},
    "fit_freq": 250,
    "fit_kwargs": {"max_batches": 500},
}
"""
Settings for MuJoCo tasks; the world model is the default ensemble (7 members, 5 elites, 4 layers of 200). Target entropies
are those of MBPO's authors: with SB3's (minus the number of actions) and 10 updates per step, exploration ends before the body
moves.
"""

HOPPER = LOCOMOTION | {
    "target_entropy": -1.0,
    "real_ratio": 0.5,
    "imagination_kwargs": {"freq": 250, "horizon": 5, "starts_per_step": 20, "max_age": 1000},
}
"""Settings for Hopper: as many imagined rows as for HalfCheetah, in rollouts of five steps; half of every batch is real"""

CARTPOLE: dict[str, Any] = {
    "learning_rate": 2.3e-3,
    "buffer_size": 100_000,
    "learning_starts": 1000,
    "batch_size": 64,
    "gamma": 0.99,
    "train_freq": 256,
    "gradient_steps": 128,
    "target_update_interval": 10,
    "exploration_fraction": 0.16,
    "exploration_final_eps": 0.04,
    "policy_kwargs": {"net_arch": [256, 256]},
    "world_model_kwargs": {"members": 5, "elites": 5, "hidden": [128, 128], "nll_beta": 0.0},
    "real_ratio": 0.05,
    "imagination_kwargs": {
        "freq": 256,
        "horizon": 20,
        "n_steps": 20,
        "exploration": 1.0,
        "starts_per_step": 2,
        "max_age": 5_120,
    },
    "fit_freq": 1_000,
    "fit_kwargs": {"max_batches": 500},
}
"""
Settings for CartPole. DQN's are those of rl-baselines3-zoo (https://github.com/DLR-RM/rl-baselines3-zoo, hyperparams/dqn.yml,
CartPole-v1), including its ``learning_starts``. DQN's network is copied once per 256 steps, so that every 256 steps a
termination propagates back by one transition; imagined transitions have up to 20 steps.
"""

_FIVE, _THREE = (0, 1, 2, 3, 4), (0, 1, 2)


GAUSSIAN_PROCESS: dict[str, Any] = {"learning_starts": 200, "world_model": "gp", "reward_fn": "auto"}
"""Settings for the plug-in sb3-mbrl-gp (plugins/sb3-mbrl-gp must be installed), with its defaults"""


def planning_tasks(name: str, env_id: str, threshold: float | None, true_model: str | None) -> list[Task]:
    """
    Make two tasks for PETS with its preset for an environment, one with a known and one with a learned reward.

    :param name: the part of the tasks' names after ``pets-``
    :param env_id: the Gymnasium id of the environment
    :param threshold: the mean return to reach, if any
    :param true_model: the name of the environment's exact twin among the world models, if any
    """
    preset = load_preset("pets", env_id)
    steps, settings = preset.n_timesteps, {key: value for key, value in preset.kwargs.items() if key != "reward_fn"}
    assert steps is not None
    twin = None if true_model is None else {"world_model": true_model}
    known = Task(
        f"pets-{name}",
        env_id,
        steps,
        steps,
        0,
        _THREE,
        {**settings, "reward_fn": "auto"},
        threshold,
        algo="pets",
        true_model=twin,
    )
    return [known, replace(known, name=f"pets-{name}-learned", settings=settings, true_model=None)]


def preset_task(env_id: str) -> Task:
    """Make a task with the authors' settings for their warm-up and 1,000 steps more, to check that they run."""
    preset = load_preset("mbpo", env_id)
    steps = preset.kwargs["learning_starts"] + 1_000
    name = f"preset-{env_id.split('-')[0].lower()}"
    return Task(name, env_id, steps, 1_000, 1, (0,), preset.kwargs, env_kwargs=preset.env_kwargs)


PENDULUM = Task("pendulum", "Pendulum-v1", 1_000, 100, 10, _FIVE, SMALL | {"gamma": 0.98}, threshold=-200.0, deadline=1_000)
INVERTED_PENDULUM = Task("inverted-pendulum", "InvertedPendulum-v5", 1_500, 100, 10, _FIVE, SMALL, threshold=950.0)


def small_tasks(algo: str, without: Sequence[str] = (), **more: Any) -> list[Task]:
    """
    Make tasks for another algorithm from both pendulums, with MBPO's settings.

    :param algo: the name of the algorithm
    :param without: the settings that the algorithm does not take
    :param more: additional settings
    """
    short = algo.removeprefix("mb_")
    tasks = []
    for task in (PENDULUM, INVERTED_PENDULUM):
        settings = {key: value for key, value in task.settings.items() if key not in without}
        tasks.append(replace(task, name=f"{short}-{task.name}", algo=algo, seeds=_THREE, settings=settings | more))
    return tasks


def imagination_tasks(name: str, tasks: Sequence[Task], imagination: str, **kwargs: Any) -> list[Task]:
    """
    Make tasks with the settings of MBPO's and another imagination.

    :param name: the part of the tasks' names before the environment's
    :param tasks: MBPO's tasks
    :param imagination: the imagination; its share of real rows is its own
    :param kwargs: its keyword arguments, which replace MBPO's
    """
    dropped = () if imagination == "branched" else ("real_ratio",)
    made = []
    for task in tasks:
        settings = {key: value for key, value in task.settings.items() if key not in dropped}
        settings |= {"imagination": imagination, "imagination_kwargs": kwargs}
        made.append(replace(task, name=f"{name}-{task.name}", seeds=_THREE, settings=settings))
    return made


NOISY_PENDULUM = replace(PENDULUM, name="noisy-pendulum", env_id="envs:NoisyPendulum-v1", seeds=_THREE)
"""Half of the observation is noise, which no model can predict"""

ROWS: dict[str, Any] = {"freq": 10, "max_age": 200}
"""MBPO's schedule; with it every kind of rollouts makes 200 imagined rows per real step"""


TASKS = {
    task.name: task
    for task in (
        PENDULUM,
        INVERTED_PENDULUM,
        Task("halfcheetah", "HalfCheetah-v5", 10_000, 1_000, 5, _THREE, LOCOMOTION | {"target_entropy": -3.0}),
        Task("hopper", "Hopper-v5", 20_000, 1_000, 5, _THREE, HOPPER),
        Task("dyna-cartpole", "CartPole-v1", 50_000, 1_000, 10, _FIVE, CARTPOLE, threshold=475.0, algo="dyna"),
        # SB3's TD3 has no action noise by default, and without noise it does not explore.
        *small_tasks("mb_td3", noise_type="normal", noise_std=0.1),
        *small_tasks("mb_tqc"),
        *small_tasks("mb_crossq", without=["tau"]),
        *planning_tasks("balance", "CartPoleBalance-v0", 195.0, None),
        *planning_tasks("swing-up", "CartPoleSwingUp-v0", None, "cartpole-swing-up"),
        *planning_tasks("pendulum", "Pendulum-v1", -250.0, "pendulum"),
        Task("pets-pendulum-gp", "Pendulum-v1", 600, 600, 0, _THREE, GAUSSIAN_PROCESS, -300.0, algo="pets"),
        Task("dreamer-cartpole", "CartPole-v1", 40_000, 1_000, 10, _THREE, {}, 475.0, 30_000, algo="dreamer_v3"),
        Task("dreamer-pendulum", "Pendulum-v1", 10_000, 500, 10, _THREE, {}, -200.0, algo="dreamer_v3"),
        Task(
            "dreamer-catch-image",
            "Catch-v0",
            8_000,
            500,
            20,
            _THREE,
            {"buffer_size": 20_000},
            0.9,
            env_kwargs={"pixels": 2},
            algo="dreamer_v3",
        ),
        *(
            Task(
                f"dhmbpo-{name}",
                env_id,
                steps,
                every,
                5,
                seeds,
                load_preset("dhmbpo", env_id).kwargs,
                threshold,
                algo="dhmbpo",
            )
            for name, env_id, steps, every, seeds, threshold in (
                ("pendulum", "Pendulum-v1", 1_000, 100, _FIVE, -200.0),
                ("inverted-pendulum", "InvertedPendulum-v5", 1_500, 100, _FIVE, 950.0),
                ("halfcheetah", "HalfCheetah-v5", 10_000, 1_000, _FIVE, None),
                ("hopper", "Hopper-v5", 20_000, 1_000, _FIVE, None),
                ("walker2d", "Walker2d-v5", 20_000, 1_000, _THREE, None),
            )
        ),
        Task(
            "svg-pendulum",
            "Pendulum-v1",
            3_000,
            100,
            5,
            _THREE,
            load_preset("dhmbpo", "Pendulum-v1").kwargs,
            -250.0,
            algo="svg",
        ),
        Task("muzero-cartpole", "CartPole-v1", 30_000, 1_000, 20, _THREE, {}, 475.0, algo="muzero"),
        # Value iteration succeeds in 74 % of the episodes of 100 steps; the threshold is 0.9 of it.
        Task(
            "muzero-frozenlake",
            "FrozenLake-v1",
            40_000,
            4_000,
            1_000,
            _THREE,
            load_preset("muzero", "FrozenLake-v1").kwargs | {"learning_rate": "lin_1e-3"},
            0.666,
            algo="muzero",
            n_envs=8,
        ),
        Task(
            "muzero-pendulum",
            "Pendulum-v1",
            20_000,
            1_000,
            20,
            _THREE,
            load_preset("muzero", "Pendulum-v1").kwargs,
            -300.0,
            algo="muzero",
            n_envs=4,
        ),
        *imagination_tasks("mve", (PENDULUM, INVERTED_PENDULUM), "mve", horizon=3),
        *imagination_tasks("steve", (PENDULUM, INVERTED_PENDULUM), "steve", horizon=3),
        NOISY_PENDULUM,
        *imagination_tasks("wimle", (PENDULUM, NOISY_PENDULUM), "wimle", horizon=10, starts_per_step=20, **ROWS),
        *imagination_tasks(
            "short", (INVERTED_PENDULUM,), "branched", rollouts="short", horizon=10, starts_per_step=20, **ROWS
        ),
        *imagination_tasks("long", (PENDULUM,), "branched", rollouts="long", horizon=200, starts_per_step=1, **ROWS),
        *(preset_task(f"{body}-v5") for body in ("Hopper", "Walker2d", "HalfCheetah", "Ant", "Humanoid")),
    )
}

_TASK_FIELDS = {item.name for item in fields(Task)} - {"name", "settings", "algo", "true_model"}


def override(task: Task, overrides: Mapping[str, Any]) -> Task:
    """
    Change some values of a task.

    :param task: the task
    :param overrides: the new values, by a field of the task (``total_steps``) or a constructor argument, nested ones with
        dots (``world_model_kwargs.members``)
    :return: the changed task
    """
    settings = deepcopy(dict(task.settings))
    changed: dict[str, Any] = {}
    for key, value in overrides.items():
        if key in _TASK_FIELDS:
            changed[key] = tuple(value) if key == "seeds" else value
            continue
        *path, last = key.split(".")
        inside = settings
        for part in path:
            inside = inside.setdefault(part, {})
            if not isinstance(inside, dict):
                raise ValueError(f"{key}: {part!r} is {inside!r}, not a dictionary of settings")
        inside[last] = value
    return replace(task, settings=settings, **changed)


def constructor_settings(task: Task, variant: str, overrides: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """
    Make the exact keyword arguments of a variant's constructor (without policy, environment, seed and device).

    :param task: the task, with its overrides applied
    :param variant: one of the task's variants
    :param overrides: the overrides; the base class, otherwise at its defaults, takes those for the constructor
    :return: the keyword arguments
    """
    # The buffer holds the whole run, as SB3's default of a million rows would, but checkpoints do not store the empty rest.
    common: dict[str, Any] = {"buffer_size": task.total_steps}
    if variant not in task.variants:
        raise ValueError(f"{task.name} has no variant {variant!r}; there are {', '.join(task.variants)}")
    if variant == BASES.get(task.algo):
        given = {key: value for key, value in (overrides or {}).items() if key not in _TASK_FIELDS}
        return common | dict(override(replace(task, settings={}), given).settings)
    changed: dict[str, Any] = {}
    if variant == MODEL_OFF:
        changed = {"horizon": 0} if task.algo in OWN_LEARNERS else {"world_model": None}
    elif variant == TRUE_MODEL:
        changed = {"world_model_kwargs": {}, **(task.true_model or {})}
    return common | deepcopy(dict(task.settings)) | changed


def conditions(
    task: Task, variant: str, seed: int, settings: Mapping[str, Any], label: str | None = None, device: str = "cpu"
) -> dict[str, Any]:
    """
    Collect the part of a run's record that is fixed at its start; it must be the same for the run to be continued.

    :param task: the task, with its overrides applied
    :param variant: one of the task's variants
    :param seed: the seed of the run
    :param settings: the keyword arguments of the constructor
    :param label: the label of a tuning run
    :param device: the PyTorch device
    :return: values as they are read back from a file
    """
    values = {
        "task": task.name,
        "variant": variant,
        "seed": seed,
        "label": label,
        "env_id": task.env_id,
        "env_kwargs": dict(task.env_kwargs),
        "total_steps": task.total_steps,
        "eval_every": task.eval_every,
        "eval_episodes": task.eval_episodes,
        "threshold": task.threshold,
        "deadline": task.deadline,
        "settings": dict(settings),
        "device": device,
        **({"n_envs": task.n_envs} if task.n_envs > 1 else {}),
    }
    # JSON turns tuples into lists, and these values are compared with those of a file.
    return json.loads(json.dumps(values))


OWN_LEARNERS = ("dhmbpo", "svg")
"""Algorithms whose updates are not their base class's: their control is themselves at ``horizon=0``"""

MODELS_OWN = {"real_ratio", "world_model_kwargs", "imagination_kwargs", "fit_freq", "fit_kwargs"}
"""Settings without effect when there is no model (``world_model=None`` is the base class to the last bit)"""


def changes(record: Mapping[str, Any], current: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """
    Compare a record with the current :func:`conditions`. For the control, the model's own settings are ignored.

    :param record: the record
    :param current: the current conditions
    :return: the old and the new value of everything that differs
    """
    different = {key: (record.get(key), value) for key, value in current.items() if record.get(key) != value}
    if current["variant"] == MODEL_OFF and isinstance(record.get("settings"), dict) and "settings" in different:
        before, now = ({key: value for key, value in one.items() if key not in MODELS_OWN} for one in different["settings"])
        if before == now:
            del different["settings"]
    return different


def parse_overrides(items: Sequence[str]) -> dict[str, Any]:
    """Parse ``["gradient_steps=20", "policy_kwargs.net_arch=[64,64]"]``; values that are neither JSON nor Python stay text."""
    overrides = {}
    for item in items:
        key, equals, text = item.partition("=")
        if not equals or not key:
            raise SystemExit(f"--set {item!r}: write key=value")
        overrides[key] = _value(text)
    return overrides


def _value(text: str) -> Any:
    for parse in (json.loads, ast.literal_eval):
        try:
            return parse(text)
        except (ValueError, SyntaxError):
            continue
    return text
