"""All PODs of a directory: their ranges against one another, what is left in each, and the range for a new one.

A stack file that does not hold yet claims its range all the same: two new PODs must not be given the same one.  No
rules are compiled here; nothing that is asked needs them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from netaddr import IPNetwork

from nat_pod import limits
from nat_pod.config.addressing import default_layout, overlap
from nat_pod.config.model import PodConfig, read_draft
from nat_pod.config.stack_file import Stack, load_text, read_stack, stack_names
from nat_pod.config.subnets import claimed_range
from nat_pod.errors import ConfigError, NatPodError, Problem
from nat_pod.text import table

PREFIXES = (22, 21)
"""The sizes of a POD that README counts: 435 slots, and the 696 of a VM with 24 VNICs."""

_STACK_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")
_REGION = "oci:region"


@dataclass(frozen=True, kw_only=True)
class Pod:
    """A stack file as its neighbours need to know it, and read further when somebody asks.

    `cidr` is the range it claims, None when it claims none; `unknown` when it may claim one that cannot be read.
    """

    name: str
    cidr: IPNetwork | None
    unknown: bool
    stack: Stack | None
    unreadable: tuple[Problem, ...] = ()

    @cached_property
    def config(self) -> PodConfig | None:
        """None when the problems leave none; one whose address book lags behind is a config with problems."""
        return self._draft[0]

    @cached_property
    def problems(self) -> tuple[Problem, ...]:
        """What is wrong with this file alone."""
        return self._draft[1]

    @cached_property
    def _draft(self) -> tuple[PodConfig | None, tuple[Problem, ...]]:
        if self.stack is None:
            return None, self.unreadable
        config, problems, unsettled = read_draft(self.stack.pod_config(), self.name)
        # "" is what `pulumi stack init` makes of an empty key.
        region = self.stack.config.get(_REGION, "elsewhere")
        empty = [] if region else [Problem(_REGION, None, f"is empty; e.g. {_REGION}: uk-london-1")]
        return config, (*empty, *problems, *unsettled)


def read_pods(directory: Path) -> dict[str, Pod]:
    """All stack files of a directory, by the stack's name.

    Raises ConfigError for a project file that is wrong: that is no single stack's problem.
    """
    return {name: _read_pod(directory, name) for name in stack_names(directory)}


def _read_pod(directory: Path, name: str) -> Pod:
    try:
        stack = read_stack(directory, name)
    except ConfigError as error:
        if error.source != f"Pulumi.{name}.yaml":
            raise
        return Pod(name=name, cidr=None, unknown=True, stack=None, unreadable=error.problems)
    mapping = stack.pod_config()
    cidr = claimed_range(mapping)
    return Pod(name=name, cidr=cidr, unknown=cidr is None and mapping.get("cidr") is not None, stack=stack)


def overlapping(name: str, pods: Mapping[str, Pod]) -> list[str]:
    """The other PODs whose range has an address of this one's."""
    mine = pods[name].cidr
    if mine is None:
        return []
    return [other for other, pod in pods.items() if other != name and pod.cidr is not None and overlap(mine, pod.cidr)]


def overlaps(name: str, pods: Mapping[str, Pod]) -> list[Problem]:
    """Ranges that a POD shares with others: both would answer for the same unique addresses."""
    return [
        Problem(
            "nat-pod:cidr",
            str(pods[name].cidr),
            f"overlaps {pods[other].cidr} of Pulumi.{other}.yaml; each POD has its own range",
        )
        for other in overlapping(name, pods)
    ]


def free_ranges(pods: Mapping[str, Pod], prefix: int) -> Iterator[IPNetwork]:
    """The networks of 198.18.0.0/15 of that size in which no POD has an address, from the lowest."""
    taken = [(pod.cidr.first, pod.cidr.last) for pod in pods.values() if pod.cidr is not None]
    space = IPNetwork(limits.POD_SPACE)
    size = 2 ** (32 - prefix)
    for first in range(space.first, space.last, size):
        if all(last < first or first + size <= other for other, last in taken):
            yield IPNetwork((first, prefix))


# --- pods ------------------------------------------------------------------------------------------------------------


def pods_dict(pods: Mapping[str, Pod]) -> dict[str, object]:
    """The form of `pods --json`."""
    return {
        "pods": {
            name: {
                "cidr": None if pod.cidr is None else str(pod.cidr),
                **_left(pod.config),
                "overlaps": overlapping(name, pods),
                "problems": len(pod.problems),
            }
            for name, pod in pods.items()
        },
        "free": {f"/{prefix}": _free(pods, prefix) for prefix in PREFIXES},
        "rangeUnknown": _unknown(pods),
    }


def _left(config: PodConfig | None) -> dict[str, object]:
    if config is None:
        return {"slots": None, "customers": None, "lpgs": None, "vnics": None}
    count = config.capacity
    customers = len(config.customers)
    return {
        "slots": {"slots": count.slots, "used": count.used, "free": count.free},
        "customers": customers,
        "lpgs": {"limit": config.lpg_limit, "free": config.lpg_limit - customers},
        "vnics": {"used": count.vnics_used, "limit": count.vnics_limit},
    }


def _free(pods: Mapping[str, Pod], prefix: int) -> dict[str, object]:
    free = list(free_ranges(pods, prefix))
    return {"next": str(free[0]) if free else None, "left": len(free)}


def _unknown(pods: Mapping[str, Pod]) -> list[str]:
    return [name for name, pod in pods.items() if pod.unknown]


