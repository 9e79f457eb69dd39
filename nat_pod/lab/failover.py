"""NAT VMs fail while many flows are open, and the fate of each flow is checked.

A flow is lost when it was reset, when a byte is wrong or missing, when another machine or another source address is at
its other end, or when nothing sent after the failure arrives within a bound (for TCP: is acknowledged).
Two kinds are told apart, since no VM that has not seen a flow can carry them on by itself:

- A UDP flow in which only the end sends that may not open it.  The next datagram of the other end revives it.
- A TCP flow whose first segment at the new VM is a FIN or a RST.  Connection tracking begins no entry with either, so
  the other end does not learn of it, until a segment of its own makes the entry.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import cycle, islice
from types import TracebackType
from typing import Any, TypeVar, assert_never

from nat_pod.config.source_nat import SourceNat
from nat_pod.errors import NatPodError
from nat_pod.lab.wire import sandbox
from nat_pod.lab.wire.held_flow import Kind
from nat_pod.lab.wire.load import TCP, UDP
from nat_pod.names import MemberName, Side
from nat_pod.plan.model import PodPlan, SlotPlan
from nat_pod.text import table
from nat_pod.trace.flows import Flow, declared_flows
from nat_pod.trace.topology import Topology

PATIENCE = 20.0
"""Seconds after the switch until a flow without an answer is lost: TCP sends again after 6.2 s, then after 12.6 s."""

_OPEN_SECONDS = 30.0  # that all flows are given to open, before anything fails
_SWITCH_SECONDS = 15.0  # beyond what the health checks take
_HEALTHY_SECONDS = 60.0  # that a VM which comes back is given to boot and be called healthy
_LEARN_SECONDS = 3.0  # that an end is given to learn of the other's without a segment of its own
_PERIODS = (0.25, 0.5, 1.0)  # seconds between two records

_FIRST_ENDING = 100_000  # number of a flow that is opened for one step

Report = dict[int, dict[str, Any]]
_T = TypeVar("_T")


class Ending(StrEnum):
    """How a TCP flow ends: its first segment after the switch."""

    CLIENTS_FIN = "FIN of the client"
    SERVERS_FIN = "FIN of the server"
    CLIENTS_RST = "RST of the client"
    SERVERS_RST = "RST of the server"

    @property
    def resets(self) -> bool:
        """Whether it is a RST."""
        return self in (Ending.CLIENTS_RST, Ending.SERVERS_RST)

    @property
    def by_server(self) -> bool:
        """Whether the server ends it; its client is the one to learn of it then."""
        return self in (Ending.SERVERS_FIN, Ending.SERVERS_RST)


@dataclass(frozen=True, kw_only=True, slots=True)
class Held:
    """A declared flow that is held open.

    one_way: only its client may open it.  by_server: an idle one is woken by its server.
    ends: how it ends after the switch; None for a flow that goes on.
    """

    number: int
    flow: Flow
    protocol: str
    kind: Kind
    one_way: bool
    by_server: bool = False
    ends: Ending | None = None

    @property
    def unheard(self) -> bool:
        """Whether it is a UDP flow in which only the end sends that may not open it; UDP has no SYN to tell."""
        return self.protocol == UDP and self.one_way and self.kind is Kind.PULL

    @property
    def goes_on(self) -> bool:
        """Whether it is one of those that no failure may end."""
        return not self.ends and not self.unheard

    @property
    def what(self) -> str:
        """Its kind, e.g. `tcp pull, one may open`."""
        kind = f"{self.kind} by server" if self.by_server else str(self.kind)
        return f"{self.protocol} {self.ends or kind}, {'one may open' if self.one_way else 'both may open'}"

    def opened(self) -> dict[str, object]:
        """As the lab takes it."""
        return {
            "number": self.number,
            "protocol": self.protocol,
            "kind": self.kind,
            "period": _PERIODS[self.number % len(_PERIODS)],
            "sender": self.flow.sender,
            "destination": self.flow.destination,
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """What happens to NAT VMs in one go.  hang: those that fail hang instead of being powered off."""

    what: str
    fail: tuple[str, ...] = ()
    hang: bool = False
    recover: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Ended:
    """Flows that ended in one way: how many, and how many ends learned of it by themselves and after a segment."""

    how: Ending
    flows: int
    learned: int
    learned_later: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What became of the flows that were open before a step.

    active: by load balancer, the VM that acts now.  tcp, udp: flows that had to go on.  lost: those that did not, and
    what happened.  pause: of all others the longest, in seconds.
    unheard: flows of that kind, how many stood still, and how many went on after the next datagram of the other end.
    """

    what: str
    active: dict[str, str]
    tcp: int
    udp: int
    lost: tuple[tuple[Held, str], ...]
    pause: float
    unheard: tuple[int, int, int] = (0, 0, 0)
    ended: tuple[Ended, ...] = field(default=())


