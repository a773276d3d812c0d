"""The checks of a world model's contract: loss, steps, randomness, states (fitting, spaces, saving: ``learning_checks``)."""

import copy
from contextlib import suppress
from typing import Any
from unittest import SkipTest

import torch as th
from stable_baselines3.common.preprocessing import get_obs_shape

from sb3_mbrl.contracts import Loss, MissingCapability, Obs, WorldModel
from sb3_mbrl.plugins.faults import Fault
from sb3_mbrl.plugins.validation import prediction_fault
from sb3_mbrl.spaces import ActionCodec, SpaceCodec
from sb3_mbrl.testing.kit import (
    MEMBER_REMEDY,
    Subject,
    Violation,
    check_calls,
    contract_check,
    far_value,
    first_difference,
    fit_before,
    member_fault,
    predict,
    rng,
    some_actions,
    start_states,
    to_device,
    untouched_rng,
)
from sb3_mbrl.testing.toy_data import ToyData
from sb3_mbrl.trees import (
    State,
    batch_size,
    describe,
    finite_rows,
    tree_cat,
    tree_index,
    tree_items,
    tree_leaves,
    tree_map,
    tree_repeat,
)


def _decode(model: WorldModel, state: State) -> Obs:
    """
    Decode a state without gradients.

    :raises SkipTest: when the model does not decode
    """
    if not model.decodes:
        raise SkipTest(f"{type(model).__name__} does not decode observations")
    with th.no_grad():
        return model.decode(state)


_CALLS = {
    "initial": "obs",
    "filter": "obs, actions, is_first",
    "observe": "state, action, obs, is_first",
    "step": "state, action, *, deterministic, generator",
    "loss": "batch, start, *, generator",
    "fit": "data, budget, *, generator",
    "decode": "state",
    "features": "state",
    "members": "state, action",
    "load_extra_state": "extra",
}
"""The arguments with which the methods of a world model are called"""


@contract_check("world_model")
def check_signatures(subject: Subject) -> None:
    """The constructor and the methods take the arguments of the contract."""
    check_calls(subject.world_model(), _CALLS)


@contract_check("world_model", check_signatures)
def check_loss(subject: Subject) -> None:
    """A ``loss`` returns a :class:`~sb3_mbrl.contracts.Loss` of tensors, one value per row, with a gradient."""
    model, data = subject.world_model(), subject.data()
    if type(model).loss is WorldModel.loss:
        raise SkipTest(f"{subject.name} has no loss")
    if type(model).fit is not WorldModel.fit:  # the loss may need what fit prepares
        fit_before(model, data)
    sequential = model.context > 1
    batch = (
        data.sequences(8, 2 * model.context, extra=model.extra, generator=rng(0))
        if sequential
        else data.transitions(8, generator=rng(0))
    )
    loss = model.loss(batch, None, generator=rng(0))
    if fault := _loss_fault(loss, 8):
        raise Violation.of(fault)
    for name, value in (*loss.rows.items(), *loss.scalars.items()):
        if not bool(value.isfinite().all()):
            raise Violation(
                f".loss returned the term {name!r} with the total {float(value.detach().sum())}, expected a finite number",
                "look for a division by zero, a logarithm of zero, or an exponential without bounds",
            )
    if not loss.total().requires_grad:
        raise Violation(
            f".loss returned terms without a gradient: {', '.join(map(repr, (*loss.rows, *loss.scalars)))}",
            "compute them from the parameters, without detach(), no_grad() and item()",
        )


def _loss_fault(loss: Any, rows: int) -> Fault | None:
    """Describe the first fault of a loss of ``rows`` rows; ``None`` if there is none."""
    if not isinstance(loss, Loss):
        return Fault(
            f".loss returned {type(loss).__name__}, expected a sb3_mbrl.contracts.Loss",
            "return Loss(rows={name: (B,) tensor, ...}), one entry per term",
        )
    return _values_fault(loss, rows) or _names_fault(loss) or _states_fault(loss.states, rows)


