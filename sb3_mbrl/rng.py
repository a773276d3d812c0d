"""A private random stream, so that a world model never disturbs SB3's."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import torch as th


def derive_seed(seed: int | None) -> int | None:
    """Of a second stream beside the one that has this seed, whose numbers are not the same."""
    return None if seed is None else int(np.random.SeedSequence(seed).spawn(1)[0].generate_state(1)[0])


class RandomStream:
    """
    A stream of torch randomness of its own: a generator for code that takes one, and a scope for code that does not.

    Policies and ``nn`` initialisers draw from torch's global generators. Inside :meth:`scope` these continue this stream;
    outside they are as if nothing had happened. Picklable: the state is saved with the agent.

    :param seed: ``None`` takes one from the operating system
    """

    def __init__(self, seed: int | None = None) -> None:
        if seed is None:
            seed = int(np.random.SeedSequence().generate_state(1)[0])
        self.generator = th.Generator().manual_seed(seed)

    def restart(self, seed: int) -> None:
        """Begin anew from a seed, in place: all who hold the stream go on with it."""
        self.generator = th.Generator().manual_seed(seed)

    def state_dict(self) -> dict[str, th.Tensor]:
        """The state of the generator."""
        return {"generator": self.generator.get_state()}

    def load_state_dict(self, state: Mapping[str, th.Tensor]) -> None:
        """Take back what :meth:`state_dict` gave."""
        self.generator = th.Generator()
        self.generator.set_state(state["generator"])

    @classmethod
    def of(cls, generator: th.Generator) -> "RandomStream":
        """The stream of a generator, which goes on with it."""
        stream = cls(0)
        stream.generator = generator
        return stream

    @contextmanager
    def scope(self, device: th.device | None = None) -> Iterator[th.Generator]:
        """
        Draw from this stream, also where code uses torch's global generators.

        :param device: an accelerator whose generator is used too
        """
        devices = [device] if device is not None and device.type == "cuda" else []
        with th.random.fork_rng(devices=devices):
            seed = int(th.randint(2**62, (1,), generator=self.generator))
            # Not th.manual_seed, which seeds the generators of all devices, also of those that are not put back.
            th.default_generator.manual_seed(seed)
            for used in devices:
                with th.cuda.device(used):
                    th.cuda.manual_seed(seed)
            yield self.generator

    def __getstate__(self) -> dict[str, np.ndarray]:
        return {"state": self.generator.get_state().numpy()}

    def __setstate__(self, state: dict[str, np.ndarray]) -> None:
        self.generator = th.Generator()
        self.generator.set_state(th.as_tensor(state["state"]))


def on_device(generator: th.Generator | None, device: th.device) -> th.Generator | None:
    """A generator that can draw on ``device``: the same where it already can, else one seeded by its next draw."""
    if generator is None or generator.device.type == device.type:
        return generator
    seed = int(th.randint(2**62, (1,), generator=generator, device=generator.device))
    return th.Generator(device).manual_seed(seed)
