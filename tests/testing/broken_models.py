"""World models that each break one check, and the messages that their authors read."""

from typing import ClassVar

import numpy as np
import torch as th
from gymnasium import spaces
from torch import nn

from sb3_mbrl.buffers import ReplayData
from sb3_mbrl.contracts import (
    Loss,
    MemberPrediction,
    UnsupportedSpace,
)
from sb3_mbrl.testing import (
    LinearToy,
    NeighbourToy,
    RecurrentToy,
    WeightedToy,
)


def stepping(change, base=NeighbourToy):
    """Make a model whose predictions go through ``change(prediction, state, action, generator)``."""

    class Broken(base):
        def step(self, state, action, *, deterministic=False, generator=None):
            prediction = super().step(state, action, deterministic=deterministic, generator=generator)
            return change(prediction, state, action, generator)

    return Broken


class SilentlyRefusing(NeighbourToy):
    def __init__(self, observation_space, action_space, **kwargs):
        if isinstance(observation_space, spaces.Discrete):
            raise UnsupportedSpace
        super().__init__(observation_space, action_space, **kwargs)


class Crashing(NeighbourToy):
    def __init__(self, observation_space, action_space, **kwargs):
        kwargs["k"] = observation_space.shape[0]
        super().__init__(observation_space, action_space, **kwargs)


class NoContext(NeighbourToy):
    context = 0


class Unfitted(LinearToy):
    fitted = False


class NeverFitted(NeighbourToy):
    def fit(self, data, budget=None, *, generator=None):
        metrics = super().fit(data, budget, generator=generator)
        self.fitted = False
        return metrics


class Small(NeighbourToy):
    def step(self, state, action, *, deterministic=False, generator=None):
        if len(action) > 5000:
            raise MemoryError("too many rows")
        return super().step(state, action, deterministic=deterministic, generator=generator)


class Moody(NeighbourToy):
    calls = 0

    def step(self, state, action, *, deterministic=False, generator=None):
        self.calls += 1
        prediction = super().step(state, action, deterministic=deterministic, generator=generator)
        return prediction._replace(reward=prediction.reward + 1e-3 * self.calls)


class Counting(Moody):
    def extra_state(self):
        return {**super().extra_state(), "calls": self.calls}


class NumpyFit(NeighbourToy):
    def fit(self, data, budget=None, *, generator=None):
        np.random.permutation(10)
        return super().fit(data, budget, generator=generator)


class InPlace(NeighbourToy):
    def step(self, state, action, *, deterministic=False, generator=None):
        state["obs"] += 1.0
        return super().step(state, action, deterministic=deterministic, generator=generator)


class NotClipped(LinearToy):
    def decode(self, state):
        return state + 100.0


class FlatDecode(NeighbourToy):
    def decode(self, state):
        return state["obs"].double()


class FlatFeatures(NeighbourToy):
    def features(self, state):
        return state["obs"][:, 0]


class FragileFar(NeighbourToy):
    def step(self, state, action, *, deterministic=False, generator=None):
        if state["obs"].abs().max() > 100:
            raise OverflowError("numbers too large")
        return super().step(state, action, deterministic=deterministic, generator=generator)


class ScaledActions(NeighbourToy):
    def known(self, flat, action, next_flat, reward, terminated):
        if self.reward_fn is None:
            return reward, terminated
        arguments = self.codec.decode(flat), action, self.codec.decode(next_flat)
        return self.reward_fn(*arguments), self.termination_fn(*arguments).float()


class IgnoresKnown(NeighbourToy):
    def known(self, flat, action, next_flat, reward, terminated):
        return reward, terminated


class LeakyFilter(RecurrentToy):
    def filter(self, obs, actions, is_first):
        return super().filter(obs, actions, th.zeros_like(is_first))


class ReadsLastAction(RecurrentToy):
    def filter(self, obs, actions, is_first):
        state = super().filter(obs, actions, is_first)
        belief, last = state["belief"]
        return {"belief": (belief + actions[:, -1, :1], last)}


class LeakyObserve(RecurrentToy):
    def observe(self, state, action, obs, is_first):
        return super().observe(state, action, obs, th.zeros_like(is_first))


class OneMember(NeighbourToy):
    def members(self, state, action):
        prediction = self.step(state, action, deterministic=True)
        mean = prediction.state["obs"]
        return MemberPrediction(mean, th.zeros_like(mean), prediction.reward, prediction.terminated)


