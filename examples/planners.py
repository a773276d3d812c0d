"""
Compare planners without model errors: ``python examples/planners.py`` lets each of them control the exact twins of Pendulum
and of the CartPole swing-up, from 50 common start states, and prints its regret.

    regret = mean(best return - planner's return) / mean(best return - return of random actions)

where the best return is that of the best planner from the same start. Budgets are model steps per decision; backpropagation
through a step counts as two. Writes ``examples/planners/results.json`` (results that exist are not computed again, except with
``--fresh``) and prints the table.
"""

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from rich.console import Console
from rich.progress import track
from rich.table import Table

from sb3_mbrl.contracts import Planner, WorldModel
from sb3_mbrl.models.analytic import CartPoleSwingUpModel, PendulumModel
from sb3_mbrl.planners import CEM, ICEM, ILQR, MPPI, GradientPlanner, RandomShooting
from sb3_mbrl.planners.lqr import flatten
from sb3_mbrl.spaces import sample_actions
from sb3_mbrl.trees import State

OUTPUT = Path(__file__).with_suffix("")
STARTS, SEED = 50, 0

BUDGETS: dict[str, tuple[type[Planner], dict[str, Any]]] = {
    "random": (RandomShooting, {"population": 2000}),
    "cem": (CEM, {"population": 400, "iterations": 5}),
    "cem-small": (CEM, {"population": 100, "iterations": 4}),
    "icem": (ICEM, {"population": 128, "iterations": 4}),
    "icem-small": (ICEM, {"population": 64, "iterations": 3}),
    "mppi": (MPPI, {"population": 400, "iterations": 5}),
    "gradient": (GradientPlanner, {"population": 16, "iterations": 30}),
    "ilqr": (ILQR, {"iterations": 15}),
}
"""The planners and their settings, by name; the horizon is that of the task"""

TASKS: dict[str, tuple[type[WorldModel], int, int]] = {
    "pendulum": (PendulumModel, 150, 25),
    "swing-up": (CartPoleSwingUpModel, 200, 30),
}
"""The twin, the steps of an episode, and the planning horizon, by name"""


def starts(task: str) -> th.Tensor:
    """Draw start states. Pendulum: any angle, at most 1 rad/s. Swing-up: hanging, nearly at rest."""
    rng = np.random.default_rng(SEED)
    if task == "pendulum":
        theta, speed = rng.uniform(-math.pi, math.pi, STARTS), rng.uniform(-1, 1, STARTS)
        rows = np.stack([np.cos(theta), np.sin(theta), speed], 1)
    else:
        x, x_dot, theta, speed = rng.uniform(-0.05, 0.05, (4, STARTS))
        theta = theta + math.pi
        rows = np.stack([x, x_dot, np.cos(theta), np.sin(theta), speed], 1)
    return th.as_tensor(rows, dtype=th.float32)


@th.no_grad()
def control(task: str, planner: Planner | None) -> dict[str, Any]:
    """
    Play an episode from every start.

    :param task: the name of the task
    :param planner: the planner; ``None`` takes random actions
    :return: the returns, the number of model steps per decision, and the seconds
    """
    twin, steps, _ = TASKS[task]
    model = twin(device="cpu")
    generator = th.Generator().manual_seed(SEED)
    state, carry, total = model.initial(starts(task)), None, th.zeros(STARTS)
    asked, began = 0, time.perf_counter()
    step = model.step

    def counted(state: Any, action: th.Tensor, **kwargs: Any) -> Any:
        nonlocal asked
        asked += len(action)
        return step(state, action, **kwargs)

    for t in track(range(steps), f"{task}: {type(planner).__name__ if planner else 'chance'}"):
        if planner is None:
            action = sample_actions(model.action_space, STARTS, generator, model.device)
        else:
            model.step = counted  # type: ignore[method-assign]
            plan = planner.plan(model, state, carry, is_first=th.full((STARTS,), t == 0), generator=generator)
            model.step = step  # type: ignore[method-assign]
            action, carry = plan.action, plan.carry
        prediction = model.step(state, action)
        state, total = prediction.state, total + prediction.reward
    return {
        "returns": [round(float(value), 3) for value in total],
        "model_steps_per_decision": round(asked / steps / STARTS) + derivatives(planner, model, state),
        "seconds": round(time.perf_counter() - began, 1),
    }


def derivatives(planner: Planner | None, model: WorldModel, state: State) -> int:
    """Count the derivatives of a decision, in model steps."""
    size = flatten(state).shape[1]
    if isinstance(planner, GradientPlanner):
        return 2 * planner.population * planner.iterations * planner.horizon
    if isinstance(planner, ILQR):
        # Per step of the horizon: a forward pass (1) and a backward pass (2) from every number of the next state; both (3) for
        # the reward's gradient, and both once more per input (3 each) for its second derivatives.
        inputs = size + int(np.prod(model.action_space.shape))  # type: ignore[arg-type]
        return planner.iterations * planner.horizon * (1 + 2 * size + 3 + 3 * inputs)
    return 0


def regrets(rows: dict[str, Any]) -> dict[str, float]:
    """Compute the regret of every planner, relative to that of random actions ("chance")."""
    returns = {name: np.array(row["returns"]) for name, row in rows.items()}
    best = np.max(np.stack(list(returns.values())), axis=0)
    chance = float((best - returns["chance"]).mean())
    return {name: float((best - values).mean()) / chance for name, values in returns.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="*", default=list(TASKS), help=" ".join(TASKS))
    parser.add_argument("--planners", nargs="+", default=list(BUDGETS), help=" ".join(BUDGETS))
    parser.add_argument("--fresh", action="store_true", help="repeat runs that have results")
    args = parser.parse_args()
    th.set_num_threads(1)
    OUTPUT.mkdir(exist_ok=True)
    file = OUTPUT / "results.json"
    results: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {}
    for task in args.tasks:
        twin, _, horizon = TASKS[task]
        rows = results.setdefault(task, {})
        for name in ["chance", *args.planners]:
            if name in rows and not args.fresh:
                continue
            planner = None
            if name != "chance":
                cls, settings = BUDGETS[name]
                planner = cls(twin.env_spaces[1], horizon=horizon, **settings)  # type: ignore[attr-defined,call-arg]
            rows[name] = control(task, planner)
            file.write_text(json.dumps(results, indent=1) + "\n")
    for task, rows in results.items():
        table = Table("planner", "mean return", "regret", "model steps per decision", "seconds", title=task)
        share = regrets(rows)
        for name, row in sorted(rows.items(), key=lambda item: share[item[0]]):
            steps = f"{row['model_steps_per_decision']:,}"
            table.add_row(name, f"{np.mean(row['returns']):.1f}", f"{share[name]:.1%}", steps, f"{row['seconds']:.0f}")
        Console().print(table)


if __name__ == "__main__":
    main()
