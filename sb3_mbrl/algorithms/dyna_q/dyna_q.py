"""``DynaQ``: tabular Q-learning and planning on a tabular model."""

import math
from collections.abc import Iterable
from typing import Any, ClassVar, Self

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, PyTorchObs, Schedule
from stable_baselines3.common.utils import FloatSchedule

from sb3_mbrl.agent.agent import OffPolicyAgent
from sb3_mbrl.agent.settings import keyword_arguments
from sb3_mbrl.algorithms.dyna_q.planner import PLANNING, TabularPlanner
from sb3_mbrl.algorithms.dyna_q.planning import best
from sb3_mbrl.checks import number, whole
from sb3_mbrl.models.tabular.model import TabularModel
from sb3_mbrl.spaces import discrete_spaces, outside


class QTablePolicy(BasePolicy):
    """
    A policy that acts greedily on a table of action values.

    :param observation_space: ``Discrete``
    :param action_space: ``Discrete``
    :param lr_schedule: not used
    :param initial_value: the initial value of every entry
    """

    observation_space: spaces.Discrete
    action_space: spaces.Discrete
    q_values: th.Tensor
    """The action values, ``(S, A)``"""

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        lr_schedule: Schedule | None = None,
        initial_value: float = 0.0,
    ) -> None:
        if reason := discrete_spaces(observation_space, action_space):
            raise ValueError(f"DynaQ works on tables: {reason}. For other spaces there is Dyna.")
        super().__init__(observation_space, action_space)
        self.initial_value = number("initial_value", initial_value, -math.inf)
        shape = int(self.observation_space.n), int(self.action_space.n)
        self.register_buffer("q_values", th.full(shape, self.initial_value, dtype=th.float64))

    def table(self) -> np.ndarray:
        """Return the values as an array, which shares their memory."""
        return self.q_values.numpy()

    def checked(self, observation: Any) -> np.ndarray:
        """
        Return observations as an array of integers.

        :raises ValueError: for an observation outside the space, which has no row in the table
        """
        states = np.asarray(observation)
        kind = states.dtype.kind
        whole_numbers = kind in "iu" or (kind == "f" and bool((states == np.floor(states)).all()))
        if not whole_numbers or outside(self.observation_space, states.reshape(-1)).any():
            raise ValueError(f"The observation {observation} is not in {self.observation_space}")
        return states if kind in "iu" else states.astype(np.int64)

    def _predict(self, observation: PyTorchObs, deterministic: bool = False) -> th.Tensor:
        """Return the first of the best actions, or (not deterministic) one of them at random."""
        assert isinstance(observation, th.Tensor)
        values = self.q_values[observation.reshape(-1).long() - int(self.observation_space.start)]
        if not deterministic:
            values = th.rand_like(values).masked_fill(values < values.max(1, keepdim=True).values, -1.0)
        return values.argmax(1) + int(self.action_space.start)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return {**super()._get_constructor_parameters(), "initial_value": self.initial_value}


