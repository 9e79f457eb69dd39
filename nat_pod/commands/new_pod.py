"""`new-pod`: the stack file of a new POD, in the next free range."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

from netaddr import IPNetwork

from nat_pod import limits
from nat_pod.commands.command import OK, Subparsers, add_json, add_parser, print_json, stack_name
from nat_pod.config import whole_file
from nat_pod.config.addressing import default_layout
from nat_pod.config.aliases import VcnLayout, capacity, default_vcn
from nat_pod.config.pods import claimed, range_unknown, read_pods
from nat_pod.config.ranges import free_ranges
from nat_pod.config.stack_file import STACK_NAME_RULE, is_stack_name, load_text
from nat_pod.errors import NatPodError
from nat_pod.names import SIDES


def add(commands: Subparsers) -> None:
    """The command's parser."""
    parser = add_parser(commands, "new-pod", "write a stack file for a new POD, in the next free range", _run)
    words = "the new stack's name: `prod` for Pulumi.prod.yaml"
    parser.add_argument("name", metavar="NAME", type=stack_name, help=words)
    parser.add_argument("--size", type=_prefix, default=22, help="prefix length of its range, 16 to 25 (default: 22)")
    words = "its aliases are routes, and each NAT VM has a standby (delivery: routes)"
    parser.add_argument("--routed", action="store_true", help=words)
    add_json(parser)


def _prefix(text: str) -> int:
    if not re.fullmatch(r"/?\d{1,2}", text) or not 16 <= int(text.removeprefix("/")) <= 25:
        raise argparse.ArgumentTypeError(
            f"{text} is not a valid size of a POD; it is a prefix length from 16 to 25, e.g. 21"
        )
    return int(text.removeprefix("/"))


def _run(arguments: argparse.Namespace) -> int:
    directory = Path.cwd()
    with whole_file.alone(directory):
        new = new_pod(directory, arguments.name, arguments.size, routed=arguments.routed)
        whole_file.create(new.path, new.text)
    if arguments.json:
        print_json(
            {
                "file": new.path.name,
                "cidr": new.cidr,
                "slots": new.slots,
                **({} if arguments.routed else {"slotsPerVnic": limits.SLOTS_PER_PAIR}),
                "fillIn": list(new.fill_in),
            }
        )
        return OK
    room = f"{limits.SLOTS_PER_PAIR} slots for each VNIC that its shape has, {new.slots} at most"
    if arguments.routed:
        room = f"{new.slots:,} aliases, one a member"
    print(f"written  {new.path.name}: {new.cidr}, {room}")
    for path in new.fill_in:
        print(f"fill in  {path}")
    steps = [
        f"check {arguments.name}     # names what is still wrong, each with its rule",
        f"allocate {arguments.name}",
    ]
    if not (directory / "Pulumi.yaml").exists():  # nat-pod is installed elsewhere, and this directory is new
        steps.insert(0, "new-project     # the Pulumi project that the stack belongs to")
    for word, step in zip_longest(("then",), steps, fillvalue=""):
        print(f"{word:<8} python -m nat_pod {step}")
    return OK


_NEW = """\
# The stack file of POD {name}. FILL IN marks what is empty; `python -m nat_pod check {name}` names each such
# key with its rule and an example. Then `python -m nat_pod allocate {name}` writes the address book.
config:
  oci:region:                              # FILL IN, e.g. uk-london-1
  nat-pod:compartmentId:                   # FILL IN: the OCID of the compartment that the POD is made in
  nat-pod:cidr: {cidr:<26} # this POD's own range, {slots} slots at most
  nat-pod:natVm:
    shape:                                 # FILL IN, e.g. VM.Standard2.24; {each} slots per VNIC, {pairs} VNICs at most
    imageId:                               # FILL IN: the OCID of an Oracle Linux or Ubuntu platform image
    sshPublicKey:                          # FILL IN: one line of an authorized_keys file
  nat-pod:management:
    cidr:                                  # FILL IN: the management VCN's network
    vrouter: {vrouter:<29} # the vRouter's floating IP in this POD; its subnet is {subnet}
    servers:                               # FILL IN, one per line:
      # mgmt: 10.0.0.100
  nat-pod:customers:                       # FILL IN, one below the other:
    # customer1:
    #   cidr: 10.0.0.0/24                  # may overlap management's network, not another customer's
    #   hosts: {{vm1: 10.0.0.100}}
  nat-pod:sourceNat: static                # each host has an address of its own at the far end
  nat-pod:protect: all                     # pulumi refuses to delete or replace VCN, LPGs, NAT VMs (docs/operate.md)
"""


