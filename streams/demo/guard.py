"""Ends the demo's children and removes its files once the demo is gone, however it ended: SIGKILL leaves it no time.

`python guard.py DIRECTORY`: leads the process group that all children join, and waits until the demo closes this
process's standard input; when the demo is killed, the kernel closes it.
"""

import os
import shutil
import signal
import sys

if __name__ == "__main__":
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    sys.stdin.buffer.read()
    shutil.rmtree(sys.argv[1], ignore_errors=True)
    # This process too; after an orderly end it is the last of the group.
    os.killpg(0, signal.SIGKILL)
