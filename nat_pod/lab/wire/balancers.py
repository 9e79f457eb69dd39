"""The lab's load balancers as the holder sees them: they are started, told what they are, and say what they make of it.

What one does is `balancer.py`, in a process and a namespace of its own.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Collection, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from nat_pod.lab.wire import netns
from nat_pod.lab.wire.balancer import Settings
from nat_pod.lab.wire.fabric import Fabric
from nat_pod.lab.wire.netns import LabError
from nat_pod.lab.wire.processes import Processes, Work, replace_file
from nat_pod.lab.wire.space import balancer_namespace
from nat_pod.trace.topology import Topology

_SECONDS = 20  # for one to come up, beside the time of a check


class Balancers:
    """Those of the network that `serve` has named; folder: where they are told, and answer."""

    def __init__(self, processes: Processes, folder: Path) -> None:
        self._processes, self._folder = processes, folder
        self._instructions = 0  # that were given to any of them

    def serve(self, topology: Topology, fabric: Fabric) -> None:
        """Take the network that the lab is from now on.  They learn of it by `start`, `instruct` and `take_out`."""
        self._topology, self._fabric = topology, fabric

    def start(self, names: Iterable[str]) -> None:
        """Start some, and wait until each has asked all of its backends once."""
        told = {}
        for name in names:
            if sum(not backend.is_backup for backend in self._topology.balancers[name].backends) > 1:
                raise LabError(f"{name}: it has more than one backend that is no backup; the lab spreads no flows")
            settings, state = self._files(name)
            settings.parent.mkdir(exist_ok=True)
            state.unlink(missing_ok=True)
            told[name] = self.instruct(name)
            command = [sys.executable, "-m", "nat_pod.lab.wire.balancer", str(settings), str(state)]
            self._processes.start(name, Work.BALANCER, netns.in_namespace(balancer_namespace(name), command))
        for name, number in told.items():
            self._wait(name, number)

    def instruct(self, name: str, without: Collection[str] = ()) -> int:
        """Tell one what it is; returns the number of these settings.

        without: addresses of backends that are left out.
        """
        balancer = self._topology.balancers[name]
        backends = tuple(backend for backend in balancer.backends if backend.address not in without)
        self._instructions += 1
        settings = Settings(
            balancer=replace(balancer, backends=backends),
            links=self._fabric.balancer_links[name].backends,
            machines={
                vnic.addresses[0]: vnic.mac
                for vnic in self._topology.vnics.values()
                if vnic.addresses[0] in {backend.address for backend in backends}
            },
            number=self._instructions,
        )
        replace_file(self._files(name)[0], settings.to_json())
        return settings.number

    def take_out(self, name: str, without: Collection[str]) -> None:
        """Leave some of its backends out, and wait until their flows have gone to the others."""
        self._wait(name, self.instruct(name, without))

    def state(self, name: str) -> dict[str, Any]:
        """What it makes of its backends' health: see `holder.Operations.balancers`."""
        try:
            return dict(json.loads(self._files(name)[1].read_text()))
        except FileNotFoundError:
            return {"active": None, "asked": [], "healthy": [], "settings": 0, "switches": []}

    def _wait(self, name: str, told: int) -> None:
        """Until it has taken the settings of this number; a new one, until it has asked all of its backends."""
        end = time.monotonic() + self._topology.balancers[name].check.timeout_millis / 1000 + _SECONDS
        while self.state(name)["settings"] != told:
            if time.monotonic() > end or not self._processes.runs(name, Work.BALANCER):
                raise LabError(f"load balancer {name} does not come up:\n{self._processes.tail(name)}")
            time.sleep(0.02)

    def _files(self, name: str) -> tuple[Path, Path]:
        return self._folder / f"{balancer_namespace(name)}.json", self._folder / f"{balancer_namespace(name)}.state"
