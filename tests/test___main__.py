"""``python -m sb3_mbrl`` is ``sb3-mbrl``."""

import subprocess
import sys


def test_the_package_runs_as_a_module_with_the_command_s_exit_code():
    result = subprocess.run(
        [sys.executable, "-m", "sb3_mbrl", "evaluate", "nothing.zip", "--env", "Pendulum-v1"], capture_output=True, text=True
    )
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.splitlines() == ["sb3-mbrl evaluate: there is no file nothing.zip"]
