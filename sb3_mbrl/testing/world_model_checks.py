"""The checks of a world model's contract: spaces, steps, randomness, states (learning and saving: ``learning_checks``)."""

from unittest import SkipTest

import torch as th
from stable_baselines3.common.preprocessing import get_obs_shape

from sb3_mbrl.contracts import MissingCapability, Obs, UnsupportedSpace, WorldModel, WorldModelSpec
from sb3_mbrl.plugins.validation import prediction_fault
from sb3_mbrl.spaces import ActionCodec, SpaceCodec
from sb3_mbrl.testing.kit import (
    Subject,
    Violation,
    close_values,
    contract_check,
    fit_shortly,
    member_fault,
    predict,
    rng,
    same_values,
    some_actions,
    start_states,
    to_device,
    untouched_rng,
)
from sb3_mbrl.testing.toy_data import Case, ToyData
from sb3_mbrl.trees import State, batch_size, describe, finite_rows, tree_cat, tree_index, tree_leaves, tree_map, tree_repeat


def _decode(model: WorldModel, state: State) -> Obs:
    """
    Decode a state without gradients.

    :raises SkipTest: when the model does not decode
    """
    if not model.decodes:
        raise SkipTest(f"{type(model).__name__} does not decode observations")
    with th.no_grad():
        return model.decode(state)


@contract_check("world_model")
def check_spaces(subject: Subject) -> None:
    """Every kind of space is taken and works, or is refused with ``UnsupportedSpace``."""
    taken = 0
    for case in subject.cases():
        reason = None
        if isinstance(subject.spec, WorldModelSpec):
            reason = subject.spec.supports(case.observation_space, case.action_space)
        try:
            model = subject.world_model(case)
        except UnsupportedSpace as error:
            if isinstance(subject.spec, WorldModelSpec) and reason is None:
                raise Violation(
                    f": its record supports the spaces of case {case.name!r}, but its factory refuses them"
                ) from error
            if not str(error):
                raise Violation(
                    f" refused the spaces of case {case.name!r} without a message; name the spaces it takes"
                ) from error
            continue
        except Exception as error:
            raise Violation(
                f" raised {type(error).__name__} for the spaces of case {case.name!r}: {error}. "
                "Refuse spaces that the model does not take with UnsupportedSpace"
            ) from error
        if reason is None:
            _check_case(subject, model, case)
            taken += 1
    if not taken:
        raise Violation(" takes none of the kit's spaces. If it is made for one environment, give an instance built for it")


def _check_case(subject: Subject, model: WorldModel, case: Case) -> None:
    data = subject.data(case)
    fit_shortly(model, data)
    state, action = start_states(model, data, 4), some_actions(model, data, 4)
    prediction = predict(model, state, action)
    if fault := prediction_fault(model, state, action, prediction):
        raise Violation(f"{fault} (case {case.name!r})")
    if not model.decodes:
        return
    if fault := member_fault(case.observation_space, model.decode(prediction.state), 4):
        raise Violation(f".decode returned{fault} (case {case.name!r})")


@contract_check("world_model")
def check_attributes(subject: Subject) -> None:
    """Spaces, device, ``context``, ``discount`` and ``fitted`` follow the contract."""
    model, case = subject.world_model(), subject.home()
    if model.observation_space != case.observation_space or model.action_space != case.action_space:
        raise Violation(" changed its observation_space or action_space; they stay as given")
    if not isinstance(model.device, th.device):
        raise Violation(f".device is {model.device!r}, expected a torch.device: call super().__init__(..., device=device)")
    if not isinstance(model.context, int) or model.context < 1:
        raise Violation(f".context is {model.context!r}, expected an integer of at least 1")
    if model.discount is not None and not (isinstance(model.discount, float) and 0.0 <= model.discount <= 1.0):
        raise Violation(f".discount is {model.discount!r}, expected None or a float from 0 to 1")
    if not isinstance(model.fitted, bool):
        raise Violation(f".fitted is {model.fitted!r}, expected True or False")
    if not model.learns and not model.fitted:
        raise Violation(" has neither fit nor loss, so it is known: set fitted = True, or it will not be used")
    fit_shortly(model, subject.data())
    if not model.fitted:
        raise Violation(".fitted is False after fit; set it, or the model will not be used")


@contract_check("world_model")
def check_step_shapes(subject: Subject) -> None:
    """Rewards and probabilities of termination ``(B,)``, a state of the same shapes, all on the model's device."""
    model, data = subject.fitted()
    for rows in (1, 32):
        state, action = start_states(model, data, rows), some_actions(model, data, rows)
        for deterministic in (False, True):
            prediction = predict(model, state, action, deterministic=deterministic)
            if fault := prediction_fault(model, state, action, prediction):
                raise Violation(fault)
            if not finite_rows(prediction).all():
                raise Violation(".step is not finite on data that it was fitted on")


