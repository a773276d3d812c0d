"""``DreamerV3``: one configuration for many domains (Hafner et al. 2025, Nature 640)."""

from collections.abc import Iterable
from typing import Any, Literal, Self

import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, Schedule

from sb3_mbrl.agent.cuda_graph import Compile
from sb3_mbrl.algorithms.dreamer.base import DreamerBase
from sb3_mbrl.algorithms.dreamer.losses import (
    Trajectories,
    actor_loss,
    by_step,
    critic_loss,
    evaluate,
    frozen,
    polyak_update,
    replayed_returns,
)
from sb3_mbrl.algorithms.dreamer.policy import DreamerPolicy
from sb3_mbrl.checks import number, whole
from sb3_mbrl.contracts import Timesteps
from sb3_mbrl.models.rssm.model import RSSM
from sb3_mbrl.networks.layers import chunks
from sb3_mbrl.trees import State, tree_map


class DreamerV3(DreamerBase):
    """
    An agent with a recurrent world model, and an actor and a critic that learn in its imagination alone. Everything is trained
    at once.

    ``docs/dreamer.md`` has every difference from the paper, and results. The defaults are for small problems on a CPU; the
    authors' values are given where they differ. ``DreamerV3.preset("size12m")`` and so on are the authors' sizes and settings.

    :param policy: ``"MlpPolicy"``, ``"CnnPolicy"`` or ``"MultiInputPolicy"``; the observation space decides what is built
    :param env: as in SB3
    :param learning_rate: the learning rate of world model, actor and critic; the authors': 4e-5, for all sizes and domains
    :param buffer_size: the number of real steps that are kept
    :param learning_starts: the number of real steps before the first update (``None``: those of one batch); the untrained
        actor, which is nearly uniform, acts meanwhile
    :param batch_size: the number of sequences in a batch; the authors': 16
    :param tau: the share of the critic that its slow copy takes over at each update
    :param gamma: the discount; 1 - 1/333 in the paper
    :param train_freq: as in SB3
    :param gradient_steps: as in SB3. The paper's train ratio is
        ``gradient_steps * batch_size * batch_length / (train_freq * n_envs)``
    :param action_noise: as in SB3, in addition to the actor's own
    :param replay_buffer_class: as in SB3; single steps only
    :param replay_buffer_kwargs: as in SB3
    :param optimize_memory_usage: not possible: it loses the last observations of episodes
    :param stats_window_size: as in SB3
    :param tensorboard_log: as in SB3
    :param policy_kwargs: keyword arguments for :class:`~sb3_mbrl.algorithms.dreamer.policy.DreamerPolicy`
    :param verbose: as in SB3
    :param seed: as in SB3
    :param device: as in SB3
    :param _init_setup_model: as in SB3
    :param size: the size of the networks: ``"tiny"``, or ``"size1m"`` to ``"size400m"``
    :param batch_length: the number of real steps in a sequence; the authors': 64
    :param horizon: the number of steps of imagination
    :param imagine_last: the number of last states of every sequence from which imagination starts (``None``: all, as in the
        authors' code)
    :param gae_lambda: the lambda of the lambda-returns
    :param ent_coef: the weight of the actor's entropy; the authors': 3e-4
    :param replay_value_scale: the weight of the critic's loss on real sequences, which trains the model too; the authors': 0.3
    :param actor_gradient: the actor's gradient: ``"reinforce"``, or ``"dynamics"``, back through the world model (``Box``
        actions only; V3 in 2023)
    :param online: whether every new step is part of a batch as soon as possible
    :param replay_context: whether sequences begin with the latent state that the agent had before them, instead of an empty
        one
    :param world_model: ``"rssm"``, or a subclass of it
    :param world_model_kwargs: keyword arguments for the world model's constructor (:class:`~sb3_mbrl.models.rssm.Settings`)
    :param optimizer_class: the optimiser of world model, actor and critic: ``"laprop"``, ``"adam"``, or a class
    :param optimizer_kwargs: keyword arguments for the optimiser's constructor, except the parameters and ``lr``; ``None``: 200
        steps of warm-up for ``"laprop"`` (the authors': 1,000), none for others
    :param behaviour_rate: the learning rate of actor and critic, relative to the world model's
    :param max_grad_norm: the largest norms of the world model's gradients, and of the actor's and the critic's each (``None``:
        no limit; :class:`~sb3_mbrl.optim.LaProp` clips by itself)
    :param compile: whether updates are captured as a CUDA graph (:mod:`~sb3_mbrl.agent.cuda_graph`); ``"auto"``: on a GPU, not
        on a CPU
    :param mixed_precision: whether updates compute matrix products in bfloat16; ``"auto"``: on a GPU that supports it
    :param plugins: plugins for this agent alone: modules or objects with hooks
    :raises ValueError: for a replay buffer without single steps, or one that is shorter than a sequence
    """

    preset_file = "dreamer_v3"

    def __init__(
        self,
        policy: str | type[DreamerPolicy],
        env: GymEnv | str,
        learning_rate: float | Schedule = 4e-4,
        buffer_size: int = 1_000_000,
        learning_starts: int | None = None,
        batch_size: int = 32,
        tau: float = 0.02,
        gamma: float = 1 - 1 / 333,
        train_freq: int | tuple[int, str] = 4,
        gradient_steps: int = 1,
        action_noise: ActionNoise | None = None,
        replay_buffer_class: type[ReplayBuffer] | None = None,
        replay_buffer_kwargs: dict[str, Any] | None = None,
        optimize_memory_usage: bool = False,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: th.device | str = "auto",
        _init_setup_model: bool = True,
        *,
        size: str = "tiny",
        batch_length: int = 32,
        horizon: int = 15,
        imagine_last: int | None = 8,
        gae_lambda: float = 0.95,
        ent_coef: float = 3e-3,
        replay_value_scale: float = 0.0,
        actor_gradient: str = "reinforce",
        online: bool = True,
        replay_context: bool = True,
        world_model: str | type[RSSM] | RSSM | Any = "rssm",
        world_model_kwargs: dict[str, Any] | None = None,
        optimizer_class: str | type[th.optim.Optimizer] = "laprop",
        optimizer_kwargs: dict[str, Any] | None = None,
        behaviour_rate: float = 1.0,
        max_grad_norm: tuple[float, float] | None = None,
        compile: Compile = "auto",
        mixed_precision: bool | Literal["auto"] = "auto",
        plugins: Iterable[Any] | None = None,
    ) -> None:
        if optimizer_kwargs is None and optimizer_class == "laprop":
            optimizer_kwargs = {"warmup": 200}
        super().__init__(
            policy,
            env,
            learning_rate,
            buffer_size,
            learning_starts,
            batch_size,
            gamma,
            train_freq,
            gradient_steps,
            tau=tau,
            action_noise=action_noise,
            replay_buffer_class=replay_buffer_class,
            replay_buffer_kwargs=replay_buffer_kwargs,
            optimize_memory_usage=optimize_memory_usage,
            stats_window_size=stats_window_size,
            tensorboard_log=tensorboard_log,
            policy_kwargs=policy_kwargs,
            verbose=verbose,
            seed=seed,
            device=device,
            size=size,
            batch_length=batch_length,
            online=online,
            replay_context=replay_context,
            world_model=world_model,
            world_model_kwargs=world_model_kwargs,
            optimizer_class=optimizer_class,
            optimizer_kwargs=optimizer_kwargs,
            behaviour_rate=behaviour_rate,
            max_grad_norm=max_grad_norm,
            compile=compile,
            mixed_precision=mixed_precision,
            plugins=plugins,
        )
        self.actor_gradient = actor_gradient
        self.horizon, self.imagine_last, self.gae_lambda = horizon, imagine_last, gae_lambda
        self.ent_coef, self.replay_value_scale = ent_coef, replay_value_scale
        if _init_setup_model:
            self._setup_model()

    def _check_hyperparameters(self) -> None:
        super()._check_hyperparameters()
        self.horizon = whole("horizon", self.horizon, 1)
        if self.imagine_last is not None:
            self.imagine_last = whole("imagine_last", self.imagine_last, 1)
        number("gae_lambda", self.gae_lambda, 0.0, 1.0)
        number("ent_coef", self.ent_coef, 0.0)
        number("replay_value_scale", self.replay_value_scale, 0.0)
        if self.actor_gradient not in ("reinforce", "dynamics"):
            raise ValueError(f"actor_gradient={self.actor_gradient!r}: choose 'reinforce' or 'dynamics'")
        if self.actor_gradient == "dynamics" and not isinstance(self.action_space, spaces.Box):
            raise ValueError(f"actor_gradient='dynamics' needs Box actions, not {self.action_space}: choose 'reinforce'")

    # ------------------------------------------------------------------------------------------------ losses

    def _losses(
        self, rows: Timesteps, start: State | None, generator: th.Generator | None
    ) -> tuple[th.Tensor, State, dict[str, th.Tensor]]:
        model, policy = self.latent_model, self.policy
        # World model learning (equation 4 of the paper): reconstruction, reward, continuation and divergence.
        model_loss = model.loss(rows, start, generator=generator)
        states = model_loss.states
        # Actor and critic learn from imagination, which starts from the last states of every sequence.
        last = min(self.imagine_last or self.batch_length, self.batch_length)
        imagined, actor_outs, critic_outs = self._imagine(states, last, generator)
        dynamics = self.actor_gradient == "dynamics"
        actor, entropy = actor_loss(policy.actor.output, actor_outs, imagined, self.ent_coef, dynamics)
        # The critic learns from all imagined states but the last. Its outputs are in the order of steps, hence the transposes.
        imagined = Trajectories(*(value.detach() for value in imagined))
        critic = imagined.weight * self._critic_loss(by_step(imagined.features)[:-1], critic_outs, imagined.returns.T).T
        total = model_loss.total() + actor.mean() + critic.mean()
        metrics = {
            **{
                f"model/{name}_loss": value.detach().mean()
                for name, value in {**model_loss.rows, **model_loss.scalars}.items()
            },
            **{f"model/{name}": value for name, value in model_loss.metrics.items()},
            "train/actor_loss": actor.detach().mean(),
            "train/critic_loss": critic.detach().mean(),
            "train/entropy": entropy.detach().mean(),
            "train/return_low": policy.return_scale.low,
            "train/return_high": policy.return_scale.high,
            "imagination/return": imagined.returns.mean(),
            "imagination/advantage": imagined.advantage.abs().mean(),
            "imagination/weight": imagined.weight.mean(),
        }
        if self.replay_value_scale and last > 1:
            replay_value = self._replay_value_loss(rows, states, imagined, last).mean()
            total = total + self.replay_value_scale * replay_value
            metrics["train/replay_value_loss"] = replay_value.detach()
        return total, states, metrics

    def _imagine(
        self, states: State, last: int, generator: th.Generator | None
    ) -> tuple[Trajectories, list[th.Tensor], list[th.Tensor]]:
        """
        Imagine from the last states of every sequence.

        :param states: the latent states of the batch, ``(B, T, ...)``
        :param last: the number of last states
        :return: trajectories, and the actor's and the critic's outputs for all their states but the last, step by step and
            chunk by chunk, through which they learn
        """
        model, policy = self.latent_model, self.policy
        start = tree_map(lambda leaf: leaf[:, -last:].flatten(0, 1).detach(), states)
        pathwise = self.actor_gradient == "dynamics"
        draw = policy.actor.output.rsample if pathwise else policy.actor.output.sample

        # Plainly: the actor's outputs are computed again after the rollout, with gradients. On a CPU they are computed once,
        # during the rollout; on a GPU a second time, in one piece, which is faster there.
        once, actor_outs = self.device.type == "cpu" and not pathwise, list[th.Tensor]()

        def act(features: th.Tensor) -> th.Tensor:
            if not once:
                return draw(policy.actor(features.detach()), generator)
            with th.enable_grad():
                actor_outs.append(policy.actor(features))
            return draw(actor_outs[-1].detach(), generator)

        # Modules that learn nothing here are frozen: autocast would otherwise cache copies of their weights without gradients.
        fixed = (model, policy.critic) if pathwise or once else (model, policy.critic, policy.actor)
        with th.set_grad_enabled(pathwise), frozen(*fixed):
            dream = model.imagine(start, act, self.horizon, generator=generator)
            value = policy.critic.mean(dream.features) if pathwise else None
        features = by_step(dream.features).detach()
        if not once:
            actor_outs = [policy.actor(rows) for rows in chunks(features[:-1])]
        critic_outs = [policy.critic(rows) for rows in chunks(features[:-1])]
        if value is None:
            with th.no_grad():
                means = [policy.critic.output.mean(out) for out in critic_outs]
                value = th.cat([*means, policy.critic.mean(features[-1])]).view(features.shape[:-1]).T
        imagined = evaluate(
            dream.features, dream.action, dream.reward, dream.discount, value, self.gae_lambda, policy.return_scale
        )
        return imagined, actor_outs, critic_outs

    def _critic_loss(self, features: th.Tensor, outs: list[th.Tensor], returns: th.Tensor) -> th.Tensor:
        """
        Compute the critic's loss towards returns, and towards its slow copy.

        :param features: the features of states, ``(..., F)``
        :param outs: the critic's outputs for these states, chunk by chunk
        :param returns: the returns, ``(...)``
        """
        with th.no_grad():
            slow_value = self.policy.slow_critic.mean(features)
        return critic_loss(self.policy.critic.output, outs, returns, slow_value)

    def _replay_value_loss(self, rows: Timesteps, states: State, imagined: Trajectories, last: int) -> th.Tensor:
        """
        Compute the critic's loss on real rewards, bootstrapped with imagined returns. Its gradients train the world model too.

        :param rows: the sequences of the batch, ``(B, T, ...)``
        :param states: the latent states of the batch, with gradients
        :param imagined: the trajectories imagined from the last states
        :param last: the number of last states
        """
        reward, terminated, is_last = (part[:, -last:] for part in (rows.reward, rows.terminated, rows.is_last))
        boot = imagined.returns[:, 0].view(reward.shape)
        returns = replayed_returns(reward, terminated, is_last, boot, self.gamma, self.gae_lambda)
        flat = self.latent_model.features(tree_map(lambda leaf: leaf.flatten(0, 1), states))
        features = flat.view(*rows.reward.shape, -1)[:, -last:-1]
        outs = [self.policy.critic(part) for part in chunks(features)]
        return self._critic_loss(features, outs, returns) * ~is_last[:, :-1]

    def _after_update(self) -> None:
        polyak_update(self.policy.slow_critic, self.policy.critic, self.tau)

    def _memory_settings(self, batch_size: int) -> dict[str, Any]:
        return {"imagine_last": self.imagine_last, **super()._memory_settings(batch_size)}

    def learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 4,
        tb_log_name: str = "DreamerV3",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> Self:
        """Train as in SB3."""
        return super().learn(total_timesteps, callback, log_interval, tb_log_name, reset_num_timesteps, progress_bar)
