"""Commands, options and their help."""

import argparse
from collections.abc import Callable
from typing import Any

from sb3_mbrl.version import __version__

_EPILOG = """
examples:
  sb3-mbrl train --env Pendulum-v1                 train MBPO with the preset for Pendulum-v1
  sb3-mbrl train --env Pendulum-v1 --world-model none
                                                   the control: the same agent without its model
  sb3-mbrl evaluate runs/mbpo/Pendulum-v1_1        play 10 episodes with what was trained
  sb3-mbrl plot plan runs/mbpo/Pendulum-v1_1       what it expected, and what then happened
  sb3-mbrl plugins                                 what can be chosen by name
  sb3-mbrl check ensemble                          does a world model keep the contract?

Every command has its own help: sb3-mbrl train --help
"""

_TRAIN = """
Train a model-based agent on a Gymnasium environment.

Where there is a preset for the environment, its settings are used
(--no-preset: the algorithm's defaults); what you give on the command line comes
on top. Agent and replay buffer are saved at the end, and also when you press
Ctrl-C or the environment fails: --resume goes on from there. Only steps of the
real environment are counted.
"""

_TRAIN_EPILOG = """
examples:
  sb3-mbrl train --env Pendulum-v1
  sb3-mbrl train --env Hopper-v5 --steps 20000 --set gradient_steps=10 \\
      --eval-every 1000 --tensorboard tb
  sb3-mbrl train --env Pendulum-v1 --world-model none
  sb3-mbrl train --env Pendulum-v1 --world-model-kwargs members=3 elites=3
  sb3-mbrl train --env Pendulum-v1 --imagination-kwargs horizon=3
  sb3-mbrl train --algo pets --env CartPoleSwingUp-v0 --planner-kwargs horizon=25
  sb3-mbrl train --env my_package:MyEnv-v0 --env-kwargs size=5 --steps 5000 \\
      --plugin my_package.my_model --world-model my_model
  sb3-mbrl train --resume --output runs/mbpo/Pendulum-v1_1 --steps 5000

what a run leaves in its folder:
  model.zip          the agent: MBPO.load("model.zip")
  replay_buffer.pkl  its real transitions: agent.load_replay_buffer(...)
  progress.csv       everything that was logged; model/vs_trivial below 1: the
                     world model is better than a trivial predictor
  run.json           environment and arguments, for evaluate and --resume
  best_model.zip, evaluations.npz
                     with --eval-every
"""

_EVALUATE = """
Play episodes with a saved agent and print what it earned. Actions are
deterministic (the policy's mean); rewards are the environment's own.
"""

_EVALUATE_EPILOG = """
examples:
  sb3-mbrl evaluate runs/mbpo/Pendulum-v1_1
  sb3-mbrl evaluate runs/mbpo/Pendulum-v1_1/best_model.zip --episodes 50
  sb3-mbrl evaluate agent.zip --env Hopper-v5 --render
"""

_PLOT = """
Draw pictures of a saved agent.
"""

_PLOT_EPILOG = """
examples:
  sb3-mbrl plot plan runs/pets/Pendulum-v1_1
  sb3-mbrl plot dream runs/dreamer_v3/CartPole-v1_1
"""

_PLOT_DREAM = """
Does it remember? Play one episode and let the world model see its beginning;
of the rest it is told only what was done. A GIF shows the truth, what the model
imagines and the error between them: images frame by frame (green: seen, red:
imagined), numbers as curves.
"""

_PLOT_DREAM_EPILOG = """
examples:
  sb3-mbrl plot dream runs/dreamer_v3/CartPole-v1_1
  sb3-mbrl plot dream agent.zip --env CartPole-v1 --context 10 --horizon 90
"""

_PLOT_PLAN = """
Why does it fail? Play one episode and draw, from several moments on, what the
agent expected (many rollouts of its world model, and the band that holds 90 %
of them) against what then really happened.

An agent that plans carries each plan out to its end, so that imagination and
reality see the same actions: what differs is the model's error (--replan: it
acts as it always does). An agent with a policy follows that in both.
"""

_PLOT_PLAN_EPILOG = """
examples:
  sb3-mbrl plot plan runs/pets/Pendulum-v1_1
  sb3-mbrl plot plan runs/mbpo/Hopper-v5_1 --horizon 15 --moments 5 --columns 0 1
  sb3-mbrl plot plan agent.zip --algo pets --env Pendulum-v1 --output plan.svg

how to read it:
  the black line leaves the band        the model is too sure of itself there
  the band opens at once                the model knows little: more data, or a
                                        longer fit
  rewards above the black line          what is planned exploits the model: a
                                        known reward, more particles, a penalty
  (with --replan the black line may     it changed its mind: no error of the
  leave a good band)                    model)
"""