def pods_text(pods: Mapping[str, Pod]) -> str:
    """`pods` for people."""
    header = ["POD", "range", "slots used", "free", "customers", "LPGs left", "VNICs", ""]
    lines = [table(header, [_row(pod, overlapping(name, pods)) for name, pod in pods.items()], indent=""), ""]
    for prefix in PREFIXES:
        slots = default_layout(next(IPNetwork(limits.POD_SPACE).subnet(prefix)), limits.MAX_VNICS).capacity
        free = _free(pods, prefix)
        lines.append(f"next free /{prefix} ({slots} slots): {free['next'] or 'none'}, {free['left']} left")
    if unknown := _unknown(pods):
        lines.append(
            f"not counted, for its range cannot be read: {', '.join(f'Pulumi.{name}.yaml' for name in unknown)}"
        )
    if wrong := [name for name, pod in pods.items() if pod.problems or overlapping(name, pods)]:
        lines.append(f"what is wrong, with its rule: python -m nat_pod check {' '.join(wrong)}")
    return "\n".join(lines)


def _row(pod: Pod, others: list[str]) -> list[object]:
    count = len(pod.problems)
    states = [f"overlaps {', '.join(others)}"] if others else []
    states += [f"{count} problem{'' if count == 1 else 's'}"] if count else []
    start, end = [pod.name, "-" if pod.cidr is None else str(pod.cidr)], "; ".join(states) or "fine"
    if pod.config is None:
        return [*start, "-", "-", "-", "-", "-", end]
    left = pod.config.capacity
    customers = len(pod.config.customers)
    slots, vnics = f"{left.used} of {left.slots}", f"{left.vnics_used} of {left.vnics_limit}"
    return [*start, slots, left.free, customers, pod.config.lpg_limit - customers, vnics, end]


# --- new-pod ---------------------------------------------------------------------------------------------------------

_NEW = """\
# The stack file of POD {name}. FILL IN marks what is empty; `python -m nat_pod check {name}` names each such
# key with its rule and an example. Then `python -m nat_pod allocate {name}` writes the address book.
config:
  oci:region:                              # FILL IN, e.g. uk-london-1
  nat-pod:compartmentId:                   # FILL IN: the OCID of the compartment that the POD is made in
  nat-pod:cidr: {cidr:<26} # this POD's own range, {slots} slots
  nat-pod:natVm:
    shape:                                 # FILL IN: its VNICs are the limit, {pairs} use the range to the full
    imageId:                               # FILL IN: the OCID of an Oracle Linux or Ubuntu platform image
    sshPublicKey:                          # FILL IN: one line of an authorized_keys file
  nat-pod:management:
    cidr:                                  # FILL IN: the management VCN's network
    vrouter: {vrouter:<29} # the vRouter's floating IP in this POD; its subnet is {subnet}
    servers:                               # FILL IN, one a line:
      # mgmt: 10.0.0.100
  nat-pod:customers:                       # FILL IN, one after the other:
    # customer1:
    #   cidr: 10.0.0.0/24                  # may overlap management's network, not another customer's
    #   hosts: {{vm1: 10.0.0.100}}
  nat-pod:sourceNat: static                # each host has an address of its own at the far end
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class NewPod:
    """A stack file for a new POD: its text, its range, and the keys that wait to be filled in."""

    path: Path
    text: str
    cidr: str
    slots: int
    fill_in: tuple[str, ...]


def new_pod(directory: Path, name: str, prefix: int) -> NewPod:
    """The stack file for a new POD in the lowest free range.  Writes nothing.

    prefix: 16 to 25.  Raises NatPodError when the name is none or taken, no range is free, or the range of another
    stack file cannot be read: it might be the one that is handed out.
    """
    path = directory / f"Pulumi.{name}.yaml"
    if not _STACK_NAME.fullmatch(name):
        raise NatPodError(f"{name}: a stack's name is letters, digits, dots, dashes and underscores, e.g. prod")
    if path.exists() or path.is_symlink():
        raise NatPodError(f"{path.name}: exists already; new-pod writes new files only (nothing was changed)")
    pods = read_pods(directory)
    unknown = [f"Pulumi.{other}.yaml" for other, pod in pods.items() if pod.unknown]
    if unknown:
        raise NatPodError(
            f"the range of {', '.join(unknown)} cannot be read, and might be the next one; "
            "put that right first, run: python -m nat_pod check"
        )
    cidr = next(free_ranges(pods, prefix), None)
    if cidr is None:
        raise NatPodError(f"no /{prefix} of {limits.POD_SPACE} is free; `python -m nat_pod pods` lists who has what")
    layout = default_layout(cidr, limits.MAX_VNICS)
    text = _NEW.format(
        name=name,
        cidr=str(cidr),
        slots=layout.capacity,
        pairs=len(layout.pairs),
        vrouter=str(layout.vrouter[limits.RESERVED_LOW]),
        subnet=layout.vrouter,
    )
    return NewPod(path=path, text=text, cidr=str(cidr), slots=layout.capacity, fill_in=tuple(_empty(text)))


def _empty(text: str) -> Iterator[str]:
    """The keys without a value, in the notation of `pulumi config get --path`."""

    def walk(path: str, value: object) -> Iterator[str]:
        if value is None:
            yield path
        elif isinstance(value, dict):
            for key, entry in value.items():
                yield from walk(f"{path}.{key}" if path else str(key), entry)

    loaded = load_text(text)
    assert isinstance(loaded, dict)
    return walk("", loaded["config"])


def write_new(new: NewPod) -> None:
    """Write the file, which must not be there.  Raises NatPodError when it cannot be written; then there is none."""
    try:
        with new.path.open("x", encoding="utf-8") as stream:
            try:
                stream.write(new.text)
                stream.flush()
            except BaseException:
                new.path.unlink()
                raise
    except OSError as error:
        raise NatPodError(f"{new.path.name}: cannot be written: {error.strerror} (nothing was changed)") from None
