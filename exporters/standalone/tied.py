"""A process that does not outlive the one that started it, however that one ends.

    python tied.py PARENT COMMAND...        becomes COMMAND, as a child of the process PARENT

On Linux the kernel ends it: the signal is asked for here and kept when the process becomes the command. Elsewhere this process
stays beside the command, and looks whether its parent is still there. Needs Python 3.8 or newer, nothing else.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence

PR_SET_PDEATHSIG = 1
LOOK_S = 0.5


def tied(command: Sequence[str]) -> list[str]:
    """The command that starts `command` tied to this process."""
    # -I -S: nothing is imported that is not needed, so that it costs some milliseconds.
    return [sys.executable, "-I", "-S", os.path.abspath(__file__), str(os.getpid()), *command]


def main(parent: int, command: Sequence[str], linux: bool = sys.platform.startswith("linux")) -> int:
    """Become the command, or stay beside it. The exit code, where there is one."""
    if linux:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    # It may have ended before the kernel was asked.
    if os.getppid() != parent:
        return 1
    try:
        if linux:
            os.execvp(command[0], list(command))
        return _beside(parent, command)
    except OSError as error:
        print(f"{command[0]}: {error.strerror}", file=sys.stderr)
        return 127  # as a shell has it


def _beside(parent: int, command: Sequence[str]) -> int:
    child = subprocess.Popen(list(command))
    while child.poll() is None:
        if os.getppid() != parent:
            child.kill()
        time.sleep(LOOK_S)
    return child.returncode if child.returncode >= 0 else 128 - child.returncode


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2:]))
