"""`import`: a stack file for a POD that was built by hand."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from netaddr import IPNetwork

from nat_pod.commands.command import FINDINGS, OK, Subparsers, add_json, add_parser, print_json, read_bytes
from nat_pod.config import whole_file
from nat_pod.config.neighbours import is_customer_name
from nat_pod.config.stack_file import STACK_NAME_RULE, is_stack_name
from nat_pod.errors import NatPodError, excerpt, visible
from nat_pod.handbuilt.draft import Draft, draft
from nat_pod.handbuilt.numeric import as_network, network
from nat_pod.handbuilt.reconstruct import Handbuilt, reconstruct
from nat_pod.handbuilt.remarks import NOTES, Remark, RemarkKind
from nat_pod.handbuilt.saved_rules import MOST_BYTES, read_saved
from nat_pod.handbuilt.saved_table import SavedTable
from nat_pod.handbuilt.vnic_list import VnicList, read_vnics
from nat_pod.names import NAMESPACE, SIDES, Side
from nat_pod.text import count, table


def add(commands: Subparsers) -> None:
    """The command's parser."""
    words = "make a stack file from a POD that was built by hand, and list what does not fit"
    parser = add_parser(commands, "import", words, _run)
    for number, whom in ((1, "the customers"), (2, "management")):
        parser.add_argument(
            f"--vm{number}",
            metavar="FILE",
            required=True,
            help=f"output of iptables-save on the NAT VM that faces {whom}, or the iptables commands typed there",
        )
    for number in (1, 2):
        parser.add_argument(
            f"--vnics{number}",
            metavar="FILE",
            action="append",
            default=[],
            help=f"JSON from /opc/v2/vnics/ on NAT VM{number}, or the output of `oci compute instance list-vnics` or "
            "`oci network private-ip list`; repeat it for several files",
        )
    parser.add_argument(
        "--customer",
        metavar="NAME=CIDR",
        type=_customer_network,
        action="append",
        default=[],
        help="a customer and its network, which the rules do not show; repeat it for each customer and network",
    )
    parser.add_argument(
        "--stack",
        metavar="NAME",
        type=_stack_name,
        help="write Pulumi.NAME.yaml (default: print it on standard output)",
    )
    add_json(parser)


def _customer_network(text: str) -> tuple[str, IPNetwork]:
    name, _, written = text.partition("=")
    try:
        cidr = as_network(network(written))
    except ValueError:
        cidr = None
    if not is_customer_name(name) or cidr is None or str(cidr) != written:
        raise argparse.ArgumentTypeError(f"{text} is not a name and a network, e.g. customer1=10.0.0.0/24")
    return name, cidr


def _stack_name(text: str) -> str:
    if not is_stack_name(text):
        raise argparse.ArgumentTypeError(f"{text} is not a valid stack name; {STACK_NAME_RULE}")
    return text


def _run(arguments: argparse.Namespace) -> int:
    path = Path.cwd() / f"Pulumi.{arguments.stack}.yaml"
    if arguments.stack and path.exists():
        raise NatPodError(f"{path.name}: exists already; import writes new files only (nothing was changed)")
    tables: dict[Side, SavedTable] = {
        vm: read_saved(_read(file), excerpt(file))
        for vm, file in zip(SIDES, (arguments.vm1, arguments.vm2), strict=True)
    }
    vnics: dict[Side, VnicList] = {
        vm: read_vnics([(excerpt(file), _read(file)) for file in files])
        for vm, files in zip(SIDES, (arguments.vnics1, arguments.vnics2), strict=True)
        if files
    }
    customers: dict[str, tuple[IPNetwork, ...]] = {}
    for name, cidr in arguments.customer:
        customers[name] = (*customers.get(name, ()), cidr)
    pod = reconstruct(tables, vnics)
    found = draft(pod, customers, arguments.stack or "new") if pod.flows and pod.pairs else None
    if found is not None and arguments.stack:
        whole_file.create(path, found.text())
    if arguments.json:
        print_json(import_dict(pod, found, path.name if found is not None and arguments.stack else None))
    else:
        # Without --stack the file is what standard output is for.
        print(import_text(pod, found), file=sys.stdout if arguments.stack else sys.stderr)
        if found is not None:
            print(f"\nwritten: {path.name}" if arguments.stack else found.text(), end="\n" if arguments.stack else "")
    if found is None:
        why = "no flow passes both NAT VMs; give the rules of the two NAT VMs of one POD"
        if pod.flows:
            why = "both NAT VMs share their subnets; in nat-pod each VNIC has a /27 of its own"
        raise NatPodError(f"{why} (nothing was written)")
    return FINDINGS if any(remark.kind not in NOTES for remark in found.remarks) else OK