def _values_fault(loss: Loss, rows: int) -> Fault | None:
    for name, value in (*loss.rows.items(), *loss.scalars.items(), *loss.metrics.items()):
        if not isinstance(value, th.Tensor):
            return Fault(
                f".loss returned {name!r} as {type(value).__name__}, expected a tensor",
                "return the tensor itself, without item() or float(), which would wait for the accelerator",
            )
    for name, value in loss.rows.items():
        if value.dim() not in (1, 2) or len(value) != rows:
            return Fault(
                f".loss returned the term {name!r} of shape {tuple(value.shape)}, expected one value per row: ({rows},) or "
                f"({rows}, T)",
                f"take the mean of {name!r} over its columns, not over its rows: value.mean(1)",
            )
    for name, value in (*loss.scalars.items(), *loss.metrics.items()):
        if value.shape != ():
            return Fault(
                f".loss returned {name!r} of shape {tuple(value.shape)} among scalars, expected one number",
                f"give its mean, or put {name!r} among the rows if it has one value per row",
            )
    for name, value in loss.metrics.items():
        if value.requires_grad:
            return Fault(f".loss returned metrics with gradients: metrics[{name!r}]", f"detach it: {name}.detach()")
    return None


def _names_fault(loss: Loss) -> Fault | None:
    terms = {**loss.rows, **loss.scalars}
    if not terms:
        return Fault(".loss returned a Loss without a single term", "put at least one term into rows")
    if unknown := sorted(set(loss.weights) - set(terms)):
        return Fault(
            f".loss returned a weight for {unknown[0]!r}, which is none of its terms ({', '.join(terms)})",
            "name the weight as the term is named, or leave it out",
        )
    if shared := sorted(set(loss.rows) & set(loss.scalars)):
        return Fault(
            f".loss returned {shared[0]!r} both as a term of the rows and as a scalar", "give each term a name of its own"
        )
    return None


def _states_fault(states: State | None, rows: int) -> Fault | None:
    if states is None or batch_size(states) == rows:
        return None
    return Fault(
        f".loss returned states of {batch_size(states)} rows for a batch of {rows}",
        "return the states along the windows, (B, T, ...), or None",
    )


@contract_check("world_model", check_loss)
def check_attributes(subject: Subject) -> None:
    """Spaces, device, ``context``, ``discount``, ``optimizer`` and ``fitted`` follow the contract."""
    model, case = subject.world_model(), subject.home()
    if model.observation_space != case.observation_space or model.action_space != case.action_space:
        name = "observation_space" if model.observation_space != case.observation_space else "action_space"
        raise Violation(
            f".{name} is {getattr(model, name)}, and it was given {getattr(case, name)}",
            "leave the spaces as they are given; keep what you make of them under another name",
        )
    if not isinstance(model.device, th.device):
        raise Violation(f".device is {model.device!r}, expected a torch.device", "call super().__init__(..., device=device)")
    if not isinstance(model.context, int) or model.context < 1:
        raise Violation(
            f".context is {model.context!r}, expected an integer of at least 1",
            "set it to the number of steps that `filter` needs; 1 is the observation alone",
        )
    if model.discount is not None and not (isinstance(model.discount, float) and 0.0 <= model.discount <= 1.0):
        raise Violation(
            f".discount is {model.discount!r}, expected None or a float from 0 to 1",
            "set it to the agent's gamma if the model predicts Prediction.discount, else leave it None",
        )
    if not isinstance(model.fitted, bool):
        raise Violation(f".fitted is {model.fitted!r}, expected True or False", "set it to a bool")
    if not model.learns and not model.fitted:
        raise Violation(
            " has neither fit nor loss, so it is known, but its fitted is False, so it will not be used",
            "set fitted = True in the class, or write `loss` or `fit`",
        )
    _check_type_of_optimizer(model)
    fit_before(model, subject.data())
    if not model.fitted:
        raise Violation(
            ".fitted is False after fit, so the model will not be used", "set self.fitted = True at the end of `fit`"
        )


@contract_check("world_model", check_attributes)
def check_optimizer(subject: Subject) -> None:
    """The optimiser holds the model's own parameters, in a deep copy too."""
    model, _ = subject.fitted()
    for suffix, candidate in (("", model), (" of a deep copy", copy.deepcopy(model))):
        optimizer = candidate.optimizer
        if optimizer is None:
            raise SkipTest(f"{subject.name} has no optimizer")
        _check_type_of_optimizer(candidate)
        own = {id(parameter) for parameter in candidate.parameters()}
        if not all(id(parameter) in own for group in optimizer.param_groups for parameter in group["params"]):
            raise Violation(
                f".optimizer{suffix} holds parameters that are not the model's, so fit would train something else",
                "make it from self.parameters(), after the last layer and the move to the device",
            )