_PLUGINS = """
List every part that can be chosen by name: algorithms, world models, planners,
imaginations, and environments whose reward and termination are known.

statuses:
  ok        ready
  broken    could not be loaded, or written for another contract; see below it
  blocked   kept out by SB3_MBRL_PLUGINS or SB3_MBRL_BLOCK
  conflict  two plugins offer the name: write distribution:name
  replaced  by another plugin's part, on purpose
"""

_PLUGINS_EPILOG = """
examples:
  sb3-mbrl plugins
  sb3-mbrl plugins --verbose                 hooks of every plugin, tracebacks of broken ones
  sb3-mbrl plugins --plugin my_package.my_model
"""

_CHECK = """
Run the conformance kit (sb3_mbrl.testing) on a part: shapes, random streams,
members of the spaces, saving, learning, and more. Every check is one line; a
failed one says what is wrong. The exit code is 1 when one failed.
"""

_CHECK_EPILOG = """
examples:
  sb3-mbrl check ensemble
  sb3-mbrl check pendulum --env Pendulum-v1          a model made for one environment
  sb3-mbrl check my_package.my_model:MyModel --kwargs hidden=[64,64]
  sb3-mbrl check my_model --plugin my_package.my_plugin
  sb3-mbrl check branched --kind imagination
"""

_PAIRS: dict[str, Any] = {"nargs": "+", "action": "extend", "metavar": "KEY=VALUE"}