class DynaQ(OffPolicyAgent, OffPolicyAlgorithm):
    """
    An agent of tabular Dyna (Sutton and Barto 2018, chapter 8): after every real step it makes one update of Q-learning, one
    of the model, and ``gradient_steps`` planning updates on the model.

    For ``Discrete`` observations and actions: the book's mazes (:mod:`sb3_mbrl.envs.mazes`), FrozenLake, Taxi, CliffWalking.
    Saves, loads, predicts and evaluates like any class of Stable-Baselines3. The defaults are those of example 8.1.

    :param policy: ``"QTablePolicy"``
    :param env: an environment with ``Discrete`` observations and actions
    :param learning_rate: the step size (the book's alpha), or a schedule of it
    :param gamma: the discount
    :param gradient_steps: the number of planning updates after a real step (the book's n); 0: Q-learning. For
        ``value_iteration``: the largest number of sweeps
    :param exploration_rate: the probability of a random action (epsilon), or a schedule of it
    :param planning: the method of planning: ``"dyna_q"`` (section 8.2), ``"dyna_q_plus"`` (8.3), ``"prioritized_sweeping"``
        (8.4) or ``"value_iteration"`` (4.4) until nothing changes by more than ``theta``
    :param kappa: the weight of the bonus of ``dyna_q_plus``, which is ``kappa * sqrt(real steps since the pair was tried)``
    :param theta: the threshold below which ``prioritized_sweeping`` queues no errors and ``value_iteration`` ends
    :param world_model: ``"tabular"``, or ``None``: Q-learning
    :param world_model_kwargs: keyword arguments for :class:`~sb3_mbrl.models.tabular.TabularModel`: ``{"memory": 0.0}`` for a
        world that changes
    :param buffer_size: the number of real transitions that are kept for ``save_replay_buffer``; planning does not use them
    :param learning_starts: the number of real steps with random actions at the beginning, without planning
    :param train_freq: as in SB3
    :param replay_buffer_class: as in SB3
    :param replay_buffer_kwargs: as in SB3
    :param stats_window_size: as in SB3
    :param tensorboard_log: as in SB3
    :param policy_kwargs: keyword arguments for the policy: ``{"initial_value": 1.0}`` for optimistic values
    :param verbose: as in SB3
    :param seed: as in SB3
    :param device: not used: tables are on the CPU
    :param _init_setup_model: as in SB3
    :param plugins: plugins for this agent alone: modules or objects with hooks
    :raises ValueError: for other spaces or settings out of range
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {"QTablePolicy": QTablePolicy}
    fits_model = False
    object_names = (*OffPolicyAgent.object_names, "tabular")
    model_free_class = OffPolicyAlgorithm
    policy: QTablePolicy
    tabular: TabularPlanner

    def __init__(
        self,
        policy: str | type[QTablePolicy],
        env: GymEnv | str,
        learning_rate: float | Schedule = 0.1,
        gamma: float = 0.95,
        gradient_steps: int = 5,
        exploration_rate: float | Schedule = 0.1,
        planning: str = "dyna_q",
        kappa: float = 1e-3,
        theta: float = 1e-4,
        world_model: str | None = "tabular",
        world_model_kwargs: dict[str, Any] | None = None,
        buffer_size: int = 10_000,
        learning_starts: int = 0,
        train_freq: int | tuple[int, str] = 1,
        replay_buffer_class: type[ReplayBuffer] | None = None,
        replay_buffer_kwargs: dict[str, Any] | None = None,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: th.device | str = "cpu",
        _init_setup_model: bool = True,
        *,
        plugins: Iterable[Any] | None = None,
    ) -> None:
        if isinstance(policy, str) and policy not in self.policy_aliases:
            raise ValueError(f"policy={policy!r}: DynaQ acts on a table, DynaQ('QTablePolicy', env)")
        super().__init__(
            policy,
            env,
            learning_rate,
            buffer_size,
            learning_starts,
            batch_size=1,
            gamma=gamma,
            train_freq=train_freq,
            gradient_steps=gradient_steps,
            replay_buffer_class=replay_buffer_class,
            replay_buffer_kwargs=replay_buffer_kwargs,
            policy_kwargs=keyword_arguments("policy_kwargs", policy_kwargs),
            stats_window_size=stats_window_size,
            tensorboard_log=tensorboard_log,
            verbose=verbose,
            device="cpu",
            seed=seed,
            sde_support=False,
            supported_action_spaces=(spaces.Discrete,),
            support_multi_env=True,
        )
        self.exploration_rate = exploration_rate
        self.planning, self.kappa, self.theta = planning, kappa, theta
        self.world_model_class, self.world_model_kwargs = world_model, world_model_kwargs
        self.reward_fn, self.termination_fn, self.plugins = None, None, plugins
        if _init_setup_model:
            self._setup_model()

    # ---- setup

    def _check_hyperparameters(self) -> None:
        super()._check_hyperparameters()
        if self.planning not in PLANNING:
            raise ValueError(f"planning={self.planning!r}: choose one of {', '.join(PLANNING)}")
        whole("gradient_steps", self.gradient_steps, 0)
        number("gamma", self.gamma, 0.0, 1.0)
        number("kappa", self.kappa, 0.0)
        number("theta", self.theta, 0.0, open_low=True)
        if not callable(self.learning_rate):
            number("learning_rate", self.learning_rate, 0.0, 1.0)
        if not callable(self.exploration_rate):
            number("exploration_rate", self.exploration_rate, 0.0, 1.0)
        if self.world_model_class not in ("tabular", None):
            raise ValueError(f"world_model={self.world_model_class!r}: DynaQ plans on 'tabular', or not at all (None)")
        if unknown := set(self.world_model_kwargs) - {"memory"}:
            raise ValueError(f"world_model_kwargs={self.world_model_kwargs}: DynaQ's model takes memory, not {unknown}")

    def _build(self) -> None:
        self.exploration_schedule = FloatSchedule(self.exploration_rate)
        n_states, n_actions = self.policy.q_values.shape
        self.tabular = TabularPlanner(n_states * n_actions, self.planning, self.seed)

    @property
    def tabular_model(self) -> TabularModel | None:
        """The world model"""
        assert self.world_model is None or isinstance(self.world_model, TabularModel)  # ensured by _check_hyperparameters
        return self.world_model

    def set_random_seed(self, seed: int | None = None) -> None:
        """Set the seed as in SB3; the stream of exploration and planning restarts too."""
        super().set_random_seed(seed)
        if seed is not None and "tabular" in vars(self):
            self.tabular.restart(seed)

    @classmethod
    def load(cls, path: Any, *args: Any, **kwargs: Any) -> Self:
        """
        Load an agent as in SB3.

        :raises ValueError: for another world model than the saved one, or a file of another class
        """
        for name in ("world_model", "world_model_kwargs"):
            if name in kwargs:
                raise ValueError(f"load(..., {name}=...): the saved model goes with the table; start a new agent for another")
        return super().load(path, *args, **kwargs)

    def _checks_real_steps(self) -> bool:
        return True  # without a model too: a state outside the space has no row in the table

    # ---- acting

    def predict(
        self,
        observation: np.ndarray | dict[str, np.ndarray],
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
        **kwargs: Any,
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...] | None]:
        """Choose actions as in SB3. Not deterministic: epsilon-greedy for each observation, ties broken at random."""
        if kwargs:  # OffPolicyAgent's predict hands them to policies that take them; a table takes none
            raise TypeError(f"DynaQ.predict takes no {', '.join(kwargs)}: leave it out")
        if deterministic:
            return self.policy.predict(self.policy.checked(observation), state, episode_start, deterministic)
        assert isinstance(self.observation_space, spaces.Discrete)
        assert isinstance(self.action_space, spaces.Discrete)
        observation = self.policy.checked(observation)
        values = self.policy.table()[observation.reshape(-1) - int(self.observation_space.start)]
        # Drawn from a private stream, so that a loaded agent continues it.
        rng = self.tabular.rng
        ties = rng.random(values.shape) - (values < values.max(1, keepdims=True))
        rate = self.exploration_schedule(self._current_progress_remaining)
        explores = rng.random(len(values)) < rate
        other = rng.integers(self.action_space.n, size=len(values))
        action = np.where(explores, other, ties.argmax(1)) + int(self.action_space.start)
        return action.reshape(observation.shape), state

    # ---- learning

    def _store_transition(
        self, replay_buffer: Any, buffer_action: np.ndarray, new_obs: Any, reward: np.ndarray, dones: np.ndarray, infos: list
    ) -> None:
        """Store real transitions, learn from them by Q-learning (section 6.5), and let the model count them."""
        before: Any = self._last_obs
        super()._store_transition(replay_buffer, buffer_action, new_obs, reward, dones, infos)
        self.tabular.clock += len(dones)
        table, alpha, model = self.policy.table(), self.lr_schedule(self._current_progress_remaining), self.tabular_model
        states, actions, next_states = np.ravel(before), np.ravel(buffer_action), np.ravel(new_obs)
        errors = []
        for i, done in enumerate(dones):
            following = infos[i].get("terminal_observation", next_states[i]) if done else next_states[i]
            terminal = bool(done) and not infos[i].get("TimeLimit.truncated", False)
            step = self._indices(states[i], actions[i], following)
            errors.append(self._learn_from(table, model, alpha, *step, float(reward[i]), terminal))
        self._n_updates += len(errors)
        self.recorder.record("train/td_error", sum(errors) / len(errors))

    def _indices(self, state: Any, action: Any, following: Any) -> tuple[int, int, int]:
        """Convert state, action and next state to rows and columns of the table."""
        assert isinstance(self.observation_space, spaces.Discrete)
        assert isinstance(self.action_space, spaces.Discrete)
        first = int(self.observation_space.start)
        return int(state) - first, int(action) - int(self.action_space.start), int(following) - first

    def _learn_from(
        self,
        table: np.ndarray,
        model: TabularModel | None,
        alpha: float,
        state: int,
        action: int,
        following: int,
        reward: float,
        terminal: bool,
    ) -> float:
        """
        Update the table, and the model, with one real transition.

        :param table: action values, ``(S, A)``; changed in place
        :param model: the model that counts the transition
        :param alpha: the step size
        :return: the size of the temporal-difference error
        """
        # Q(s, a) <- Q(s, a) + alpha [r + gamma max_a' Q(s', a') - Q(s, a)]
        target = reward + (0.0 if terminal else self.gamma * best(table, following))
        error = target - table[state, action]
        table[state, action] += alpha * error
        if model is not None:
            model.record(state, action, reward, following, terminal, self.tabular.clock)
            self.tabular.queue_errors(table, model.tables, state, action, self.gamma, self.theta)
        return abs(error)

    def train(self, gradient_steps: int, batch_size: int = 1) -> None:
        """
        Plan on the model.

        :param gradient_steps: the number of updates, or for value iteration the largest number of sweeps
        :param batch_size: not used
        """
        model = self.tabular_model
        if model is None:
            return
        self.registry.hook.sb3_mbrl_before_policy_update(agent=self, gradient_steps=gradient_steps, batch_size=batch_size)
        alpha = self.lr_schedule(self._current_progress_remaining)
        tables = model.tables
        self.tabular.plan(self.policy.table(), tables, gradient_steps, alpha, self.gamma, self.kappa, self.theta)
        self.recorder.record("train/learning_rate", alpha)
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        self.recorder.record("imagination/updates", self.tabular.n_backups)
        self.recorder.record("model/pairs", int(tables.n_tried.sum()))
        self.registry.hook.sb3_mbrl_after_policy_update(agent=self, gradient_steps=gradient_steps, batch_size=batch_size)

    def trial_update(self, batch_size: int) -> None:
        """Plan one update on the copy of a trial, whose model knows one transition."""
        model, table = self.tabular_model, self.policy.table()
        if model is None:
            return
        alpha = self.lr_schedule(1.0)
        if model.tables.sizes[1] == 0:
            self._learn_from(table, model, alpha, 0, 0, 0, 1.0, False)
        self.tabular.plan(table, model.tables, 1, alpha, self.gamma, self.kappa, self.theta)

    def learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 4,
        tb_log_name: str = "DynaQ",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> Self:
        """Train as in SB3."""
        return super().learn(total_timesteps, callback, log_interval, tb_log_name, reset_num_timesteps, progress_bar)
