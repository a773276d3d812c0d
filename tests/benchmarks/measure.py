"""Interleaved timing: two candidates take turns in one process, so that whatever else the machine does meets both."""

import resource
import statistics
import time
from collections.abc import Callable
from typing import Any


def interleave(repeats: int, candidates: dict[str, Callable[[], float]]) -> dict[str, dict[str, float]]:
    """
    Time every candidate once per round, the order reversed from round to round; one round before that warms up.

    :param repeats: timed rounds
    :param candidates: by name; each does its work and returns how many units it did (batches, transitions, ...)
    :return: for each candidate the median ``per_second`` and ``cpu_us_per_unit`` (user processor time of all threads), and its
        spread ``per_second_quartiles``
    """
    names = list(candidates)
    rates: dict[str, list[float]] = {name: [] for name in names}
    user: dict[str, list[float]] = {name: [] for name in names}
    for candidate in candidates.values():
        candidate()
    for i in range(repeats):
        for name in names if i % 2 == 0 else reversed(names):
            cpu, start = resource.getrusage(resource.RUSAGE_SELF).ru_utime, time.perf_counter()
            units = candidates[name]()
            seconds = time.perf_counter() - start
            cpu = resource.getrusage(resource.RUSAGE_SELF).ru_utime - cpu
            rates[name].append(units / seconds)
            user[name].append(1e6 * cpu / units)
    return {name: _summary(rates[name], user[name]) for name in names}


def _summary(rates: list[float], user: list[float]) -> dict[str, Any]:
    low, median, high = statistics.quantiles(rates, n=4)
    return {
        "per_second": round(median, 2),
        "per_second_quartiles": [round(low, 2), round(high, 2)],
        "user_cpu_us_per_unit": round(statistics.median(user), 3),
        "rounds": rates,
    }


def ratio(results: dict[str, Any], ours: str, theirs: str) -> float:
    """Median over rounds of the ratio within a round: how many times faster ``ours`` is."""
    pairs = zip(results[ours]["rounds"], results[theirs]["rounds"], strict=True)
    return round(statistics.median(a / b for a, b in pairs), 3)
