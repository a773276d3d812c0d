"""Interleaved timing: the candidates take turns, so that whatever else the machine does meets all of them."""

import multiprocessing
import os
import resource
import statistics
import subprocess
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import torch as th

THREADS = 2

Work = Callable[[], float]
"""Does one turn's work and returns how many units that was (batches, transitions, ...)"""


class Turn(NamedTuple):
    units: float
    seconds: float
    user: float
    system: float
    """Processor time of all threads, outside and inside the kernel"""


class Worker:
    """
    Does its work in a process of its own. Two libraries in one process share the allocator's habits, and one profits from the
    memory that the other has left behind.

    :param make: builds the work, in the other process; importable
    :param args: its arguments
    """

    def __init__(self, make: Callable[..., Work], *args: Any) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, other_end = context.Pipe()
        self._process = context.Process(target=_work, args=(other_end, make, args), daemon=True)
        self._process.start()
        other_end.close()

    def __call__(self) -> Turn:
        self._pipe.send(True)
        return self._pipe.recv()

    def close(self) -> None:
        self._pipe.close()
        self._process.join()


class External:
    """
    Does its work with another interpreter, where another library lives: a line in, a line with a turn's units, seconds, user
    and system time out. The first line that it writes is its greeting.

    :param command: starts it
    :param environment: variables, in addition to ours
    """

    def __init__(self, command: list[str], environment: dict[str, str] | None = None) -> None:
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, **(environment or {})}
        )
        self.greeting = self._line()

    def _line(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self._process.args} ended without an answer; its own output says why")
        return line.strip()

    def __call__(self) -> Turn:
        assert self._process.stdin is not None
        self._process.stdin.write("go\n")
        self._process.stdin.flush()
        return Turn(*(float(part) for part in self._line().split()))

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def _work(pipe: Connection, make: Callable[..., Work], args: tuple[Any, ...]) -> None:
    th.set_num_threads(THREADS)
    work = make(*args)
    try:
        while pipe.recv():
            pipe.send(timed(work))
    except EOFError:
        return


def timed(work: Work) -> Turn:
    before, start = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    units = work()
    seconds, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF)
    return Turn(units, seconds, after.ru_utime - before.ru_utime, after.ru_stime - before.ru_stime)


def interleave(rounds: int, candidates: dict[str, Work | Worker | External]) -> dict[str, dict[str, Any]]:
    """
    Give every candidate a turn in every round, the order reversed from round to round; one round before that warms up.

    :param rounds: how many are counted
    :param candidates: by name
    :return: for each candidate the median ``per_second`` and its quartiles, the median processor time per unit and the rate of
        every round; and under ``others_share`` the share of the machine that other programs had meanwhile (median; 0 is quiet)
    """
    names = list(candidates)
    turns: dict[str, list[Turn]] = {name: [] for name in names}
    others = []
    for i in range(rounds + 1):
        busy, start = _busy_seconds(), time.perf_counter()
        used = 0.0
        for name in names if i % 2 == 0 else reversed(names):
            candidate = candidates[name]
            turn = candidate() if isinstance(candidate, (Worker, External)) else timed(candidate)
            used += turn.user + turn.system
            if i:
                turns[name].append(turn)
        if i and busy is not None:
            wall = (time.perf_counter() - start) * multiprocessing.cpu_count()
            others.append(max(0.0, (_busy_seconds() or 0.0) - busy - used) / wall)
    for candidate in candidates.values():
        if isinstance(candidate, (Worker, External)):
            candidate.close()
    results: dict[str, Any] = {name: _summary(turns[name]) for name in names}
    results["others_share"] = round(statistics.median(others), 3) if others else None
    return results


def _summary(turns: list[Turn]) -> dict[str, Any]:
    rates = [turn.units / turn.seconds for turn in turns]
    low, median, high = statistics.quantiles(rates, n=4)
    return {
        "per_second": round(median, 2),
        "per_second_quartiles": [round(low, 2), round(high, 2)],
        "user_cpu_us_per_unit": round(1e6 * statistics.median(turn.user / turn.units for turn in turns), 3),
        "system_cpu_us_per_unit": round(1e6 * statistics.median(turn.system / turn.units for turn in turns), 3),
        "rounds": [round(rate, 2) for rate in rates],
    }


def ratio(results: dict[str, Any], ours: str, theirs: str) -> float:
    """Median over rounds of the ratio within a round: how many times faster ``ours`` is."""
    pairs = zip(results[ours]["rounds"], results[theirs]["rounds"], strict=True)
    return round(statistics.median(a / b for a, b in pairs), 3)


def _busy_seconds() -> float | None:
    """Processor time that the whole machine has spent, where the system tells (Linux)."""
    try:
        with open("/proc/stat", encoding="ascii") as file:
            user, nice, system, _idle, _iowait, irq, softirq, *_ = (float(value) for value in file.readline().split()[1:])
    except FileNotFoundError:
        return None
    return (user + nice + system + irq + softirq) / 100
