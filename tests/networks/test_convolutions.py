"""Images through the convolutions and back."""

import pytest
import torch as th

from sb3_mbrl.networks.convolutions import ImageDecoder, ImageEncoder, halved_sizes

SIDES = {64: 4, 36: 3, 16: 4, 10: 3, 96: 6, 128: 8, 300: 10}
"""The sizes of square images, and those that remain of them"""


@pytest.mark.parametrize(("size", "expected"), [*(((a, a), (b, b)) for a, b in SIDES.items()), ((84, 96), (6, 6))])
def test_sizes_of_images(size, expected):
    assert halved_sizes(*size)[-1] == expected


@pytest.mark.parametrize("shape", [(3, 64, 64), (1, 16, 16), (3, 37, 50)])
def test_images_in_and_out(shape, generator):
    encoder, decoder = ImageEncoder(shape, 2), ImageDecoder(shape, 16, 6, 2, 8, 4)
    image = th.randint(0, 256, (2, *shape), generator=generator, dtype=th.uint8)
    assert encoder(image).shape == (2, encoder.outputs)
    out = decoder(th.randn((2, 16), generator=generator), th.randn((2, 6), generator=generator))
    assert out.shape == (2, *shape)
    assert 0 <= float(out.min()) <= float(out.max()) <= 1


def test_an_image_that_is_too_small():
    with pytest.raises(ValueError, match="3 x 3 pixels is too small"):
        halved_sizes(3, 3)
