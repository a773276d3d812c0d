"""Imagination: the rules by which a world model changes the data that a model-free learner is trained on."""

from sb3_mbrl.imagination.branched import BranchedRollouts
from sb3_mbrl.imagination.schedule import HorizonSchedule
from sb3_mbrl.imagination.starts import StartStates, buffer_starts, observation_starts

__all__ = ["BranchedRollouts", "HorizonSchedule", "StartStates", "buffer_starts", "observation_starts"]