def _read(name: str) -> bytes:
    return read_bytes(name, MOST_BYTES + 1)


def import_dict(pod: Handbuilt, draft: Draft | None, file: str | None) -> dict[str, object]:
    """The form of `import --json`.  draft: None when nothing could be made of the rules."""
    remarks = pod.remarks if draft is None else draft.remarks
    return {
        "file": file,
        "flows": len(pod.flows),
        "config": None if draft is None else draft.config,
        "toFillIn": [] if draft is None else draft.to_fill_in,
        "withoutSlot": [] if draft is None else draft.without_slot,
        "assumed": [] if draft is None else list(draft.assumed),
        "findings": [
            {"kind": str(r.kind), "vm": r.vm, "line": r.line, "rule": r.rule or None, "why": r.why} for r in remarks
        ],
    }


def import_text(pod: Handbuilt, draft: Draft | None) -> str:
    """`import` for people: what was found, what is left to do, and each thing that does not fit."""
    customers = 0 if draft is None else len(draft.config["customers"])
    sections = [
        f"{', '.join(f'{number} rules on {vm}' for vm, number in pod.rules.items())}: {count(len(pod.flows), 'flow')}",
        f"  {count(len(pod.hosts), 'host')} of {count(customers, 'customer')}, {count(len(pod.servers), 'server')}, "
        f"{count(len(pod.pairs), 'VNIC pair')}, source NAT {pod.source_nat}",
    ]
    if draft is not None:
        sections += ["", f"To fill in ({len(draft.to_fill_in)})", *(f"  {path}" for path in draft.to_fill_in)]
        if draft.without_slot:
            title = (
                f"Without a slot ({len(draft.without_slot)}), until `python -m nat_pod allocate STACK` gives them one"
            )
            sections += ["", title, *(f"  {member}" for member in draft.without_slot)]
        rows = [[f"{NAMESPACE}:{path}", draft.value(path), why] for path, why in draft.assumed.items()]
        sections += ["", f"Assumed ({len(rows)})", table(["setting", "value", "because"], rows)]
    remarks = pod.remarks if draft is None else draft.remarks
    exchanged = [remark for remark in remarks if remark.kind is RemarkKind.EXCHANGED]
    notes = [remark for remark in remarks if remark.kind in NOTES]
    unfit = [remark for remark in remarks if remark.kind not in (RemarkKind.EXCHANGED, *NOTES)]
    for title, listed in (
        ("Look at this first", exchanged),
        ("Does not fit", unfit),
        ("Left out, and harmless", notes),
    ):
        if listed:
            sections += ["", f"{title} ({len(listed)})", *(line for remark in listed for line in _remark(remark))]
    return "\n".join(sections)


def _remark(remark: Remark) -> list[str]:
    place = "" if remark.line is None else f" line {remark.line}"
    where = f"{remark.vm}{place}: " if remark.vm else ""
    said = visible(f"{remark.kind}: {where}{remark.why}")
    return [f"  {said}"] + ([f"      {visible(remark.rule)}"] if remark.rule else [])
