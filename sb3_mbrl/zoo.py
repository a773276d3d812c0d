"""
rl-zoo3 with model-based algorithms: ``python -m sb3_mbrl.zoo train --algo mbpo --env Pendulum-v1``.

All arguments after ``train`` and ``enjoy`` are the zoo's own. Our algorithms are added to the zoo's tables; their settings
are in ``sb3_mbrl/hyperparams/*.yml``. Needs ``pip install "sb3-mbrl[zoo]"``.
"""

import importlib.util
import sys
from collections.abc import Callable, Sequence
from importlib import resources
from itertools import pairwise
from pathlib import Path
from typing import Any

from sb3_mbrl.algorithms.model_based import BY_NAME, model_based_by_name
from sb3_mbrl.contracts import AlgorithmSpec
from sb3_mbrl.plugins import get_registry


def algorithms() -> dict[str, Any]:
    """
    Collect our algorithms, those of plugins, and ``mb_td3`` and so on for the classes of SB3 and sb3-contrib.

    :return: the classes by their names in the zoo
    """
    registry = get_registry()
    registered = {spec.name: registry.resolve("algorithm", spec.name).factory for spec in registry.specs("algorithm")}
    return {**registered, **{name: model_based_by_name(name) for name in BY_NAME}}


def bases() -> dict[str, str]:
    """
    List the model-free classes that our algorithms stand in for.

    :return: the zoo's names of these classes by the zoo's names of our algorithms, e.g. ``{"mbpo": "sac", ...}``
    """
    specs = get_registry().specs("algorithm")
    registered = {spec.name: spec.base for spec in specs if isinstance(spec, AlgorithmSpec) and spec.base}
    return {name: base.lower() for name, base in {**registered, **BY_NAME}.items()}


OWN_PARAMETERS = ("imagination_horizon", "imagination_exploration", "update_factor", "real_ratio", "fit_freq")
"""The parameters of a trial that concern the model"""


def sampler(base: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    """
    Add the model's parameters to Optuna's search space of a model-free class.

    :param base: the zoo's sampler for the model-free class
    :return: a sampler for the model-based class
    """

    def sample(trial: Any, n_actions: int, n_envs: int, additional_args: dict[str, Any]) -> dict[str, Any]:
        hyperparams = base(trial, n_actions, n_envs, additional_args)
        trial.suggest_int("imagination_horizon", 1, 10)
        trial.suggest_categorical("imagination_exploration", [0.0, 0.2, 0.5])
        trial.suggest_categorical("update_factor", [1, 5, 10, 20])
        trial.suggest_categorical("real_ratio", [0.05, 0.2, 0.5, 0.8])
        trial.suggest_categorical("fit_freq", [50, 125, 250, 500])
        return _with_model(hyperparams, dict(trial.params))

    return sample


def converter(base: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    """
    Add the model's arguments to the conversion of a finished trial, as :func:`sampler` added them to the trial.

    :param base: the zoo's converter for the model-free class
    :return: a function from the parameters of a trial to the arguments of the constructor
    """

    def convert(params: dict[str, Any]) -> dict[str, Any]:
        rest = dict(params)
        own = {name: rest.pop(name) for name in OWN_PARAMETERS}
        return _with_model(base(rest), own)

    return convert


def _with_model(hyperparams: dict[str, Any], params: dict[str, Any]) -> dict[str, Any]:
    """
    Turn the model's parameters of a trial into arguments of the constructor.

    :param hyperparams: the arguments of the base class, with which it makes about one update per real step
    :param params: the parameters of the trial
    :return: the arguments of the model-based class
    """
    horizon = params["imagination_horizon"]
    return {
        **hyperparams,
        "gradient_steps": hyperparams.get("gradient_steps", 1) * params["update_factor"],
        "real_ratio": params["real_ratio"],
        "fit_freq": params["fit_freq"],
        "imagination_kwargs": {
            "horizon": horizon,
            # rows per step = starts per step * horizon = about 200 for every horizon
            "starts_per_step": max(1, 200 // horizon),
            "exploration": params["imagination_exploration"],
        },
    }


def register() -> None:
    """Add our algorithms and search spaces to the zoo's tables."""
    from rl_zoo3 import hyperparams_opt
    from rl_zoo3.utils import ALGOS

    ALGOS.update(algorithms())
    for name, base in bases().items():
        if base not in hyperparams_opt.HYPERPARAMS_SAMPLER:
            continue  # the zoo has no search space for this class
        hyperparams_opt.HYPERPARAMS_SAMPLER[name] = sampler(hyperparams_opt.HYPERPARAMS_SAMPLER[base])
        hyperparams_opt.HYPERPARAMS_CONVERTER[name] = converter(hyperparams_opt.HYPERPARAMS_CONVERTER[base])


def with_settings(arguments: Sequence[str]) -> list[str]:
    """
    Add our file of settings to the zoo's arguments, if the algorithm is ours and no other file is given.

    :param arguments: the zoo's arguments, its command first
    :return: the arguments, with ``--conf-file`` where needed
    :raises SystemExit: for an algorithm of ours without settings
    """
    result = list(arguments)
    if not result or result[0] != "train" or any(word.split("=")[0] in ("-conf", "--conf-file") for word in result):
        return result
    algo = next((after for word, after in pairwise(result) if word == "--algo"), "")
    algo = next((word.partition("=")[2] for word in result if word.startswith("--algo=")), algo)
    file = resources.files("sb3_mbrl") / "hyperparams" / f"{algo}.yml"
    if algo and file.is_file():
        return [*result, "--conf-file", str(file)]
    if base := bases().get(algo):
        import rl_zoo3

        # We have no settings for it: take the zoo's own for the base class.
        return [*result, "--conf-file", str(Path(rl_zoo3.__file__).parent / "hyperparams" / f"{base}.yml")]
    if algo in algorithms():
        raise SystemExit(
            f"There are no settings of {algo} in the package: give a file of your own, --conf-file my_{algo}.yml (in the "
            "format of the zoo's hyperparams/*.yml; our arguments go there too)"
        )
    return result


def main(argv: Sequence[str] | None = None) -> None:
    """
    Run the zoo's command line.

    :param argv: the zoo's command and its arguments (``None``: those of the process)
    """
    if importlib.util.find_spec("rl_zoo3") is None:
        raise SystemExit('rl-zoo3 is not installed: run `pip install "sb3-mbrl[zoo]"`')
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(__doc__)
        return
    register()
    before = sys.argv
    try:
        sys.argv = ["sb3_mbrl.zoo", *with_settings(arguments)[1:]]
        _command(arguments[0])()
    finally:
        sys.argv = before


def _command(name: str) -> Callable[[], Any]:
    # Not through rl_zoo3.cli, which imports the zoo's plots and with them packages that training does not need.
    if name == "train":
        from rl_zoo3.train import train

        return train
    if name == "enjoy":
        from rl_zoo3.enjoy import enjoy

        return enjoy
    raise SystemExit(f"{name!r}: there are train and enjoy; for the zoo's other commands run python -m rl_zoo3.cli {name}")


if __name__ == "__main__":
    main()
