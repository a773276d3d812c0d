"""The contents of a saved file, and files that cannot be written or are damaged."""

import io
import json
import zipfile

import numpy as np
import pytest

from sb3_mbrl import MBPO, hookimpl
from sb3_mbrl.agent.zip_file import LARGE, check_entries
from tests.helpers.agents import tiny


def test_what_is_in_the_zip(path):
    with zipfile.ZipFile(path.with_suffix(".zip")) as archive:
        files, data = set(archive.namelist()), json.loads(archive.read("data"))
    assert {"world_model.pth", "world_model.optimizer.pth", "policy.pth"} <= files
    assert data["model_based"]["parts"]["references"]["world_model"]["name"] == "ensemble"
    objects = {"parts", "random", "recorder", "trainer", "real", "acting", "augmenter"}
    assert {*objects, "world_model", "imagination", "imagined", "registry", "replay_buffer"}.isdisjoint(data)


class NoPickle:
    def __reduce__(self):
        raise TypeError("not this one")


class Leaves:
    """A plug-in that adds a value to the checkpoint."""

    @hookimpl
    def sb3_mbrl_on_save(self, agent, extra):
        extra["mine"] = agent.left


def test_a_save_that_fails_leaves_the_file_that_was_there(tmp_path):
    agent = tiny(plugins=[Leaves()])
    agent.left = NoPickle()
    (tmp_path / "agent.zip").write_bytes(b"the old one")
    with pytest.raises(
        TypeError, match=r"extra \(of the hook sb3_mbrl_on_save\)\['mine'\] is NoPickle, which cannot be saved"
    ):
        agent.save(tmp_path / "agent", exclude=["left"])
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("agent.zip", b"the old one")]
    agent.left = 5
    for name, file in (("agent", "agent.zip"), ("new/b.pt", "new/b.pt")):
        agent.save(str(tmp_path / name))
        assert zipfile.is_zipfile(tmp_path / file)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["agent.zip", "new"]


@pytest.mark.parametrize("data", [b"{no json", b"[1, 2]", b"\xff\xfe\xfa"])
def test_a_zip_with_damaged_attributes(tmp_path, data):
    with zipfile.ZipFile(tmp_path / "agent.zip", "w") as archive:
        archive.writestr("data", data)
    with pytest.raises(ValueError, match=r"agent.zip is not an agent that was saved with save\(\): "):
        MBPO.load(tmp_path / "agent.zip")


# ---- hostile and damaged zips


def repacked(path, to, change=None, more=(), compression=zipfile.ZIP_STORED):
    """Write a checkpoint again, with some entries changed (``None``: left out) and others added."""
    change = change or {}
    with zipfile.ZipFile(path.with_suffix(".zip")) as archive:
        entries = {name: change.get(name, archive.read(name)) for name in archive.namelist()}
    with zipfile.ZipFile(to, "w", compression) as archive:
        for name, content in [*entries.items(), *more]:
            if content is not None:
                archive.writestr(name, content)


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("name", ["data", "policy.pth"])
def test_an_entry_that_is_there_twice(path, tmp_path, name):
    """Readers may differ in which of the two they take."""
    repacked(path, tmp_path / "twice.zip", more=[(name, b"{}")])
    with pytest.raises(ValueError, match=rf"twice.zip is not an agent .*: it has two entries '{name}'"):
        MBPO.load(tmp_path / "twice.zip")


def test_a_zip_bomb_is_not_unpacked(path, tmp_path):
    """5 MB that became 5 GB of memory before anything was checked."""
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("data", bytes(LARGE + 1))
    with pytest.raises(ValueError, match=r"bomb.zip is not an agent .*: its entry 'data' would take 64 MiB of memory"):
        MBPO.load(tmp_path / "bomb.zip")
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data/0", bytes(LARGE + 1))
    repacked(path, tmp_path / "inner.zip", {"policy.pth": inner.getvalue()})
    with pytest.raises(ValueError, match=r"inner.zip is not an agent .*: in 'policy.pth', its entry 'archive/data/0' would"):
        MBPO.load(tmp_path / "inner.zip")


def test_entries_that_overlap(path, tmp_path):
    with zipfile.ZipFile(path.with_suffix(".zip")) as archive, pytest.raises(ValueError, match="its entries overlap"):
        check_entries(archive, 100)


def test_a_compressed_checkpoint_is_read(path, tmp_path):
    repacked(path, tmp_path / "small.zip", compression=zipfile.ZIP_DEFLATED)
    assert MBPO.load(tmp_path / "small.zip").num_timesteps == 50


@pytest.mark.parametrize("name", ["policy.pth", "critic.optimizer.pth", "world_model.pth", "pytorch_variables.pth"])
def test_an_entry_that_is_missing_or_no_tensor_file(path, tmp_path, name):
    """A KeyError: 'policy.optimizer', whatever was missing; without pytorch_variables.pth an entropy coefficient of 1."""
    repacked(path, tmp_path / "less.zip", {name: None})
    with pytest.raises(ValueError, match=r"less.zip is damaged: "):
        MBPO.load(tmp_path / "less.zip")
    for content in (b"", b"no tensors"):
        repacked(path, tmp_path / "wrong.zip", {name: content})
        with pytest.raises(ValueError, match=rf"wrong.zip is not an agent .*: its entry '{name}' is no file of PyTorch"):
            MBPO.load(tmp_path / "wrong.zip")


