"""The library's own parts, registered through the same hooks as any plugin's."""

from gymnasium import spaces

from sb3_mbrl.contracts import (
    AlgorithmSpec,
    EnvFunctionsSpec,
    ImaginationSpec,
    PlannerSpec,
    Supports,
    UnsupportedSpace,
    WorldModelSpec,
)
from sb3_mbrl.envs.known_functions import ENV_FUNCTIONS
from sb3_mbrl.hookspecs import hookimpl
from sb3_mbrl.models.rssm.observations import Layout
from sb3_mbrl.spaces import (
    ActionCodec,
    continuous_actions,
    differentiable_spaces,
    discrete_actions,
    discrete_spaces,
    vector_spaces,
)


@hookimpl
def sb3_mbrl_algorithms() -> list[AlgorithmSpec]:
    return [
        AlgorithmSpec(
            name="mbpo",
            factory="sb3_mbrl.algorithms.mbpo:MBPO",
            summary="SAC on real and imagined transitions (Janner et al. 2019)",
            base="SAC",
        ),
        AlgorithmSpec(
            name="dhmbpo",
            factory="sb3_mbrl.algorithms.dhmbpo.dhmbpo:DHMBPO",
            summary="SAC through the gradient of a world model, from states that its rollouts have visited (2025)",
            base="SAC",
        ),
        AlgorithmSpec(
            name="svg",
            factory="sb3_mbrl.algorithms.dhmbpo.dhmbpo:SVG",
            summary="SAC through the gradient of a world model, from real states (Heess et al. 2015, Amos et al. 2021)",
            base="SAC",
        ),
        AlgorithmSpec(
            name="dyna",
            factory="sb3_mbrl.algorithms.dyna:Dyna",
            summary="DQN on real and imagined transitions (after Sutton 1991)",
            base="DQN",
        ),
        AlgorithmSpec(
            name="pets",
            factory="sb3_mbrl.algorithms.pets:PETS",
            summary="planning in a probabilistic ensemble (Chua et al. 2018)",
        ),
        AlgorithmSpec(
            name="dreamer_v3",
            factory="sb3_mbrl.algorithms.dreamer.v3:DreamerV3",
            summary="actor and critic in the imagination of a recurrent world model (Hafner et al. 2025)",
        ),
        AlgorithmSpec(
            name="muzero",
            factory="sb3_mbrl.algorithms.muzero.muzero:MuZero",
            summary="tree search in a learned value-equivalent model (Schrittwieser et al. 2020)",
        ),
        AlgorithmSpec(
            name="dyna_q",
            factory="sb3_mbrl.algorithms.dyna_q.dyna_q:DynaQ",
            summary="tabular Q-learning with planning: Dyna-Q, Dyna-Q+, prioritised sweeping, value iteration",
        ),
    ]


def _twin(name: str) -> Supports:
    """Make the ``supports`` of an analytic twin: it takes the spaces of its own environment only."""

    def supports(observation_space: spaces.Space, action_space: spaces.Space) -> str | None:
        # Imported only when a twin is asked for: like the factories below, it costs nothing before.
        from sb3_mbrl.models import analytic

        own = getattr(analytic, name).env_spaces
        return None if (observation_space, action_space) == own else f"it is for observations {own[0]} and actions {own[1]}"

    return supports


def _latent_spaces(observation_space: spaces.Space, action_space: spaces.Space) -> str | None:
    """``supports`` of an RSSM, which takes vectors, images with their channels first, and dictionaries of both."""
    try:
        Layout(observation_space)
        ActionCodec(action_space)
    except UnsupportedSpace as error:
        return str(error)
    return None


@hookimpl
def sb3_mbrl_world_models() -> list[WorldModelSpec]:
    return [
        WorldModelSpec(
            name="ensemble",
            factory="sb3_mbrl.models.ensemble:EnsembleModel",
            summary="bootstrapped Gaussian MLPs; elites are rolled out",
            supports=vector_spaces,
            auto_rank=100,
        ),
        WorldModelSpec(
            name="mlp",
            factory="sb3_mbrl.models.mlp:MLPModel",
            summary="one MLP, deterministic or Gaussian",
            supports=vector_spaces,
        ),
        WorldModelSpec(
            name="rssm",
            factory="sb3_mbrl.models.rssm:RSSM",
            summary="recurrent state-space model, for vectors and images (PlaNet, Dreamer)",
            supports=_latent_spaces,
        ),
        WorldModelSpec(
            name="muzero",
            factory="sb3_mbrl.models.muzero:MuZeroModel",
            summary="value-equivalent model of rewards, values and policies, without observations (MuZero)",
            supports=_latent_spaces,
        ),
        WorldModelSpec(
            name="tabular",
            factory="sb3_mbrl.models.tabular.model:TabularModel",
            summary="counted outcomes of Discrete observations and actions",
            supports=discrete_spaces,
        ),
        WorldModelSpec(
            name="oracle",
            factory="sb3_mbrl.models.oracle:OracleModel",
            summary="the true environment, by snapshots: an upper bound",
        ),
        WorldModelSpec(
            name="pendulum",
            factory="sb3_mbrl.models.analytic:PendulumModel",
            summary="exact differentiable twin of Pendulum-v1",
            supports=_twin("PendulumModel"),
        ),
        WorldModelSpec(
            name="cartpole",
            factory="sb3_mbrl.models.analytic:CartPoleModel",
            summary="exact differentiable twin of CartPole-v1",
            supports=_twin("CartPoleModel"),
        ),
        WorldModelSpec(
            name="cartpole-balance",
            factory="sb3_mbrl.models.analytic:CartPoleBalanceModel",
            summary="exact differentiable twin of CartPoleBalance-v0",
            supports=_twin("CartPoleBalanceModel"),
        ),
        WorldModelSpec(
            name="cartpole-swing-up",
            factory="sb3_mbrl.models.analytic:CartPoleSwingUpModel",
            summary="exact differentiable twin of CartPoleSwingUp-v0",
            supports=_twin("CartPoleSwingUpModel"),
        ),
    ]


