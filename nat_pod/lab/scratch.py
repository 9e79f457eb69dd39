"""A folder for the length of one command of the lab, for the region's file and what the Pulumi engine writes.

It goes with the command.  A command that is killed by SIGKILL can remove nothing, so the next `lab up`, `lab demo` or
`lab down` does.

The kernel knows which folders are in use: a command holds a lock on its folder, and the lock ends with the process.
A process id would not do: it may be another process's tomorrow, and says nothing in another container that shares /tmp.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """A new folder of this process's own, which is removed at the end of the block; leftovers go at its beginning."""
    remove_leftovers()
    folder, lock = _make()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def remove_leftovers() -> None:
    """Remove the folders of this user's commands that were killed.  Those of commands that still run stay."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_prefix()}*"):
        with suppress(OSError):  # somebody else's, or gone meanwhile
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                if os.fstat(lock).st_uid == os.geteuid():
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(lock)


def _make() -> tuple[Path, int]:
    """A folder and the descriptor that has its lock.  Before the lock is there, another command may take the folder."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=_prefix()))
        with suppress(FileNotFoundError):
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            fcntl.flock(lock, fcntl.LOCK_EX)
            if folder.exists():
                return folder, lock
            os.close(lock)


def _prefix() -> str:
    return f"nat-pod-lab-{os.geteuid()}-"