class NegativeVariance(NeighbourToy):
    def members(self, state, action):
        prediction = self.step(state, action, deterministic=True)
        mean = prediction.state["obs"][None]
        return MemberPrediction(mean, mean * 0 - 1, prediction.reward[None], prediction.terminated[None])


class NeedsTwoRows(NeighbourToy):
    def fit(self, data, budget=None, *, generator=None):
        if len(data) < 2:
            raise IndexError("empty holdout")
        return super().fit(data, budget, generator=generator)


class DividesByDeviation(NeighbourToy):
    def fit(self, data, budget=None, *, generator=None):
        metrics = super().fit(data, budget, generator=generator)
        self._outputs = self._outputs / self._inputs.std(0).max()
        return metrics


class TensorMetrics(NeighbourToy):
    def fit(self, data, budget=None, *, generator=None):
        return {"loss": th.tensor(super().fit(data, budget, generator=generator)["rows"])}


class LearnsNothing(NeighbourToy):
    def fit(self, data, budget=None, *, generator=None):
        metrics = super().fit(data, budget, generator=generator)
        self._outputs = th.zeros_like(self._outputs)
        return metrics


class OnlyRewards(NeighbourToy):
    def fit(self, data, budget=None, *, generator=None):
        metrics = super().fit(data, budget, generator=generator)
        self._outputs[:, :-2] = 0
        return metrics


class Memorising(NeighbourToy):
    """A model that stores all the rows that it can reach."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **{"k": 1, **kwargs})

    def fit(self, data, budget=None, *, generator=None):
        metrics = super().fit(data, budget, generator=generator)
        if (held_out := data.held_out()) is not None:
            inputs, outputs = self._inputs, self._outputs
            super().fit(held_out, budget, generator=generator)
            self._inputs, self._outputs = th.cat([inputs, self._inputs]), th.cat([outputs, self._outputs])
        return metrics


class ReachesIntoTheBuffer(Memorising):
    def fit(self, data, budget=None, *, generator=None):
        whole = ReplayData(data.buffer) if isinstance(data, ReplayData) else data
        return NeighbourToy.fit(self, whole, budget, generator=generator)


class RandomFit(NeighbourToy):
    fits = 0

    def fit(self, data, budget=None, *, generator=None):
        metrics = super().fit(data, budget, generator=generator)
        type(self).fits += 1
        self._outputs[:, -2] += 1e-3 * type(self).fits  # the rewards
        return metrics


class OneLossForAll(RecurrentToy):
    def loss(self, batch, start=None, *, generator=None):
        loss = super().loss(batch, start, generator=generator)
        return loss._replace(rows={name: value.mean() for name, value in loss.rows.items()})


def losing(change):
    """Make a model whose loss goes through ``change(loss)``."""

    class Broken(OneLossForAll):
        def loss(self, batch, start=None, *, generator=None):
            return change(RecurrentToy.loss(self, batch, start, generator=generator))

    return Broken


class LossOfVersion1(OneLossForAll):
    def loss(self, batch):
        return RecurrentToy.loss(self, batch)


class ReadsWhatItDoesNotAskFor(WeightedToy):
    extra: ClassVar = {}


class WrongDiscount(NeighbourToy):
    discount = 2.0


class ForeignOptimizer(RecurrentToy):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.optimizer = th.optim.Adam([nn.Parameter(p.detach().clone()) for p in self.parameters()])


class IntegerBuffer(NeighbourToy):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.register_buffer("elites", th.arange(3))


class Forgetful(NeighbourToy):
    def extra_state(self):
        return {**super().extra_state(), "outputs": self._outputs + 1.0}


class ForgetsFitted(NeighbourToy):
    def load_extra_state(self, extra):
        super().load_extra_state(extra)
        self.fitted = False


class FitsOnce(NeighbourToy):
    loaded = False

    def load_extra_state(self, extra):
        super().load_extra_state(extra)
        self.loaded = True

    def fit(self, data, budget=None, *, generator=None):
        if self.loaded:
            raise RuntimeError("no optimiser state")
        return super().fit(data, budget, generator=generator)


class Unpicklable(NeighbourToy):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.activation = lambda x: x


_SHARED: dict[str, th.Tensor] = {}


class Sharing(NeighbourToy):
    def fit(self, data, budget=None, *, generator=None):
        metrics = super().fit(data, budget, generator=generator)
        _SHARED["outputs"] = self._outputs
        return metrics

    def step(self, state, action, *, deterministic=False, generator=None):
        self._outputs = _SHARED.get("outputs", self._outputs)
        return super().step(state, action, deterministic=deterministic, generator=generator)


class DataShaped(NeighbourToy):
    """A model whose parameters have as many rows as its data."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._resize(0)

    def _resize(self, rows):
        self.bias = nn.Parameter(th.zeros(rows))

    def fit(self, data, budget=None, *, generator=None):
        metrics = super().fit(data, budget, generator=generator)
        self._resize(len(self._outputs))
        with th.no_grad():
            self.bias.fill_(0.25)
        return metrics

    def step(self, state, action, *, deterministic=False, generator=None):
        prediction = super().step(state, action, deterministic=deterministic, generator=generator)
        return prediction._replace(reward=prediction.reward + self.bias.mean())

    def load_extra_state(self, extra):
        super().load_extra_state(extra)
        self._resize(len(self._outputs))


