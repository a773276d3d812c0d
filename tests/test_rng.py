import pickle
import random

import numpy as np
import pytest
import torch as th

from sb3_mbrl.rng import RandomStream, on_device, streams_kept


def test_a_scope_does_not_disturb_the_global_stream():
    th.manual_seed(3)
    expected = th.rand(4)
    th.manual_seed(3)
    first = th.rand(2)
    with RandomStream(0).scope() as generator:
        th.rand(7)
        th.nn.Linear(3, 3)
        th.rand(3, generator=generator)
    assert th.equal(th.cat([first, th.rand(2)]), expected)


def test_code_that_draws_globally_continues_the_stream():
    def draws(stream: RandomStream) -> list[th.Tensor]:
        values = []
        for _ in range(2):
            with stream.scope():
                values.append(th.rand(3))
        return values

    th.manual_seed(1)
    one = draws(RandomStream(5))
    th.manual_seed(2)
    two = draws(RandomStream(5))
    assert th.equal(one[0], two[0])
    assert th.equal(one[1], two[1])
    assert not th.equal(one[0], one[1])


def test_a_pickled_stream_goes_on_where_it_was():
    stream = RandomStream(1)
    th.rand(10, generator=stream.generator)
    copy = pickle.loads(pickle.dumps(stream))
    assert th.equal(th.rand(5, generator=copy.generator), th.rand(5, generator=stream.generator))


def test_on_device_keeps_a_generator_that_fits(generator):
    assert on_device(generator, th.device("cpu")) is generator
    assert on_device(None, th.device("cpu")) is None


def test_a_scope_on_the_cpu_leaves_other_devices_alone(monkeypatch):
    """torch.manual_seed seeds the generators of every device."""
    monkeypatch.setattr(th.cuda, "manual_seed_all", lambda seed: pytest.fail("seeded all devices"))
    monkeypatch.setattr(th, "manual_seed", lambda seed: pytest.fail("seeded all devices"))
    with RandomStream(0).scope():
        th.rand(1)


def test_global_streams_are_put_back_also_after_an_error():
    def draw():
        return random.random(), np.random.rand(), th.rand(()).item()

    def seed(number):
        for function in (random.seed, np.random.seed, th.manual_seed):
            function(number)

    def reseeded():
        with streams_kept():
            seed(8)
            draw()
            raise KeyError

    seed(7)
    expected = draw()
    seed(7)
    with pytest.raises(KeyError):
        reseeded()
    assert draw() == expected