@contract_check("world_model")
def check_large_batch(subject: Subject) -> None:
    """A step of 10 000 rows at once works (1 000 rows of images)."""
    model, data = subject.fitted()
    rows = 1_000 if any(leaf.numel() > 5_000 for leaf in _leaves_of_one(model, data)) else 10_000
    state, action = start_states(model, data, rows), some_actions(model, data, rows)
    if fault := prediction_fault(model, state, action, predict(model, state, action)):
        raise Violation(fault)


def _leaves_of_one(model: WorldModel, data: ToyData) -> list[th.Tensor]:
    return [*tree_leaves(start_states(model, data, 1)), *tree_leaves(data.transitions(1, generator=rng(0)).obs)]


@contract_check("world_model")
def check_row_independence(subject: Subject) -> None:
    """In deterministic mode a row's prediction does not depend on the other rows."""
    model, data = subject.fitted()
    state, action = start_states(model, data, 24), some_actions(model, data, 24)
    together = predict(model, state, action, deterministic=True)
    order = th.randperm(24, generator=rng(3)).to(model.device)
    shuffled = predict(model, tree_index(state, order), action[order], deterministic=True)
    if not close_values(shuffled, tree_index(together, order)):
        raise Violation(".step(deterministic=True) gives a row another prediction when the rows are shuffled")
    for row in range(3):
        alone = predict(model, tree_index(state, slice(row, row + 1)), action[row : row + 1], deterministic=True)
        if not close_values(alone, tree_index(together, slice(row, row + 1))):
            raise Violation(".step(deterministic=True) gives a row another prediction when it is alone (batch statistics?)")


@contract_check("world_model")
def check_determinism(subject: Subject) -> None:
    """The same generator gives the same prediction to the last bit; deterministic mode needs none."""
    model, data = subject.fitted()
    state, action = start_states(model, data, 16), some_actions(model, data, 16)
    if not same_values(predict(model, state, action, seed=1), predict(model, state, action, seed=1)):
        raise Violation(".step gives different predictions for generators of the same seed")
    if not same_values(
        predict(model, state, action, deterministic=True, seed=1), predict(model, state, action, deterministic=True, seed=2)
    ):
        raise Violation(".step(deterministic=True) depends on the generator")


@contract_check("world_model")
def check_global_randomness(subject: Subject) -> None:
    """Neither fitting nor using the model moves a global random stream when a generator is given."""
    model, data = subject.world_model(), subject.data()
    with untouched_rng(".fit"):
        fit_shortly(model, data)
    with untouched_rng(".filter"):
        state = start_states(model, data, 8)
    action = some_actions(model, data, 8)
    with untouched_rng(".step"):
        predict(model, state, action)
    with untouched_rng(".step(deterministic=True)"), th.no_grad():
        model.step(state, action, deterministic=True)
    with untouched_rng(".features"):
        model.features(state)


@contract_check("world_model")
def check_no_side_effects(subject: Subject) -> None:
    """Using the model in evaluation mode changes neither the model nor its arguments."""
    model, data = subject.fitted()
    before = tree_map(th.clone, dict(model.state_dict())), model.extra_state()
    state, action = start_states(model, data, 8), some_actions(model, data, 8)
    given = tree_map(th.clone, (state, action))
    obs = to_device(data.transitions(8, generator=rng(0)).obs, model.device)
    obs_given = tree_map(th.clone, obs)
    prediction = predict(model, state, action)
    with th.no_grad():
        model.observe(state, action, obs, th.zeros(8, dtype=th.bool, device=model.device))
        model.features(prediction.state)
        model.initial(obs)
    if not same_values(given, (state, action)):
        raise Violation(" changed the state or the action that it was given; work on new tensors")
    if not same_values(obs_given, obs):
        raise Violation(" changed the observations that it was given; work on new tensors")
    if not same_values(before, (dict(model.state_dict()), model.extra_state())):
        raise Violation(" changed its own weights or extra state while it was only used")


@contract_check("world_model")
def check_state_operations(subject: Subject) -> None:
    """States can be indexed, repeated and joined: predictions do not depend on a row's position."""
    model, data = subject.fitted()
    state, action = start_states(model, data, 6), some_actions(model, data, 6)
    if (size := batch_size(state)) != 6:
        raise Violation(f".filter returned a state of {size} rows for 6 contexts")
    whole = predict(model, state, action, deterministic=True)
    parts = tree_cat([tree_index(state, slice(0, 2)), tree_index(state, slice(2, 6))])
    if not close_values(predict(model, parts, action, deterministic=True), whole):
        raise Violation(".step predicts something else from a state that was cut and joined again")
    twice = predict(model, tree_repeat(state, 2), action.repeat_interleave(2, dim=0), deterministic=True)
    if not close_values(twice, tree_repeat(whole, 2)):
        raise Violation(".step predicts something else from a state whose rows were repeated")


