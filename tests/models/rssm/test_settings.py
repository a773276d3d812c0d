"""Settings of the RSSM that are refused."""

import pytest

from sb3_mbrl.models.rssm.settings import make_settings


def test_settings_that_there_are_not():
    with pytest.raises(ValueError, match="latent='discrete': choose one of 'categorical', 'gaussian'"):
        make_settings("tiny", {"latent": "discrete"})
    with pytest.raises(ValueError, match="choose one of size1m, size12m"):
        make_settings("small", {})
    with pytest.raises(TypeError, match=r"does not take 'unit'\. Did you mean 'units'"):
        make_settings("tiny", {"unit": 8})
    with pytest.raises(ValueError, match="stoch=0: give a whole number from 1"):
        make_settings("tiny", {"stoch": 0})
    with pytest.raises(ValueError, match=r"unimix=1\.0: a uniform distribution alone"):
        make_settings("tiny", {"unimix": 1.0})
