"""Arguments of a chosen part."""

import pytest

from sb3_mbrl.plugins import (
    PartArgumentError,
    PluginContractError,
    PluginError,
    get_registry,
)
from tests.plugins.plugin_fakes import ACTION, VECTOR, Still, good


def test_unknown_keyword_argument(install):
    install("sb3-mbrl-gp", good(), version="0.2.0")
    selection = get_registry().resolve("world_model", "gp")
    with pytest.raises(PartArgumentError) as caught:
        selection.build(VECTOR, ACTION, reward_fn=None, n_hiden=3)
    assert str(caught.value) == (
        "world model 'gp' (sb3-mbrl-gp 0.2.0) does not take 'n_hiden'. Did you mean 'n_hidden'?\n"
        "  world_model_kwargs: n_hidden, ridge"
    )
    assert isinstance(caught.value, TypeError)


def test_missing_argument(install):
    def factory(observation_space, action_space, *, size):
        return Still(observation_space, action_space)

    with pytest.raises(PartArgumentError, match=r"missing a required argument: 'size'. Its signature: "):
        get_registry().resolve("world_model", factory).build(VECTOR, ACTION)


def test_type_error_from_inside_the_factory_is_its_own(install):
    selection = get_registry().resolve("world_model", "tabular")
    with pytest.raises(TypeError, match="ridge is negative") as caught:
        selection.build(VECTOR, ACTION, ridge=-1.0)
    assert not isinstance(caught.value, PluginError)
    assert caught.value.__notes__ == ["raised by world model 'tabular' (built in)"]


def test_factory_with_open_keyword_arguments_is_not_second_guessed(install):
    selection = get_registry().resolve("world_model", "ensemble")
    assert selection.build(VECTOR, ACTION, speed=2.0, device="cpu").speed == 2.0
    with pytest.raises(
        PartArgumentError, match=r"does not take 'sped'. Did you mean 'speed'\?\n  .*: speed, members"
    ) as caught:
        selection.build(VECTOR, ACTION, sped=2.0)
    assert isinstance(caught.value.__cause__, TypeError)


def test_factory_against_the_contract(install):
    registry = get_registry()
    with pytest.raises(PluginContractError) as caught:
        registry.resolve("world_model", lambda observation_space, action_space: 3).build(VECTOR, ACTION, reward_fn=None)
    assert str(caught.value).endswith("its factory does not take 'reward_fn', which every world model is given. [contract v2]")
    with pytest.raises(PluginContractError, match=r"its factory returned int, not WorldModel. \[contract v2\]"):
        registry.resolve("world_model", lambda observation_space, action_space: 3).build(VECTOR, ACTION)
