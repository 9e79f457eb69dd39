"""Mappings change while hundreds of flows go through both NAT VMs: `make bench-change`.

The stack file is edited at random and planned by the real planner, and its documents are put into the metadata of both
NAT VMs.  Their agents then run one after the other, and take turns at going first.  `nat_pod/trace/diff.py` says which
flows a change may end: those whose way (the addresses at each hop) differs before and after.  Every other flow must go
on: no reset, no wrong byte, no stall.
"""

from __future__ import annotations

import argparse
import copy
import os
import platform
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from netaddr import IPNetwork

from bench.pods import SLASH_22, allocate, full_pod
from nat_pod.config.model import PodConfig
from nat_pod.lab.wire.load import TCP, UDP
from nat_pod.lab.wire.sandbox import Lab
from nat_pod.names import SIDES
from nat_pod.plan.model import PodPlan
from nat_pod.plan.planner import plan_pod
from nat_pod.trace.diff import delivered
from nat_pod.trace.expected import expected_topology
from nat_pod.trace.topology import VM_HOST, VM_NAT, Topology

REPORT = Path(__file__).with_suffix(".md")
CUSTOMERS, MACHINES, HOSTS, SERVERS, PAIRS = 4, 9, 6, 3, 2
SHAPE = "VM.Standard2.4"
FEWEST_HOSTS = 3  # of a customer; what is removed beyond that is not
LIMIT_SECONDS = 9 * 60  # what is not done by then is not done
PATIENCE = 5.0  # seconds until a flow that must answer counts as lost
WINDOW = 0.15  # seconds that a flow which must not answer is given to do so
REPORT_TEXT = """\
# Mappings change under load

Written by `make bench-change`.

| what | |
|---|---|
| changes | {changes} with {total} edits: {edits} |
| flows open at a time | {fewest} to {most}, TCP and UDP, customers to management and management to customers |
| flows that no change may end | {kept}, counted once per flow and change |
| of these lost (reset, stalled, wrong data, wrong far end, wrong source) | {lost} |
| their UDP packets lost | {packets_lost} of {packets} |
| flows that a change may end | {ended} |
| of these still passing after both VMs had applied it | {passing} |
| of these re-opened by an answer from the far end, which may open flows to this host | {reopened} |
| new flows to addresses that a change took away | {refused_tries}, connected: {connected} |
| new flows on mappings that a change brought or moved | {opened}, failed: {failed} |
| from changed metadata until both VMs had applied it, without the timer | p50 {p50:.2f} s, p99 {p99:.2f} s |

- POD: {customers} customers with {machines} machines each, of which {hosts} are members at first, {servers} servers,
  two VNIC pairs.
- A change is one to three edits. The agents of the two NAT VMs run one after the other, taking turns to be first. Up
  to 0.2 s pass between them (not counted), so some packets meet one VM with the new rules and one with the old ones.
- Each flow sends a record every 0.1, 0.3 or 1 s. A TCP flow is lost as well when it has no answer for {patience:g} s.
- "May end" is what `nat_pod diff` says: lost, renumbered or rerouted. A change of `sourceNat` does that to nearly all.
- Not counted: the minute OCI takes to show changed metadata, the timer's 15 s, and the start of Python (below 0.1 s).
- Seed {seed}. Machine: {machine}.
"""


@dataclass(frozen=True, slots=True)
class Course:
    """A flow that the plan delivers: machine to machine, the address used, the source seen, each hop's addresses."""

    sender: str
    receiver: str
    address: str
    seen: str
    hops: tuple[tuple[str, str], ...]


@dataclass
class Tally:
    """What was counted; `problems` has a sentence for each thing that must not be."""

    changes: int = 0
    edits: Counter[str] = field(default_factory=Counter)
    open: list[int] = field(default_factory=list)
    kept: int = 0
    lost: int = 0
    packets: int = 0
    packets_lost: int = 0
    ended: int = 0
    passing: int = 0
    reopened: int = 0
    refused_tries: int = 0
    connected: int = 0
    opened: int = 0
    failed: int = 0
    seconds: list[float] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


# --- the stack file and its edits ------------------------------------------------------------------------------------


def first_stack() -> dict[str, Any]:
    """The stack's configuration before the first change."""
    stack = full_pod(
        SLASH_22, source_nat="masquerade", servers=SERVERS, customers=CUSTOMERS, hosts=CUSTOMERS * HOSTS, shape=SHAPE
    )
    # The first server has the address of a customer's machine.
    stack["management"]["servers"]["server0"] = _machine(0, 0)
    return stack


def _machine(customer: int, number: int) -> str:
    return f"10.0.{customer}.{10 + number}"


def plan(stack: dict[str, Any]) -> PodPlan:
    """The real planner's plan."""
    return plan_pod(PodConfig.from_mapping(stack, "bench"), "bench")


