"""Commands, options and their help."""

import argparse
from collections.abc import Callable
from typing import Any

from sb3_mbrl.builtin import sb3_mbrl_algorithms
from sb3_mbrl.cli import check, evaluate, play, plot, plugins, presets, variants
from sb3_mbrl.cli.normalize import CHOICES
from sb3_mbrl.cli.values import DEFAULT_ALGORITHM
from sb3_mbrl.version import __version__

_EPILOG = """
examples:
  sb3-mbrl train --env Pendulum-v1                 train MBPO with the preset for Pendulum-v1
  sb3-mbrl train --env Pendulum-v1 --world-model none
                                                   the control: the same agent without its model
  sb3-mbrl evaluate runs/mbpo/Pendulum-v1_1        play 10 episodes with the trained agent
  sb3-mbrl play runs/muzero/TicTacToe-v0_1         play a board game against it
  sb3-mbrl plot plan runs/mbpo/Pendulum-v1_1       draw what it expected against what happened
  sb3-mbrl plugins                                 list the parts that can be chosen by name
  sb3-mbrl presets                                 list the settings that can be chosen by name
  sb3-mbrl check ensemble                          check that a world model keeps the contract

Every command has its own help: sb3-mbrl train --help
"""

_TRAIN = """
Train a model-based agent on a Gymnasium environment.

If there is a preset for the environment, its settings are used (--no-preset:
the algorithm's defaults); options on the command line override them. Agent and
replay buffer are saved now and then, at the end, and when you press Ctrl-C,
the process is asked to end (SIGTERM, SIGHUP, SIGUSR1) or the environment
fails: --resume continues from there. Only steps of the real environment are
counted.
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
  sb3-mbrl train --env my_file:MyEnv --steps 5000          a class in my_file.py
  sb3-mbrl train --env Pendulum-v1 --variants model model-off   is it worth it?
  sb3-mbrl train --resume --output runs/mbpo/Pendulum-v1_1 --steps 5000

files in the folder of a run:
  model.zip          the agent: MBPO.load("model.zip", safe=True)
  replay_buffer.npz  its real transitions: agent.load_replay_buffer(...)
  checkpoints        the last two checkpoints, which --resume reads; the files
                     above are links into the newest one
  progress.csv       everything that was logged; model/vs_trivial below 1 means
                     that the world model beats a trivial predictor
  run.json           environment and arguments, for evaluate and --resume
  best_model.zip, evaluations.npz
                     with --eval-every
  vecnormalize.npz   with --normalize: the statistics, which evaluate takes too
"""

_EVALUATE = """
Play episodes with a saved agent and print its returns. Actions are
deterministic (the policy's mean); rewards are the environment's own. Zips of
Stable-Baselines3 and sb3-contrib are evaluated too, and statistics of
VecNormalize beside the agent (vecnormalize.npz or .pkl) are used. SB3's zips and
vecnormalize.pkl are pickles: evaluate only files that you trust.
"""

_EVALUATE_EPILOG = """
examples:
  sb3-mbrl evaluate runs/mbpo/Pendulum-v1_1
  sb3-mbrl evaluate runs/mbpo/Pendulum-v1_1/best_model.zip --episodes 50
  sb3-mbrl evaluate agent.zip --env Hopper-v5 --render
  sb3-mbrl evaluate sac.zip --env Hopper-v5 --vecnormalize vecnormalize.pkl
"""

_PLAY = """
Play a board game against a saved agent, in the terminal. An agent that searches
shows what it thinks before each of its moves: how often it has looked at each
move, and what it expects of it.
"""

_PLAY_EPILOG = """
examples:
  sb3-mbrl play runs/muzero/TicTacToe-v0_1
  sb3-mbrl play agent.zip --env ConnectFour-v0 --seat second --simulations 200
"""

_PLOT = """
Draw what a saved agent or its world model expects.
"""

_PLOT_EPILOG = """
examples:
  sb3-mbrl plot plan runs/pets/Pendulum-v1_1
  sb3-mbrl plot dream runs/dreamer_v3/CartPole-v1_1
"""

_PLOT_DREAM = """
Does the world model remember? Play one episode and let the model see its
beginning; for the rest it gets only the actions. A GIF shows the truth, the
model's prediction and the error between them: image observations frame by frame
(green: seen, red: imagined), vectors as curves.
"""

_PLOT_DREAM_EPILOG = """
examples:
  sb3-mbrl plot dream runs/dreamer_v3/CartPole-v1_1
  sb3-mbrl plot dream agent.zip --env CartPole-v1 --context 10 --horizon 90
"""

