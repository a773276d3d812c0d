"""``mba``: longer rollouts of the policy that stay in replay (model-based acceleration, Gu et al. 2016, arXiv 1603.00748)."""

from collections.abc import Sequence
from typing import Any

from sb3_mbrl.imagination.branched import BranchedRollouts
from sb3_mbrl.imagination.schedule import HorizonSchedule


class ImaginedEpisodes(BranchedRollouts):
    """
    Long rollouts of the policy, which begin where recent real steps did, and whose rows stay for a long time, as those of
    real episodes do: on-policy data when they are made, and replay afterwards.

    In the paper ``horizon`` is 10, and the model is fitted locally to the last episodes. The arguments, other than these
    defaults, are those of :class:`~sb3_mbrl.imagination.BranchedRollouts`.

    :param horizon: the number of steps
    :param starts_per_step: the number of rollouts per real environment step
    :param freq: the number of real environment steps between two calls
    :param max_age: the number of real environment steps after which rows are forgotten
    :param starts: the states to begin in
    :param kwargs: keyword arguments of :class:`~sb3_mbrl.imagination.BranchedRollouts`
    """

    def __init__(
        self,
        horizon: int | Sequence[int] | HorizonSchedule = 10,
        starts_per_step: float = 5,
        freq: int = 250,
        max_age: int = 10_000,
        starts: Any = "recent",
        **kwargs: Any,
    ) -> None:
        super().__init__(horizon, starts_per_step, freq, max_age, starts=starts, **kwargs)
