"""A network load balancer of the lab: a namespace that forwards, and the process in it that decides by which backend.

    python -m nat_pod.lab.wire.balancer SETTINGS STATE

The service is a machine of its own here, with its address in its subnet and one more link for each backend: what
leaves by that link, the VCN delivers to that backend, whatever the packet's destination is.  Flows are the kernel's:
connection tracking keeps for each flow a mark, and the mark says which link it leaves by.  This process asks the
backends for their health through the network, and rewrites two chains when that changes what is to be done.

- `choice` is where new flows go.  Nobody healthy: it drops, unless the backend set fails open.
- `kept` is what becomes of flows of a mark whose backend died.  Instant failover off: the mark is not there, so they
  stay with the dead VM.  On: they go where new ones go; with the TCP reset flag, TCP's get a RST for their next packet.

Each switch begins a new mark, so that a flow which was idle all the while does not go back to the VM that returned.

Usually only one half of a flow passes a balancer, since the other one leads elsewhere.  Linux would then call the rest
of a TCP connection invalid after a SYN that nobody answered; so a SYN is sent on without being tracked, and the flow's
next packet is what begins it.  FIN and RST begin none, nor does an ICMP answer: they go where new flows go.

What a new backend's health is before its first check is not documented: here its first answer decides.  Nor is what
becomes of the flows of a backend that is taken out of its set: here they fare as those of one that died.

SETTINGS may be replaced at any time.
"""

from __future__ import annotations

import http.client
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, assert_never

from nat_pod.trace.topology import Backend, Balancer, CheckProtocol, HealthCheck

_RESET = 0xFFFF  # the mark of TCP flows that get a RST
_LOOK_SECONDS = 0.02  # between two looks at the settings
_NOBODY = '-m comment --comment "no healthy backend" -j DROP'
# A segment in mid-stream of a flow without an entry is dropped, unless the flow has just begun.
_FORGETFUL = (
    "-A PREROUTING -p tcp --syn -m recent --name begun --set",
    "-A PREROUTING -m mark --mark 0 -p tcp ! --syn -m recent --name begun ! --rcheck --seconds 3 -j DROP",
)
TABLE = 100  # of the first backend; the next ones follow


def nic(index: int) -> str:
    """The balancer's link to its backend of this number."""
    return f"b{index}"


def rules(balancer: Balancer) -> str:
    """The balancer's rules for iptables-restore: nobody is healthy yet."""
    lines = [
        "*raw",
        f"-A PREROUTING ! -d {balancer.address}/32 -p tcp --tcp-flags SYN SYN -j CT --notrack",
        "COMMIT",
        "*mangle",
        ":choice - [0:0]",
        ":kept - [0:0]",
        f"-A choice {_NOBODY}",
        f"-A PREROUTING -d {balancer.address}/32 -j ACCEPT",
        "-A PREROUTING -j CONNMARK --restore-mark",
        *(_FORGETFUL if balancer.drops_unknown else ()),
        "-A PREROUTING -m mark --mark 0 -j choice",
        "-A PREROUTING -m mark ! --mark 0 -j kept",
        "-A PREROUTING -j CONNMARK --save-mark",
        "COMMIT",
        "*filter",
        ":INPUT DROP [0:0]",
        ":FORWARD DROP [0:0]",
        # What it asks the backends is answered to its own address.
        "-A INPUT -m conntrack --ctstate ESTABLISHED -j ACCEPT",
        f"-A FORWARD -p tcp -m mark --mark {_RESET} -j REJECT --reject-with tcp-reset",
        "-A FORWARD -o b+ -j ACCEPT",
        "COMMIT",
    ]
    return "".join(f"{line}\n" for line in lines)


@dataclass(frozen=True, slots=True)
class Settings:
    """What the process is told.

    links: the address of the backend at the end of each link.  machines: by address, the MAC of the VNIC that holds it,
    since what was found out about a machine says nothing about its successor.  number: of these settings; the state
    names those that it has taken.
    """

    balancer: Balancer
    links: tuple[str, ...]
    machines: Mapping[str, str]
    number: int

    def to_json(self) -> dict[str, Any]:
        """As `read` takes it."""
        return {**asdict(self), "machines": dict(self.machines)}

    @classmethod
    def read(cls, path: Path) -> Settings:
        """What the holder wrote down."""
        given = json.loads(path.read_text())
        one = given["balancer"]
        check = HealthCheck(**{**one["check"], "protocol": CheckProtocol(one["check"]["protocol"])})
        backends = tuple(Backend(**backend) for backend in one["backends"])
        balancer = Balancer(**{**one, "check": check, "backends": backends, "nsgs": (), "security": ()})
        return cls(balancer, tuple(given["links"]), given["machines"], given["number"])


@dataclass(slots=True)
class _Health:
    """What the checks of one backend say.  `healthy` is None before the first one."""

    healthy: bool | None = None
    contrary: int = 0  # checks in a row that said the opposite

    def take(self, answered: bool, retries: int) -> bool:
        """Take in a check's outcome; returns whether that changes anything."""
        if self.healthy is None:
            self.healthy = answered
            return True
        self.contrary = 0 if answered == self.healthy else self.contrary + 1
        if self.contrary < retries:
            return False
        self.healthy, self.contrary = answered, 0
        return True