_PLOT_PLAN = """
Why does an agent fail? Play one episode and draw, from several moments on, what
the agent expected (many rollouts of its world model, and the band that holds
90 % of them) against what really happened.

An agent that plans carries out each plan to its end, so that imagination and
reality see the same actions and every difference is the model's error
(--replan: it plans at every step, as usual). An agent with a policy follows
the policy in both.
"""

_PLOT_PLAN_EPILOG = """
examples:
  sb3-mbrl plot plan runs/pets/Pendulum-v1_1
  sb3-mbrl plot plan runs/mbpo/Hopper-v5_1 --horizon 15 --moments 5 --columns 0 1
  sb3-mbrl plot plan agent.zip --algo pets --env Pendulum-v1 --output plan.svg

how to read it:
  the black line leaves the band        the model is overconfident there
  the band widens at once               the model knows little: try more data or
                                        a longer fit
  rewards above the black line          the plan exploits the model: try a known
                                        reward, more particles or a penalty
  (with --replan the black line may     the planner changed its plan: no error
  leave a good band)                    of the model)
"""

_PLUGINS = """
List every part that can be chosen by name: algorithms, world models, planners,
imaginations, and known rewards and terminations of environments.

statuses:
  ok        ready
  broken    could not be loaded, or written for another version of the contract;
            the line below it says why
  blocked   excluded by SB3_MBRL_PLUGINS or SB3_MBRL_BLOCK
  conflict  two plugins offer the name: write distribution:name
  replaced  overridden on purpose by another plugin's part
"""

_PLUGINS_EPILOG = """
examples:
  sb3-mbrl plugins
  sb3-mbrl plugins --verbose                 also hooks, and tracebacks of broken plugins
  sb3-mbrl plugins --plugin my_package.my_model
"""

_PRESETS = """
List the presets: settings of an algorithm for an environment, or under another
name. `sb3-mbrl train` takes the one of its environment; in Python,
MBPO.preset("Hopper-v5") returns the constructor's arguments.
"""

_PRESETS_EPILOG = """
examples:
  sb3-mbrl presets
  sb3-mbrl presets --algo pets
"""

_CHECK = """
Run the conformance kit (sb3_mbrl.testing) on a part: shapes, random streams,
membership in the spaces, saving, learning, and more. Every check prints a line;
a failed one says what is wrong, where in your code, what is required, and how to
mend it. Checks that the same mistake spoils are skipped. The exit code is 1 if
any check failed.
"""

_CHECK_EPILOG = """
examples:
  sb3-mbrl check ensemble
  sb3-mbrl check pendulum --env Pendulum-v1          a model for one environment only
  sb3-mbrl check my_package.my_model:MyModel --kwargs hidden=[64,64]
  sb3-mbrl check my_model --plugin my_package.my_plugin
  sb3-mbrl check branched --kind imagination
"""

_Run = Callable[[argparse.Namespace], int]

_PAIRS: dict[str, Any] = {"nargs": "+", "action": "extend", "metavar": "KEY=VALUE"}


def build_parser() -> argparse.ArgumentParser:
    """Build the parser; it puts the function of the chosen command into ``args.run``."""
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
    _train(_command(commands, "train", variants.train_variants, "train an agent", _TRAIN, _TRAIN_EPILOG))
    _evaluate(
        _command(commands, "evaluate", evaluate.evaluate, "play episodes with a saved agent", _EVALUATE, _EVALUATE_EPILOG)
    )
    _play(_command(commands, "play", play.play, "play a board game against a saved agent", _PLAY, _PLAY_EPILOG))
    _plot(_command(commands, "plot", None, "draw what an agent expects against what happens", _PLOT, _PLOT_EPILOG))
    _plugins(
        _command(
            commands, "plugins", plugins.list_plugins, "list the parts that can be chosen by name", _PLUGINS, _PLUGINS_EPILOG
        )
    )
    _presets(
        _command(commands, "presets", presets.list_presets, "list the settings that have names", _PRESETS, _PRESETS_EPILOG)
    )
    _check(_command(commands, "check", check.check, "run the conformance kit on a part", _CHECK, _CHECK_EPILOG))
    return parser