def _check_type_of_optimizer(model: WorldModel) -> None:
    if model.optimizer is not None and not isinstance(model.optimizer, th.optim.Optimizer):
        raise Violation(
            f".optimizer is a {type(model.optimizer).__name__}, expected a torch.optim.Optimizer or None",
            "keep schedulers and the like under another name",
        )


@contract_check("world_model", check_attributes)
def check_step_shapes(subject: Subject) -> None:
    """Rewards and probabilities of termination ``(B,)``, a state of the same shapes, all on the model's device."""
    model, data = subject.fitted()
    for rows in (1, 32):
        state, action = start_states(model, data, rows), some_actions(model, data, rows)
        for deterministic in (False, True):
            prediction = predict(model, state, action, deterministic=deterministic)
            if fault := prediction_fault(model, state, action, prediction):
                raise Violation.of(fault)
            for name, value in tree_items(prediction, "prediction"):
                if value.is_floating_point() and not value.isfinite().all():
                    raise Violation(
                        f".step returned {name.removeprefix('prediction.')} that is not finite, on data that it was fitted on",
                        "look for a division by zero, an exponential or a logarithm without bounds",
                    )


@contract_check("world_model", check_step_shapes)
def check_large_batch(subject: Subject) -> None:
    """A step of 10 000 rows at once works (1 000 rows of images)."""
    model, data = subject.fitted()
    rows = 1_000 if any(leaf.numel() > 5_000 for leaf in _leaves_of_one(model, data)) else 10_000
    state, action = start_states(model, data, rows), some_actions(model, data, rows)
    if fault := prediction_fault(model, state, action, predict(model, state, action)):
        raise Violation.of(fault)


def _leaves_of_one(model: WorldModel, data: ToyData) -> list[th.Tensor]:
    return [*tree_leaves(start_states(model, data, 1)), *tree_leaves(data.transitions(1, generator=rng(0)).obs)]


@contract_check("world_model", check_step_shapes)
def check_global_randomness(subject: Subject) -> None:
    """Neither fitting nor using the model moves a global random stream when a generator is given."""
    model, data = subject.world_model(), subject.data()
    with untouched_rng(".fit"):
        fit_before(model, data)
    with untouched_rng(".filter"):
        state = start_states(model, data, 8)
    action = some_actions(model, data, 8)
    with untouched_rng(".step"):
        predict(model, state, action)
    with untouched_rng(".features"), suppress(MissingCapability):
        model.features(state)


@contract_check("world_model", check_step_shapes)
def check_no_side_effects(subject: Subject) -> None:
    """Using the model in evaluation mode changes neither the model nor its arguments."""
    model, data = subject.fitted()
    before = {
        "state_dict()": tree_map(th.clone, dict(model.state_dict())),
        "extra_state()": copy.deepcopy(model.extra_state()),
    }
    state, action = start_states(model, data, 8), some_actions(model, data, 8)
    given = tree_map(th.clone, (state, action))
    obs = to_device(data.transitions(8, generator=rng(0)).obs, model.device)
    obs_given = tree_map(th.clone, obs)
    prediction = predict(model, state, action)
    for use in (
        lambda: model.observe(state, action, obs, th.zeros(8, dtype=th.bool, device=model.device)),
        lambda: model.features(prediction.state),
        lambda: model.initial(obs),
    ):
        with th.no_grad(), suppress(MissingCapability):
            use()
    remedy = "work on new tensors: x = x + 1, not x += 1"
    for what, then, now in (("state", given[0], state), ("action", given[1], action), ("obs", obs_given, obs)):
        if name := first_difference(then, now, what):
            raise Violation(f".{'initial' if what == 'obs' else 'step'} changed the {name} that it was given", remedy)
    after = {"state_dict()": dict(model.state_dict()), "extra_state()": model.extra_state()}
    for what, then in before.items():
        if name := first_difference(then, after[what], what):
            raise Violation(
                f".step (or observe, features, initial) changed {name} while the model was only used",
                "learn in `fit` alone; keep counters and caches out of state_dict() and extra_state(), or do without them",
            )


