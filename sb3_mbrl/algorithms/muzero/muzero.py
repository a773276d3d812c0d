"""
MuZero (Schrittwieser et al. 2020): tree search with a learned model. The loop::

    learn                                   SB3's
      collect_rollouts                      SB3's: steps of the real environment (of a board: both players in turn)
        _decide                             one search for all environments together: improved policy, root value, action
        _store_transition                   stores the search's results beside the step
      train                                 once per collect_rollouts, gradient_steps times:
        replay.draw                         windows of K steps, by priority
        _reanalyze                          searches some of their states again, with the target network
        replay.batch                        value targets of n steps, which bootstrap through time limits
        update                              the model's loss over K unrolled steps; one step of the optimiser
        replay.update                       new priorities: the errors of the values
"""

import inspect
import warnings
from collections.abc import Iterable, Mapping, Sequence
from math import isfinite
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3 import HerReplayBuffer
from stable_baselines3.common.buffers import NStepReplayBuffer
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, Schedule
from stable_baselines3.common.utils import FloatSchedule

from sb3_mbrl.agent.agent import OffPolicyAgent
from sb3_mbrl.agent.cuda_graph import Compile
from sb3_mbrl.agent.joint_update import JointUpdate, Learner
from sb3_mbrl.agent.settings import keyword_arguments
from sb3_mbrl.agent.stateful import StatefulActing
from sb3_mbrl.algorithms.muzero import environments, segments
from sb3_mbrl.algorithms.muzero.edges import SampledActions
from sb3_mbrl.algorithms.muzero.policy import MuZeroPolicy, root_state, search_metrics
from sb3_mbrl.algorithms.muzero.replay import (
    EDGES,
    EXPLORED,
    MASK,
    POLICY,
    SIGN,
    SNAPSHOT,
    VALUE,
    VERSION,
    Drawn,
    UnrollReplay,
)
from sb3_mbrl.algorithms.muzero.segments import Segment, Snapshot
from sb3_mbrl.checks import did_you_mean, number, user_stacklevel, whole
from sb3_mbrl.contracts import Obs, Sequences
from sb3_mbrl.diagnostics.tree_page import tree_page, write_tree_page
from sb3_mbrl.models.muzero.model import MuZeroModel
from sb3_mbrl.models.oracle import OracleModel
from sb3_mbrl.planners.tree_search import SearchResult, TreeSearch
from sb3_mbrl.spaces import as_mask
from sb3_mbrl.trees import State, tree_map