# --- which flows -----------------------------------------------------------------------------------------------------

_GOING_ON: dict[str, tuple[tuple[Kind, bool], ...]] = {
    TCP: ((Kind.ECHO, False), (Kind.PUSH, False), (Kind.PULL, False), (Kind.IDLE, False), (Kind.IDLE, True)),
    UDP: ((Kind.ECHO, False), (Kind.PUSH, False), (Kind.PULL, False), (Kind.IDLE, False)),
}


def held_flows(plan: PodPlan, *, tcp: int, udp: int, unheard: int = 0) -> list[Held]:
    """Flows to hold: `tcp` and `udp` of those that go on, and `unheard` of those that are reported apart.

    Of every kind, customers to management and back, and with each: pairs of which both may open and of which one may.
    """
    groups = _groups(plan)
    held: list[Held] = []

    def hold(protocol: str, kinds: Sequence[tuple[Kind, bool]], count: int, *, goes_on: bool) -> None:
        """The next so many, of each kind and each group in turn."""
        for flow, one_way, (kind, by_server) in _mixed(groups, kinds):
            if not count:
                return
            one = Held(number=len(held), flow=flow, protocol=protocol, kind=kind, one_way=one_way, by_server=by_server)
            if one.goes_on == goes_on:
                held.append(one)
                count -= 1

    for protocol, count in ((TCP, tcp), (UDP, udp)):
        hold(protocol, _GOING_ON[protocol], count, goes_on=True)
    if any(one_way for _, one_way in groups):
        hold(UDP, [(Kind.PULL, False)], unheard, goes_on=False)
    return held


def ending_flows(plan: PodPlan, each: int) -> list[Held]:
    """So many TCP flows for each way to end."""
    groups = _groups(plan)
    found = [one for ends in Ending for one in islice(_mixed(groups, [ends]), each)]
    return [
        Held(number=_FIRST_ENDING + at, flow=flow, protocol=TCP, kind=Kind.IDLE, one_way=one_way, ends=ends)
        for at, (flow, one_way, ends) in enumerate(found)
    ]


def _groups(plan: PodPlan) -> dict[tuple[Side, bool], list[Flow]]:
    """The declared flows by the side of who opens them, and by whether only that end may."""
    # Where a policy governs a pair, the ports of the flows that are held may be closed.
    declared = [flow for flow in declared_flows(plan) if flow.protocol is None]
    pairs = {(flow.sender, flow.receiver) for flow in declared}
    groups: dict[tuple[Side, bool], list[Flow]] = {}
    for flow in declared:
        one_way = (flow.receiver, flow.sender) not in pairs
        groups.setdefault((flow.sender.side, one_way), []).append(flow)
    if not groups:
        raise NatPodError(
            "the stack file declares no flow that may use every protocol and port, so there is none to hold open"
        )
    return groups


