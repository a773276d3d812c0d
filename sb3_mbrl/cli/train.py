"""``sb3-mbrl train``: a new run, or one that is resumed."""

import argparse
import errno
import importlib.util
import inspect
import shlex
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import gymnasium as gym
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.logger import KVWriter, Logger, make_output_format
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.vec_env import VecEnv

from sb3_mbrl.agent.progress import TrainingBar
from sb3_mbrl.callbacks import ExactCheckpointCallback
from sb3_mbrl.checkpoints.checkpoint_set import MODEL, PICKLED_BUFFER
from sb3_mbrl.cli.announce import EVALUATION_SEED, announce, tensorboard_folder
from sb3_mbrl.cli.evaluate import of_two_players, play
from sb3_mbrl.cli.normalize import choice, frozen, normalised
from sb3_mbrl.cli.progress import Evaluation, training_progress
from sb3_mbrl.cli.run_folder import RECORD, Run, RunFolder, load_agent, new_folder, newest_folder, trust_arguments
from sb3_mbrl.cli.stopping import StopSignals
from sb3_mbrl.cli.values import (
    DEFAULT_ALGORITHM,
    UserError,
    algorithm_class,
    check_arguments,
    check_device,
    load_plugins,
    make_env,
    parse_pairs,
    plugin_arguments,
)
from sb3_mbrl.envs.boards.callback import BoardEvalCallback
from sb3_mbrl.envs.boards.players import RandomPlayer
from sb3_mbrl.hyperparams import PARTS, Preset, load_preset, preset_names, with_overrides

_FIXED_BY_RUN = (
    "n_envs",
    "seed",
    "preset",
    "set",
    "env_kwargs",
    "world_model",
    "world_model_kwargs",
    "imagination",
    "imagination_kwargs",
    "planner",
    "planner_kwargs",
    "normalize",
    "vecnormalize",
    "load_replay_buffer",
)
"""The options that were decided when a run began, and that ``--resume`` refuses"""

