"""`lab apply` and `lab preview`: an edited stack file goes into the running lab, as `pulumi up` would bring it.

First it goes into a copy of the lab's tenancy: POD and neighbours.  Only when all of that holds do the namespaces
change, in place.  A preview ends before that, so it says what the region really made of the change.

NAT VMs with standbys are replaced in turn, and the engine waits between them until the balancer calls the new one
healthy.  So such a change is tried in the copy as well, and then carried out with the lab following (`following.py`).
"""

from __future__ import annotations

import base64
import pickle
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from nat_pod.errors import NatPodError
from nat_pod.lab.following import Following
from nat_pod.lab.observe import observe
from nat_pod.lab.region.kinds import INSTANCE
from nat_pod.lab.region.refusals import OciError
from nat_pod.lab.region.region import Region
from nat_pod.lab.scratch import scratch_folder
from nat_pod.lab.surroundings import before, build, prepare
from nat_pod.lab.tenancy import Tenancy, start_again
from nat_pod.lab.wire import sandbox
from nat_pod.lab.wire.fabric import lay_cables
from nat_pod.lab.wire.load import TCP
from nat_pod.lab.wire.netns import LabError
from nat_pod.lab.wire.rewiring import rewire
from nat_pod.plan.document import read_document
from nat_pod.plan.guest import RULES_KEY
from nat_pod.plan.model import PodPlan
from nat_pod.text import some, table
from nat_pod.trace.topology import VM_NAT, Topology

MADE, CHANGED, REPLACED, REMOVED = "made", "changed", "replaced", "removed"
_SHOWN = 4  # names of one type; the rest is counted
_SETTLED = 3.0  # seconds: every flow has sent at least twice by then (load.PERIODS)
_PATIENCE_SECONDS = 20.0  # for all flows to be answered: TCP sends again after 6 s, then after 13 s

Resources = Mapping[tuple[str, str], tuple[str, Any]]


@dataclass(frozen=True, slots=True)
class Change:
    """What became of one resource; `paths` are the inputs that changed."""

    what: str
    type: str
    name: str
    paths: tuple[str, ...] = ()


class Fate(StrEnum):
    """What became of an open TCP flow.  A lost one is open, and not answered by the machine that it leads to."""

    HELD_UP = "held up"
    ENDED = "ended"
    LOST = "lost"


@dataclass(frozen=True, kw_only=True, slots=True)
class WatchedFlow:
    """One open TCP flow, and what became of it; why: of one that ended, in the kernel's words."""

    sender: str
    receiver: str
    fate: Fate
    why: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Applied:
    """What was done, or would be.

    generations: of each NAT VM, before and after.  machines: what the lab did; for a preview what it would do.
    flows: None where none were watched.
    """

    means: str
    pod: tuple[Change, ...]
    neighbours: tuple[Change, ...]
    warnings: tuple[str, ...]
    generations: dict[str, tuple[str, str]]
    machines: tuple[str, ...] = ()
    flows: tuple[WatchedFlow, ...] | None = field(default=None)


def apply(
    directory: Path,
    stack: str,
    key: str,
    say: Callable[[str], None],
    *,
    watch: bool = False,
    only_preview: bool = False,
) -> Applied:
    """Bring the stack file into the lab with this key.  Raises NatPodError, and then nothing has changed."""
    kept, standing = sandbox.call(key, "kept"), topology_of(key)
    if not kept:
        raise NatPodError(f"this lab has kept no Pulumi state, so it cannot be changed; {start_again(stack)}")
    for vm, how in sandbox.call(key, "status")["down"].items():
        raise NatPodError(f"{vm} {how} (nothing was changed); run: python -m nat_pod lab recover {stack} {vm}")
    with scratch_folder() as folder:
        tenancy = Tenancy.unpacked(folder, directory, stack, kept)
        flows = tenancy.declared() if watch else []
        say(f"Pulumi.{stack}.yaml: {tenancy.means}, against a copy of the simulated region")
        done, after, in_turn = _change(directory, stack, tenancy, standing)
        if only_preview:
            return done
        if watch:
            say(f"{_open(key, flows)} TCP flows are open")
        if in_turn:
            say(f"the lab follows {tenancy.means}, which replaces {', '.join(in_turn)} in turn")
            machines = _follow(directory, stack, key, kept, standing, say)
        else:
            say("the lab changes in place")
            machines = _become(key, stack, after)
            sandbox.call(key, "keep", state=tenancy.packed())
    return Applied(
        means=done.means,
        pod=done.pod,
        neighbours=done.neighbours,
        warnings=done.warnings,
        generations=done.generations,
        machines=tuple(machines),
        flows=tuple(_watched(key, flows)) if watch else None,
    )


def packed_topology(topology: Topology) -> str:
    """As the lab takes it."""
    return base64.b64encode(pickle.dumps(topology)).decode()