def build_parser() -> argparse.ArgumentParser:
    """The parser; the chosen command's function is ``args.run``."""
    parser = argparse.ArgumentParser(
        prog="sb3-mbrl",
        description="Model-based reinforcement learning for Stable-Baselines3.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"sb3-mbrl {__version__}")
    parser.set_defaults(command=None)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    _train(_command(commands, "train", "train an agent", _TRAIN, _TRAIN_EPILOG))
    _evaluate(_command(commands, "evaluate", "play episodes with a saved agent", _EVALUATE, _EVALUATE_EPILOG))
    _plot(_command(commands, "plot", "draw what an agent expects, and what then happens", _PLOT, _PLOT_EPILOG))
    _plugins(_command(commands, "plugins", "list what can be chosen by name", _PLUGINS, _PLUGINS_EPILOG))
    _check(_command(commands, "check", "run the conformance kit on a part", _CHECK, _CHECK_EPILOG))
    return parser


def _command(
    commands: Any, name: str, summary: str, description: str, epilog: str, within: str = ""
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=summary,
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.set_defaults(command=within + name, run=_runner(within + name))
    parser.add_argument("--traceback", action="store_true", help="show where an error came from")
    parser.add_argument(
        "--plugin", nargs="+", action="extend", metavar="MODULE", help="load these plugins too (modules that can be imported)"
    )
    return parser


def _runner(name: str) -> Callable[[argparse.Namespace], int]:
    def run(args: argparse.Namespace) -> int:
        from sb3_mbrl.cli import listing, playing, training

        return {
            "train": training.train,
            "evaluate": playing.evaluate,
            "plot plan": playing.plot_plan,
            "plot dream": playing.plot_dream,
            "plugins": listing.list_plugins,
            "check": listing.check,
        }[name](args)

    return run


def _train(parser: argparse.ArgumentParser) -> None:
    what = parser.add_argument_group("what to train")
    what.add_argument(
        "--algo",
        help="mbpo (default), dyna, dyna_q, pets, dreamer_v3, a plug-in; mb_td3, mb_tqc, ...: model_based(TD3) and so on",
    )
    what.add_argument("--env", metavar="ID", help="Gymnasium id; package:Id-v0 imports the package that registers it")
    what.add_argument("--env-kwargs", **_PAIRS, help="arguments of gymnasium.make")
    what.add_argument("--n-envs", type=int, metavar="N", help="environments side by side (default: 1)")
    what.add_argument("--steps", type=int, metavar="N", help="real environment steps in all (default: the preset's)")
    what.add_argument("--seed", type=int, help="same seed, same run (default: 0)")
    what.add_argument("--device", default="auto", help="cpu, cuda or auto (default)")

    how = parser.add_argument_group("settings")
    how.add_argument(
        "--preset",
        nargs="?",
        const=True,
        metavar="NAME",
        help="use the preset for this environment (default: where there is one), or that of another name, e.g. published",
    )
    how.add_argument("--no-preset", dest="preset", action="store_const", const=False, help="the algorithm's defaults")
    how.add_argument(
        "--set", **_PAIRS, help="arguments of the algorithm's constructor, e.g. gradient_steps=20 learning_rate=1e-3"
    )
    how.add_argument("--world-model", metavar="NAME", help="see `sb3-mbrl plugins`; package.module:Class; none: off")
    how.add_argument("--world-model-kwargs", **_PAIRS, help="arguments of the world model, on top of the preset's")
    how.add_argument("--imagination-kwargs", **_PAIRS, help="arguments of the imagination, e.g. horizon=3 max_age=2000")
    how.add_argument("--planner", metavar="NAME", help="of an algorithm that plans; see `sb3-mbrl plugins`")
    how.add_argument("--planner-kwargs", **_PAIRS, help="arguments of the planner, e.g. horizon=30 population=128")
    how.add_argument(
        "--load-replay-buffer", metavar="FILE", help="start from saved transitions; the world model is fitted on them first"
    )

    where = parser.add_argument_group("output")
    where.add_argument("--output", metavar="DIR", help="folder of the run (default: runs/ALGO/ENV_1, _2, ...)")
    where.add_argument(
        "--resume", action="store_true", help="go on with the run in --output, or with the newest one of --algo and --env"
    )
    where.add_argument("--eval-every", type=int, metavar="N", help="evaluate every N real steps and keep the best agent")
    where.add_argument(
        "--eval-episodes", type=int, default=10, metavar="N", help="episodes per evaluation (default: 10; 0: none at the end)"
    )
    where.add_argument("--tensorboard", metavar="DIR", help="log for TensorBoard too")
    where.add_argument("--verbose", action="store_true", help="print what is logged")
    where.add_argument("--no-progress", action="store_true", help="no progress bar")


def _saved_agent(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="a saved agent (.zip), or the folder of a run")
    parser.add_argument("--algo", help="its algorithm (default: the one that it was saved by)")
    parser.add_argument("--env", metavar="ID", help="Gymnasium id (default: the run's)")
    parser.add_argument("--env-kwargs", **_PAIRS, help="arguments of gymnasium.make, on top of the run's")
    parser.add_argument("--device", default="auto", help="cpu, cuda or auto (default)")


def _evaluate(parser: argparse.ArgumentParser) -> None:
    _saved_agent(parser)
    parser.add_argument("--episodes", type=int, default=10, metavar="N", help="(default: 10)")
    parser.add_argument("--seed", type=int, default=0, help="of the environment (default: 0)")
    parser.add_argument("--stochastic", action="store_true", help="draw actions as in training")
    parser.add_argument("--render", action="store_true", help="show it in a window")


def _plot(parser: argparse.ArgumentParser) -> None:
    pictures = parser.add_subparsers(title="pictures", metavar="PICTURE", required=True)
    plan = _command(pictures, "plan", "what was imagined against what happened", _PLOT_PLAN, _PLOT_PLAN_EPILOG, within="plot ")
    _saved_agent(plan)
    plan.add_argument("--horizon", type=int, metavar="N", help="steps to look ahead (default: the planner's, else 25)")
    plan.add_argument("--particles", type=int, default=20, metavar="N", help="rollouts per moment (default: 20)")
    plan.add_argument("--moments", type=int, default=3, metavar="N", help="how many moments of the episode (default: 3)")
    plan.add_argument("--every", type=int, metavar="N", help="steps between two moments (default: the horizon)")
    plan.add_argument("--replan", action="store_true", help="plan anew at every step, as in training")
    plan.add_argument("--columns", type=int, nargs="+", metavar="N", help="of the observation (default: at most six)")
    plan.add_argument("--seed", type=int, default=0, help="of environment and rollouts (default: 0)")
    plan.add_argument(
        "--output", metavar="FILE", help="of the picture, .png, .svg or .pdf (default: plan.png beside the agent)"
    )

    what = "what the model imagines of an episode whose beginning it saw"
    dream = _command(pictures, "dream", what, _PLOT_DREAM, _PLOT_DREAM_EPILOG, within="plot ")
    _saved_agent(dream)
    dream.add_argument("--context", type=int, default=5, metavar="N", help="observations that it sees (default: 5)")
    dream.add_argument("--horizon", type=int, default=45, metavar="N", help="observations that it imagines (default: 45)")
    dream.add_argument("--seed", type=int, default=0, help="of the environment (default: 0)")
    dream.add_argument("--fps", type=int, default=10, help="frames per second (default: 10)")
    dream.add_argument("--output", metavar="FILE", help="of the picture (default: dream.gif beside the agent)")


def _plugins(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--verbose", action="store_true", help="hooks of every plugin, tracebacks of broken ones")


def _check(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="a name, distribution:name or package.module:Class")
    parser.add_argument(
        "--kind", choices=("world_model", "planner", "imagination"), help="where a name is offered in several kinds"
    )
    parser.add_argument(
        "--env", metavar="ID", help="check it with this environment's spaces alone (default: with many kinds of spaces)"
    )
    parser.add_argument("--env-kwargs", **_PAIRS, help="arguments of gymnasium.make")
    parser.add_argument("--kwargs", **_PAIRS, help="arguments of the part")
