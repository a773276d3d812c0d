"""
A decision by planning: mbrl-lib's PETS setting (``mbrl==0.2.0``, its continuous CartPole: 350 sequences of 15 steps, 20
particles, 5 iterations; 5 members of 3 x 200) on both libraries and as bare matrix products, and ``PETS``'s own budget for one
environment and for eight at a time.
"""

import math
from itertools import pairwise
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th

from sb3_mbrl import PETS
from sb3_mbrl.models.ensemble import EnsembleModel
from sb3_mbrl.models.particles import Particles
from sb3_mbrl.planners import CEM
from tests.benchmarks.measure import Work, Worker, interleave, ratio

POPULATION, PARTICLES, HORIZON, ITERATIONS, ELITE_RATIO, ALPHA = 350, 20, 15, 5, 0.1, 0.1
MEMBERS, HIDDEN, OBS, ACT = 5, [200] * 3, 4, 1
SPACES = gym.spaces.Box(-np.inf, np.inf, (OBS,)), gym.spaces.Box(-1, 1, (ACT,))
START = np.array([0.01, 0.02, -0.03, 0.01], dtype=np.float32)


def upright(obs: th.Tensor, action: th.Tensor, next_obs: th.Tensor) -> th.Tensor:
    return (next_obs[:, 2].abs() < 0.2095).float()


def fallen(obs: th.Tensor, action: th.Tensor, next_obs: th.Tensor) -> th.Tensor:
    return (next_obs[:, 0].abs() > 2.4) | (next_obs[:, 2].abs() > 0.2095)


def ours() -> Work:
    model = EnsembleModel(
        *SPACES, members=MEMBERS, elites=MEMBERS, hidden=HIDDEN, reward_fn=upright, termination_fn=fallen, device="cpu"
    )
    model.fitted = True
    particles = Particles(model, PARTICLES, "tsinf")
    planner = CEM(
        SPACES[1], horizon=HORIZON, population=POPULATION, iterations=ITERATIONS, elite_ratio=ELITE_RATIO, alpha=ALPHA
    )
    state, generator = particles.initial(th.as_tensor(START)[None]), th.Generator().manual_seed(0)
    carry: Any = None

    @th.no_grad()
    def decide() -> float:
        nonlocal carry
        carry = planner.plan(particles, state, carry, is_first=th.tensor([carry is None]), generator=generator).carry
        return 1.0

    return decide


def theirs() -> Work:
    """``conf/action_optimizer/cem.yaml`` and ``overrides/pets_cartpole.yaml``, with TSinf as ours."""
    import omegaconf
    from mbrl.models import GaussianMLP, ModelEnv, OneDTransitionRewardModel
    from mbrl.planning import TrajectoryOptimizerAgent

    network = GaussianMLP(
        in_size=OBS + ACT,
        out_size=OBS,
        device="cpu",
        num_layers=len(HIDDEN),
        ensemble_size=MEMBERS,
        hid_size=HIDDEN[0],
        propagation_method="fixed_model",
        activation_fn_cfg={"_target_": "torch.nn.SiLU"},
    )
    model = OneDTransitionRewardModel(network, target_is_delta=True, normalize=True, learned_rewards=False)
    env = gym.Env()
    env.observation_space, env.action_space = SPACES
    none = th.empty(0)
    model_env = ModelEnv(
        env,
        model,
        lambda action, next_obs: fallen(none, action, next_obs)[:, None],
        lambda action, next_obs: upright(none, action, next_obs)[:, None],
    )
    optimizer = omegaconf.OmegaConf.create(
        {
            "_target_": "mbrl.planning.CEMOptimizer",
            "num_iterations": ITERATIONS,
            "elite_ratio": ELITE_RATIO,
            "population_size": POPULATION,
            "alpha": ALPHA,
            "lower_bound": "???",
            "upper_bound": "???",
            "return_mean_elites": True,
            "device": "cpu",
        }
    )
    agent = TrajectoryOptimizerAgent(optimizer, [-1.0] * ACT, [1.0] * ACT, planning_horizon=HORIZON)
    agent.set_trajectory_eval_fn(
        lambda obs, sequences: model_env.evaluate_action_sequences(sequences, initial_state=obs, num_particles=PARTICLES)
    )

    def decide() -> float:
        agent.act(START)
        return 1.0

    return decide


def bare() -> Work:
    """The matrix products of the ensemble's networks and nothing else."""
    rows = math.ceil(POPULATION * PARTICLES / MEMBERS)
    layers = [
        (th.randn(MEMBERS, rows, fan_in), th.randn(MEMBERS, fan_in, fan_out))
        for fan_in, fan_out in pairwise([OBS + ACT, *HIDDEN, 2 * OBS])
    ]

    @th.no_grad()
    def products() -> float:
        for _ in range(ITERATIONS * HORIZON):
            for inputs, weights in layers:
                th.bmm(inputs, weights)
        return 1.0

    return products


def default(environments: int) -> Work:
    """A decision of ``PETS("MlpPolicy", env)`` for several environments in one batch; HalfCheetah's spaces."""
    from stable_baselines3.common.env_util import make_vec_env

    agent = PETS("MlpPolicy", make_vec_env("HalfCheetah-v5", environments), seed=0, device="cpu")
    assert agent.world_model is not None
    agent.world_model.fitted = True
    obs = np.random.default_rng(0).normal(size=(environments, 17)).astype(np.float32)
    state, first = None, np.ones(environments, dtype=bool)

    def decide() -> float:
        nonlocal state, first
        _, state = agent.predict(obs, state, first, deterministic=True)
        first = np.zeros(environments, dtype=bool)
        return 1.0

    return decide


def run(quick: bool = False) -> dict[str, Any]:
    """
    :param quick: few repeats, to see that everything runs
    """
    th.manual_seed(0)
    rounds = 3 if quick else 15
    pets = interleave(rounds, {"sb3_mbrl": Worker(ours), "mbrl": Worker(theirs), "limit": Worker(bare)})
    own = interleave(rounds, {"one": Worker(default, 1), "eight": Worker(default, 8)})
    return {
        "plan_pets": {**pets, "unit": "decisions", "ratio": ratio(pets, "sb3_mbrl", "mbrl"), "required": 1.5},
        "plan_default": {
            **own,
            "unit": "decisions (of eight environments: one)",
            "seconds": round(1 / own["one"]["per_second"], 4),
            "required_seconds_at_most": 0.2,
            "cost_of_eight": ratio(own, "one", "eight"),
            "required_cost_of_eight_at_most": 3.0,
        },
    }