@contract_check("world_model", check_global_randomness, check_no_side_effects)
def check_determinism(subject: Subject) -> None:
    """The same generator gives the same prediction to the last bit; deterministic mode needs none."""
    model, data = subject.fitted()
    state, action = start_states(model, data, 16), some_actions(model, data, 16)
    once, again = predict(model, state, action, seed=1), predict(model, state, action, seed=1)
    if name := first_difference(once, again, "prediction"):
        raise Violation(
            f".step gives another {_field(name)} for a generator of the same seed",
            "draw from the generator alone, and keep nothing between calls that changes a prediction",
        )
    once, again = (predict(model, state, action, deterministic=True, seed=seed) for seed in (1, 2))
    if name := first_difference(once, again, "prediction"):
        raise Violation(
            f".step(deterministic=True) depends on the generator: {_field(name)} differs",
            "return the mean (or the mode) instead of a draw where deterministic is true",
        )
    with untouched_rng(".step(deterministic=True)"), th.no_grad():
        model.step(state, action, deterministic=True)


@contract_check("world_model", check_determinism)
def check_row_independence(subject: Subject) -> None:
    """In deterministic mode a row's prediction does not depend on the other rows."""
    model, data = subject.fitted()
    state, action = start_states(model, data, 24), some_actions(model, data, 24)
    together = predict(model, state, action, deterministic=True)
    order = th.randperm(24, generator=rng(3)).to(model.device)
    shuffled = predict(model, tree_index(state, order), action[order], deterministic=True)
    remedy = "compute every row from its own state and action alone: no statistics, indices or draws over the batch"
    if name := far_value(shuffled, tree_index(together, order), "prediction"):
        raise Violation(f".step(deterministic=True) gives a row another {_field(name)} when the rows are shuffled", remedy)
    for row in range(3):
        alone = predict(model, tree_index(state, slice(row, row + 1)), action[row : row + 1], deterministic=True)
        if name := far_value(alone, tree_index(together, slice(row, row + 1)), "prediction"):
            raise Violation(f".step(deterministic=True) gives a row another {_field(name)} when it is alone", remedy)


def _field(name: str) -> str:
    """Write the name of a value of a prediction as its author does: ``reward``, ``state['obs']``."""
    return name.removeprefix("prediction.")


@contract_check("world_model", check_row_independence)
def check_state_operations(subject: Subject) -> None:
    """States can be indexed, repeated and joined: predictions do not depend on a row's position."""
    model, data = subject.fitted()
    state, action = start_states(model, data, 6), some_actions(model, data, 6)
    whole = predict(model, state, action, deterministic=True)
    parts = tree_cat([tree_index(state, slice(0, 2)), tree_index(state, slice(2, 6))])
    remedy = "keep everything that belongs to a row in leaves (B, ...) of the state, and nothing that depends on its position"
    if name := far_value(predict(model, parts, action, deterministic=True), whole, "prediction"):
        raise Violation(f".step predicts another {_field(name)} from a state that was cut and joined again", remedy)
    twice = predict(model, tree_repeat(state, 2), action.repeat_interleave(2, dim=0), deterministic=True)
    if name := far_value(twice, tree_repeat(whole, 2), "prediction"):
        raise Violation(f".step predicts another {_field(name)} from a state whose rows were repeated", remedy)


@contract_check("world_model", check_step_shapes)
def check_decode(subject: Subject) -> None:
    """Decoded observations are valid members of the space, in the layout of SB3's replay buffer, after any number of steps."""
    model, data = subject.fitted()
    state = start_states(model, data, 8)
    for step in range(5):
        obs = _decode(model, state)
        if fault := member_fault(model.observation_space, obs, 8):
            raise Violation(f".decode returned {fault} ({step} steps after the start)", MEMBER_REMEDY)
        state = predict(model, state, some_actions(model, data, 8, seed=step), seed=step).state


