"""The plugin's front door: what it offers. Imported at the first look-up of any name, so it imports nothing heavy itself."""

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
            name="template",
            factory="sb3_mbrl_template.model:FourierModel",  # imported when somebody asks for it
            summary="ridge regression on random Fourier features, in closed form",
            supports=supports,
            contract=2,
        )
    ]