def _command(
    commands: Any, name: str, run: _Run | None, summary: str, description: str, epilog: str, within: str = ""
) -> argparse.ArgumentParser:
    """
    Add a command.

    :param commands: the sub-parsers to add it to
    :param name: the word that is typed
    :param run: the command's function; ``None`` for a command with sub-commands
    :param summary: its line in the list of commands
    :param description: the text above its options
    :param epilog: the text below its options
    :param within: the outer command and a space, for a sub-command
    :return: the parser of its options
    """
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=summary,
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.set_defaults(command=within + name, run=run)
    parser.add_argument("--traceback", action="store_true", help="print the traceback of an error")
    parser.add_argument(
        "--plugin", nargs="+", action="extend", metavar="MODULE", help="load these plugins too (modules or installed plugins)"
    )
    return parser


def _trust(parser: Any) -> None:
    """Add the options by which a user trusts a file of somebody else, or does not."""
    parser.add_argument("--safe", action="store_true", help="refuse files in which anything is pickled")
    parser.add_argument(
        "--trust", nargs="+", action="extend", metavar="NAME", help="modules, or module:Class, that a saved agent may name"
    )


def _train(parser: argparse.ArgumentParser) -> None:
    what = parser.add_argument_group("what to train")
    # Only built-in names: looking for plug-ins would load them at every command.
    names = [f"{spec.name} (default)" if spec.name == DEFAULT_ALGORITHM else spec.name for spec in sb3_mbrl_algorithms()]
    what.add_argument(
        "--algo",
        help=f"{', '.join(names)}, or a plug-in's; mb_td3, mb_tqc, ...: model_based(TD3) and so on",
    )
    what.add_argument("--env", metavar="ID", help="Gymnasium id; module:Id-v0 imports the module first; module:Class")
    what.add_argument("--env-kwargs", **_PAIRS, help="arguments of gymnasium.make")
    what.add_argument("--n-envs", type=int, metavar="N", help="number of parallel environments (default: 1)")
    what.add_argument("--steps", type=int, metavar="N", help="total real environment steps (default: the preset's)")
    what.add_argument("--seed", type=int, help="seed of agent and environments (default: 0)")
    what.add_argument("--device", default="auto", help="cpu, cuda or auto (default)")

    how = parser.add_argument_group("settings")
    how.add_argument(
        "--preset",
        nargs="?",
        const=True,
        metavar="NAME",
        help="use the preset for this environment (default: if there is one), or one of another name, e.g. published",
    )
    how.add_argument("--no-preset", dest="preset", action="store_const", const=False, help="use the algorithm's defaults")
    how.add_argument(
        "--set", **_PAIRS, help="arguments of the algorithm's constructor, e.g. gradient_steps=20 learning_rate=1e-3"
    )
    how.add_argument("--world-model", metavar="NAME", help="name (see `sb3-mbrl plugins`), package.module:Class, or none")
    how.add_argument("--world-model-kwargs", **_PAIRS, help="arguments of the world model, overriding the preset's")
    how.add_argument("--imagination", metavar="NAME", help="rule that makes rollouts; see `sb3-mbrl plugins`")
    how.add_argument("--imagination-kwargs", **_PAIRS, help="arguments of the imagination, e.g. horizon=3 max_age=2000")
    how.add_argument("--planner", metavar="NAME", help="planner of an algorithm that plans; see `sb3-mbrl plugins`")
    how.add_argument("--planner-kwargs", **_PAIRS, help="arguments of the planner, e.g. horizon=30 population=128")
    how.add_argument(
        "--normalize",
        nargs="?",
        const="both",
        choices=CHOICES,
        help="VecNormalize: running means and scales of observations and rewards (default: both), or of one of them",
    )
    how.add_argument("--vecnormalize", metavar="FILE", help="VecNormalize with saved statistics to start from, .npz or .pkl")
    how.add_argument(
        "--variants",
        nargs="+",
        metavar="NAME",
        help="run several times and compare: model (as given), model-off (without a world model), or names of world models",
    )
    how.add_argument(
        "--load-replay-buffer", metavar="FILE", help="start from saved transitions: fit the world model to them first"
    )

    where = parser.add_argument_group("output")
    where.add_argument("--output", metavar="DIR", help="folder of the run (default: runs/ALGO/ENV_1, _2, ...)")
    where.add_argument(
        "--resume", action="store_true", help="continue the run in --output, or the newest run of --algo and --env"
    )
    where.add_argument(
        "--save-every",
        type=int,
        metavar="N",
        help="save a checkpoint every N real steps, 0: only at the end (default: at evaluations and every 5 minutes, but at "
        "least 20 times the duration of a save apart)",
    )
    where.add_argument("--eval-every", type=int, metavar="N", help="evaluate every N real steps and save the best agent")
    where.add_argument(
        "--eval-episodes", type=int, default=10, metavar="N", help="episodes per evaluation (default: 10; 0: none at the end)"
    )
    _trust(where)
    where.add_argument("--tensorboard", metavar="DIR", help="also log for TensorBoard, in this folder")
    where.add_argument("--verbose", action="store_true", help="also print the log")
    where.add_argument("--no-progress", action="store_true", help="show no progress, and time nothing before the run")