@contract_check("world_model", check_step_shapes)
def check_features(subject: Subject) -> None:
    """``(B, F)`` floats, with one ``F`` for every state."""
    model, data = subject.fitted()
    state = start_states(model, data, 8)
    for where in ("a start state", "a predicted state"):
        with th.no_grad():
            features = model.features(state)
        if features.dim() != 2 or len(features) != 8 or not features.is_floating_point():
            raise Violation(
                f".features returned {features.dtype} of shape {tuple(features.shape)} for {where}, expected floats (8, F)",
                "flatten everything behind the first axis, and convert it to floats: features.flatten(1).float()",
            )
        state = predict(model, state, some_actions(model, data, 8)).state
    with th.no_grad():
        if model.features(state).shape[1] != features.shape[1]:
            raise Violation(".features has another width after a step", "return as many numbers for every state")


@contract_check("world_model", check_step_shapes, check_decode)
def check_far_out_of_distribution(subject: Subject) -> None:
    """Observations a thousand times too large raise nothing and give valid probabilities; finite rows decode to members."""
    model, data = subject.fitted()
    context = data.contexts(16, model.context, generator=rng(0))
    far = tree_map(lambda leaf: leaf * 1e3 if leaf.is_floating_point() else leaf, context.obs)
    with th.no_grad():
        state = model.filter(*to_device((far, context.action, context.is_first), model.device))
    for step in range(5):
        action = some_actions(model, data, batch_size(state), seed=step)
        prediction = predict(model, state, action, seed=step)
        if fault := prediction_fault(model, state, action, prediction):
            raise Violation.of(fault.in_case("far from the data"))
        finite = finite_rows(prediction)
        # Rollouts mask rows that are not finite.
        state = tree_index(prediction.state, finite)
        if not batch_size(state):
            return
        if not model.decodes:
            continue
        if member := member_fault(model.observation_space, model.decode(state), batch_size(state)):
            raise Violation(f".decode returned {member} (far from the data)", MEMBER_REMEDY)


@contract_check("world_model", check_row_independence, check_decode)
def check_known_functions(subject: Subject) -> None:
    """Known functions replace the heads; their arguments are members of the space and actions in the environment's units."""
    calls: list[tuple[Obs, th.Tensor, Obs]] = []
    codec = ActionCodec(subject.home().action_space)

    def reward(obs: Obs, action: th.Tensor, next_obs: Obs) -> th.Tensor:
        calls.append((obs, action, next_obs))
        return action.flatten(1).float().sum(1)

    def termination(obs: Obs, action: th.Tensor, next_obs: Obs) -> th.Tensor:
        return action.flatten(1)[:, 0] > 0

    try:
        model, data = subject.fitted(reward_fn=reward, termination_fn=termination)
    except (ValueError, MissingCapability) as error:
        raise SkipTest(f"{subject.name} refuses known functions: {error}") from error
    state, action = start_states(model, data, 32), some_actions(model, data, 32)
    calls.clear()
    prediction = predict(model, state, action)
    if not calls:
        raise Violation(
            ".step did not call the known reward_fn",
            "pass the predicted rewards and terminations through self.with_known(...) before you return them",
        )
    in_units = codec.to_env(action)
    if not th.allclose(prediction.reward, in_units.flatten(1).float().sum(1), atol=1e-5):
        raise Violation(
            ".step did not return the reward of reward_fn for actions in the environment's units",
            "convert scaled actions before the call: ActionCodec.to_env(action)",
        )
    if not th.equal(prediction.terminated, (in_units.flatten(1)[:, 0] > 0).to(prediction.terminated.dtype)):
        raise Violation(
            ".step did not return the termination of termination_fn as 0 or 1",
            "return its result in place of the predicted probability, converted to floats",
        )
    for obs in (calls[-1][0], calls[-1][2]):
        if fault := member_fault(model.observation_space, obs, 32):
            raise Violation(f".step called reward_fn with {fault}", MEMBER_REMEDY)


