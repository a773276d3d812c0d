"""``python -m tests.benchmarks``: every speed benchmark, candidates in turns, on two threads (``results.json``)."""

import argparse
import json
import platform
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import torch as th

from tests.benchmarks import (
    bench_dhmbpo,
    bench_dreamer,
    bench_mbpo,
    bench_planning,
    bench_search,
    bench_tabular,
    bench_world_model,
)

BENCHMARKS: dict[str, Callable[[bool], dict[str, Any]]] = {
    "mbpo": bench_mbpo.run,
    "dhmbpo": bench_dhmbpo.run,
    "world_model": bench_world_model.run,
    "planning": bench_planning.run,
    "dreamer": bench_dreamer.run,
    "tabular": bench_tabular.run,
    "search": bench_search.run,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "only", nargs="*", help=f"some of {', '.join(BENCHMARKS)} (default: all); other figures stay in the file"
    )
    parser.add_argument("--quick", action="store_true", help="few repeats")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("results.json"))
    arguments = parser.parse_args()
    th.set_num_threads(2)
    packages = ("torch", "stable-baselines3", "gymnasium", "numpy", "numba", "sb3-mbrl", "mbrl")
    results: dict[str, Any] = {}
    if arguments.only and arguments.output.exists():
        results = json.loads(arguments.output.read_text(encoding="utf-8"))
    results |= {
        "quick": arguments.quick,
        "threads": 2,
        "processor": _processor(),
        "versions": {name: _version(name) or results.get("versions", {}).get(name) for name in packages},
    }
    for name in arguments.only or BENCHMARKS:
        results |= BENCHMARKS[name](arguments.quick)
    arguments.output.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(json.dumps({key: value for key, value in results.items() if key != "versions"}, indent=1))


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    """The processor's name, where the system tells."""
    info = Path("/proc/cpuinfo")
    names = [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    return f"{names[0]}, {len(names)} cores" if names else platform.processor()


if __name__ == "__main__":
    main()
