"""Imaginations that each break one thing, and the words that their authors read."""

import torch as th

from sb3_mbrl.contracts import Imagined, RolloutImagination
from sb3_mbrl.imagination import BranchedRollouts


def imagining(change):
    class Broken(BranchedRollouts):
        def imagine(self, world_model, starts, act, horizon, *, generator=None):
            return change(super().imagine(world_model, starts, act, horizon, generator=generator))

    return Broken


class FloatHorizon(BranchedRollouts):
    def horizon(self, num_timesteps):
        return num_timesteps / 1000


class Careless(RolloutImagination):
    """A rule that continues rollouts after terminations and NaN."""

    freq, starts_per_step, max_age = 1, 1.0, 1

    def horizon(self, num_timesteps):
        return 1

    def imagine(self, world_model, starts, act, horizon, *, generator=None):
        rows, state = [], starts
        for _ in range(horizon):
            obs = world_model.decode(state)
            action = act(obs)
            prediction = world_model.step(state, action, generator=generator)
            state = prediction.state
            rows.append((obs, action, world_model.decode(state), prediction.reward, prediction.terminated))
        columns = [th.stack(column) for column in zip(*rows, strict=True)]
        return Imagined(*columns, None, th.ones_like(columns[-1], dtype=th.bool))


class HorizonEnds(BranchedRollouts):
    def imagine(self, world_model, starts, act, horizon, *, generator=None):
        imagined = super().imagine(world_model, starts, act, horizon, generator=generator)
        imagined.terminated[-1] = 1.0
        return imagined


class GlobalActs(BranchedRollouts):
    def imagine(self, world_model, starts, act, horizon, *, generator=None):
        return super().imagine(world_model, starts, act, horizon)


class EditsStarts(BranchedRollouts):
    def imagine(self, world_model, starts, act, horizon, *, generator=None):
        imagined = super().imagine(world_model, starts, act, horizon, generator=generator)
        starts += 1
        return imagined


def choosing(choose):
    class Broken(BranchedRollouts):
        def choose_starts(self, data, n, *, generator=None):
            return choose(data, n)

    return Broken


BROKEN_IMAGINATIONS = [
    ("check_imagination_settings", FloatHorizon, r"\.horizon\(0\) returned 0\.0, expected an integer of at least 1"),
    (
        "check_imagination_settings",
        type("Variant", (BranchedRollouts,), {"freq": property(lambda self: 0, lambda self, v: None)}),
        r"\.freq is 0",
    ),
    ("check_imagination_shapes", imagining(lambda i: i._replace(reward=i.reward[..., None])), r"reward of shape \(1, 16, 1\)"),
    (
        "check_imagination_shapes",
        imagining(lambda i: i._replace(valid=i.valid.float())),
        r"valid as torch.float32, expected booleans",
    ),
    ("check_imagination_shapes", imagining(lambda i: i._replace(terminated=i.terminated + 0.5)), r"neither 0 nor 1"),
    ("check_imagination_shapes", imagining(lambda i: i._replace(obs=i.obs.flatten(0, 1))), r"obs of shape \(16, 3\)"),
    ("check_imagination_ends", Careless, r"valid rows after their rollout had terminated"),
    (
        "check_imagination_ends",
        imagining(lambda i: i._replace(valid=i.valid & (i.terminated == 0))),
        r"no valid terminated row",
    ),
    ("check_imagination_horizon_is_no_termination", HorizonEnds, r"the horizon is a truncation"),
    ("check_imagination_continuity", imagining(lambda i: i._replace(obs=i.next_obs)), r"not the next_obs of the step before"),
    ("check_imagination_nonfinite", Careless, r"valid rows that are not finite"),
    ("check_imagination_determinism", GlobalActs, r"\.imagine drew from torch's global random stream"),
    ("check_imagination_determinism", EditsStarts, r"changed the start states"),
    ("check_imagination_starts", choosing(lambda data, n: th.arange(n)), r"\.choose_starts chose row 0, which is none of"),
    ("check_imagination_starts", choosing(lambda data, n: data.row_ids()), r"\.choose_starts returned \(160,\)"),
    (
        "check_imagination_starts",
        choosing(lambda data, n: data.row_ids()[th.randint(len(data), (n,))]),
        r"\.choose_starts drew from torch's global random stream",
    ),
]
