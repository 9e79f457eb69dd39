"""The processes that keep a lab's machines going, by whose they are and what they do, and each machine's log."""

from __future__ import annotations

import json
import signal
import subprocess
from enum import StrEnum
from pathlib import Path

from nat_pod.lab.wire.space import vm_namespace

_COMPLAINT = 3000  # characters of a log in an error message


class Work(StrEnum):
    """What a process does for its machine."""

    METADATA = "metadata service"
    TIMERS = "timers"
    RESOLVER = "resolver"
    BALANCER = "load balancer"


class Processes:
    """Those that run until they are ended: at most one of each work for a machine or load balancer.

    logs: the folder of the logs; what a process prints goes to that of its machine.
    """

    def __init__(self, logs: Path) -> None:
        self._logs = logs
        self._running: dict[tuple[str, Work], subprocess.Popen[bytes]] = {}

    def start(self, whose: str, work: Work, command: list[str]) -> None:
        """Start one; it is ended by `end`."""
        self._running[whose, work] = self.spawn(whose, command)

    def spawn(self, whose: str, command: list[str]) -> subprocess.Popen[bytes]:
        """Start one that ends by itself, e.g. a boot; whoever asks waits for it."""
        with self.log(whose).open("ab") as log:
            return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def end(self, whose: str | None = None, work: Work | None = None, by: signal.Signals = signal.SIGKILL) -> None:
        """End all of a machine, all that do one work, or the one that is both, and wait until they are gone."""
        for key in [key for key in self._running if whose in (None, key[0]) and work in (None, key[1])]:
            process = self._running.pop(key)
            process.send_signal(by)
            process.wait()

    def runs(self, whose: str, work: Work) -> bool:
        """Whether it has been started, and has not ended."""
        process = self._running.get((whose, work))
        return process is not None and process.poll() is None

    def status(self) -> dict[str, int | None]:
        """The exit status of each in words (None: it runs), e.g. of `natVm1a timers`."""
        return {f"{whose} {work}": process.poll() for (whose, work), process in list(self._running.items())}

    def log(self, whose: str) -> Path:
        """The file of what a machine's processes have printed."""
        return self._logs / f"{vm_namespace(whose)}.log"

    def tail(self, whose: str) -> str:
        """The end of it, for an error message."""
        return self.log(whose).read_text(errors="replace")[-_COMPLAINT:].strip()


def replace_file(path: Path, value: object) -> None:
    """Replace the file by which a process is told something, at once: it may read it at any time."""
    new = path.with_suffix(".new")
    new.write_text(json.dumps(value))
    new.replace(path)