def topology_of(key: str) -> Topology:
    """The network that a lab is."""
    found: Topology = pickle.loads(base64.b64decode(sandbox.call(key, "topology")))
    return found


def _change(
    directory: Path, stack: str, tenancy: Tenancy, standing: Topology
) -> tuple[Applied, Topology, tuple[str, ...]]:
    """Carry the change out in a copy: what became of it, the network, and the NAT VMs that are replaced in turn."""
    plan, region = prepare(directory, stack)
    there: Region = tenancy.region
    if region.name != there.name:
        raise NatPodError(f"the lab is in {there.name}, and the stack file in {region.name}; {start_again(stack)}")
    there.set_limits(replace(there.limits, lpgs=region.limits.lpgs, balancers=region.limits.balancers))
    try:
        if not tenancy.by_engine and (replaced := _replaced(plan, stack, tenancy.resources())):
            raise NatPodError(
                f"{', '.join(replaced)} would be replaced in turn, which only the Pulumi engine can do; "
                "install the pulumi CLI (https://www.pulumi.com/docs/install/)"
            )
        found = _carry_out(plan, tenancy)
        after = observe(there)
        rewiring = rewire(standing, lay_cables(standing), after)
    except (OciError, NatPodError, ValueError) as error:
        raise NatPodError(
            f"{error}\nthe running lab cannot be changed in place to this (nothing was changed); {start_again(stack)}"
        ) from None
    machines = [
        *(
            f"{name}: {'a new one, which knows no flow of before' if name in standing.vms else 'new'}"
            for name in rewiring.new_vms
        ),
        *(f"{name}: gone" for name in rewiring.gone_vms if name not in after.vms),
    ]
    done = Applied(
        means=tenancy.means,
        pod=tuple(_differences(there, found.before_up, found.after_up)),
        neighbours=(
            *_differences(there, found.at_first, found.before_up),
            *_differences(there, found.after_up, found.at_last),
        ),
        warnings=found.warnings,
        generations={
            name: (_generation(standing.vms[name].metadata), _generation(vm.metadata))
            for name, vm in after.vms.items()
            if vm.kind == VM_NAT and name in standing.vms
        },
        machines=tuple(machines),
    )
    # As long as there are balancers to wait for.
    in_turn = [name for name in rewiring.new_vms if name in standing.vms and standing.vms[name].kind == VM_NAT]
    return done, after, tuple(in_turn if standing.balancers and after.balancers else ())


@dataclass(frozen=True, kw_only=True, slots=True)
class _CarriedOut:
    """What there was at each step of a change."""

    at_first: Resources
    before_up: Resources
    after_up: Resources
    at_last: Resources
    warnings: tuple[str, ...]


def _carry_out(plan: PodPlan, tenancy: Tenancy) -> _CarriedOut:
    """What owners do before, `pulumi up`, and what they do then."""
    region = tenancy.region
    at_first = tenancy.resources()
    before(plan, region)
    before_up = tenancy.resources()
    deployment = tenancy.up()
    after_up = tenancy.resources()
    build(plan, region, deployment.outputs)
    tenancy.declare(plan)
    return _CarriedOut(
        at_first=at_first,
        before_up=before_up,
        after_up=after_up,
        at_last=tenancy.resources(),
        warnings=deployment.warnings,
    )


def _become(key: str, stack: str, after: Topology) -> list[str]:
    try:
        did: list[str] = sandbox.call(key, "apply", topology=packed_topology(after))
    except LabError as error:
        sandbox.stop(key)
        raise NatPodError(
            f"{error}\nthe lab could not be changed in place and is down; run: python -m nat_pod lab up {stack}"
        ) from None
    return did


def _follow(
    directory: Path, stack: str, key: str, kept: str, standing: Topology, say: Callable[[str], None]
) -> list[str]:
    """Carry the change out once more, with the lab being what the region is at each moment."""
    plan, _ = prepare(directory, stack)
    with scratch_folder() as folder:
        tenancy = Tenancy.unpacked(folder, directory, stack, kept)
        following = Following(key, tenancy.region, standing, lambda after: _become(key, stack, after), say)
        try:
            with following:
                _carry_out(plan, tenancy)
        except NatPodError as error:
            if sandbox.find(key) is None:
                raise
            raise NatPodError(
                f"{error}\n{tenancy.means} ended half-way, and the lab is in the state that it left; "
                f"to go on: python -m nat_pod lab apply {stack}"
            ) from None
        finally:
            if sandbox.find(key) is not None:
                sandbox.call(key, "keep", state=tenancy.packed())
    return following.did


