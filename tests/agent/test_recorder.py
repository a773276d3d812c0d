"""The log of an agent."""

import io

from stable_baselines3.common.logger import HumanOutputFormat, Logger

from sb3_mbrl.agent.recorder import Recorder
from tests.helpers.agents import learned


def test_phases_are_timed():
    agent = learned(fit_kwargs={"max_batches": 200}).learn(200)
    assert all(seconds > 0 for seconds in agent.phase_seconds.values())


KEYS = [f"greenhouse_sensor_temperature_{side}_wing_of_the_house_at_the_lake" for side in ("north", "south", "east")]


def test_names_that_are_longer_than_a_line_of_the_log_stay_unique(tmp_path):
    """SB3 cut them off to the same name, and raised an error in the middle of training."""
    recorder, file = Recorder(), io.StringIO()
    recorder.logger = Logger(None, [HumanOutputFormat(file)])
    names = [f"model/obs_{key}_loss" for key in KEYS] + [
        "model/obs_x_loss",
        "a name without a tag that is as long as that of others",
    ]
    for value, name in enumerate(names):
        recorder.record(name, float(value))
        recorder.record(name, float(value))  # of the same name every time
    logged = recorder.logger.name_to_value
    assert list(logged.values()) == [0.0, 1.0, 2.0, 3.0, 4.0]
    assert next(iter(logged)) == "model/obs_greenhouse_s~at_the_lake_loss"
    assert list(logged)[3] == "model/obs_x_loss"
    recorder.logger.dump(0)
    assert "..." not in file.getvalue()


def test_a_short_name_that_a_long_one_has_taken():
    recorder = Recorder()
    recorder.logger = Logger(None, [HumanOutputFormat(io.StringIO())])
    long = "model/" + "a" * 40
    recorder.record(long, 1.0)
    (short,) = recorder.logger.name_to_value
    recorder.record(short, 2.0)
    assert sorted(recorder.logger.name_to_value.values()) == [1.0, 2.0]


def test_sentences_go_to_the_log():
    recorder, file = Recorder(), io.StringIO()
    recorder.say("nobody listens")
    recorder.logger = Logger(None, [HumanOutputFormat(file)])
    recorder.say("two of them")
    assert file.getvalue().strip() == "two of them"