@dataclass
class Decider:
    """Which marks lead where.  `apply` gets the lines for `iptables-restore --noflush` and those for `ip -batch`."""

    balancer: Balancer
    links: tuple[str, ...]
    healthy: set[str] = field(default_factory=set)
    active: str | None = None
    marks: dict[int, str] = field(default_factory=dict)  # mark: the backend that its flows were given to
    moved: set[int] = field(default_factory=set)  # marks whose flows were taken from their backend, for good

    def decide(self, healthy: set[str]) -> tuple[list[str], list[str]] | None:
        """Take in who is healthy.  Returns (rules, `ip` lines) to bring it about; None when nothing changes."""
        before = (self.active, set(self.moved))
        new, self.healthy = self.balancer.choose(healthy, self.active), healthy
        if self.balancer.instant_failover and not self.balancer.is_fail_open:
            self.moved |= {mark for mark, backend in self.marks.items() if backend not in healthy}
        lines = []
        if new is not None and (new != self.active or max(self.marks) in self.moved):
            mark = len(self.marks) + 1
            self.marks[mark] = new
            index = self.links.index(new)
            lines.append(f"rule add fwmark {mark} lookup {TABLE + index} priority {TABLE + index}")
        self.active = new
        return None if before == (self.active, self.moved) and not lines else (self._rules(), lines)

    def _rules(self) -> list[str]:
        choice = _NOBODY if self.active is None else f"-j MARK --set-mark {max(self.marks)}"
        kept = []
        for mark in sorted(self.moved):
            if self.balancer.tcp_reset:
                kept.append(f"-A kept -p tcp -m mark --mark {mark} -j MARK --set-mark {_RESET}")
            kept.append(f"-A kept -m mark --mark {mark} -g choice")
        # Named chains are emptied by being named.
        return ["*mangle", ":choice - [0:0]", ":kept - [0:0]", f"-A choice {choice}", *kept, "COMMIT"]


def answers(own: str, backend: Backend, check: HealthCheck) -> bool:
    """Ask one backend, from the balancer's own address."""
    seconds = check.timeout_millis / 1000
    match check.protocol:
        case CheckProtocol.TCP:
            with suppress(OSError), socket.create_connection((backend.address, check.port), seconds, (own, 0)):
                return True
            return False
        case CheckProtocol.HTTP:
            connection = http.client.HTTPConnection(backend.address, check.port, seconds, (own, 0))
            try:
                connection.request("GET", check.path)
                return connection.getresponse().status == check.return_code
            except (OSError, http.client.HTTPException):
                return False
            finally:
                connection.close()
        case _ as never:
            assert_never(never)


class _Loop:
    """The process: a thread for each backend asks, and whoever finds something new brings it about."""

    def __init__(self, settings: Path, state: Path) -> None:
        self._path, self._state = settings, state
        self._settings = Settings.read(settings)
        self._decider = Decider(self._settings.balancer, self._settings.links)
        self._health: dict[str, _Health] = {}
        self._switches: list[dict[str, Any]] = []
        self._lock = threading.Lock()

    def run(self) -> None:
        """Ask, and take new settings, until killed."""
        read_at = None
        while True:
            changed_at = self._path.stat().st_mtime_ns
            if changed_at != read_at:
                with self._lock:
                    self._take(Settings.read(self._path))
                read_at = changed_at
            time.sleep(_LOOK_SECONDS)

    def _take(self, new: Settings) -> None:
        old, self._settings = self._settings, new
        self._decider.balancer, self._decider.links = new.balancer, new.links
        stay = {
            one.address
            for one in new.balancer.backends
            if old.machines.get(one.address) == new.machines.get(one.address)
        }
        self._health = {address: health for address, health in self._health.items() if address in stay}
        for backend in new.balancer.backends:
            if backend.address not in self._health:
                health = self._health[backend.address] = _Health()
                threading.Thread(target=self._ask, args=(backend, health), daemon=True).start()
        self._decide()

    def _ask(self, backend: Backend, health: _Health) -> None:
        """Ask one backend until it is taken out, or another machine has its place."""
        due = time.monotonic()
        while self._health.get(backend.address) is health:
            check = self._settings.balancer.check
            answered = answers(self._settings.balancer.address, backend, check)
            with self._lock:
                if self._health.get(backend.address) is health and health.take(answered, check.retries):
                    self._decide()
            due = max(due + check.interval_millis / 1000, time.monotonic())
            time.sleep(max(0.0, due - time.monotonic()))

    def _decide(self) -> None:
        asked = {address for address, one in self._health.items() if one.healthy is not None}
        if not self._switches and asked != self._health.keys():
            return  # so that a standby whose answer came first does not begin
        healthy = {address for address, one in self._health.items() if one.healthy}
        made = self._decider.decide(healthy)
        if made is not None or not self._switches:
            if made is not None:
                text, lines = made
                _run(["ip", "-batch", "-"], lines)
                _run(["iptables-restore", "--noflush"], text)
            self._switches.append({"at": time.monotonic(), "to": self._decider.active})
        state = {
            "active": self._decider.active,
            "asked": sorted(asked),
            "healthy": sorted(healthy),
            "settings": self._settings.number,
            "switches": self._switches,
        }
        new = self._state.with_suffix(".new")
        new.write_text(json.dumps(state, indent=1))
        new.replace(self._state)


def _run(command: list[str], lines: list[str]) -> None:
    if lines:
        subprocess.run(command, input="".join(f"{line}\n" for line in lines), text=True, check=True)


if __name__ == "__main__":
    _Loop(Path(sys.argv[1]), Path(sys.argv[2])).run()