def _mixed(groups: dict[tuple[Side, bool], list[Flow]], kinds: Sequence[_T]) -> Iterator[tuple[Flow, bool, _T]]:
    """Endlessly: the next flow of each group, with each kind in turn."""
    flows = {group: cycle(members) for group, members in groups.items()}
    while True:
        for kind in kinds:
            for side, one_way in groups:
                yield next(flows[side, one_way]), one_way, kind


# --- what happens ----------------------------------------------------------------------------------------------------


class Watched:
    """Flows that are open in a lab for the length of a `with` block; `step` lets something happen to them.

    patience: seconds after the switch until a flow without an answer is lost.  It is more when the switch took long, as
    on a busy machine: TCP doubles its waits, so what it sends again comes within about as long as the failure lasted.
    Raises NatPodError when they do not all open.
    """

    def __init__(
        self, key: str, plan: PodPlan, deployed: Topology, flows: Sequence[Held], patience: float = PATIENCE
    ) -> None:
        self._key, self._plan, self._deployed, self._patience = key, plan, deployed, patience
        self._flows = list(flows)

    def __enter__(self) -> Watched:
        self._open(self._flows)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _load(self._key, "close", numbers=[held.number for held in self._flows])

    def step(self, step: Step, ending: int = 0, act: Callable[[], None] = lambda: None) -> Outcome:
        """What becomes of the flows; those that are lost are forgotten.

        ending: so many more flows for each way to end.  act: what else happens, at the moment of the failure.
        """
        key, last = self._key, ending_flows(self._plan, ending)
        self._open(last)
        begun = time.monotonic()
        for vm in step.fail:
            sandbox.call(key, "fail", vm=vm, hang=step.hang)
        act()
        _load(key, "mark")  # nothing that is sent from now on comes by a VM that has failed
        for vm in step.recover:
            sandbox.call(key, "recover", vm=vm)
        active = _switched(key, self._deployed, set(step.fail))
        patience = max(self._patience, 1.5 * (time.monotonic() - begun))
        if step.recover:
            _healthy(key, self._deployed)
            _load(key, "mark", keep_pause=True)  # what counts comes after whatever their return has changed
        for by_server in (False, True):
            woken = [one.number for one in self._flows if one.kind is Kind.IDLE and one.by_server == by_server]
            _load(key, "wake", numbers=woken, by_server=by_server)
        going_on = [held for held in self._flows if held.goes_on]
        report = _answered(key, going_on, patience)
        fates = [(held, _fate(self._plan, held, report)) for held in going_on]
        outcome = Outcome(
            what=step.what,
            active=active,
            tcp=sum(held.protocol == TCP for held in going_on),
            udp=sum(held.protocol == UDP for held in going_on),
            lost=tuple((held, fate) for held, fate in fates if fate),
            pause=max((report[held.number]["pause"] for held, fate in fates if not fate), default=0.0),
            unheard=_unheard(key, [held for held in self._flows if held.unheard]),
            ended=_ended(key, last),
        )
        self._close([*(held for held, _ in outcome.lost), *last])
        return outcome

    def _open(self, flows: Sequence[Held]) -> None:
        _load(self._key, "open", flows=[held.opened() for held in flows])
        report = _answered(self._key, flows, _OPEN_SECONDS)
        wrong = [(held, fate) for held in flows if (fate := _fate(self._plan, held, report))]
        if wrong:
            self._flows = [held for held in self._flows if held not in flows]
            _load(self._key, "close", numbers=[held.number for held in flows])
            held, fate = wrong[0]
            raise NatPodError(
                f"{len(wrong)} of {len(flows)} flows do not open, so nothing was made to fail: "
                f"{held.flow.sender} to {held.flow.destination}, {held.protocol}: {fate}"
            )

    def _close(self, flows: Sequence[Held]) -> None:
        _load(self._key, "close", numbers=[held.number for held in flows])
        self._flows = [held for held in self._flows if held not in flows]


