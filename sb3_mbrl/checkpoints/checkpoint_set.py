"""One checkpoint: a folder with an agent, its replay buffer and its imagined rows of the same moment, and their manifest."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

from sb3_mbrl.agent.agent import OffPolicyAgent
from sb3_mbrl.agent.manifest import MANIFEST, DamagedError, read_manifest, verify, write_manifest
from sb3_mbrl.agent.plain_values import NotPlainError
from sb3_mbrl.checkpoints.normalising import load_statistics, save_statistics
from sb3_mbrl.version import __version__

MODEL, PLAIN_BUFFER, PICKLED_BUFFER = "model.zip", "replay_buffer.npz", "replay_buffer.pkl"
NORMALISING = "vecnormalize.npz"


@dataclass(frozen=True)
class CheckpointSet:
    """
    A checkpoint on the disk.

    :param path: its folder
    """

    path: Path

    @property
    def model(self) -> Path:
        """The file of the agent, for ``load``"""
        return self.path / MODEL

    @property
    def replay_buffer(self) -> Path | None:
        """The file of the replay buffer, for ``load_replay_buffer``; ``None``: it was saved without"""
        return next((self.path / name for name in (PLAIN_BUFFER, PICKLED_BUFFER) if (self.path / name).is_file()), None)

    @property
    def manifest(self) -> dict[str, Any]:
        """
        What is known about the files: ``step``, ``n_envs``, ``class``, ``lacks`` (what could not be saved, and why) and
        ``pickled`` (files that hold pickles, and why)

        :raises DamagedError: when it cannot be read
        """
        manifest = read_manifest(self.path)
        for name, kind in {"step": int, "n_envs": int, "class": str, "lacks": dict, "pickled": dict}.items():
            if type(manifest.get(name)) is not kind:
                raise DamagedError(f"{self.path / MANIFEST} is damaged: its {name!r} is {manifest.get(name)!r}")
        return manifest

    @property
    def step(self) -> int:
        """The number of real steps that the agent had made"""
        return int(self.manifest["step"])

    @property
    def lacks(self) -> Mapping[str, str]:
        """What could not be saved (``"imagined_rows"``, ``"replay_buffer"``), with the reasons"""
        return self.manifest["lacks"]

    @property
    def without(self) -> str:
        """What could not be saved, in words; empty where everything was"""
        if not self.lacks:
            return ""
        what, reason = list(self.lacks.items())[-1]
        # Both: without the replay buffer, its imagined rows are of no use.
        return f"without its {what.replace('_', ' ')} ({reason}): free some space"

    @property
    def has_buffer(self) -> bool:
        """Whether the replay buffer was saved: without it, a run must collect its data again"""
        return "replay_buffer" not in self.lacks

    def verify(self) -> None:
        """:raises DamagedError: when a file is missing, incomplete or damaged; the message names it"""
        if MODEL not in self.manifest["files"]:
            raise DamagedError(f"{self.path} is no checkpoint: its {MANIFEST} lists no {MODEL}")
        verify(self.path)

    def load(self, cls: type[OffPolicyAlgorithm], env: Any = None, *, safe: bool = False, **kwargs: Any) -> Any:
        """
        Load the agent, its replay buffer, and the statistics of ``VecNormalize`` into its environment.

        :param cls: the class of the agent
        :param env: as for ``cls.load``
        :param safe: whether to refuse pickles
        :param kwargs: the other arguments of ``cls.load``
        :raises DamagedError: when a file is damaged; the message names it
        """
        safely: dict[str, Any] = {"safe": True} if safe else {}
        agent = cls.load(self.model, env=env, **safely, **kwargs)
        buffer = self.replay_buffer
        if buffer is not None:
            agent.load_replay_buffer(buffer, **safely)
        self.load_statistics(agent)
        return agent

    def load_statistics(self, agent: OffPolicyAlgorithm) -> None:
        """Put the saved statistics of ``VecNormalize`` into the environment of a loaded agent, if both have some."""
        normalising, path = agent.get_vec_normalize_env(), self.path / NORMALISING
        if normalising is not None and path.is_file():
            load_statistics(normalising, path)


def write_set(agent: OffPolicyAlgorithm, folder: Path, lacks: Mapping[str, str]) -> None:
    """
    Write a checkpoint into an empty folder, and flush it to the disk.

    :param agent: the agent
    :param folder: the folder
    :param lacks: what is not to be saved, ``"imagined_rows"`` or ``"replay_buffer"``, and why
    """
    pickled: dict[str, str] = {}
    _write_agent(agent, folder / MODEL, pickled)
    if "replay_buffer" not in lacks and agent.replay_buffer is not None:
        _write_buffer(agent, folder, pickled, "imagined_rows" not in lacks)
    normalising = agent.get_vec_normalize_env()
    if normalising is not None:
        save_statistics(normalising, folder / NORMALISING)
    facts = {
        "sb3_mbrl": __version__,
        "class": type(agent).__name__,
        "step": agent.num_timesteps,
        "n_envs": agent.n_envs,
        "lacks": dict(lacks),
        "pickled": pickled,
    }
    write_manifest(folder, facts)


def _write_agent(agent: OffPolicyAlgorithm, path: Path, pickled: dict[str, str]) -> None:
    if not isinstance(agent, OffPolicyAgent):
        pickled[path.name] = f"{type(agent).__name__} is no class of sb3-mbrl"
        agent.save(path)
        return
    try:
        agent.save(path, safe=True)
    except NotPlainError as error:
        pickled[path.name] = str(error)
        agent.save(path)


def _write_buffer(agent: OffPolicyAlgorithm, folder: Path, pickled: dict[str, str], imagined: bool) -> None:
    if isinstance(agent, OffPolicyAgent):
        try:
            agent.save_plain_replay_buffer(folder / PLAIN_BUFFER, imagined)
            return
        except NotPlainError as error:
            pickled[PICKLED_BUFFER] = str(error)
    agent.save_replay_buffer(folder / PICKLED_BUFFER)
