"""
``python -m tests.conformance``: Stable-Baselines3's and sb3-contrib's own tests, unmodified, with our classes instead of
theirs. Fails when a test that passes for a base class fails for its model-based version.

The test files come from the source distributions of the installed versions. Every file that names an off-policy class is run
twice: as it is (the baseline), and with the names rebound by ``stand_ins.py``. Test ids are the same in both runs, so they can
be compared one by one. The baseline is kept in the cache folder and taken again when nothing has changed.
"""

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from collections import Counter
from importlib import metadata
from pathlib import Path
from xml.etree import ElementTree

HERE = Path(__file__).parent
CACHE = HERE.parents[1] / ".conformance"
RESULTS = HERE / "results.json"
SUITES = {"stable_baselines3": ("SAC", "TD3", "DDPG", "DQN"), "sb3_contrib": ("TQC", "CrossQ", "QRDQN")}
BASE, OURS = "base", "model-based"

COIN_FLIPS = re.compile(
    r"test_save_load(_policy)?\[.*CrossQ.*\]$|test_eval_success_logging$|test_fps_logger\[|test_infinite_horizon\[True-SAC\]$"
    r"|test_warn_buffer\[|test_no_resource_warning$"
)
"""
Tests that chance, or what else the machine is doing, decides for the base class too, and that are run again, up to five times
in all, from another seed where they name one. The frames per second that a logger tells have to lie in a narrow band around
those that an environment's sleep allows. CrossQ's BatchNorm counts batches in an integer, which the test replaces by a random
one of ten and then expects to have changed. Two ask what was learned from one seed: a success rate above one half
after a hundred updates of DQN; a value within 1 of 50 after 500 of SAC. The last two ask that there be no warning, and one of
them finds the log file that test_set_logger has left open, whichever runs when it is collected as garbage.
"""


def fetch(package: str) -> Path:
    """The folder of a distribution's tests, as they were published."""
    version = metadata.version(package)
    folder = CACHE / f"{package}-{version}"
    if not folder.is_dir():
        CACHE.mkdir(exist_ok=True)
        pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", ":all:", "--no-build-isolation"]
        subprocess.run([*pip, "--dest", str(CACHE), f"{package.replace('_', '-')}=={version}"], check=True)
        archive = next(CACHE.glob(f"{package}-{version}.tar.gz"))
        with tarfile.open(archive) as tar:
            inside = [member for member in tar.getmembers() if member.name.split("/")[1:2] == ["tests"]]
            tar.extractall(CACHE / "unpacked", inside, filter="data")
        shutil.move(CACHE / "unpacked" / f"{package}-{version}" / "tests", folder)
        shutil.rmtree(CACHE / "unpacked")
    shutil.copy(HERE / "stand_ins.py", folder / "conftest.py")
    return folder


def files(folder: Path, names: tuple[str, ...]) -> list[str]:
    """Every test file that names one of the classes."""
    word = re.compile(rf"\b({'|'.join(names)})\b")
    return sorted(path.name for path in folder.glob("test_*.py") if word.search(path.read_text(encoding="utf-8")))


def run(folder: Path, which: str, tests: list[str], workers: int, attempt: int = 0) -> dict[str, str]:
    """
    :param tests: files or ids
    :param attempt: added to the seeds that tests give
    :return: what came of every test: ``passed``, ``failed`` or ``skipped``
    """
    report = CACHE / f"{folder.name}-{which}.xml"
    environment = {**os.environ, "SB3_MBRL_CONFORMANCE": which, "SB3_MBRL_ATTEMPT": str(attempt), "OMP_NUM_THREADS": "1"}
    # Without our own pytest settings, which the folders above would bring in.
    alone = ["-c", os.devnull, f"--rootdir={folder}", "-p", "no:cacheprovider"]
    command = [sys.executable, "-m", "pytest", "-q", *alone, "-n", str(workers), f"--junitxml={report}"]
    report.unlink(missing_ok=True)
    subprocess.run([*command, *tests], cwd=folder, env=environment, check=False)
    if not report.exists():
        raise SystemExit(f"pytest wrote no report for {folder.name} ({which}): see its output above")
    outcomes = {}
    for case in ElementTree.parse(report).iter("testcase"):
        outcome = next((child.tag for child in case if child.tag in ("failure", "error", "skipped")), "passed")
        name = f"{case.get('classname', '').split('.')[-1]}.py::{case.get('name')}"
        outcomes[name] = {"failure": "failed", "error": "failed"}.get(outcome, outcome)
    return outcomes


def baseline(folder: Path, tests: list[str], workers: int) -> dict[str, str]:
    """Return the outcomes of the unchanged classes: from the cache if environment and files are those of the last time."""
    packages = sorted(f"{one.name}=={one.version}" for one in metadata.distributions())
    text = "\n".join([*packages, *((folder / name).read_text(encoding="utf-8") for name in tests)])
    digest = hashlib.sha256(text.encode()).hexdigest()
    kept = CACHE / f"{folder.name}-baseline.json"
    if kept.is_file():
        saved = json.loads(kept.read_text(encoding="utf-8"))
        if saved["digest"] == digest:
            return saved["outcomes"]
    outcomes = run(folder, BASE, tests, workers)
    kept.write_text(json.dumps({"digest": digest, "outcomes": outcomes}), encoding="utf-8")
    return outcomes


def compare(package: str, workers: int) -> tuple[dict[str, object], list[str]]:
    """
    :return: counts for the record, and the tests that pass for the base class only
    """
    folder = fetch(package)
    tests = files(folder, SUITES[package])
    before, ours = baseline(folder, tests, workers), run(folder, OURS, tests, workers)
    for attempt in range(1, 5):
        again = [name for name in _lost(before, ours) if COIN_FLIPS.search(name)]
        if not again:
            break
        ours |= run(folder, OURS, again, workers, attempt)
    lost = _lost(before, ours)
    counts = {
        "version": metadata.version(package),
        "files": len(tests),
        "base": dict(Counter(before.values())),
        "model_based": dict(Counter(ours.values())),
        "regressions": lost,
    }
    return counts, lost


def _lost(before: dict[str, str], ours: dict[str, str]) -> list[str]:
    return [name for name, outcome in before.items() if outcome == "passed" and ours.get(name) != "passed"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("packages", nargs="*", default=list(SUITES), help=", ".join(SUITES))
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--record", action="store_true", help=f"write the counts to {RESULTS.name}")
    args = parser.parse_args()
    counts, lost = {}, []
    for package in args.packages:
        counts[package], regressions = compare(package, args.workers)
        lost += [f"{package}: {name}" for name in regressions]
    print(json.dumps(counts, indent=1))
    if args.record:
        RESULTS.write_text(json.dumps(counts, indent=1) + "\n", encoding="utf-8")
    if lost:
        print("\nThese pass for the base class and fail for ours:", *lost, sep="\n  ")
        return 1
    print("No test that passes for a base class fails for ours.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