@contract_check("world_model")
def check_decode(subject: Subject) -> None:
    """Decoded observations are valid members of the space, in the layout of SB3's replay buffer, after any number of steps."""
    model, data = subject.fitted()
    state = start_states(model, data, 8)
    for step in range(5):
        obs = _decode(model, state)
        if fault := member_fault(model.observation_space, obs, 8):
            raise Violation(f".decode returned{fault} ({step} steps after the start)")
        state = predict(model, state, some_actions(model, data, 8, seed=step), seed=step).state


@contract_check("world_model")
def check_features(subject: Subject) -> None:
    """``(B, F)`` floats, with one ``F`` for every state."""
    model, data = subject.fitted()
    state = start_states(model, data, 8)
    for where in ("a start state", "a predicted state"):
        with th.no_grad():
            features = model.features(state)
        if features.dim() != 2 or len(features) != 8 or not features.is_floating_point():
            raise Violation(
                f".features returned {features.dtype} of shape {tuple(features.shape)} for {where}, expected floats (8, F)"
            )
        state = predict(model, state, some_actions(model, data, 8)).state
    with th.no_grad():
        if model.features(state).shape[1] != features.shape[1]:
            raise Violation(".features has another width after a step")


@contract_check("world_model")
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
            raise Violation(f"{fault} (far from the data)")
        finite = finite_rows(prediction)
        # Rollouts mask rows that are not finite.
        state = tree_index(prediction.state, finite)
        if not batch_size(state):
            return
        if not model.decodes:
            continue
        if fault := member_fault(model.observation_space, model.decode(state), batch_size(state)):
            raise Violation(f".decode returned{fault} (far from the data)")


@contract_check("world_model")
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
        raise Violation(".step did not call the known reward function")
    in_units = codec.to_env(action)
    if not th.allclose(prediction.reward, in_units.flatten(1).float().sum(1), atol=1e-5):
        raise Violation(
            ".step did not return the known reward, which takes actions in the environment's units: ActionCodec.to_env(action)"
        )
    if not th.equal(prediction.terminated, (in_units.flatten(1)[:, 0] > 0).to(prediction.terminated.dtype)):
        raise Violation(".step did not return the known termination as 0 or 1")
    for obs in (calls[-1][0], calls[-1][2]):
        if fault := member_fault(model.observation_space, obs, 32):
            raise Violation(f".step called the known reward with an observation{fault}")


@contract_check("world_model")
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
    if not close_values(other, state, 1e-6):
        raise Violation(".filter uses steps before is_first: another episode leaks into the state")
    if not close_values(third, state, 1e-6):
        raise Violation(".filter uses the last action, which is not known yet when the state is needed")
    if batch_size(state) != 16:
        raise Violation(f".filter returned a state of {batch_size(state)} rows for 16 contexts")


@contract_check("world_model")
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
        raise Violation(f".observe turned a state {describe(state)} into {describe(one)}")
    if not close_values(tree_index(one, is_first), tree_index(two, is_first), 1e-6):
        raise Violation(".observe remembers the last episode in rows where is_first is true")


@contract_check("world_model")
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
            raise Violation(f".members returned {name} of shape {tuple(getattr(members, name).shape)}, expected {shape}")
    if (members.variance < 0).any():
        raise Violation(".members returned a negative variance")
    if (members.terminated < 0).any() or (members.terminated > 1).any():
        raise Violation(".members returned terminated outside [0, 1]")


@contract_check("world_model")
def check_cuda(subject: Subject) -> None:
    """Predictions lie on the model's device, an accelerator too, with a generator on the CPU."""
    if not th.cuda.is_available():
        raise SkipTest("no CUDA device")
    model, data = subject.fitted(device="cuda")
    state, action = start_states(model, data, 32), some_actions(model, data, 32)
    if fault := prediction_fault(model, state, action, predict(model, state, action)):
        raise Violation(fault)
    shape = get_obs_shape(model.observation_space)
    if not isinstance(shape, dict) and (fault := member_fault(model.observation_space, _decode(model, state), 32)):
        raise Violation(f".decode returned{fault}")


STRUCTURE_CHECKS = (
    check_spaces,
    check_attributes,
    check_step_shapes,
    check_large_batch,
    check_row_independence,
    check_determinism,
    check_global_randomness,
    check_no_side_effects,
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
