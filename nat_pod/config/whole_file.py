"""Stack files are written whole or not at all, and never over what somebody else has written meanwhile."""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from nat_pod.errors import NatPodError


class ChangedError(NatPodError):
    """The file has changed since it was read."""


@contextmanager
def alone(directory: Path) -> Iterator[None]:
    """Wait until no other nat-pod writes into this directory: two `new-pod` at once need a range each.

    The lock ends with the process, however that ends, and leaves no file behind.
    """
    handle = os.open(directory, os.O_RDONLY)
    try:
        with suppress(OSError):  # a network file system without locks: go on without one
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def read(path: Path) -> str:
    """A stack file's text with its own line ends."""
    with path.open(encoding="utf-8", newline="") as stream:
        return stream.read()


def replace(path: Path, text: str, before: str) -> None:
    """Replace a file in one step: a crash or a full disk leaves the old one.

    before: what was read and is to be replaced.  Raises ChangedError when the file now holds something else, such as an
    edit that was just saved, and NatPodError when the file cannot be written.
    """
    path = path.resolve()  # the file itself, and not a symbolic link to it
    with _written(path, text) as temporary, alone(path.parent):
        temporary.chmod(path.stat().st_mode & 0o777)
        if read(path) != before:
            raise ChangedError(
                f"{path.name}: somebody else changed it in the meantime; try again (this command changed nothing)"
            )
        temporary.replace(path)


def create(path: Path, text: str) -> None:
    """Write a new file.  An existing file stays as it is.  Raises NatPodError when it cannot be written."""
    with _written(path, text) as temporary:
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        try:
            path.hardlink_to(temporary)  # fails where there is a file; a rename would replace it
        except FileExistsError:
            raise NatPodError(f"{path.name}: exists already; choose another name (nothing was changed)") from None


def put(path: Path, text: str) -> None:
    """Write a file that only nat-pod writes, in place of one that is there.  Raises NatPodError when it cannot be."""
    with _written(path, text) as temporary:
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        temporary.replace(path)


@contextmanager
def _written(path: Path, text: str) -> Iterator[Path]:
    """A file beside `path` with the text, safely on disk; removed in the end if it is still there."""
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        temporary = Path(name)
        try:
            with os.fdopen(handle, "w", encoding="utf-8", newline="") as stream:
                stream.write(text)
                stream.flush()
                os.fsync(stream.fileno())
            yield temporary
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise NatPodError(f"{path.name}: cannot be written: {error.strerror} (nothing was changed)") from None