def _saved_agent(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="a saved agent (.zip) or the folder of a run")
    parser.add_argument(
        "--algo", help="algorithm of the agent (default: the one that saved it); sac, ppo, ... for zips of SB3 and sb3-contrib"
    )
    parser.add_argument(
        "--vecnormalize",
        metavar="FILE",
        help="statistics of VecNormalize (default: those beside the agent)",
    )
    parser.add_argument("--no-progress", action="store_true", help="show no progress")
    parser.add_argument("--env", metavar="ID", help="Gymnasium id (default: the run's)")
    parser.add_argument("--env-kwargs", **_PAIRS, help="arguments of gymnasium.make, overriding the run's")
    parser.add_argument("--device", default="auto", help="cpu, cuda or auto (default)")
    _trust(parser)


def _evaluate(parser: argparse.ArgumentParser) -> None:
    _saved_agent(parser)
    parser.add_argument("--episodes", type=int, default=10, metavar="N", help="number of episodes (default: 10)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the environment (default: 0)")
    parser.add_argument("--stochastic", action="store_true", help="sample actions as in training")
    parser.add_argument("--render", action="store_true", help="show the environment in a window")


def _play(parser: argparse.ArgumentParser) -> None:
    _saved_agent(parser)
    parser.add_argument("--seat", choices=("first", "second"), default="first", help="whether you begin (default: first)")
    parser.add_argument("--simulations", type=int, metavar="N", help="simulations per move (default: the agent's own)")
    parser.add_argument("--no-thoughts", dest="thoughts", action="store_false", help="do not show what the agent thinks")


def _plot(parser: argparse.ArgumentParser) -> None:
    images = parser.add_subparsers(title="images", metavar="IMAGE", required=True)
    plan = _command(
        images,
        "plan",
        plot.plot_plan,
        "what was imagined against what happened",
        _PLOT_PLAN,
        _PLOT_PLAN_EPILOG,
        within="plot ",
    )
    _saved_agent(plan)
    plan.add_argument("--horizon", type=int, metavar="N", help="steps to look ahead (default: the planner's, else 25)")
    plan.add_argument("--particles", type=int, default=20, metavar="N", help="rollouts per moment (default: 20)")
    plan.add_argument("--moments", type=int, default=3, metavar="N", help="number of moments in the episode (default: 3)")
    plan.add_argument("--every", type=int, metavar="N", help="steps between two moments (default: the horizon)")
    plan.add_argument("--replan", action="store_true", help="plan at every step, as in training")
    plan.add_argument("--columns", type=int, nargs="+", metavar="N", help="columns of the observation (default: at most six)")
    plan.add_argument("--seed", type=int, default=0, help="seed of environment and rollouts (default: 0)")
    plan.add_argument(
        "--output", metavar="FILE", help="file of the image, .png, .svg or .pdf (default: plan.png beside the agent)"
    )

    summary = "what the model imagines after the beginning of an episode"
    dream = _command(images, "dream", plot.plot_dream, summary, _PLOT_DREAM, _PLOT_DREAM_EPILOG, within="plot ")
    _saved_agent(dream)
    dream.add_argument("--context", type=int, default=5, metavar="N", help="number of observations it sees (default: 5)")
    dream.add_argument("--horizon", type=int, default=45, metavar="N", help="number of observations it imagines (default: 45)")
    dream.add_argument("--seed", type=int, default=0, help="seed of the environment (default: 0)")
    dream.add_argument("--fps", type=int, default=10, help="frames per second (default: 10)")
    dream.add_argument("--output", metavar="FILE", help="file of the image, .gif (default: dream.gif beside the agent)")


def _plugins(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--verbose", action="store_true", help="also print hooks, and tracebacks of broken plugins")


def _presets(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--algo", help="only those of one algorithm")


def _check(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="name, distribution:name or package.module:Class of a part")
    parser.add_argument(
        "--kind", choices=("world_model", "planner", "imagination"), help="kind of the part, if several kinds offer its name"
    )
    parser.add_argument(
        "--env", metavar="ID", help="check only with this environment's spaces (default: with many kinds of spaces)"
    )
    parser.add_argument("--env-kwargs", **_PAIRS, help="arguments of gymnasium.make")
    parser.add_argument("--kwargs", **_PAIRS, help="arguments of the part")