@contract_check("world_model", check_step_shapes)
def check_filter(subject: Subject) -> None:
    """Filtering ignores steps before ``is_first``, and the last action."""
    model, data = subject.fitted()
    context = data.contexts(16, model.context, generator=rng(0))
    obs, action, is_first = to_device((context.obs, context.action, context.is_first), model.device)
    cut = model.context // 2
    is_first = is_first.clone()
    is_first[:, cut] = True

    def shuffle_past(leaf: th.Tensor) -> th.Tensor:
        return th.cat([leaf[:, :cut].roll(1, dims=0), leaf[:, cut:]], dim=1)

    with th.no_grad():
        state = model.filter(obs, action, is_first)
        other = model.filter(tree_map(shuffle_past, obs), shuffle_past(action), is_first)
        last = th.cat([action[:, :-1], action[:, -1:].roll(1, dims=0)], dim=1)
        third = model.filter(obs, last, is_first)
    if batch_size(state) != 16:
        raise Violation(
            f".filter returned a state of {batch_size(state)} rows for 16 contexts", "return one row of every leaf per context"
        )
    if name := far_value(other, state, "state", 1e-6):
        raise Violation(
            f".filter uses steps before is_first: another episode leaks into {name}",
            "start anew in the rows where is_first[:, t] is true",
        )
    if name := far_value(third, state, "state", 1e-6):
        raise Violation(
            f".filter uses the last action in {name}, which is not known yet when the state is needed",
            "use actions[:, :-1] only",
        )


@contract_check("world_model", check_filter)
def check_observe(subject: Subject) -> None:
    """Observing keeps the state's shapes, and rows with ``is_first`` forget the last episode."""
    model, data = subject.fitted()
    state, other = start_states(model, data, 8, seed=0), start_states(model, data, 8, seed=1)
    action = some_actions(model, data, 8, seed=0)
    obs = to_device(data.transitions(8, generator=rng(2)).next_obs, model.device)
    is_first = th.arange(8, device=model.device) % 2 == 0
    with th.no_grad():
        one = model.observe(state, action, obs, is_first)
        two = model.observe(other, some_actions(model, data, 8, seed=5), obs, is_first)
    if describe(one) != describe(state):
        raise Violation(
            f".observe turned a state {describe(state)} into {describe(one)}", "return the structure and shapes that came in"
        )
    if name := far_value(tree_index(one, is_first), tree_index(two, is_first), "state", 1e-6):
        raise Violation(
            f".observe remembers the last episode in {name}, in rows where is_first is true",
            "start from the observation alone in these rows",
        )


@contract_check("world_model", check_step_shapes)
def check_members(subject: Subject) -> None:
    """If there are members: ``(E, B, D)`` means and variances (not negative), ``(E, B)`` rewards and probabilities."""
    model, data = subject.fitted()
    state, action = start_states(model, data, 8), some_actions(model, data, 8)
    try:
        with th.no_grad():
            members = model.members(state, action)
    except MissingCapability as error:
        raise SkipTest(str(error)) from error
    count, dim = len(members.mean), SpaceCodec(model.observation_space).dim
    expected = {"mean": (count, 8, dim), "variance": (count, 8, dim), "reward": (count, 8), "terminated": (count, 8)}
    for name, shape in expected.items():
        if tuple(getattr(members, name).shape) != shape:
            raise Violation(
                f".members returned {name} of shape {tuple(getattr(members, name).shape)}, expected {shape}",
                "put the members first, then the rows; means and variances are of encoded observations",
            )
    if (members.variance < 0).any():
        raise Violation(".members returned a negative variance", "return a variance, not its logarithm")
    if (members.terminated < 0).any() or (members.terminated > 1).any():
        raise Violation(".members returned terminated outside [0, 1]", "return probabilities, not logits")


@contract_check("world_model", check_step_shapes, check_decode, check_determinism)
def check_cuda(subject: Subject) -> None:
    """Predictions lie on the model's device, an accelerator too, with a generator on the CPU."""
    if not th.cuda.is_available():
        raise SkipTest("no CUDA device")
    model, data = subject.fitted(device="cuda")
    state, action = start_states(model, data, 32), some_actions(model, data, 32)
    if fault := prediction_fault(model, state, action, predict(model, state, action)):
        raise Violation.of(fault)
    shape = get_obs_shape(model.observation_space)
    if not isinstance(shape, dict) and (member := member_fault(model.observation_space, _decode(model, state), 32)):
        raise Violation(f".decode returned {member}", MEMBER_REMEDY)


STRUCTURE_CHECKS = (
    check_signatures,
    check_loss,
    check_attributes,
    check_optimizer,
    check_step_shapes,
    check_large_batch,
    check_global_randomness,
    check_no_side_effects,
    check_determinism,
    check_row_independence,
    check_state_operations,
    check_decode,
    check_features,
    check_far_out_of_distribution,
    check_known_functions,
    check_filter,
    check_observe,
    check_members,
    check_cuda,
)