def _replaced(plan: PodPlan, stack: str, there: Resources) -> list[str]:
    """The NAT VMs that have a standby and would be replaced; without standbys they are, or `up` refuses to.

    Pulumi's mocks know no replacement.
    """
    found = []
    for vm in plan.vms if plan.balancers else ():
        _, inputs = there.get((INSTANCE, f"nat-pod-{stack}-{vm.key}"), ("", None))
        if inputs is None:
            continue
        kept = [inputs["metadata"].get(key) == vm.metadata[key] for key in ("user_data", "ssh_authorized_keys")]
        kept += [inputs["shape"] == plan.shape, inputs["sourceDetails"]["sourceId"] == plan.image_id]
        size = inputs.get("shapeConfig") or {}
        if not all(kept) or (size.get("ocpus"), size.get("memoryInGbs")) != (plan.ocpus, plan.memory_gbs):
            found.append(vm.key)
    return found


def _generation(metadata: Mapping[str, str]) -> str:
    return read_document(metadata[RULES_KEY]).generation


def _differences(region: Region, old: Resources, new: Resources) -> list[Change]:
    found = []
    for one in sorted(old.keys() | new.keys()):
        if one not in new:
            found.append(Change(REMOVED, *one))
        elif one not in old:
            found.append(Change(MADE, *one))
        elif old[one][0] != new[one][0]:
            found.append(Change(REPLACED, *one))
        elif differs := region.diff(one[0], old[one][1], new[one][1]):
            found.append(Change(CHANGED, *one, differs.update))
    return found


# --- open flows ------------------------------------------------------------------------------------------------------


def _open(key: str, flows: Sequence[tuple[str, str, str]]) -> int:
    """Open a TCP flow for each (sender, address, receiver), with data both ways; returns how many are answered."""
    given = [
        {"number": number, "protocol": TCP, "sender": sender, "destination": address}
        for number, (sender, address, _) in enumerate(flows)
    ]
    sandbox.call(key, "load", action="open", flows=given)
    return sum(bool(flow["answers"]) for flow in _settled(key).values())


def _settled(key: str) -> dict[str, Any]:
    """The report on all flows, once each is answered or has ended, or the time is up."""
    end = time.monotonic() + _PATIENCE_SECONDS
    while True:
        time.sleep(_SETTLED)
        report: dict[str, Any] = sandbox.call(key, "load", action="report")
        if all(flow["answers"] or flow["error"] for flow in report.values()) or time.monotonic() > end:
            return report


def _watched(key: str, flows: Sequence[tuple[str, str, str]]) -> list[WatchedFlow]:
    """What has become of them."""
    sandbox.call(key, "load", action="mark")
    report = _settled(key)
    sandbox.call(key, "load", action="close", numbers=list(range(len(flows))))
    found = []
    for number, (sender, _, receiver) in enumerate(flows):
        of = report[str(number)]
        servers = {server for server, _ in of["answers"]}
        fate = Fate.ENDED if of["error"] else Fate.HELD_UP if servers == {receiver} else Fate.LOST
        found.append(WatchedFlow(sender=sender, receiver=receiver, fate=fate, why=of["error"]))
    return found


# --- words -----------------------------------------------------------------------------------------------------------


def applied_text(applied: Applied, stack: str, *, preview: bool) -> str:
    """What was done, for people."""
    lines = [f"POD {stack}: {'what `lab apply` would do' if preview else 'applied'}, by {applied.means}"]
    for title, changes in (("POD", applied.pod), ("neighbours", applied.neighbours)):
        lines += ["", f"Resources, {title}", *(_summary(changes) or ["  no change"])]
    generations = [[vm, old, "unchanged" if old == new else new] for vm, (old, new) in applied.generations.items()]
    lines += ["", "Rules", table(["VM", "generation before", "after"], generations)]
    if applied.machines:
        lines += ["", "Machines", *(f"  {words}" for words in applied.machines)]
    if applied.flows is not None:
        counted = Counter(flow.fate for flow in applied.flows)
        lines += [
            "",
            f"Open TCP flows, one for each declared pair: {', '.join(f'{n} {fate}' for fate, n in counted.items())}",
        ]
        lines += [
            f"  {flow.sender} to {flow.receiver}: {': '.join(filter(None, (flow.fate, flow.why)))}"
            for flow in applied.flows
            if flow.fate is not Fate.HELD_UP
        ]
    lines += [f"warning: {warning}" for warning in applied.warnings]
    return "\n".join(lines)


def _summary(changes: Sequence[Change]) -> list[str]:
    grouped: dict[tuple[str, str], list[Change]] = {}
    for change in changes:
        grouped.setdefault((change.what, change.type.rsplit(":", 1)[-1]), []).append(change)
    lines = []
    for (what, kind), group in grouped.items():
        names = [change.name + (f" ({', '.join(change.paths)})" if change.paths else "") for change in group]
        lines.append(f"  {what:<8}  {kind} {some(names, _SHOWN)}")
    return lines