BROKEN_MODELS = [
    ("check_spaces", SilentlyRefusing, r"refused the spaces of case 'discrete' without a message"),
    ("check_spaces", Crashing, r"raised (TypeError|IndexError).* for the spaces of case '(.|\n)*UnsupportedSpace"),
    ("check_attributes", NoContext, r"\.context is 0, expected an integer of at least 1"),
    ("check_attributes", Unfitted, r"neither fit nor loss, so it is known(.|\n)*set fitted = True"),
    ("check_attributes", NeverFitted, r"\.fitted is False after fit"),
    (
        "check_step_shapes",
        stepping(lambda p, *_: p._replace(reward=p.reward[:, None])),
        r"\.step returned reward of shape \(1, 1\), expected \(1,\)",
    ),
    (
        "check_step_shapes",
        stepping(lambda p, *_: p._replace(terminated=p.terminated - 3)),
        r"terminated = -3.*\(not a logit\)",
    ),
    (
        "check_step_shapes",
        stepping(lambda p, *_: p._replace(terminated=p.terminated > 1)),
        r"terminated as torch.bool, expected floats",
    ),
    ("check_step_shapes", stepping(lambda p, *_: tuple(p)), r"\.step returned tuple, expected .*Prediction"),
    ("check_step_shapes", stepping(lambda p, *_: p._replace(reward=0.0)), r"reward as float, expected a tensor"),
    ("check_step_shapes", stepping(lambda p, *_: p._replace(discount=p.reward[:, None])), r"discount of shape \(1, 1\)"),
    (
        "check_step_shapes",
        stepping(lambda p, *_: p._replace(state={"obs": p.state["obs"].double()})),
        r"state leaf state\['obs'\] of torch.float32 into torch.float64",
    ),
    (
        "check_step_shapes",
        stepping(lambda p, *_: p._replace(state=p.state["obs"])),
        r"turned a state \{obs: \(1, 3\)\} into \(1, 3\)",
    ),
    (
        "check_step_shapes",
        stepping(lambda p, *_: p._replace(reward=p.reward / 0)),
        r"reward that is not finite, on data that it was fitted on",
    ),
    ("check_large_batch", Small, r"raised MemoryError: too many rows"),
    (
        "check_row_independence",
        stepping(lambda p, *_: p._replace(reward=p.reward - p.reward.mean())),
        r"another reward when it is alone",
    ),
    (
        "check_row_independence",
        stepping(lambda p, *_: p._replace(reward=p.reward + th.arange(len(p.reward)))),
        r"another reward when the rows are shuffled",
    ),
    ("check_determinism", Moody, r"another reward for a generator of the same seed"),
    (
        "check_determinism",
        stepping(lambda p, s, a, g: p._replace(reward=th.rand(p.reward.shape, generator=g))),
        r"deterministic=True\) depends on the generator",
    ),
    (
        "check_global_randomness",
        stepping(lambda p, *_: p._replace(reward=th.rand(len(p.reward)))),
        r"\.step drew from torch's global",
    ),
    ("check_global_randomness", NumpyFit, r"\.fit drew from NumPy's global"),
    ("check_no_side_effects", InPlace, r"changed the state\['obs'\] that it was given"),
    ("check_no_side_effects", Counting, r"changed extra_state\(\)\['calls'\] while"),
    (
        "check_state_operations",
        stepping(lambda p, *_: p._replace(reward=p.reward + th.arange(len(p.reward)))),
        r"whose rows were repeated",
    ),
    ("check_decode", NotClipped, r"\.decode returned obs = \[.*no member of Box"),
    ("check_decode", FlatDecode, r"\.decode returned obs as torch.float64, expected torch.float32"),
    ("check_features", FlatFeatures, r"\.features returned torch.float32 of shape \(8,\)"),
    ("check_far_out_of_distribution", FragileFar, r"raised OverflowError"),
    ("check_known_functions", ScaledActions, r"ActionCodec.to_env"),
    ("check_known_functions", IgnoresKnown, r"did not call the known reward_fn"),
    ("check_filter", LeakyFilter, r"another episode leaks"),
    ("check_filter", ReadsLastAction, r"uses the last action"),
    ("check_observe", LeakyObserve, r"remembers the last episode"),
    ("check_members", OneMember, r"mean of shape \(8, 3\), expected \(8, 8, 3\)"),
    ("check_members", NegativeVariance, r"negative variance"),
    ("check_fit_one_row", NeedsTwoRows, r"\.fit raised IndexError: empty holdout \(on one row\)"),
    ("check_fit_one_row", TensorMetrics, r"metrics that are no plain numbers"),
    ("check_fit_constant_data", DividesByDeviation, r"not finite after a fit on constant data"),
    ("check_fit_learns", LearnsNothing, r"did not learn the reward"),
    ("check_fit_learns", OnlyRewards, r"did not learn the next observation"),
    ("check_held_out", Memorising, r"learned its held-out rows by heart: on pure noise"),
    ("check_held_out", ReachesIntoTheBuffer, r"data\.held_out\(\) is for early stopping"),
    ("check_fit_determinism", RandomFit, r"different models for the same seed"),
    ("check_loss", OneLossForAll, r"term 'obs_loss' of shape \(\), expected one value per row: \(8,\) or \(8, T\)"),
    (
        "check_loss",
        losing(lambda loss: loss._replace(rows={name: value.detach() for name, value in loss.rows.items()})),
        r"without a gradient",
    ),
    ("check_loss", losing(lambda loss: loss.total()), r"returned Tensor, expected a sb3_mbrl.contracts.Loss"),
    ("check_loss", losing(lambda loss: loss._replace(rows={})), r"a Loss without a single term"),
    ("check_loss", losing(lambda loss: loss._replace(scalars={"l2": 0.1})), r"'l2' as float, expected a tensor"),
    ("check_loss", losing(lambda loss: loss._replace(scalars={"l2": th.ones(3)})), r"'l2' of shape \(3,\) among scalars"),
    ("check_loss", losing(lambda loss: loss._replace(weights={"reward": 2.0})), r"weight for 'reward', which is none of its"),
    ("check_loss", losing(lambda loss: loss._replace(scalars={"obs_loss": th.ones(())})), r"both as a term of the rows"),
    ("check_loss", losing(lambda loss: loss._replace(metrics={"loss": loss.total()})), r"metrics with gradients"),
    ("check_loss", losing(lambda loss: Loss(loss.rows, figures={})), r"called metrics now, so give Loss\(metrics=\.\.\.\)"),
    ("check_loss", losing(lambda loss: loss._replace(states=th.zeros(3, 2))), r"states of 3 rows for a batch of 8"),
    ("check_loss", losing(lambda loss: loss._replace(scalars={"l2": th.ones(()) / 0})), r"with the total inf"),
    ("check_signatures", LossOfVersion1, r"cannot be called as loss\(batch, start, generator=generator\)"),
    ("check_loss", ReadsWhatItDoesNotAskFor, r"raised KeyError: 'weight'"),
    ("check_attributes", WrongDiscount, r"\.discount is 2.0, expected None or a float from 0 to 1"),
    ("check_optimizer", ForeignOptimizer, r"parameters that are not the model's"),
    ("check_state_dict", IntegerBuffer, r"state_dict\(\)\['elites'\] is torch.int64(.|\n)*extra_state"),
    ("check_save_load", Forgetful, r"\.extra_state and state_dict do not hold all that matters"),
    ("check_save_load", ForgetsFitted, r"lost whether the model is fitted"),
    ("check_fit_after_load", FitsOnce, r"raised RuntimeError: no optimiser state"),
    ("check_pickle_and_deepcopy", Unpicklable, r"raised (AttributeError|PicklingError)"),
    ("check_pickle_and_deepcopy", Sharing, r"changed when a copy of it was fitted"),
    (
        "check_rollout_learned",
        stepping(lambda p, s, a, g: p._replace(state={"obs": p.state["obs"].exp().exp().exp()})),
        r"lost 100% of rows",
    ),
]