@hookimpl
def sb3_mbrl_planners() -> list[PlannerSpec]:
    return [
        PlannerSpec(
            name="cem",
            factory="sb3_mbrl.planners.cem:CEM",
            summary="cross-entropy method, as in PETS",
        ),
        PlannerSpec(
            name="icem",
            factory="sb3_mbrl.planners.icem:ICEM",
            summary="cross-entropy method with coloured noise and reused elites",
        ),
        PlannerSpec(
            name="mppi",
            factory="sb3_mbrl.planners.mppi:MPPI",
            summary="path integral control: sequences weighted by the exponential of their return",
        ),
        PlannerSpec(
            name="random",
            factory="sb3_mbrl.planners.random_shooting:RandomShooting",
            summary="the best of many random sequences",
        ),
        PlannerSpec(
            name="gradient",
            factory="sb3_mbrl.planners.gradient:GradientPlanner",
            summary="gradient ascent through a differentiable model",
            supports=continuous_actions,
        ),
        PlannerSpec(
            name="ilqr",
            factory="sb3_mbrl.planners.ilqr:ILQR",
            summary="iterative linear-quadratic regulator, for differentiable models",
            supports=differentiable_spaces,
        ),
        PlannerSpec(
            name="mcts",
            factory="sb3_mbrl.planners.mcts:MCTS",
            summary="Monte Carlo tree search (Gumbel MuZero's or PUCT), for Discrete actions",
            supports=discrete_actions,
        ),
    ]


@hookimpl
def sb3_mbrl_imaginations() -> list[ImaginationSpec]:
    return [
        ImaginationSpec(
            name="branched",
            factory="sb3_mbrl.imagination.branched:BranchedRollouts",
            summary="short rollouts of the policy from real states",
        ),
        ImaginationSpec(
            name="macura",
            factory="sb3_mbrl.imagination.macura:TrustedRollouts",
            summary="rollouts that end where the members of the ensemble disagree (MACURA)",
        ),
        ImaginationSpec(
            name="infoprop",
            factory="sb3_mbrl.imagination.infoprop:InformedRollouts",
            summary="rollouts along what the members agree on, until too much information is lost (Infoprop)",
        ),
        ImaginationSpec(
            name="m2ac",
            factory="sb3_mbrl.imagination.m2ac:MaskedRollouts",
            summary="rollouts of which the steps with the least disagreement are kept (M2AC)",
        ),
        ImaginationSpec(
            name="mopo",
            factory="sb3_mbrl.imagination.mopo:PenalisedRollouts",
            summary="rollouts whose rewards are lowered where the model is uncertain (MOPO)",
        ),
        ImaginationSpec(
            name="wimle",
            factory="sb3_mbrl.imagination.wimle:ConfidentRollouts",
            summary="rollouts whose rows are weighted by the model's confidence (WIMLE)",
        ),
        ImaginationSpec(
            name="mba",
            factory="sb3_mbrl.imagination.mba:ImaginedEpisodes",
            summary="longer rollouts of the policy that stay in replay (model-based acceleration)",
        ),
        ImaginationSpec(
            name="mve",
            factory="sb3_mbrl.imagination.value_expansion:ValueExpansion",
            summary="targets of real rows that look several model steps ahead (MVE); stores nothing",
        ),
        ImaginationSpec(
            name="steve",
            factory="sb3_mbrl.imagination.steve:EnsembleValueExpansion",
            summary="targets of real rows over several horizons, weighted by agreement (STEVE); stores nothing",
        ),
    ]


@hookimpl
def sb3_mbrl_env_functions() -> list[EnvFunctionsSpec]:
    return list(ENV_FUNCTIONS)
