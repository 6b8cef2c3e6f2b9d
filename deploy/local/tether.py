"""Runs a server and ends it when the process that wanted it is gone, however that one ended.

`python tether.py PARENT_PID LOG COMMAND…`: prints the server's process id, waits for it, and exits as it did. SIGTERM is
passed on to the server; SIGUSR1 kills it. As this process stays until the server is reaped, its end means the server's end.

Why a process of its own: Linux can signal a child when its parent ends (PR_SET_PDEATHSIG), but means the *thread* that
started the child, and test runners start servers from threads that come and go. The parent instead holds the other end of
this process's standard input, which the kernel closes when the parent is killed.
"""

import ctypes
import os
import select
import signal
import subprocess
import sys
import threading

_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>
_PARENT_CHECK_S = 1.0
_COMMAND_NOT_RUN = 127


def main(parent_pid: int, log_path: str, command: list[str]) -> int:
    """Run the command until it ends or the parent is gone; returns the exit status for this process."""
    # The parent may have blocked signals, and a blocked signal stays blocked in its children.
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None

    def follow_the_tether() -> None:
        if libc is not None:
            libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)

    with open(log_path, "ab") as log:  # noqa: PTH123  # pathlib would be half of this process's start-up time
        try:
            # Not close_fds: the server must hold its directory's lock itself. The preexec_fn is safe, no thread runs yet,
            # and the main thread, which starts the server, lives as long as this process.
            server = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                close_fds=False,
                preexec_fn=follow_the_tether,  # noqa: PLW1509
            )
        except OSError as error:
            log.write(f"{command[0]}: {error.strerror}\n".encode())
            return _COMMAND_NOT_RUN
    signal.signal(signal.SIGTERM, lambda _signal, _frame: server.terminate())
    signal.signal(signal.SIGUSR1, lambda _signal, _frame: server.kill())
    threading.Thread(target=_end_with_parent, args=(parent_pid,), daemon=True).start()
    print(server.pid, flush=True)
    status = server.wait()
    return status if status >= 0 else 128 - status


def _end_with_parent(parent_pid: int) -> None:
    # The pipe alone would do, were it not for processes that the parent forks without exec (multiprocessing): they keep it
    # open. So this process also looks whether it has been handed to another parent.
    while os.getppid() == parent_pid:
        readable, _, _ = select.select([sys.stdin], [], [], _PARENT_CHECK_S)
        if readable:
            break
    os.killpg(os.getpgrp(), signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2], sys.argv[3:]))
