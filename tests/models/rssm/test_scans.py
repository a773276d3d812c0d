"""Gradients of maps in a scan, gathered over its steps, are those of autograd."""

import gc
import weakref

import pytest
import torch as th

from sb3_mbrl.contracts import Sequences
from sb3_mbrl.models.rssm.layers import Linear
from sb3_mbrl.models.rssm.scans import GatheringMap, LinearMap, linear_map, map_of
from tests.models.rssm.test_model import small

EXACT = {"dtype": th.float64, "requires_grad": True}


@pytest.mark.parametrize("blocks", [(), (2,)], ids=["dense", "blocks"])
@pytest.mark.parametrize("added", ["nothing", "bias", "plus"])
def test_gathered_gradients_are_autograds(blocks, added, generator):
    """Six steps, each from the one before; the last two are not looked at, and the scan runs backwards twice."""
    weight = th.randn(*blocks, 3, 3, generator=generator, **EXACT)
    x = th.randn(*blocks, 4, 3, generator=generator, **EXACT)
    bias = th.randn(*((2, 1, 3) if blocks else (3,)), generator=generator, **EXACT) if added == "bias" else None
    plus = th.randn(6, *blocks, 4, 3, generator=generator, **EXACT) if added == "plus" else None
    leaves = [leaf for leaf in (weight, x, bias, plus) if leaf is not None]

    def gradients(kind):
        mapped, state, seen = kind(weight * 1.0, bias), x, []
        for t in range(6):
            state = th.tanh(mapped(state, None if plus is None else plus[t]))
            seen.append(state)
        loss = th.stack(seen[:4]).square().sum()
        th.autograd.grad(loss, leaves, retain_graph=True)
        return [loss, *th.autograd.grad(loss, leaves)]

    for ours, theirs in zip(gradients(GatheringMap), gradients(LinearMap), strict=True):
        th.testing.assert_close(ours, theirs)


def test_it_gathers_where_gradients_are_wanted():
    layer = Linear(3, 2)
    assert isinstance(map_of(layer), GatheringMap)
    with th.no_grad():
        assert not isinstance(map_of(layer), GatheringMap)
    assert not isinstance(linear_map(layer.weight.detach().t()), GatheringMap)
    with th.autocast("cpu", dtype=th.bfloat16):
        assert not isinstance(map_of(layer), GatheringMap)


def test_all_weights_of_a_model_get_their_gradients(monkeypatch, generator):
    """Of a whole model, with and without."""
    model = small()
    obs, action = th.randn(2, 9, 3, generator=generator), th.rand(2, 9, 6, generator=generator)
    flags = th.zeros(2, 9, dtype=th.bool)
    flags[1, 4] = True
    batch = Sequences(obs, action, obs, obs[..., 0], flags.float(), flags.roll(1, 1), flags)

    def gradients():
        model.zero_grad()
        th.manual_seed(0)
        model.loss(batch)[0].backward()
        return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}

    gathered = gradients()
    for module in ("cells", "model"):
        monkeypatch.setattr(f"sb3_mbrl.models.rssm.{module}.linear_map", LinearMap)
        monkeypatch.setattr(f"sb3_mbrl.models.rssm.{module}.map_of", lambda layer: LinearMap(layer.weight.t(), layer.bias))
    for name, gradient in gradients().items():
        th.testing.assert_close(gathered[name], gradient, msg=lambda text, name=name: f"{name}: {text}")


def test_a_scan_leaves_nothing_behind():
    layer, x = Linear(3, 3), th.ones(2, 3)
    for backward in (True, False):
        mapped = map_of(layer)
        out = mapped(mapped(x))
        if backward:
            out.sum().backward()
        gone = weakref.ref(out)
        del mapped, out
        gc.collect()
        assert gone() is None
