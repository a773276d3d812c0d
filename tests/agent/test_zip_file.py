"""The contents of a saved file, and files that cannot be written or are damaged."""

import json
import zipfile

import pytest

from sb3_mbrl import MBPO, hookimpl
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