_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""The errors of a full disk, a used-up quota, and a file that may not grow"""

_SECONDS_BETWEEN_SAVES = 300.0
"""The wall time between two checkpoints without ``--save-every``, if saving takes less than a twentieth of it"""


def train(args: argparse.Namespace) -> int:
    """Train an agent, save it and evaluate it."""
    for name in ("steps", "n_envs", "eval_every"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            raise UserError(f"--{name.replace('_', '-')} {getattr(args, name)}: give at least 1")
    if args.eval_episodes < (1 if args.eval_every else 0):
        raise UserError(f"--eval-episodes {args.eval_episodes}: give at least 1 (0 without --eval-every: no evaluation)")
    if args.save_every is not None and args.save_every < 0:
        raise UserError(f"--save-every {args.save_every}: give a number of real steps, or 0 (only at the end)")
    check_device(args.device)
    with ExitStack() as stack:
        return _train(args, stack)


def _train(args: argparse.Namespace, stack: ExitStack) -> int:
    agent, run, folder = _resumed(args, stack) if args.resume else _new(args, stack)
    run.tensorboard = args.tensorboard or run.tensorboard
    if run.tensorboard and importlib.util.find_spec("tensorboard") is None:
        raise UserError("--tensorboard: TensorBoard is not installed. Run `pip install tensorboard`.")
    try:
        run.write(folder.path)
    except OSError as error:
        raise UserError(f"--output {folder.path}: it cannot be written to ({error.strerror})") from error
    left = run.steps - agent.num_timesteps
    print(f"Training {run.algo} on {run.env_id}: {left} real steps, seed {run.seed}. Output: {folder.path}")
    print(f"World model: {_describe_model(agent)}")
    announce(args, agent, run, folder.path)
    metrics = _LastMetrics()
    agent.set_logger(_logger(args.verbose, run, folder.path, agent.num_timesteps, metrics))
    resume = f"sb3-mbrl train --resume --output {shlex.quote(str(folder.path))}"
    callbacks = _callbacks(args, agent, run, folder)
    failure: BaseException | None = None
    with StopSignals() as signals:
        try:
            try:
                _learn(agent, left, callbacks)
            finally:
                signals.ignore()
        except BaseException as error:
            failure = error
        problem = _save_at_the_end(agent, folder)
    if failure is not None:
        interrupted = isinstance(failure, KeyboardInterrupt)
        steps = f"{'Stopped' if interrupted else 'Failed'} after {agent.num_timesteps} real steps"
        print(f"\n{steps}; {problem or 'all of them are saved'}. To continue:\n  {resume}")
        if isinstance(failure, OSError) and failure.errno in _DISK_FULL:
            raise UserError(f"{folder.path}: {failure.strerror}: free some space") from failure
        if not interrupted:
            raise failure
        return 2 if problem else 130
    if problem:
        again = f". To continue: {resume}" if folder.is_used() else ""
        raise UserError(f"trained for {agent.num_timesteps} real steps, but {problem}{again}")
    print(f"Saved {folder.path / MODEL} after {agent.num_timesteps} real steps. To continue: {resume} --steps N")
    if 0 < agent.num_timesteps <= agent.learning_starts:
        print(
            f"Nothing was learned yet: the first {agent.learning_starts} steps are random ones. Give more --steps, or start "
            "to learn sooner: --set learning_starts=N"
        )
    metrics.print()
    if args.eval_episodes:
        shown = not args.no_progress
        args.result = play(agent, run.env_id, run.env_kwargs, args.eval_episodes, run.seed + EVALUATION_SEED, progress=shown)
        print(args.result)
    return 0


def _save_at_the_end(agent: OffPolicyAlgorithm, folder: RunFolder) -> str | None:
    """
    Save the last checkpoint.

    :return: what could not be saved, in words; ``None``: everything is saved
    """
    try:
        saved = folder.save(agent)
    except OSError as error:
        sets = folder.checkpoints.sets()
        last = f"the last good checkpoint is {sets[-1].path}" if sets else "there is no checkpoint"
        return f"the agent could not be saved ({error.strerror or error}): free some space. Untouched: {last}"
    if not saved.has_buffer:
        return f"{saved.path} was saved {saved.without}"
    if saved.lacks:
        _warn(f"{saved.path} was saved {saved.without}. They are imagined again when the run continues")
    return None


def _warn(text: str) -> None:
    print(text, file=sys.stderr)


def _new(args: argparse.Namespace, stack: ExitStack) -> tuple[OffPolicyAlgorithm, Run, RunFolder]:
    """Build the agent of a new run."""
    if args.env is None:
        raise UserError("which environment? --env ID, e.g. --env Pendulum-v1")
    algo = args.algo or DEFAULT_ALGORITHM
    plugins, registry = load_plugins(args.plugin)
    cls = algorithm_class(registry, algo)
    preset = _preset(algo, args.env, args.preset)
    arguments = _arguments(args, preset, cls)
    env_kwargs = {**(preset.env_kwargs if preset else {}), **parse_pairs("--env-kwargs", args.env_kwargs)}
    steps = args.steps or (preset.n_timesteps if preset else None)
    if steps is None:
        make_env(args.env, env_kwargs).close()  # raises for an unknown id, which is then the mistake to report
        raise UserError(f"how long? --steps N (there is no preset for {args.env})")
    run = Run(algo, args.env, steps, args.seed or 0, args.n_envs or 1, env_kwargs, args.plugin or [], arguments)
    if args.output:
        _check_unused(RunFolder(Path(args.output)))
    gamma = arguments.get("gamma", getattr(inspect.signature(cls).parameters.get("gamma"), "default", 0.99))
    env = normalised(_make_vec_env(run.env_id, run.env_kwargs, run.n_envs, run.seed), args.normalize, args.vecnormalize, gamma)
    run.normalize = choice(env)
    policy = arguments.pop("policy", None) or (preset.policy if preset else _default_policy(cls, env.observation_space))
    try:
        agent = cls(policy, env, seed=run.seed, device=args.device, **arguments, **plugin_arguments(plugins))
    except (ValueError, TypeError, AssertionError, ImportError, NotImplementedError) as error:
        if args.traceback:
            raise
        raise UserError(". ".join([str(error) or repr(error), *getattr(error, "__notes__", ())])) from error
    if args.load_replay_buffer:
        _load_replay_buffer(agent, Path(args.load_replay_buffer), safe=args.safe)
    # Reserved as late as possible: a mistake in the arguments leaves no folder behind.
    folder = _reserved(Path(args.output) if args.output else new_folder(algo, args.env), stack)
    _check_unused(folder)  # again: another run may have begun in the meantime
    return agent, run, folder


def _check_unused(folder: RunFolder) -> None:
    """:raises UserError: for a folder that holds a run, or a file of this name"""
    if folder.path.exists() and not folder.path.is_dir():
        raise UserError(f"--output {folder.path}: this is a file; name a folder")
    if folder.is_used():
        raise UserError(f"{folder.path} holds a run already: continue it with --resume, or choose another --output")


def _reserved(path: Path, stack: ExitStack) -> RunFolder:
    """Reserve the folder of a run for this process, until the command ends."""
    folder = RunFolder(path)
    folder.acquire()
    stack.callback(folder.checkpoints.release)
    return folder


def _resumed(args: argparse.Namespace, stack: ExitStack) -> tuple[OffPolicyAlgorithm, Run, RunFolder]:
    """Load the agent of a saved run."""
    for name in _FIXED_BY_RUN:
        if getattr(args, name) is not None:
            raise UserError(
                f"--resume: --{name.replace('_', '-')} was decided when the run began; leave it out, or start a new run"
            )
    if args.output is None and args.env is None:
        raise UserError("--resume: which run? Name its folder with --output, or its environment with --env")
    path = Path(args.output) if args.output else newest_folder(args.algo or DEFAULT_ALGORITHM, args.env)
    run = Run.read(path)
    if run is None:
        raise UserError(f"--resume: {path} is not the folder of a run (it has no {RECORD})")
    for option, given, saved in (("--algo", args.algo, run.algo), ("--env", args.env, run.env_id)):
        if given not in (None, saved):
            raise UserError(f"--resume: {option} {given}, but the run in {path} is one of {saved}")
    run.check_trusted(path, args.algo, args.env, args.plugin or [])
    if run.tensorboard and not run.own and not args.tensorboard:
        print(f"{path / RECORD} was not written by you: no log for TensorBoard without --tensorboard")
        run.tensorboard = None
    run.steps = args.steps or run.steps
    run.plugins = args.plugin or run.plugins
    plugins, registry = load_plugins(run.plugins)
    folder = _reserved(path, stack)
    cls = algorithm_class(registry, run.algo)
    trust = [*(args.trust or ()), *run.trusted_parts()]
    arguments = {**plugin_arguments(plugins), **trust_arguments(cls, args.safe, trust)}
    return _newest_agent(cls, run, folder, device=args.device, **arguments), run, folder


def _newest_agent(cls: type[OffPolicyAlgorithm], run: Run, folder: RunFolder, **arguments: Any) -> Any:
    """
    Load the agent of the newest intact checkpoint of a run, with its replay buffer and environment.

    :param arguments: the other arguments of ``cls.load``
    """
    newest = folder.newest()
    # A run of an earlier version has no checkpoints, but two files.
    model: Path = folder.path / MODEL
    buffer: Path | None = folder.path / PICKLED_BUFFER
    if newest is not None:
        model, buffer = newest.model, newest.replay_buffer
        if newest.manifest["n_envs"] != run.n_envs:
            raise UserError(
                f"{folder.path / RECORD}: n_envs is {run.n_envs}, but {newest.manifest['n_envs']} in {newest.path}"
            )
    elif not model.is_file():
        raise UserError(f"--resume: nothing was saved yet in {folder.path}; start the run again, without --resume")
    # The statistics are put into the environment with the rest of the checkpoint.
    env = normalised(_make_vec_env(run.env_id, run.env_kwargs, run.n_envs, run.seed), run.normalize)
    print(f"Loading {model} ...", flush=True)
    agent = load_agent(cls, model, env=env, **arguments)
    if agent.num_timesteps >= run.steps:
        raise UserError(
            f"--resume: the run in {folder.path} has its {agent.num_timesteps} real steps already; give more with --steps"
        )
    if buffer is None:
        print("This checkpoint was saved without its replay buffer (the disk was full): training continues with an empty one")
    else:
        _load_replay_buffer(agent, buffer, safe=arguments.get("safe", False))
    if newest is not None:
        if newest.has_buffer and newest.lacks:
            print("This checkpoint was saved without its imagined rows (the disk was full): they are imagined again")
        newest.load_statistics(agent)
    return agent


def _preset(algo: str, env_id: str, wanted: bool | str | None) -> Preset | None:
    """
    Choose a preset.

    :param algo: the name of the algorithm
    :param env_id: the Gymnasium id of the environment
    :param wanted: ``--preset`` (true or a name), ``--no-preset`` (false), or neither
    :return: the preset; ``None`` for the algorithm's defaults
    :raises UserError: when a preset is asked for that does not exist
    """
    if wanted is False:
        return None
    name = wanted if isinstance(wanted, str) else env_id
    try:
        known = name in preset_names(algo)
        if not known and not wanted:
            print(f"There is no preset of {algo} for {env_id}: using the algorithm's defaults")
            return None
        preset = load_preset(algo, name)
    except KeyError as error:
        if wanted:
            raise UserError(f"--preset: {error.args[0]}") from error
        return None
    print(f"Using the preset of {algo} for {name} (--no-preset: the algorithm's defaults)")
    return preset


def _arguments(args: argparse.Namespace, preset: Preset | None, cls: type) -> dict[str, Any]:
    """Put the command line's arguments of the constructor on top of the preset's."""
    settings: dict[str, Any] = dict(preset.kwargs) if preset else {}
    chosen = {part: getattr(args, part) for part in PARTS if getattr(args, part) is not None}
    if "world_model" in chosen and chosen["world_model"].lower() == "none":
        chosen["world_model"] = None
    defaults = {name: parameter.default for name, parameter in inspect.signature(cls).parameters.items()}
    arguments, left_out = with_overrides(settings, chosen, defaults)
    for name in left_out:
        print(f"The preset's {name} are for another {name.removesuffix('_kwargs').replace('_', ' ')}: left out")
    for name in ("world_model_kwargs", "imagination_kwargs", "planner_kwargs"):
        given = parse_pairs(f"--{name.replace('_', '-')}", getattr(args, name))
        if given:
            arguments[name] = {**arguments.get(name, {}), **given}
    chosen_by_set = parse_pairs("--set", args.set)
    for name in ("env", "seed", "device", "plugins", "tensorboard_log", "verbose"):
        if name in chosen_by_set:
            raise UserError(f"--set {name}=...: there is an option for it, see `sb3-mbrl train --help`")
    # Arguments that were not given by --set are checked too: not every algorithm takes a world_model, for example.
    checked = check_arguments("", {key: value for key, value in arguments.items() if key not in chosen_by_set}, cls)
    return {**checked, **check_arguments("--set", chosen_by_set, cls)}


def _default_policy(cls: type[OffPolicyAlgorithm], space: gym.Space) -> str:
    if len(cls.policy_aliases) == 1:
        return next(iter(cls.policy_aliases))
    if isinstance(space, gym.spaces.Dict):
        return "MultiInputPolicy"
    return "CnnPolicy" if is_image_space(space) else "MlpPolicy"


def _make_vec_env(env_id: str, env_kwargs: dict[str, Any], n_envs: int, seed: int) -> VecEnv:
    return make_vec_env(lambda: make_env(env_id, env_kwargs), n_envs=n_envs, seed=seed)


def _load_replay_buffer(agent: OffPolicyAlgorithm, path: Path, safe: bool) -> None:
    if not path.is_file():
        raise UserError(f"there is no replay buffer {path}")
    safely: dict[str, Any] = {"safe": True} if safe else {}
    try:
        agent.load_replay_buffer(path, **safely)
    except ValueError as error:
        raise UserError(f"{path} does not fit this run: {error}") from error
    except Exception as error:  # a damaged or foreign pickle may raise anything
        raise UserError(f"{path} is not a replay buffer of Stable-Baselines3: {type(error).__name__}: {error}") from error
    buffer = agent.replay_buffer
    assert buffer is not None
    print(f"Loaded {buffer.size() * buffer.n_envs} real transitions from {path}")


# ----------------------------------------------------------------------------------------------------------------- learning


def _describe_model(agent: Any) -> str:
    model = getattr(agent, "world_model", None)
    if model is None:
        return "off"
    reference = getattr(agent, "part_references", {}).get("world_model")
    return f"{reference['name']} ({type(model).__name__})" if reference else type(model).__name__


def _callbacks(args: argparse.Namespace, agent: OffPolicyAlgorithm, run: Run, folder: RunFolder) -> list[BaseCallback]:
    callbacks: list[BaseCallback] = [] if args.no_progress else [training_progress()]
    evaluations: Evaluation | None = None
    if args.eval_every:
        env = _make_vec_env(run.env_id, run.env_kwargs, 1, run.seed + EVALUATION_SEED)
        statistics = agent.get_vec_normalize_env()
        if of_two_players(env):
            callbacks.append(_board_evaluations(args, run, folder))
        else:
            evaluations = Evaluation(
                env if statistics is None else frozen(env, statistics),
                n_eval_episodes=args.eval_episodes,
                eval_freq=max(args.eval_every // run.n_envs, 1),
                log_path=str(folder.path),
                best_model_save_path=str(folder.path),
            )
            callbacks.append(evaluations)
    if args.save_every is None:
        callbacks.append(_Checkpoints(folder, seconds=_SECONDS_BETWEEN_SAVES, evaluations=evaluations))
    else:
        callbacks.append(_Checkpoints(folder, every=args.save_every or None))
    return callbacks


def _board_evaluations(args: argparse.Namespace, run: Run, folder: RunFolder) -> BoardEvalCallback:
    """Let the agent play against random moves from both seats, every ``--eval-every`` real steps."""
    return BoardEvalCallback(
        lambda: make_env(run.env_id, run.env_kwargs),
        [RandomPlayer()],
        args.eval_every,
        repeats=args.eval_episodes,
        best_model_save_path=folder.path,
        seed=run.seed + EVALUATION_SEED,
        verbose=1,
    )


class _Checkpoints(ExactCheckpointCallback):
    """
    Checkpoints whose files are linked from the folder of a run. The last one is saved by the command itself.

    :param run_folder: the folder of the run
    :param when: when to save, as for :class:`~sb3_mbrl.callbacks.ExactCheckpointCallback`
    """

    def __init__(self, run_folder: RunFolder, **when: Any) -> None:
        super().__init__(run_folder.checkpoints, at_end=False, report=_warn, **when)
        self.run_folder = run_folder

    def _save(self) -> None:
        super()._save()
        self.run_folder.link_newest()


def _learn(agent: OffPolicyAlgorithm, steps: int, callbacks: list[BaseCallback]) -> None:
    try:
        agent.learn(steps, callback=callbacks, log_interval=1, reset_num_timesteps=agent.num_timesteps == 0)
    finally:
        # Write what was recorded since the end of the last episode.
        agent.dump_logs()
        # A bar is closed at the end of training only when that ends without an exception.
        for callback in callbacks:
            if isinstance(callback, TrainingBar):
                callback.close()


class _LastMetrics(KVWriter):
    """A log that keeps the last value of every key."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        self.values.update(key_values)

    def close(self) -> None:
        pass

    def print(self) -> None:
        """Print the world model's quality and where the time went, in two lines."""
        if "model/vs_trivial" in self.values:
            print(
                "World model on held-out rows: squared error {:.3g} of the better trivial predictor's (below 1 is better), "
                "normalised error {:.3g}, reward error {:.3g}".format(
                    *(self.values[f"model/{name}"] for name in ("vs_trivial", "error", "reward_error"))
                )
            )
        phases = ("fit", "imagine", "plan", "update")
        seconds = {name: self.values[f"time/{name}_s"] for name in phases if f"time/{name}_s" in self.values}
        if seconds:
            print("Time: " + ", ".join(f"{name} {value:.0f} s" for name, value in seconds.items()))


def _logger(verbose: bool, run: Run, folder: Path, start: int, metrics: KVWriter) -> Logger:
    # A resumed run gets a file of its own, else it would overwrite the log of the run so far.
    formats: list[KVWriter] = [make_output_format("csv", str(folder), f"_from_{start}" if start else ""), metrics]
    if verbose:
        formats.append(make_output_format("stdout", str(folder)))
    if run.tensorboard:
        formats.append(make_output_format("tensorboard", str(tensorboard_folder(run, folder))))
    return Logger(str(folder), formats)