def _fate(plan: PodPlan, held: Held, report: Report) -> str:
    """What has become of a flow that has to go on; "" when all is well."""
    found = report[held.number]
    if found["error"]:
        return str(found["error"])
    if not found["answers"]:
        return "stands still"
    sender, receiver = plan.slot(held.flow.sender), held.flow.receiver
    assert sender is not None, "a declared flow begins at a member"
    assert receiver is not None, "and ends at one"
    expected = (str(receiver), _seen(plan, sender, receiver))
    others = [answer for answer in found["answers"] if tuple(answer) != expected]
    return f"{others[0][0]} is at its other end and sees {others[0][1]}" if others else ""


def _seen(plan: PodPlan, sender: SlotPlan, receiver: MemberName) -> str:
    """The source that a receiver sees."""
    match plan.source_nat:
        case SourceNat.STATIC:
            return sender.address(receiver.side)
        case SourceNat.MASQUERADE:
            return plan.primary(receiver.side)
        case _ as never:
            assert_never(never)


def acting(key: str, deployed: Topology) -> dict[str, str]:
    """By load balancer, the VM that new flows go to, or `nobody`."""
    names = {deployed.vnics[vm.vnics[0]].addresses[0]: vm.name for vm in deployed.vms.values() if vm.side is not None}
    return {name: names.get(str(state["active"]), "nobody") for name, state in sandbox.call(key, "balancers").items()}


def _switched(key: str, deployed: Topology, failed: set[str]) -> dict[str, str]:
    """Wait until no load balancer gives flows to a VM that failed, within a bound; who acts then."""
    checks = [balancer.check for balancer in deployed.balancers.values()]
    seconds = max(((one.interval_millis + one.timeout_millis) * one.retries / 1000 for one in checks), default=0.0)
    end = time.monotonic() + seconds + _SWITCH_SECONDS
    while failed & set((active := acting(key, deployed)).values()) and time.monotonic() < end:
        time.sleep(0.05)
    return active


def _healthy(key: str, deployed: Topology) -> None:
    """Wait until all backends of all load balancers are healthy.  Raises NatPodError."""
    wanted = {name: {one.address for one in balancer.backends} for name, balancer in deployed.balancers.items()}
    end = time.monotonic() + _HEALTHY_SECONDS
    while True:
        states = sandbox.call(key, "balancers")
        missing = [
            f"{name}: {address}" for name, all_of in wanted.items() for address in all_of - set(states[name]["healthy"])
        ]
        if not missing:
            return
        if time.monotonic() > end:
            raise NatPodError(f"not healthy within {_HEALTHY_SECONDS:g} s of its return: {', '.join(sorted(missing))}")
        time.sleep(0.05)


def _answered(key: str, flows: Sequence[Held], seconds: float) -> Report:
    """The report, once each of these flows has an answer since the mark, or an error, or the time is up."""
    end = time.monotonic() + seconds
    while True:
        report = _report(key)
        waiting = [one for one in flows if not report[one.number]["answers"] and not report[one.number]["error"]]
        if not waiting or time.monotonic() > end:
            return report
        time.sleep(0.1)


def _unheard(key: str, flows: Sequence[Held]) -> tuple[int, int, int]:
    """How many there are, stand still, and go on once their client has sent a datagram."""
    numbers = [held.number for held in flows]
    still = [number for number in numbers if not _report(key)[number]["answers"]] if flows else []
    _load(key, "wake", numbers=still)
    report = _answered(key, flows, PATIENCE)
    return len(flows), len(still), sum(bool(report[number]["answers"]) for number in still)


def _ended(key: str, flows: Sequence[Held]) -> tuple[Ended, ...]:
    """End them, each in its way, and see who learns of it: by itself, and after a segment of its own."""
    if not flows:
        return ()
    groups = {how: [held.number for held in flows if held.ends is how] for how in Ending}
    for how, numbers in groups.items():
        _load(key, "end", numbers=numbers, reset=how.resets, by_server=how.by_server)
    first = _learned(key, flows, _LEARN_SECONDS)
    for how, numbers in groups.items():
        left = [number for number in numbers if number not in first]
        _load(key, "wake", numbers=left, by_server=not how.by_server)
    later = _learned(key, flows, PATIENCE)
    return tuple(
        Ended(
            how=how,
            flows=len(numbers),
            learned=len(first & set(numbers)),
            learned_later=len((later - first) & set(numbers)),
        )
        for how, numbers in groups.items()
    )


