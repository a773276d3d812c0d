"""The schedule by which the imagination horizon grows with real experience."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any


@dataclass(frozen=True)
class HorizonSchedule:
    """
    A horizon that changes linearly between two points, rounded down: MBPO's ``[e0, e1, l0, l1]`` with steps instead of epochs.

    ``horizon(t) = start + floor((t - start_step) (end - start) / (end_step - start_step))`` between the two points.

    :param start_step: the number of real environment steps up to which the horizon is ``start``
    :param end_step: the number of real environment steps from which the horizon is ``end``
    :param start: the first horizon
    :param end: the last horizon
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
        # Integer division: a float division could give 2.9999999 at the step where the schedule reaches 3.
        return self.start + (done * (self.end - self.start)) // (self.end_step - self.start_step)

    @classmethod
    def parse(cls, horizon: "int | Sequence[int] | HorizonSchedule") -> "HorizonSchedule":
        """
        Read a schedule from a setting.

        :param horizon: a number, ``[start_step, end_step, start, end]``, or a schedule
        :raises ValueError: for anything else, such as fractions
        """
        if isinstance(horizon, cls):
            return horizon
        given = [0, 0, horizon, horizon] if isinstance(horizon, Real) else horizon
        # Whole floats are allowed: a file of settings may say 20e3.
        items = list(given) if isinstance(given, Iterable) else []
        numbers = [int(float(value)) for value in items if _whole(value)]
        if not len(numbers) == len(items) == 4:
            raise ValueError(f"horizon={horizon!r}: give a whole number, or four: [start_step, end_step, start, end]")
        return cls(*numbers)


def _whole(value: Any) -> bool:
    """Tell whether a value is a whole number, as an integer or a float."""
    return isinstance(value, Real) and not isinstance(value, bool) and float(value).is_integer()
