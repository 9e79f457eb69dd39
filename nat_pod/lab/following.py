"""A lab that follows the region while `pulumi up` changes it, and tells it what the lab's load balancers see.

`pulumi up` replaces a NAT VM that has a standby only when its balancer calls the other one healthy.  In the region no
packets flow.  So for that time the lab is the network of the region as it is at each moment, and what the lab's
balancers find out by asking is reported to the region, whose data source the program asks.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from types import TracebackType

from nat_pod.errors import NatPodError
from nat_pod.lab.observe import observe
from nat_pod.lab.region.kinds import BACKEND, BALANCER
from nat_pod.lab.region.region import Region
from nat_pod.lab.wire import sandbox
from nat_pod.trace.topology import Topology

_PAUSE_SECONDS = 0.1


class Health:
    """Tells a region which backends are healthy, of those that the lab's balancers have asked.

    Of what the lab is, and not of what the region has become meanwhile: a VM's successor has the same address.
    """

    def __init__(self, key: str, region: Region) -> None:
        self._key, self._region = key, region
        self._standing: Topology | None = None
        self._told: dict[str, dict[str, bool]] = {}

    def stands(self, standing: Topology, seen: Region) -> None:
        """The lab is this network, which was the region's when it was `seen`."""
        self._standing, self._seen = standing, seen

    def report(self) -> None:
        """Tell what is new."""
        if self._standing is None or not self._standing.balancers:
            return
        states = sandbox.call(self._key, "balancers")
        by_address = {one.address: states.get(one.name) for one in self._standing.balancers.values()}
        there = {record.ocid for record in self._region.all(BALANCER)}
        for record in [record for record in self._seen.all(BALANCER) if record.ocid in there]:
            state = by_address.get(record.facts["ipAddresses"][0]["ipAddress"])
            if state is None:
                continue
            seen = {
                str(backend.facts["targetId"]): backend.facts["ipAddress"] in state["healthy"]
                for backend in self._seen.all(BACKEND)
                if backend.facts["networkLoadBalancerId"] == record.ocid
                and backend.facts["ipAddress"] in state["asked"]
            }
            if seen != self._told.get(record.ocid):
                self._region.report_health(record.ocid, seen)
                self._told[record.ocid] = seen

    def withdraw(self) -> None:
        """Nobody looks any more."""
        for balancer in self._told.keys() & {record.ocid for record in self._region.all(BALANCER)}:
            self._region.report_health(balancer, None)


class Following:
    """For the length of a `with` block the lab is what the region is.

    become: makes the lab a network, and returns what it did, in lines.
    Leaving the block waits until the lab has become what the region is then.  Raises NatPodError when it cannot.
    """

    def __init__(
        self,
        key: str,
        region: Region,
        standing: Topology,
        become: Callable[[Topology], list[str]],
        say: Callable[[str], None],
    ) -> None:
        self._region, self.standing = region, standing
        self._become, self._say = become, say
        self.did: list[str] = []
        self._health = Health(key, region)
        self._health.stands(standing, Region.from_json(region.to_json()))
        self._error: NatPodError | None = None
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="the lab follows the region")

    def __enter__(self) -> Following:
        self._health.report()  # or the first to ask would be told that all are well
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end.set()
        self._thread.join()
        self._health.withdraw()
        if self._error is None:
            self._look(last=error is None)
        if self._error is not None and error is None:
            raise self._error

    def _follow(self) -> None:
        while not self._end.is_set() and self._error is None:
            try:
                self._look()
                self._health.report()
            except NatPodError as error:
                self._error = error
            time.sleep(_PAUSE_SECONDS)

    def _look(self, *, last: bool = False) -> None:
        """Become what the region is.  In the middle of a change it may be nothing that could be built: then later."""
        snapshot = Region.from_json(self._region.to_json())
        try:
            seen = observe(snapshot)
        except (ValueError, LookupError, StopIteration):
            if last:
                raise
            return
        if seen != self.standing:
            for line in self._become(seen):
                self._say(line)
                self.did.append(line)
            self.standing = seen
        self._health.stands(self.standing, snapshot)
