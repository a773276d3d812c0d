"""Updates captured as a CUDA graph, with a stand-in for the GPU."""

from contextlib import contextmanager

import pytest
import torch as th

from sb3_mbrl.agent import cuda_graph as acceleration
from sb3_mbrl.agent.cuda_graph import CapturedUpdate, make_capturable
from sb3_mbrl.optim import LaProp


class FakeGraph:
    """A stand-in for a CUDA graph on a CPU: it repeats what was captured."""

    recording: "FakeGraph | None" = None

    def __init__(self):
        self.known, self.replays = [], 0

    def register_generator_state(self, generator):
        self.known.append(generator)

    def replay(self):
        self.replays += 1


class Stream:
    def wait_stream(self, other):
        pass


@contextmanager
def nothing(*_):
    yield


@pytest.fixture
def cuda(monkeypatch):
    for name, value in {
        "CUDAGraph": FakeGraph,
        "graph": nothing,
        "Stream": Stream,
        "device": nothing,
        "current_stream": Stream,
        "stream": nothing,
    }.items():
        monkeypatch.setattr(acceleration.th.cuda, name, value)


def test_a_graph_is_captured_once_and_fed_from_then_on(cuda):
    calls = []

    def update(batch):
        calls.append(batch["x"])
        return {"twice": batch["x"] * 2}

    parameter = th.nn.Parameter(th.zeros(2))
    generator = th.Generator()
    captured = CapturedUpdate(update, LaProp([parameter]), (generator,))
    for value in range(3):
        assert captured({"x": th.full((2,), float(value))})["twice"].tolist() == [2.0 * value] * 2
    assert captured._graph is None
    captured({"x": th.full((2,), 7.0)})
    graph = captured._graph
    assert (len(calls), graph.known, graph.replays) == (4, [generator], 1)
    captured({"x": th.full((2,), 8.0)})
    assert (len(calls), graph.replays) == (4, 2)
    # What the graph reads is where the new batch was copied to.
    assert calls[-1].tolist() == [8.0, 8.0]
    captured({"x": th.zeros(3)})
    assert captured._graph is None  # another shape: eager again, then captured anew


def test_updates_continue_where_capturing_fails(cuda, monkeypatch):
    def refuses(*_):
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(acceleration.th.cuda, "graph", refuses)
    captured = CapturedUpdate(lambda batch: {"x": batch["x"] + 1}, LaProp([th.nn.Parameter(th.zeros(1))]), ())
    batch = {"x": th.zeros(1)}
    for _ in range(3):
        captured(batch)
    with pytest.warns(UserWarning, match="could not be captured as a CUDA graph, and runs as it is"):
        assert captured(batch)["x"] == 1
    assert captured(batch)["x"] == 1


def test_an_optimiser_with_its_numbers_in_tensors_takes_the_same_steps():
    def run(capturable):
        th.manual_seed(0)
        network = th.nn.Sequential(th.nn.Linear(4, 8), th.nn.Tanh(), th.nn.Linear(8, 1))
        optimizer = LaProp(network.parameters(), lr=0.02, warmup=5)
        for step in range(12):
            if capturable and step == 3:  # in the middle of training, as after some eager updates
                make_capturable(optimizer)
            acceleration.set_rate(optimizer.param_groups[0], 0.02 if step < 8 else 0.01)
            optimizer.zero_grad()
            network(th.randn(16, 4)).square().mean().backward()
            optimizer.step()
        return th.cat([parameter.detach().flatten() for parameter in network.parameters()])

    th.testing.assert_close(run(True), run(False), rtol=1e-5, atol=1e-6)


def test_an_optimiser_that_cannot_be_captured_is_refused():
    with pytest.raises(ValueError, match="SGD cannot be captured"):
        make_capturable(th.optim.SGD([th.nn.Parameter(th.zeros(1))], lr=0.1))
