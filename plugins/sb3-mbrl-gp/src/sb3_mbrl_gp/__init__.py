"""Gaussian processes as a world model, for data that is counted in hundreds of steps."""

from gymnasium import spaces
from sb3_mbrl import hookimpl
from sb3_mbrl.contracts import WorldModelSpec


def supports(observation_space: spaces.Space, action_space: spaces.Space) -> str | None:
    """Why the model does not take the spaces, or ``None`` where it does."""
    if not isinstance(observation_space, spaces.Box) or len(observation_space.shape) != 1:
        return f"it takes flat Box observations only, not {observation_space}"
    if not isinstance(action_space, (spaces.Box, spaces.Discrete)):
        return f"it takes Box and Discrete actions only, not {action_space}"
    return None


@hookimpl
def sb3_mbrl_world_models() -> list[WorldModelSpec]:
    return [
        WorldModelSpec(
            name="gp",
            factory="sb3_mbrl_gp.model:GPModel",  # GPyTorch is imported when somebody asks for it
            summary="exact Gaussian processes (GPyTorch)",
            supports=supports,
            contract=2,
        )
    ]