class Editor:
    """Edits a copy of the stack file as an engineer would, at random."""

    def __init__(self, dice: random.Random) -> None:
        self.dice = dice
        self.number = 100
        self.kinds: list[tuple[int, str, Callable[[dict[str, Any]], bool]]] = [
            (8, "add", self.add),
            (8, "remove", self.remove),
            (5, "new slot", self.new_slot),
            (5, "new real address", self.new_address),
            (3, "servers of a customer", self.servers),
            (1, "sourceNat", self.policy),
        ]

    def edit(self, stack: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
        """A changed copy, and what was done to it."""
        changed: dict[str, Any] = copy.deepcopy(stack)
        done: list[str] = []
        wanted = self.dice.randint(1, 3)
        while len(done) < wanted:
            _, name, act = self.dice.choices(self.kinds, [kind[0] for kind in self.kinds])[0]
            if act(changed):
                done.append(name)
                allocate(changed, reuse=True)  # the hardest case for old flows
        return changed, done

    def _customer(self, stack: dict[str, Any]) -> tuple[str, dict[str, str], list[str]]:
        """A customer, its hosts, and the addresses of its machines that are not members."""
        number = self.dice.randrange(CUSTOMERS)
        hosts: dict[str, str] = stack["customers"][f"customer{number}"]["hosts"]
        idle = [a for a in (_machine(number, n) for n in range(MACHINES)) if a not in hosts.values()]
        return f"customer{number}", hosts, idle

    def add(self, stack: dict[str, Any]) -> bool:
        """A new host."""
        _, hosts, idle = self._customer(stack)
        if idle:
            self.number += 1
            hosts[f"vm{self.number}"] = self.dice.choice(idle)
        return bool(idle)

    def remove(self, stack: dict[str, Any]) -> bool:
        """A host goes; its slot is kept as released."""
        _, hosts, _ = self._customer(stack)
        if len(hosts) <= FEWEST_HOSTS:
            return False
        del hosts[self.dice.choice(sorted(hosts))]
        return True

    def new_slot(self, stack: dict[str, Any]) -> bool:
        """A host moves to another slot."""
        config = PodConfig.from_mapping(stack, "bench")
        customer, hosts, _ = self._customer(stack)
        taken = set(config.book.values())
        free = [slot for slot in config.layout.slots() if slot.pair <= PAIRS and slot not in taken]
        member, slot = f"{customer}/{self.dice.choice(sorted(hosts))}", self.dice.choice(free)
        pair = config.layout.addresses(slot)
        # A slot that was kept for somebody who is gone goes to this member.
        stack["addresses"] = {
            name: entry
            for name, entry in stack["addresses"].items()
            if name != member and (entry["natVm1"], entry["natVm2"]) != pair
        }
        stack["addresses"][member] = {"natVm1": pair[0], "natVm2": pair[1]}
        return True

    def new_address(self, stack: dict[str, Any]) -> bool:
        """A host becomes another machine."""
        _, hosts, idle = self._customer(stack)
        if idle:
            hosts[self.dice.choice(sorted(hosts))] = self.dice.choice(idle)
        return bool(idle)

    def servers(self, stack: dict[str, Any]) -> bool:
        """A customer may reach other servers."""
        customer, _, _ = self._customer(stack)
        every = sorted(stack["management"]["servers"])
        chosen = self.dice.sample(every, self.dice.randint(1, len(every)))
        before = stack["customers"][customer].pop("servers", every)
        if len(chosen) < len(every):
            stack["customers"][customer]["servers"] = sorted(chosen)
        return bool(sorted(chosen) != before)

    def policy(self, stack: dict[str, Any]) -> bool:
        """Switch to the other policy."""
        stack["sourceNat"] = {"masquerade": "static", "static": "masquerade"}[stack["sourceNat"]]
        return True


# --- the network -----------------------------------------------------------------------------------------------------


def network(stack: dict[str, Any]) -> Topology:
    """The stack's POD with every machine that may become a member, and every private IP that may be handed out.

    So only metadata changes afterwards; on OCI `pulumi up` makes the private IPs as well.
    """
    whole = copy.deepcopy(stack)
    for number in range(CUSTOMERS):
        whole["customers"][f"customer{number}"]["hosts"] = {f"vm{n}": _machine(number, n) for n in range(MACHINES)}
    allocate(whole)
    topology = expected_topology(plan(whole))
    if len([name for name in topology.vnics if name.startswith("natVm1")]) != PAIRS:
        raise SystemExit(f"{CUSTOMERS * MACHINES} machines do not take {PAIRS} VNIC pairs")
    for number, (name, vnic) in enumerate(sorted(topology.vnics.items())):
        addresses = vnic.addresses
        if topology.vms[vnic.vm].kind == VM_NAT:
            others = (str(address) for address in IPNetwork(topology.subnets[vnic.subnet].cidr)[2:-1])
            addresses = (addresses[0], *(address for address in others if address != addresses[0]))
        mac = f"02:00:17:00:{number >> 8:02x}:{number & 255:02x}"
        topology.vnics[name] = replace(vnic, mac=mac, addresses=addresses)
    for vm in plan(stack).vms:
        topology.vms[vm.key] = replace(topology.vms[vm.key], metadata=vm.metadata)
    return topology


def machines(topology: Topology) -> dict[tuple[str, str], str]:
    """The machine by realm and real address."""
    hosts = (vnic for vnic in topology.vnics.values() if topology.vms[vnic.vm].kind == VM_HOST)
    return {(vnic.subnet, vnic.addresses[0]): vnic.vm for vnic in hosts}


def paths(plan: PodPlan, at: dict[tuple[str, str], str]) -> set[Course]:
    """Every flow that the plan delivers, between machines."""
    machine = {slot.member: at[slot.member.realm, slot.real] for slot in plan.slots}
    # Hops name members, and a machine may become another member without any difference to packets.
    return {
        Course(machine[sender], machine[receiver], way.address, way.seen, tuple((hop.src, hop.dst) for hop in way.hops))
        for (sender, receiver), way in delivered(plan).items()
    }


# --- the run ---------------------------------------------------------------------------------------------------------


class Run:
    """A lab whose mappings change."""

    def __init__(self, lab: Lab, stack: dict[str, Any], topology: Topology, seed: int, patience: float) -> None:
        self.lab, self.stack, self.patience = lab, stack, patience
        self.editor = Editor(random.Random(seed))
        self.pauses = random.Random(seed)
        self.at = machines(topology)
        self.now = paths(plan(stack), self.at)
        self.flows: dict[int, Course] = {}
        self.counts: dict[int, tuple[int, int]] = {}  # of UDP flows: records sent and lost, while they had to pass
        self.number = 0
        self.tally = Tally()

    def begin(self) -> None:
        """Open the flows of the first plan."""
        opened = self._open(sorted(self.now, key=str))
        self.lab.call("load", action="mark")
        self._wait(opened)

    def changes(self, count: int) -> Iterator[int]:
        """Make changes; after each, yield how many there were."""
        with ThreadPoolExecutor(1) as other:
            following = other.submit(self._prepare)
            for done in range(1, count + 1):
                stack, edits, document, after = following.result()
                self.stack = stack
                self.tally.edits.update(edits)
                if done < count:
                    following = other.submit(self._prepare)  # while this one is being applied and watched
                self._change(document, after, first=SIDES[done % 2], what=f"change {done} ({', '.join(edits)})")
                self.tally.changes = done
                yield done

    def _prepare(self) -> tuple[dict[str, Any], list[str], dict[str, dict[str, str]], set[Course]]:
        stack, edits = self.editor.edit(self.stack)
        planned = plan(stack)
        return stack, edits, {vm.key: vm.metadata for vm in planned.vms}, paths(planned, self.at)

    def _change(self, metadata: dict[str, dict[str, str]], after: set[Course], first: str, what: str) -> None:
        tally, before = self.tally, self.now
        kept = {number for number, path in self.flows.items() if path in after}
        ended = self.flows.keys() - kept
        for vm, values in metadata.items():
            self.lab.call("metadata", vm=vm, metadata=values)
        seconds = 0.0
        for vm in sorted(SIDES, key=lambda side: side != first):
            if vm != first:
                time.sleep(self.pauses.choice((0.0, 0.05, 0.2)))
            done = self.lab.call("round", vm=vm)
            seconds += done["seconds"]
            if done["status"]:
                raise SystemExit(f"{what}: {vm}: {done['stderr']}")
        tally.seconds.append(seconds)
        self.now = after
        answering = {(path.sender, path.address): (path.receiver, path.seen) for path in after}
        gone = {(path.sender, path.address): path for path in before if (path.sender, path.address) not in answering}
        allowed = {(path.sender, path.receiver) for path in after}
        self.lab.call("load", action="mark")
        tries = self._open([path for _, path in sorted(gone.items())])
        opened = self._open(sorted(after - before, key=str))
        report = self._wait(kept | opened)
        for number, got in report.items():
            path, answers = self.flows[number], {(name, seen) for name, seen in got["answers"]}
            expected = answering.get((path.sender, path.address))
            way = f"{what}, {first} first: flow {number}, {path.sender} to {path.address}"
            if number in kept | opened and (got["error"] or answers != {expected}):
                if number in kept:
                    tally.lost += 1
                else:
                    tally.failed += 1
                tally.problems.append(f"{way}: {got['error'] or f'answers from {answers}, not {expected}'}")
            elif number not in kept | opened and not answers <= {expected}:
                if (
                    number in ended
                    and (path.receiver, path.sender) in allowed
                    and answers == {(path.receiver, path.seen)}
                ):
                    tally.reopened += 1
                    continue
                if number in tries:
                    tally.connected += 1
                else:
                    tally.passing += 1
                tally.problems.append(f"{way}: still answered by {answers}, should be {expected}")
            if number in kept and number % 2:
                self.counts[number] = (got["sent"], got["lost"])
        tally.open.append(len(kept | opened))
        tally.kept += len(kept)
        tally.ended += len(ended)
        tally.refused_tries += len(tries)
        tally.opened += len(opened)
        failed = {number for number in kept | opened if report[number]["error"]}
        self._close(ended | tries | failed)

    def finish(self) -> Tally:
        """Add up what the flows that are still open have counted."""
        self._close(set(self.flows))
        return self.tally

    def _open(self, wanted: list[Course]) -> set[int]:
        """A TCP flow (even number) and a UDP flow (odd) for each."""
        flows = {}
        for path in wanted:
            for protocol in (TCP, UDP):
                self.flows[self.number] = path
                flows[self.number] = {"protocol": protocol, "sender": path.sender, "destination": path.address}
                self.number += 1
        self.lab.call("load", action="open", flows=[{"number": number, **flow} for number, flow in flows.items()])
        return set(flows)

    def _wait(self, must: set[int]) -> dict[int, dict[str, Any]]:
        """The report, once every flow that must answer has done so since the mark, and WINDOW is over."""
        began = time.monotonic()
        while True:
            time.sleep(0.05)
            report = {int(number): got for number, got in self.lab.call("load", action="report").items()}
            waiting = [number for number in must if not report[number]["answers"] and not report[number]["error"]]
            passed = time.monotonic() - began
            if (not waiting and passed >= WINDOW) or passed >= self.patience:
                return report

    def _close(self, numbers: set[int]) -> None:
        for number in numbers:
            del self.flows[number]
            sent, lost = self.counts.pop(number, (0, 0))
            self.tally.packets += sent
            self.tally.packets_lost += lost
        self.lab.call("load", action="close", numbers=sorted(numbers))


def run(
    changes: int,
    seed: int,
    tell: Callable[[str], None] = lambda _: None,
    seconds: float = LIMIT_SECONDS,
    patience: float = PATIENCE,
) -> Tally:
    """Build the lab, make changes for at most so many seconds, and return what was counted."""
    stack = first_stack()
    topology = network(stack)
    with Lab(topology, tell) as lab:
        running = Run(lab, stack, topology, seed, patience)
        running.begin()
        began = time.monotonic()
        told = 0
        for done in running.changes(changes):
            for problem in running.tally.problems[told:]:
                tell(problem)
            told = len(running.tally.problems)
            if done % 50 == 0:
                tell(f"{done} changes after {time.monotonic() - began:.0f} s, {told} problems")
            if time.monotonic() - began > seconds:
                break
        return running.finish()


def main() -> int:
    """Run, print the table and write it to change.md; returns 1 if anything happened that must not."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--changes", type=int, default=520, help="how many, of one to three edits (default: 520)")
    parser.add_argument("--seed", type=int, default=4, help="seed of the random edits (default: 4)")
    parser.add_argument("--seconds", type=float, default=LIMIT_SECONDS, help="at most (default: %(default)s)")
    given = parser.parse_args()
    tally = run(given.changes, given.seed, lambda text: print(text, file=sys.stderr, flush=True), given.seconds)
    seconds = sorted(tally.seconds)
    text = REPORT_TEXT.format(
        **{key: value for key, value in vars(tally).items() if key not in ("edits", "open", "seconds", "problems")},
        total=sum(tally.edits.values()),
        edits=", ".join(f"{count} {kind}" for kind, count in tally.edits.most_common()),
        fewest=min(tally.open),
        most=max(tally.open),
        p50=seconds[len(seconds) // 2],
        p99=seconds[min(len(seconds) * 99 // 100, len(seconds) - 1)],
        customers=CUSTOMERS,
        machines=MACHINES,
        hosts=HOSTS,
        servers=SERVERS,
        patience=PATIENCE,
        seed=given.seed,
        machine=f"{os.cpu_count()} processors, load {os.getloadavg()[1]:.1f}; {platform.system()} "
        f"{platform.release()}, Python {platform.python_version()}",
    )
    print(text, end="")
    if given.changes >= 500:
        REPORT.write_text(text, encoding="utf-8")
    return 1 if tally.problems else 0


if __name__ == "__main__":
    sys.exit(main())