def _learned(key: str, flows: Sequence[Held], seconds: float) -> set[int]:
    """Those whose other end has learned of the end within a bound."""
    end = time.monotonic() + seconds
    while True:
        report = _report(key)
        learned = {held.number for held in flows if report[held.number]["ended"]}
        if len(learned) == len(flows) or time.monotonic() > end:
            return learned
        time.sleep(0.1)


def _load(key: str, action: str, **arguments: object) -> Any:  # noqa: ANN401 - JSON, as the action gives it
    return sandbox.call(key, "load", action=action, **arguments)


def _report(key: str) -> Report:
    return {int(number): found for number, found in _load(key, "report").items()}


# --- the whole way ---------------------------------------------------------------------------------------------------


def steps(plan: PodPlan, active: Mapping[str, str]) -> list[Step]:
    """Every way to lose the NAT VMs of a POD whose sides have a standby each, so that each VM takes over once.

    active: who acts at first, by load balancer.  The last VM hangs when its other one is back, which still has the
    connection table of before.
    """
    pairs = [
        sorted((backend.vm for backend in balancer.backends), key=lambda vm: vm not in active.values())
        for balancer in plan.balancers
    ]
    first, second = ([vms[number] for vms in pairs] for number in (0, 1))
    return [
        *(Step(what=f"{vm} off", fail=(vm,)) for vm in first),
        Step(what=f"{_both(first)} come back", recover=tuple(first)),
        Step(what=f"{_both(second)} off at once", fail=tuple(second)),
        Step(what=f"{_both(second)} come back", recover=tuple(second)),
        Step(what=f"{first[0]} hangs", fail=(first[0],), hang=True),
        Step(what=f"{first[0]} comes back", recover=(first[0],)),
        Step(what=f"{second[0]} hangs", fail=(second[0],), hang=True),
        Step(what=f"{second[0]} comes back", recover=(second[0],)),
    ]


def _both(vms: Sequence[str]) -> str:
    return " and ".join(vms)


# --- words -----------------------------------------------------------------------------------------------------------


def outcomes_text(outcomes: Sequence[Outcome]) -> str:
    """The failover table, and what is told apart, for people."""
    rows = [
        [
            one.what,
            ", ".join(one.active.values()) or "-",
            str(one.tcp),
            str(one.udp),
            str(len(one.lost)),
            f"{one.pause:.1f} s",
        ]
        for one in outcomes
    ]
    lines = [
        "Failover, with open flows",
        table(["what failed", "acts now", "TCP open", "UDP open", "lost", "longest pause"], rows),
    ]
    for one in outcomes:
        for held, fate in one.lost:
            lines.append(f"LOST {one.what}: {held.flow.sender} to {held.flow.destination}, {held.what}: {fate}")
    unheard = [one for one in outcomes if one.unheard[0]]
    if unheard:
        lines += [
            "",
            "UDP flows in which only the end sends that may not open them",
            table(
                ["what failed", "flows", "stood still", "went on after the other end's next datagram"],
                [[one.what, *map(str, one.unheard)] for one in unheard],
            ),
        ]
    ended = [(one, group) for one in outcomes for group in one.ended]
    if ended:
        lines += [
            "",
            "TCP flows whose first segment after the switch is a FIN or a RST: no data is lost",
            table(
                ["what failed", "first segment", "flows", "far end learns", "after its own next segment"],
                [[one.what, of.how, str(of.flows), str(of.learned), str(of.learned_later)] for one, of in ended],
            ),
        ]
    return "\n".join(lines)