_NEW_ROUTED = """\
# The stack file of POD {name}. FILL IN marks what is empty; `python -m nat_pod check {name}` names each such
# key with its rule and an example. Then `python -m nat_pod allocate {name}` writes the address book.
config:
  oci:region:                              # FILL IN, e.g. uk-london-1
  nat-pod:compartmentId:                   # FILL IN: the OCID of the compartment that the POD is made in
  nat-pod:delivery: routes                 # an alias is a route, and each member has one
  nat-pod:standby: true                    # takes {balancers} network load balancers; a region may have {limit}
  nat-pod:cidr: {cidr:<26} # {slots} aliases; its last /26, {vcn}, is the VCN's own
  nat-pod:natVm:
    shape:                                 # FILL IN, e.g. {{shape: VM.Standard.E5.Flex, ocpus: 1, memoryGbs: 8}}
    imageId:                               # FILL IN: the OCID of an Oracle Linux or Ubuntu platform image
    sshPublicKey:                          # FILL IN: one line of an authorized_keys file
  nat-pod:management:
    cidr:                                  # FILL IN: the management VCN's network
    vrouter: {vrouter:<29} # the vRouter's floating IP in this POD; its subnet is {subnet}
    servers:                               # FILL IN, one per line:
      # mgmt: 10.0.0.100
  nat-pod:customers:                       # FILL IN, one after the other:
    # customer1:
    #   cidr: 10.0.0.0/24                  # may overlap management's network, not another customer's
    #   hosts: {{vm1: 10.0.0.100}}
  nat-pod:protect: all                     # pulumi refuses to delete or replace VCN, LPGs, balancers, NAT VMs; with
                                           # `network` it replaces NAT VMs in turn (docs/operate.md)
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class NewPod:
    """A stack file for a new POD: its text, its range, its slots at most, and the keys that wait to be filled in."""

    path: Path
    text: str
    cidr: str
    slots: int
    fill_in: tuple[str, ...]


def new_pod(directory: Path, name: str, prefix: int, *, routed: bool = False) -> NewPod:
    """The stack file for a new POD in the lowest free range.  Writes nothing.

    prefix: 16 to 25.  routed: with `delivery: routes`.  Raises NatPodError when the name is not valid or is taken, no
    range is free, or the range of another stack file cannot be read: it might be the one that is handed out.
    """
    path = directory / f"Pulumi.{name}.yaml"
    if not is_stack_name(name):
        raise NatPodError(f"{name}: is not a valid stack name; {STACK_NAME_RULE}")
    if path.exists() or path.is_symlink():
        raise NatPodError(f"{path.name}: exists already; new-pod writes new files only (nothing was changed)")
    pods = read_pods(directory)
    unknown = [f"Pulumi.{other}.yaml" for other in range_unknown(pods)]
    if unknown:
        raise NatPodError(
            f"the range of {', '.join(unknown)} cannot be read, and it might be the next free one; "
            "correct that first; to see what is wrong, run: python -m nat_pod check"
        )
    cidr = next(free_ranges(claimed(pods).values(), prefix), None)
    if cidr is None:
        raise NatPodError(f"no /{prefix} of {limits.POD_SPACE} is free; `python -m nat_pod pods` lists who has what")
    slots, text = _routed(name, cidr) if routed else _private_ips(name, cidr)
    return NewPod(path=path, text=text, cidr=str(cidr), slots=slots, fill_in=tuple(_empty(text)))


def _private_ips(name: str, cidr: IPNetwork) -> tuple[int, str]:
    """How many slots there can be, and the text."""
    layout = default_layout(cidr, limits.MAX_VNICS)
    return layout.capacity, _NEW.format(
        name=name,
        cidr=str(cidr),
        slots=layout.capacity,
        each=limits.SLOTS_PER_PAIR,
        pairs=len(layout.pairs),
        vrouter=str(layout.vrouter[limits.RESERVED_LOW]),
        subnet=layout.vrouter,
    )


def _routed(name: str, cidr: IPNetwork) -> tuple[int, str]:
    """How many aliases there are, and the text."""
    vcn = default_vcn(cidr)
    subnet = VcnLayout(vcn).vrouter
    slots = capacity(cidr, vcn)
    return slots, _NEW_ROUTED.format(
        name=name,
        cidr=str(cidr),
        slots=f"{slots:,}",
        vcn=vcn,
        balancers=len(SIDES),
        limit=limits.BALANCERS_PER_REGION,
        vrouter=str(subnet[limits.RESERVED_LOW]),
        subnet=subnet,
    )


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
