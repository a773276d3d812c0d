"""The base class of world models that see vectors: codecs, states, and known functions that replace learned heads."""

import torch as th
from gymnasium import spaces

from sb3_mbrl.contracts import Obs, RewardFn, TerminationFn, UnsupportedSpace, WorldModel
from sb3_mbrl.spaces import ActionCodec, SpaceCodec, vector_spaces
from sb3_mbrl.trees import State, tree_map


class VectorModel(WorldModel):
    """
    A world model that sees observations and actions as vectors of numbers, with one-hot categories.

    Subclasses implement ``fit`` (or ``loss``) and ``step``. The state is ``{"obs": (B, D)}``, an encoded observation;
    subclasses with other states also override :meth:`initial` and :meth:`decode`.

    :param observation_space: ``Box`` (vector), ``Discrete``, ``MultiDiscrete``, ``MultiBinary`` or a ``Dict`` of these
    :param action_space: any action space that SB3 supports
    :param reward_fn: see :class:`~sb3_mbrl.contracts.WorldModel`
    :param termination_fn: see :class:`~sb3_mbrl.contracts.WorldModel`
    :param device: as in SB3
    :raises UnsupportedSpace: for other spaces, images among them
    """

    codec: SpaceCodec
    """The codec between observations and vectors ``(B, D)``"""
    action_codec: ActionCodec
    """The codec between scaled actions, actions in the environment's units, and vectors ``(B, A)``"""

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        *,
        reward_fn: RewardFn | None = None,
        termination_fn: TerminationFn | None = None,
        device: th.device | str = "auto",
    ) -> None:
        super().__init__(observation_space, action_space, reward_fn=reward_fn, termination_fn=termination_fn, device=device)
        if reason := vector_spaces(observation_space, action_space):
            raise UnsupportedSpace(f"{type(self).__name__} does not take these spaces: {reason}")
        self.codec, self.action_codec = SpaceCodec(observation_space), ActionCodec(action_space)

    def to_device(self, value: State) -> State:
        """Move nested tensors to the model's device."""
        return tree_map(lambda leaf: leaf.to(self.device), value)

    def inputs(self, obs: th.Tensor, action: th.Tensor) -> th.Tensor:
        """
        Join observations and actions to the inputs of a network.

        :param obs: encoded observations, ``(B, D)``
        :param action: scaled actions
        :return: ``(B, D + A)``
        """
        return th.cat([obs, self.action_codec.encode(action.to(obs.device))], dim=1)

    def known(
        self, obs: th.Tensor, action: th.Tensor, next_obs: th.Tensor, reward: th.Tensor, terminated: th.Tensor
    ) -> tuple[th.Tensor, th.Tensor]:
        """
        Replace predicted rewards and terminations by those of the known functions, if there are any.

        Known functions see decoded observations, and actions in the environment's units.

        :param obs: encoded observations, ``(B, D)``
        :param action: scaled actions
        :param next_obs: encoded next observations
        :param reward: the predicted rewards, ``(B,)``
        :param terminated: the predicted probabilities of termination, ``(B,)``
        """
        return self.with_known(
            lambda: (self.codec.decode(obs), self.action_codec.to_env(action), self.codec.decode(next_obs)), reward, terminated
        )

    def initial(self, obs: Obs, snapshot: th.Tensor | None = None) -> State:
        return {"obs": self.codec.encode(self.to_device(obs))}

    def decode(self, state: State) -> Obs:
        return self.codec.decode(state["obs"])