def test_tensors_of_another_agent(path, tmp_path):
    other = tiny(policy_kwargs={"net_arch": [5]}, world_model=None)
    other.save(tmp_path / "other")
    with zipfile.ZipFile(tmp_path / "other.zip") as archive:
        repacked(path, tmp_path / "mixed.zip", {"policy.pth": archive.read("policy.pth")})
    with pytest.raises(ValueError, match=r"mixed.zip does not fit its own settings: Error\(s\) in loading state_dict"):
        MBPO.load(tmp_path / "mixed.zip")


# ---- values of other types than were saved


def places(value, path=()):
    """List the places in nested values."""
    if path:
        yield path
    children = value.items() if isinstance(value, dict) else enumerate(value[:3]) if isinstance(value, list) else ()
    for key, child in children:
        yield from places(child, (*path, key))


WRONG = [None, -1, 2.5, "x", [], {}, True, {"a": 1}, 10**30, {"__tensor__": "foo", "shape": [1], "data": "AA=="}]


def test_values_of_wrong_types_are_refused_by_name_when_the_file_is_loaded(path, tmp_path):
    """Raw errors from the middle of ``load``, or of the next ``learn``: TypeError: 'int' object is not subscriptable."""
    with zipfile.ZipFile(path.with_suffix(".zip")) as archive:
        data = json.loads(archive.read("data"))
    chosen, refused = np.random.default_rng(0), 0
    for place in list(places(data["model_based"])):
        changed = json.loads(json.dumps(data))
        parent = changed["model_based"]
        for key in place[:-1]:
            parent = parent[key]
        parent[place[-1]] = WRONG[chosen.integers(len(WRONG))]
        repacked(path, tmp_path / "typed.zip", {"data": json.dumps(changed)})
        try:
            MBPO.load(tmp_path / "typed.zip")
        except (ValueError, TypeError):  # a TypeError where a known function has settings of the wrong type
            refused += 1
    assert refused > 60


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("streams", {}, r"the state of 'streams' under 'model_based' is not what was saved"),
        ("trainer", 5, r"trainer is 5, not a dictionary"),
        ("recorder", {"phase_seconds": {"fit": "x"}}, r"the state of 'recorder' under 'model_based' is not what was saved"),
        ("random", {"generator": None}, r"the state of 'random' under 'model_based' is not what was saved"),
    ],
)
def test_the_message_names_file_and_object(path, tmp_path, name, value, words):
    with zipfile.ZipFile(path.with_suffix(".zip")) as archive:
        data = json.loads(archive.read("data"))
    data["model_based"][name] = value
    repacked(path, tmp_path / "typed.zip", {"data": json.dumps(data)})
    with pytest.raises(ValueError, match=rf"typed.zip is damaged: {words}"):
        MBPO.load(tmp_path / "typed.zip")


@pytest.mark.parametrize("safe", [True, False], ids=["plain", "pickled"])
def test_every_error_of_a_changed_json_value_names_the_file(agent, path, tmp_path, safe):
    """Of 14,000 changes, one in ten raised an error that did not name the file."""
    agent.save(tmp_path / "saved.zip", safe=safe)
    with zipfile.ZipFile(tmp_path / "saved.zip") as archive:
        data = json.loads(archive.read("data"))
    all_places, chosen, errors = list(places(data)), np.random.default_rng(0), {}
    for place in chosen.permutation(len(all_places))[:60]:
        *parents, last = all_places[place]
        changed = json.loads(json.dumps(data))
        parent = changed
        for key in parents:
            parent = parent[key]
        parent[last] = [*WRONG, 10**400, float("nan")][chosen.integers(len(WRONG) + 2)]
        repacked(tmp_path / "saved", tmp_path / "changed.zip", {"data": json.dumps(changed)})
        try:
            MBPO.load(tmp_path / "changed.zip", env=agent.get_env(), safe=safe)
        except (ValueError, TypeError) as error:
            errors[f"{all_places[place]} is {parent[last]}"] = str(error)
    assert len(errors) > 20
    assert not {place: error for place, error in errors.items() if "changed.zip" not in error}


@pytest.mark.parametrize("name", ["num_timesteps", "_n_updates", "_episode_num"])
@pytest.mark.parametrize("wrong", ["x", None, -1])
def test_counts_that_are_none(path, tmp_path, name, wrong):
    """They were noticed in the first step after the file was loaded."""
    with zipfile.ZipFile(path.with_suffix(".zip")) as archive:
        data = json.loads(archive.read("data"))
    repacked(path, tmp_path / "changed.zip", {"data": json.dumps({**data, name: wrong})})
    with pytest.raises(ValueError, match=rf"changed.zip is damaged: {name} is {wrong!r}"):
        MBPO.load(tmp_path / "changed.zip")
