"""How the horizon grows with real experience."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any


@dataclass(frozen=True)
class HorizonSchedule:
    """
    Linear between two points, rounded down: MBPO's ``[e0, e1, l0, l1]`` with steps in the place of epochs.

    :param start_step: real environment steps up to which the horizon is ``start``
    :param end_step: real environment steps from which on it is ``end``
    :param start: first horizon
    :param end: last horizon
    """

    start_step: int
    end_step: int
    start: int
    end: int

    def __post_init__(self) -> None:
        if self.start < 1 or self.end < 1 or self.end_step < self.start_step:
            raise ValueError(f"{self}: horizons must be at least 1, and end_step not before start_step")

    def __call__(self, num_timesteps: int) -> int:
        if num_timesteps <= self.start_step:
            return self.start
        if num_timesteps >= self.end_step:
            return self.end
        done = num_timesteps - self.start_step
        # In integers: floats would turn 2.9999999 into 2 at the very step where the schedule reaches 3.
        return self.start + (done * (self.end - self.start)) // (self.end_step - self.start_step)

    @classmethod
    def parse(cls, horizon: "int | Sequence[int] | HorizonSchedule") -> "HorizonSchedule":
        """
        :param horizon: a number, ``[start_step, end_step, start, end]``, or a schedule
        :raises ValueError: for anything else, fractions among them
        """
        if isinstance(horizon, cls):
            return horizon
        given = [0, 0, horizon, horizon] if isinstance(horizon, Real) else horizon
        # Whole floats pass: a file of settings may say 20e3.
        items = list(given) if isinstance(given, Iterable) else []
        numbers = [int(float(value)) for value in items if _whole(value)]
        if not len(numbers) == len(items) == 4:
            raise ValueError(f"horizon={horizon!r}: give a whole number, or four: [start_step, end_step, start, end]")
        return cls(*numbers)


def _whole(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and float(value).is_integer()