class MuZero(OffPolicyAgent, OffPolicyAlgorithm):
    """
    An agent that plans by tree search in a model that it learns, and learns from its searches.

    For boards, and for problems with a few actions. The default search is Gumbel MuZero's (Danihelka et al. 2022), which is
    sound with few simulations. ``Box``, ``MultiDiscrete`` and ``MultiBinary`` actions are sampled (Hubert et al. 2021). Two
    players: an environment with ``turns = 2`` is played by the agent for both (self-play).

    :param policy: ``"MlpPolicy"``, ``"CnnPolicy"`` or ``"MultiInputPolicy"``: all encode whatever the observations are
    :param env: the environment; several environments share each search, which is the cheapest way to more steps
    :param learning_rate: the learning rate of Adam, or a schedule of it
    :param buffer_size: the number of real steps that are kept
    :param learning_starts: the number of real steps before the first update
    :param batch_size: the number of windows in an update
    :param gamma: the discount of a step
    :param train_freq: as in SB3
    :param gradient_steps: as in SB3; -1: as many updates as real steps were collected
    :param num_simulations: the simulations of a search, or a schedule of their number
    :param search: ``"gumbel"`` or ``"puct"``
    :param search_model: what is searched in: ``"learned"``, or ``"oracle"``, the true environment, which is
        AlphaZero (Silver et al. 2018). The world model is learned all the same, and judges positions: so a user sees whether
        the learned dynamics is to blame. ``load(..., search_model="learned")`` continues with it. The environments must be
        in this process (``DummyVecEnv``), and their states must be such as an oracle can capture
        (:class:`~sb3_mbrl.models.oracle.OracleModel`); to ``predict``, they must be found in observations (as on boards)
    :param search_kwargs: further arguments of :class:`~sb3_mbrl.planners.tree_search.TreeSearch`
    :param temperature: the temperature of the choice of actions in training, or a schedule of it; by default 1, 0.5 from half
        of the training on, and 0.25 from three quarters on. ``"puct"``: of the choice by visit counts; ``"gumbel"``: the noise
        is multiplied by it
    :param exploration: the probability of a random legal action in training, on top of the noise of the search. Games visit
        more positions; value targets stop before a random action (:mod:`~sb3_mbrl.algorithms.muzero.targets`)
    :param n_sampled_actions: the number of actions that are sampled in a node where actions cannot be listed
    :param unroll_steps: ``K``, the number of steps that the model is unrolled in an update
    :param td_steps: the number of real rewards in a value target; -1: all until the episode ends (boards)
    :param prioritized: whether windows are drawn by the errors of their values
    :param alpha: how much priorities count
    :param beta: how much of the bias of priorities is taken away
    :param reanalyze_ratio: the share of the windows of a batch whose states are searched again, with the target network
    :param value_bootstrap: ``"target"``: value targets bootstrap from the present target network (the cheap half of
        reanalysis); ``"search"``: from the values of the stored searches
    :param target_update_interval: the number of updates between two copies of the network
    :param max_grad_norm: the largest norm of the gradient; ``None``: no clipping
    :param optimizer_kwargs: further arguments of Adam
    :param world_model: ``"muzero"``, or a subclass of :class:`~sb3_mbrl.models.muzero.MuZeroModel`
    :param world_model_kwargs: keyword arguments of the world model
    :param compile: see :class:`~sb3_mbrl.DreamerV3`
    :param mixed_precision: see :class:`~sb3_mbrl.DreamerV3`
    :param plugins: plug-ins that are not installed
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = dict.fromkeys(
        ("MlpPolicy", "CnnPolicy", "MultiInputPolicy"), MuZeroPolicy
    )
    needs_latent_model = True
    fits_model = False
    object_names = (*OffPolicyAgent.object_names, "update", "replay")
    model_free_class = OffPolicyAlgorithm
    preset_file = "muzero"
    policy: MuZeroPolicy
    acting: StatefulActing
    update: JointUpdate
    replay: UnrollReplay

    def __init__(
        self,
        policy: str | type[MuZeroPolicy],
        env: GymEnv | str,
        learning_rate: float | Schedule = 1e-3,
        buffer_size: int = 100_000,
        learning_starts: int = 500,
        batch_size: int = 128,
        gamma: float = 0.997,
        train_freq: int | tuple[int, str] = 1,
        gradient_steps: int = 1,
        replay_buffer_class: Any = None,
        replay_buffer_kwargs: dict[str, Any] | None = None,
        num_simulations: int | Schedule = 25,
        search: Literal["gumbel", "puct"] = "gumbel",
        search_model: Literal["learned", "oracle"] = "learned",
        search_kwargs: dict[str, Any] | None = None,
        temperature: float | Schedule | None = None,
        exploration: float = 0.0,
        n_sampled_actions: int = 20,
        unroll_steps: int = 5,
        td_steps: int = 10,
        prioritized: bool = True,
        alpha: float = 0.6,
        beta: float = 0.4,
        reanalyze_ratio: float = 0.0,
        value_bootstrap: Literal["target", "search"] = "target",
        target_update_interval: int = 100,
        max_grad_norm: float | None = 10.0,
        optimizer_kwargs: dict[str, Any] | None = None,
        world_model: Any = "muzero",
        world_model_kwargs: dict[str, Any] | None = None,
        compile: Compile = False,
        mixed_precision: bool | Literal["auto"] = False,
        policy_kwargs: dict[str, Any] | None = None,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: th.device | str = "auto",
        _init_setup_model: bool = True,
        *,
        plugins: Iterable[Any] | None = None,
    ) -> None:
        super().__init__(
            policy,
            env,
            learning_rate,
            buffer_size,
            learning_starts,
            batch_size,
            gamma=gamma,
            train_freq=train_freq,
            gradient_steps=gradient_steps,
            replay_buffer_class=replay_buffer_class,
            replay_buffer_kwargs=replay_buffer_kwargs,
            policy_kwargs=keyword_arguments("policy_kwargs", policy_kwargs),
            stats_window_size=stats_window_size,
            tensorboard_log=tensorboard_log,
            verbose=verbose,
            device=device,
            seed=seed,
            sde_support=False,
            support_multi_env=True,
            supported_action_spaces=(spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary),
        )
        self.num_simulations, self.search_kind = num_simulations, search
        self.search_kwargs = keyword_arguments("search_kwargs", search_kwargs)
        self.search_model = search_model
        self.temperature, self.exploration, self.n_sampled_actions = temperature, exploration, n_sampled_actions
        self.unroll_steps, self.td_steps = unroll_steps, td_steps
        self.prioritized, self.alpha, self.beta = prioritized, alpha, beta
        self.reanalyze_ratio, self.value_bootstrap = reanalyze_ratio, value_bootstrap
        self.target_update_interval, self.max_grad_norm = target_update_interval, max_grad_norm
        self.optimizer_kwargs = {"weight_decay": 1e-4, **keyword_arguments("optimizer_kwargs", optimizer_kwargs)}
        self.world_model_class, self.world_model_kwargs = world_model, world_model_kwargs
        self.reward_fn, self.termination_fn, self.plugins = None, None, plugins
        self.compile, self.mixed_precision = compile, mixed_precision
        self.players = 1 if self.env is None else environments.players(self.env)
        self._n_updates = 0
        if _init_setup_model:
            self._setup_model()

    # ------------------------------------------------------------------------------------------------ setup

    def _check_hyperparameters(self) -> None:
        super()._check_hyperparameters()
        kind = self.replay_buffer_class
        if kind is not None and issubclass(kind, (HerReplayBuffer, NStepReplayBuffer)):
            raise ValueError(f"MuZero learns from single steps as they were, and cannot use {kind.__name__}")
        if self.world_model_class is None:
            raise ValueError("MuZero learns 'muzero' or a subclass of MuZeroModel, not None: it has no use without its model")
        self._check_updates()
        self._check_search()
        for name in ("batch_size", "unroll_steps", "target_update_interval"):
            setattr(self, name, whole(name, getattr(self, name), 1))
        self.n_sampled_actions = whole("n_sampled_actions", self.n_sampled_actions, 2)
        number("gamma", self.gamma, 0.0, 1.0)
        if self.max_grad_norm is not None:
            number("max_grad_norm", self.max_grad_norm, 0.0, open_low=True)
        for progress in (1.0, 0.0):  # schedules are checked at their begin and their end
            self._simulations(progress)
            if self.temperature is not None:
                at = self.temperature(progress) if callable(self.temperature) else self.temperature
                number("temperature", at, 0.0)
        if self.td_steps != -1:
            self.td_steps = whole("td_steps", self.td_steps, 1)
        for name in ("alpha", "beta", "reanalyze_ratio", "exploration"):
            number(name, getattr(self, name), 0.0, 1.0)
        if self.search_model not in ("learned", "oracle"):
            raise ValueError(f"search_model={self.search_model!r}: choose 'learned' or 'oracle'")
        if self.value_bootstrap not in ("target", "search"):
            raise ValueError(f"value_bootstrap={self.value_bootstrap!r}: choose 'target' or 'search'")

    def _check_updates(self) -> None:
        """Check settings of updates that would be ignored, or fail in the first of them."""
        for name in ("compile", "mixed_precision"):
            if getattr(self, name) != "auto" and not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name}={getattr(self, name)!r}: choose 'auto', True or False")
        if not isinstance(self.prioritized, bool):
            raise ValueError(f"prioritized={self.prioritized!r}: choose True or False")
        if "lr" in keyword_arguments("optimizer_kwargs", self.optimizer_kwargs):
            raise ValueError("optimizer_kwargs has 'lr': give learning_rate to MuZero")
        for name, remedy in (("unroll_steps", ""), ("td_steps", " (-1: all rewards until the episode ends)")):
            if isinstance(steps := getattr(self, name), int) and steps > self.buffer_size:
                raise ValueError(
                    f"{name}={steps}: give at most buffer_size={self.buffer_size}, the steps that are kept{remedy}"
                )

    def _check_search(self) -> None:
        """Check the kind and the names of the settings of the search; :class:`TreeSearch` checks their values."""
        if self.search_kind not in ("gumbel", "puct"):
            raise ValueError(f"search={self.search_kind!r}: choose 'gumbel' or 'puct'")
        self.search_kwargs = keyword_arguments("search_kwargs", self.search_kwargs)
        own = {"kind": "search", "num_simulations": "num_simulations"}
        names = [name for name in inspect.signature(TreeSearch).parameters if name not in own]
        for name in self.search_kwargs:
            if name in own:
                raise ValueError(f"search_kwargs has {name!r}: give {own[name]} to MuZero")
            if name not in names:
                raise TypeError(
                    f"search_kwargs does not take {name!r}.{did_you_mean(name, names)}\n  search_kwargs: {', '.join(names)}"
                )

    def _shared_settings(self) -> dict[str, Any]:
        return {"gamma": self.gamma, "players": self.players}

    def _build(self) -> None:
        if self.latent_model.chance is not None and not isinstance(self.action_space, spaces.Discrete):
            raise ValueError(
                f"world_model_kwargs has chance_codes, and actions of {self.action_space} are sampled: chance is for Discrete "
                "actions"
            )
        first = self._simulations(1.0)
        tree_search = TreeSearch(self.search_kind, num_simulations=first, **self.search_kwargs)
        with self.random.scope(self.device):
            self.policy.attach(self.latent_model, tree_search, self.n_sampled_actions)
        self._check_environments()
        self._choose_game()
        self.latent_model.optimizer = None  # the joint update trains it
        self.update = JointUpdate(
            [Learner(self.latent_model, 1.0, self.max_grad_norm)],
            self._losses,
            lambda: None,
            optimizer_class="adam",
            optimizer_kwargs=self.optimizer_kwargs,
            learning_rate=self.lr_schedule(1.0),
            random=self.random,
            device=self.device,
            compile=self.compile,
            mixed_precision=self.mixed_precision,
            name=type(self).__name__,
            verbose=self.verbose,
        )
        self.replay = self._make_replay()
        self._act_by(self.policy)
        self._result: SearchResult | None = None
        """The search of the last decision in training"""

    def _check_environments(self) -> None:
        """Refuse environments of other players than the agent's, and masks that would be ignored."""
        if self.env is None:
            return
        if (turns := environments.players(self.env)) != self.players:
            raise ValueError(
                f"The environment has turns={turns}, and the agent was made for {self.players}: the signs of its values would "
                "be wrong. Give an environment of as many players, or make a new agent."
            )
        environments.check_masks(self.env, self.action_space)

    def _choose_game(self) -> None:
        """Search in the world model, or in a copy of the first environment."""
        learned, oracle = self.search_model == "learned", None
        if not learned and self.env is not None:
            envs = getattr(self.env.unwrapped, "envs", None)
            if envs is None:
                raise ValueError(
                    "search_model='oracle' searches in a copy of the environment, and those of "
                    f"{type(self.env.unwrapped).__name__} are in other processes: use DummyVecEnv, make_vec_env's default"
                )
            oracle = OracleModel(self.observation_space, self.action_space, env=envs[0], device=self.device)
        self.policy.search_in(oracle, learned=learned)

    def set_env(self, env: GymEnv, force_reset: bool = True) -> None:
        """As SB3's; with ``search_model="oracle"``, the new environment is searched in."""
        super().set_env(env, force_reset)
        self._check_environments()
        self._choose_game()

    def _make_replay(self) -> UnrollReplay:
        td_steps = None if self.td_steps == -1 else self.td_steps
        side, alpha = self.real.side_of(self._buffer), self.alpha if self.prioritized else 0.0
        return UnrollReplay(self._buffer, side, self.gamma, self.unroll_steps, td_steps, alpha, self.beta)

    @property
    def latent_model(self) -> MuZeroModel:
        """The world model"""
        model = self._model
        if not isinstance(model, MuZeroModel):
            raise ValueError(f"MuZero learns 'muzero' or a subclass of MuZeroModel, not {type(model).__name__}")
        return model

    @property
    def optimizer(self) -> th.optim.Optimizer:
        """The optimiser of the world model"""
        return self.update.optimizer

    # ------------------------------------------------------------------------------------------------ saving

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "_result"]

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        state_dicts, variables = super()._get_torch_save_params()
        return [*state_dicts, "optimizer"], variables

    def set_parameters(self, *args: Any, **kwargs: Any) -> None:
        """Set parameters as in SB3; the joint update starts anew with them."""
        super().set_parameters(*args, **kwargs)
        self.update.reset()

    def _side_state(self) -> dict[str, Any]:
        self._follow_buffer()
        return {**super()._side_state(), "replay": self.replay.buffer_state()}

    def _restore_side(self, state: Mapping[str, Any]) -> None:
        super()._restore_side(state)
        if self._buffer.size() and POLICY not in self.real.side_of(self._buffer).arrays:
            raise ValueError(
                "The replay buffer has no results of searches beside its steps: it was filled by another class. MuZero learns "
                "from its own searches: start with an empty buffer."
            )
        self.replay = self._make_replay()
        self.replay.restore_buffer_state(state.get("replay", {}))

    def _follow_buffer(self) -> None:
        """Renew the sampler if the user has given the agent another replay buffer."""
        if self.replay.buffer is not self.replay_buffer:
            self.replay = self._make_replay()

    # ------------------------------------------------------------------------------------------------ acting

    def search(
        self,
        observation: np.ndarray | dict[str, np.ndarray],
        *,
        action_masks: np.ndarray | None = None,
        num_simulations: int | None = None,
        deterministic: bool = True,
    ) -> SearchResult:
        """
        Search from observations, as :meth:`predict` does, and return everything that the search has found.

        :param observation: one, or a batch
        :param action_masks: ``(n_envs, n_actions)``, true where an action is allowed
        :param num_simulations: the number of simulations; ``None``: the agent's
        :param deterministic: whether there is no noise
        """
        raw = self.acting.raw(observation, self._vec_normalize_env)
        obs, vectorised = self.policy.obs_to_tensor(raw)
        mask = None
        if action_masks is not None:
            mask = as_mask(action_masks)
            mask = mask if vectorised or mask.dim() > 1 else mask[None]
        n = self._simulations() if num_simulations is None else num_simulations
        return self.policy.search(obs, action_mask=mask, num_simulations=n, deterministic=deterministic)

    def explain(
        self,
        observation: np.ndarray | dict[str, np.ndarray],
        path: str | Path = "tree.html",
        *,
        labels: Sequence[str] | None = None,
        **kwargs: Any,
    ) -> Path:
        """
        Search from an observation, and write the tree as a page of HTML that opens in any browser.

        :param observation: one observation
        :param path: the file
        :param labels: the names of the actions; ``None``: their numbers
        :param kwargs: as in :meth:`search`: ``action_masks``, ``num_simulations``, ``deterministic``
        :return: the path of the file
        """
        edges = self.policy.edges.n
        if labels is not None and (isinstance(labels, str) or not isinstance(labels, Sequence) or len(labels) != edges):
            raise ValueError(f"labels={labels!r}: give a name for each of the {edges} actions in a list, or None")
        result = self.search(observation, **kwargs)
        if len(result.action) != 1:
            raise ValueError(f"explain() was given {len(result.action)} observations: give one")
        label: Any = labels
        if label is None and isinstance(self.policy.edges, SampledActions):
            actions = self.policy.edges.taken(result.tree.states["action"][:, 0]).cpu().numpy()
            label = lambda node, edge: np.array2string(actions[node, edge], precision=2)  # noqa: E731
        title = f"{type(self).__name__} after {self.num_timesteps} real steps"
        return write_tree_page(path, tree_page(result, label=label, title=title, observation=observation))

    def _simulations(self, progress_remaining: float | None = None) -> int:
        progress = self._current_progress_remaining if progress_remaining is None else progress_remaining
        n = self.num_simulations
        if not callable(n):
            return whole("num_simulations", n, 1)
        now: Any = n(progress)
        return whole("num_simulations", round(now) if isinstance(now, float) and isfinite(now) else now, 1)

    def _temperature(self) -> float:
        if self.temperature is None:
            done = 1.0 - self._current_progress_remaining
            return 1.0 if done < 0.5 else 0.5 if done < 0.75 else 0.25
        return float(FloatSchedule(self.temperature)(self._current_progress_remaining))

    def _decide(self, obs: Any, state: Any, is_first: th.Tensor, deterministic: bool) -> tuple[th.Tensor, Any]:
        venv: Any = self.env  # whose steps are decided here
        mask, snapshot = environments.masks(venv, self.action_space, self.num_timesteps), None
        if mask is not None:
            self.real.keep(MASK, mask.numpy())
        if (oracle := self.policy.oracle) is not None:
            snapshot = oracle.capture_vec(venv)
            self.real.keep(SNAPSHOT, snapshot.numpy())
        with self.recorder.phase("search"):
            self._result = result = self.policy.search(
                obs,
                action_mask=mask,
                num_simulations=self._simulations(),
                temperature=self._temperature(),
                generator=self.random.generator,
                snapshot=snapshot,
            )
        self.recorder.record_all("search", search_metrics(result))
        edge = self._explore(result) if self.exploration else result.action
        self.real.keep(EXPLORED, (edge != result.action).astype(np.int8))
        return self.policy.scaled_actions(result, edge), None

    def _explore(self, result: SearchResult) -> np.ndarray:
        """Replace some of the chosen edges by random legal ones, ``(n_envs,)``."""
        legal = th.as_tensor(result.tree.prior[:, 0, : self.policy.edges.n] > 0).double()
        drawn = th.multinomial(legal, 1, generator=self.random.generator)[:, 0].numpy()
        chosen = th.rand(len(drawn), generator=self.random.generator).numpy() < self.exploration
        return np.where(chosen, drawn, result.action)

    def _random_until(self, learning_starts: int) -> int:
        return 0  # searches with an untrained network are random enough, and their results are stored

    def _store_transition(
        self, replay_buffer: Any, buffer_action: np.ndarray, new_obs: Any, reward: np.ndarray, dones: np.ndarray, infos: list
    ) -> None:
        self._follow_buffer()
        result = self._result
        if result is None:
            raise ValueError("A step was collected without a search: MuZero stores the results of its own searches")
        normalising = self._vec_normalize_env  # the buffer keeps the rewards of before
        self._warn_of_large_rewards(reward if normalising is None else normalising.get_original_reward())
        self.real.keep(POLICY, result.policy.astype(np.float32))
        self.real.keep(VALUE, result.value.astype(np.float32))
        self.real.keep(VERSION, np.full(self.n_envs, self._n_updates, np.int64))
        if (edges := self.policy.edges.stored(root_state(result))) is not None:
            self.real.keep(EDGES, edges)
        if self.players == 2:
            self.real.keep(SIGN, np.full(self.n_envs, -1, np.int8))
        position = replay_buffer.pos
        super()._store_transition(replay_buffer, buffer_action, new_obs, reward, dones, infos)
        self.replay.added(position)

    def _warn_of_large_rewards(self, reward: np.ndarray) -> None:
        """Warn once of a reward that the bins of the world model cannot stand for."""
        largest, limit = float(np.max(np.abs(reward))), self.latent_model.output.value_range
        if largest > limit and "value_range" not in self.recorder.said:
            self.recorder.said.add("value_range")
            warnings.warn(
                f"The environment returned a reward of {largest:g}, and the world model counts rewards and values beyond "
                f"value_range={limit:g} as {limit:g}: scale the rewards, or give world_model_kwargs={{'value_range': ...}} "
                "the largest sum of rewards to expect.",
                stacklevel=user_stacklevel(),
            )

    def _setup_learn(self, *args: Any, **kwargs: Any) -> Any:
        result = super()._setup_learn(*args, **kwargs)
        self._follow_buffer()
        return result

    # ------------------------------------------------------------------------------------------------ collecting elsewhere

    def snapshot(self) -> Snapshot:
        """Copy the networks, for an agent that collects steps elsewhere (:mod:`~sb3_mbrl.algorithms.muzero.segments`)."""
        weights = {name: value.detach().cpu().clone() for name, value in self.latent_model.state_dict().items()}
        return Snapshot(self._n_updates, weights)

    def load_snapshot(self, snapshot: Snapshot) -> None:
        """
        Search with the networks of another agent's :meth:`snapshot` from now on.

        :raises TypeError: for anything but a snapshot
        :raises ValueError: for a snapshot of other networks; nothing is changed then
        """
        if not isinstance(snapshot, Snapshot):
            raise TypeError(f"load_snapshot takes the result of snapshot(), not {type(snapshot).__name__}")
        own = {name: tuple(value.shape) for name, value in self.latent_model.state_dict().items()}
        given = {name: tuple(value.shape) for name, value in snapshot.world_model.items()}
        if own != given:
            different = sorted(name for name in own.keys() | given.keys() if own.get(name) != given.get(name))
            raise ValueError(
                f"The snapshot is of other networks: {len(different)} of {len(own)} tensors differ, such as {different[0]} "
                f"({given.get(different[0])} instead of {own.get(different[0])}). Give both agents equal settings and spaces."
            )
        self.latent_model.load_state_dict(snapshot.world_model)
        self.latent_model.fitted = True
        self._n_updates = snapshot.version

    def newest(self, n: int) -> Segment:
        """
        Return the newest real steps, with the results of their searches.

        :param n: the number of steps of each environment
        """
        self._follow_buffer()
        return segments.newest(self.replay, n)

    def add(self, segment: Segment) -> int:
        """
        Add real steps that another agent has collected.

        :return: the number of steps, to which :meth:`train`'s ``gradient_steps`` should be in proportion
        """
        self._follow_buffer()
        steps = segments.add(self.replay, segment)
        self.num_timesteps += steps
        return steps

    # ------------------------------------------------------------------------------------------------ learning

    def train(self, gradient_steps: int, batch_size: int = 128) -> None:
        """
        Train the world model on unrolled windows.

        :param gradient_steps: the number of updates
        :param batch_size: the number of windows in a batch
        """
        self._follow_buffer()
        if not self._enough_data():
            return
        self.registry.hook.sb3_mbrl_before_policy_update(agent=self, gradient_steps=gradient_steps, batch_size=batch_size)
        model = self.latent_model.train()
        rate = self.lr_schedule(self._current_progress_remaining)
        self.update.set_learning_rate(rate)
        self.recorder.record("train/learning_rate", rate)
        metrics: dict[str, th.Tensor] = {}
        with self.recorder.phase("update"):
            for _ in range(gradient_steps):
                metrics = self._update_once(batch_size)
        model.eval()
        model.fitted = True
        for name, value in metrics.items():
            self.recorder.record(name, float(value))
        self.recorder.record("train/n_updates", self._n_updates)
        self.registry.hook.sb3_mbrl_after_policy_update(agent=self, gradient_steps=gradient_steps, batch_size=batch_size)

    def trial_update(self, batch_size: int) -> None:
        """Make one update on the copy of a trial."""
        self.latent_model.train()
        self._update_once(batch_size)

    def side_row_bytes(self) -> int:
        """The bytes of the result of a search: a policy in single precision, the value, the age and the sampled
        actions; and the state of the environment, where it is searched in.
        """
        sampled = 0 if isinstance(self.action_space, spaces.Discrete) else 4 * self._buffer.action_dim
        oracle = self.policy.oracle
        state = 0 if oracle is None else oracle.snapshot_size * (8 if oracle.snapshot_dtype == th.float64 else 1)
        return (4 + sampled) * self.policy.edges.n + 4 + 8 + state

    def forget_side_store(self) -> None:
        """Begin with an empty side store, in which all searches of the present replay buffer have found nothing."""
        self.real.side = None
        side, edges = self.real.side_of(self._buffer), self.policy.edges.n
        for position in range(self._buffer.size()):
            side.put(POLICY, position, np.full((self.n_envs, edges), 1 / edges, np.float32))
            side.put(VALUE, position, np.zeros(self.n_envs, np.float32))
            if not isinstance(self.action_space, spaces.Discrete):
                side.put(EDGES, position, np.zeros((self.n_envs, edges, self._buffer.action_dim), np.float32))
        self._restore_side({})

    def _update_once(self, batch_size: int) -> dict[str, th.Tensor]:
        drawn = self.replay.draw(batch_size, self.random.generator)
        if self.reanalyze_ratio > 0.0:
            self._reanalyze(drawn)
        stored, chance = self.value_bootstrap == "search", self.latent_model.chance is not None
        rows = self.replay.batch(drawn, self._target_value, stored_values=stored, action_values=chance)
        weights = th.as_tensor(drawn.weights, dtype=th.float32, device=self.device)
        self.update.n_updates = self._n_updates
        on_device = tree_map(lambda leaf: leaf.to(self.device), rows)
        states, metrics = self.update((on_device, weights), batch_size=batch_size, unroll_steps=self.unroll_steps)
        self.replay.update(drawn, states["value"], rows)
        self._n_updates += 1
        if self._n_updates % self.target_update_interval == 0:
            self.policy.target.load_state_dict(self.latent_model.state_dict())
        return metrics

    def _losses(
        self, rows: Sequences, weights: th.Tensor, generator: th.Generator | None
    ) -> tuple[th.Tensor, State, dict[str, th.Tensor]]:
        """Compute the loss of a batch of windows, the predicted values of their first states, and metrics."""
        loss = self.latent_model.loss(rows, generator=generator)
        terms = {f"train/{name}_loss": value.detach().mean() for name, value in loss.rows.items()}
        metrics = {f"model/{name}": value for name, value in loss.metrics.items()}
        return loss.total(weights), loss.states, {**terms, **metrics}

    @th.no_grad()
    def _target_value(self, obs: Obs) -> np.ndarray:
        """Compute the values of raw observations by the target network, ``(N,)``."""
        target = self.policy.target
        return target.output.mean(target.predictions(target.initial(obs)["latent"])[1]).cpu().numpy()

    def _reanalyze(self, drawn: Drawn) -> None:
        """Search the states of some of the windows again, with the target network, and store the results."""
        n = round(self.reanalyze_ratio * len(drawn.envs))
        positions, envs = drawn.places(self.unroll_steps + 1)
        places = np.unique(np.stack([positions[:n].ravel(), envs[:n].ravel()], 1), axis=0)
        if not len(places):
            return
        rows, owners = places.T
        side = self.real.side_of(self._buffer)
        mask = None
        if MASK in side.arrays:  # rows from before the environment had masks were searched with all actions
            stored = side.arrays[MASK][rows, owners]
            mask = th.as_tensor(stored | ~stored.any(1, keepdims=True))
        snapshot = None
        if self.policy.oracle is not None:
            if not side.written(SNAPSHOT)[rows].all():
                raise ValueError(
                    "The replay buffer holds steps without the states of the environment, which search_model='oracle' needs "
                    "to search them again: continue with load(..., reanalyze_ratio=0.0)"
                )
            snapshot = th.as_tensor(side.arrays[SNAPSHOT][rows, owners])
        with self.recorder.phase("reanalyze"):
            result = self.policy.search(
                self.replay.obs_at(rows, owners),
                action_mask=mask,
                num_simulations=self._simulations(),
                generator=self.random.generator,
                model=self.policy.target,
                snapshot=snapshot,
            )
        side.put_rows(POLICY, rows, owners, result.policy.astype(np.float32))
        side.put_rows(VALUE, rows, owners, result.value.astype(np.float32))
        side.put_rows(VERSION, rows, owners, np.full(len(rows), self._n_updates, np.int64))
        if (edges := self.policy.edges.stored(root_state(result))) is not None:
            side.put_rows(EDGES, rows, owners, edges)

    def learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 4,
        tb_log_name: str = "MuZero",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> Self:
        """Train as in SB3."""
        return super().learn(total_timesteps, callback, log_interval, tb_log_name, reset_num_timesteps, progress_bar)
