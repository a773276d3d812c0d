"""A private random stream for world models, which leaves SB3's random streams alone."""

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import torch as th


def derive_seed(seed: int | None) -> int | None:
    """Derive the seed of a second, independent stream."""
    return None if seed is None else int(np.random.SeedSequence(seed).spawn(1)[0].generate_state(1)[0])


class RandomStream:
    """
    A stream of torch randomness of its own: a generator for code that takes one, and a scope for code that does not.

    Policies and ``nn`` initialisers draw from torch's global generators. Inside :meth:`scope` these continue this stream;
    outside they are as if nothing had happened. Picklable: the state is saved with the agent.

    :param seed: the seed; ``None``: one from the operating system
    """

    def __init__(self, seed: int | None = None) -> None:
        if seed is None:
            seed = int(np.random.SeedSequence().generate_state(1)[0])
        self.generator = th.Generator().manual_seed(seed)

    def restart(self, seed: int) -> None:
        """Restart from a seed, in place: all holders of the stream see the restart."""
        self.generator = th.Generator().manual_seed(seed)

    def state_dict(self) -> dict[str, th.Tensor]:
        """Return the state of the generator."""
        return {"generator": self.generator.get_state()}

    def load_state_dict(self, state: Mapping[str, th.Tensor]) -> None:
        """Restore the result of :meth:`state_dict`."""
        self.generator = th.Generator()
        self.generator.set_state(state["generator"])

    @classmethod
    def of(cls, generator: th.Generator) -> "RandomStream":
        """Make a stream that draws from a given generator."""
        stream = cls(0)
        stream.generator = generator
        return stream

    @contextmanager
    def scope(self, device: th.device | None = None) -> Iterator[th.Generator]:
        """
        Draw from this stream, also where code uses torch's global generators.

        :param device: an accelerator, whose generator continues this stream too
        """
        devices = [device] if device is not None and device.type == "cuda" else []
        with th.random.fork_rng(devices=devices):
            seed = int(th.randint(2**62, (1,), generator=self.generator))
            # Not th.manual_seed: it seeds the generators of all devices, and fork_rng restores only the listed ones.
            th.default_generator.manual_seed(seed)
            for accelerator in devices:
                with th.cuda.device(accelerator):
                    th.cuda.manual_seed(seed)
            yield self.generator

    def __getstate__(self) -> dict[str, np.ndarray]:
        return {"state": self.generator.get_state().numpy()}

    def __setstate__(self, state: dict[str, np.ndarray]) -> None:
        self.generator = th.Generator()
        self.generator.set_state(th.as_tensor(state["state"]))


@contextmanager
def streams_kept() -> Iterator[None]:
    """Put the global random streams of Python, NumPy and torch back at the end: SB3 seeds them when it loads an agent."""
    python, of_numpy = random.getstate(), np.random.get_state()
    try:
        with th.random.fork_rng():
            yield
    finally:
        random.setstate(python)
        np.random.set_state(of_numpy)


def on_device(generator: th.Generator | None, device: th.device) -> th.Generator | None:
    """Return a generator that can draw on ``device``: the given one if it can, else a new one seeded by its next draw."""
    if generator is None or generator.device.type == device.type:
        return generator
    seed = int(th.randint(2**62, (1,), generator=generator, device=generator.device))
    return th.Generator(device).manual_seed(seed)
