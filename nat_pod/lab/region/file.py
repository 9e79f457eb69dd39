"""A simulated region in a file.  It outlives the process, so the provider plugin, the lab and a test can share it.

The engine starts a new provider for every command, and one more for every explicit provider.  The file is a journal:
one line of JSON for each change that the region accepted, in order.  Appending costs the same however large the region
is, and a process that is killed loses nothing.  The file also shows what was asked of the region, and in which order.

    RegionFile.make(path, Region("uk-london-1"))     # once
    region = RegionFile(path)                        # anywhere, as often as needed; always up to date
"""

from __future__ import annotations

import fcntl
import json
import os
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import TracebackType

from nat_pod.errors import NatPodError, excerpt
from nat_pod.lab.region.inputs import Inputs, Value
from nat_pod.lab.region.refusals import OciError
from nat_pod.lab.region.region import Region
from nat_pod.lab.region.store import Limits

_HEADER = {"region": str, **{name: type(value) for name, value in asdict(Limits()).items()}}
_LONGEST_HEADER = 10_000


class RegionFileError(NatPodError):
    """The file holds no region, or one of another release; str() says what to do."""


class RegionFile(Region):
    """The region in a file.  Every method first takes in what other processes have changed.

    Only the process that changes an instance's VNICs or a load balancer knows that it is busy.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        header = _header(path)
        super().__init__(header.pop("region"), Limits(**header))
        self._read_to = 0
        self._replaying: int | None = None
        self._file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        self._close = weakref.finalize(self, os.close, self._file)
        self._lock = _SharedLock(self)

    @classmethod
    def make(cls, path: Path, region: Region) -> RegionFile:
        """Make an empty region at `path`, with the name and limits of `region`."""
        header = {"region": region.name, **asdict(region.limits)}
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(header) + "\n", encoding="utf-8")
        return cls(path)

    def close(self) -> None:
        """Close the file; the region in it stays."""
        self._close()

    def changes(self) -> list[Inputs]:
        """Everything that the region accepted, in order: `do` (`create`, ..., `_replay` has all) and its arguments."""
        with self._lock:
            lines = self.path.read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in lines[1:]]

    def _done(self, **change: Value) -> None:
        super()._done(**change)
        if self._replaying is not None:
            return
        line = json.dumps(change).encode() + b"\n"
        os.pwrite(self._file, line, self._read_to)
        self._read_to += len(line)

    def _catch_up(self) -> None:
        """Take in what others have appended.  A last line that was cut short never became a change, and is removed."""
        size = os.fstat(self._file).st_size
        if size <= self._read_to:
            return
        fresh = os.pread(self._file, size - self._read_to, self._read_to)
        *lines, rest = fresh.split(b"\n")
        if rest:
            os.ftruncate(self._file, size - len(rest))
        self._replaying = threading.get_ident()
        try:
            for line in lines:
                if self._read_to:  # the first line is the header
                    self._replay(line)
                self._read_to += len(line) + 1
        finally:
            self._replaying = None

    def _replay(self, line: bytes) -> None:
        try:
            change = json.loads(line)
            if change["do"] == "create":
                self.create(change["type"], change["inputs"], change["name"], ocid=change["ocid"])
            elif change["do"] == "update":
                self.update(change["ocid"], change["inputs"])
            elif change["do"] == "health":
                self.report_health(change["ocid"], change["healthy"])
            elif change["do"] == "console":
                self.report_console(change["ocid"], change["text"])
            elif change["do"] == "limits":
                self.set_limits(Limits(**change["limits"]))
            else:
                self.delete(change["ocid"])
        except (OciError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            raise RegionFileError(
                f"{self.path} was written by another release of nat-pod, whose region accepted what this one refuses "
                f"({excerpt(str(error))}); delete it and start again"
            ) from None

    @contextmanager
    def _modifying(self, ocid: str | None) -> Iterator[None]:
        if self._replaying == threading.get_ident():  # it happened already
            yield
            return
        with super()._modifying(ocid):
            yield


class _SharedLock:
    """A region's lock among the threads of this process and, while any of them has it, among processes."""

    def __init__(self, region: RegionFile) -> None:
        self._region = region
        self._threads = threading.RLock()
        self._depth = 0

    def __enter__(self) -> None:
        self._threads.acquire()
        self._depth += 1
        if self._depth > 1:
            return
        try:
            fcntl.flock(self._region._file, fcntl.LOCK_EX)
            self._region._catch_up()
        except BaseException:
            self.__exit__(None, None, None)
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._depth -= 1
        if not self._depth:
            fcntl.flock(self._region._file, fcntl.LOCK_UN)
        self._threads.release()


def _header(path: Path) -> Inputs:
    try:
        with path.open(encoding="utf-8") as file:
            header = json.loads(file.readline(_LONGEST_HEADER))
    except OSError as error:
        raise RegionFileError(f"{path}: no simulated region here: {error.strerror}") from None
    except (ValueError, RecursionError):
        header = None
    kinds = {key: type(value) for key, value in header.items()} if isinstance(header, dict) else {}
    # Python and JSON both have one kind of number more than the region: seconds may be whole.
    if kinds | {"attach_seconds": float} != _HEADER or kinds.get("attach_seconds") not in (int, float):
        raise RegionFileError(f"{path}: this is not a simulated region")
    return dict(header)
