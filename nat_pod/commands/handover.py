"""`handover`: the page for a neighbour's own engineer."""

from __future__ import annotations

import argparse

from nat_pod.commands.command import (
    OK,
    Subparsers,
    add_json,
    add_names,
    add_outputs,
    add_parser,
    add_stack,
    print_json,
    read_outputs,
)
from nat_pod.commands.stack import load
from nat_pod.names import MANAGEMENT
from nat_pod.pages.handover import Sheet, handover, with_outputs
from nat_pod.pages.handover_page import sheet_markdown
from nat_pod.pages.zone import hosts_lines, names_for, zone_file


def add(commands: Subparsers) -> None:
    """The command's parser."""
    words = "print what a customer's (or management's) own engineer must set up, and the addresses to use"
    parser = add_parser(commands, "handover", words, _run)
    add_stack(parser)
    parser.add_argument("neighbour", metavar="CUSTOMER", help="a customer of the stack file, or `management`")
    add_outputs(parser, "adds the OCIDs")
    form = parser.add_mutually_exclusive_group()
    add_names(form, "the members that this neighbour may call")
    add_json(form)


def _run(arguments: argparse.Namespace) -> int:
    _, plan = load(arguments.stack)
    sheet = handover(plan, arguments.stack, arguments.neighbour)
    if arguments.outputs is not None:
        sheet = with_outputs(sheet, plan, read_outputs(arguments.outputs), arguments.outputs)
    if arguments.hosts_file:
        print(hosts_lines(names_for(plan, arguments.stack, arguments.neighbour)))
    elif arguments.zone_file is not None:
        print(zone_file(names_for(plan, arguments.stack, arguments.neighbour), arguments.zone_file))
    elif arguments.json:
        print_json(sheet_dict(sheet))
    else:
        print(sheet_markdown(sheet))
    return OK


def sheet_dict(sheet: Sheet) -> dict[str, object]:
    """The form of `handover --json`."""
    return {
        "stack": sheet.stack,
        "neighbour": sheet.realm,
        "cidr": sheet.cidrs[0] if len(sheet.cidrs) == 1 else list(sheet.cidrs),  # as in the stack file
        "pod": sheet.pod,
        "deployed": sheet.deployed,
        **_connection(sheet),
        "policies": [{"for": case, "statements": list(statements)} for case, statements in sheet.policies],
        "routes": [{"destination": destination, "target": sheet.target} for destination in sheet.destinations],
        "security": [
            {
                "direction": rule.direction,
                "peer": rule.peer,
                "protocol": rule.protocol,
                "icmpType": rule.icmp_type,
                "icmpCode": rule.icmp_code,
                "stateless": rule.stateless,
                "for": rule.description,
            }
            for rule in sheet.security
        ],
        "passes": [{"from": sender, "to": receiver, "allow": allow} for sender, receiver, allow in sheet.passes],
        "far": {
            far.member: {
                "address": far.address,
                "seenAs": far.seen_as,
                "calls": list(far.calls),
                "calledBy": list(far.called_by),
            }
            for far in sheet.far
        },
        "near": {
            near.member: {"real": near.real, "calledAt": near.called_at, "seenAs": near.seen_as} for near in sheet.near
        },
        **({} if sheet.names is None else {"names": {"zone": sheet.names.zone, "viewId": sheet.names.view_id}}),
        "try": [
            {"on": attempt.sender, "address": attempt.address, "answers": attempt.receiver, "seenAs": attempt.seen_as}
            for attempt in sheet.attempts
        ],
    }


def _connection(sheet: Sheet) -> dict[str, object]:
    if sheet.realm == MANAGEMENT:
        address, gateway = sheet.vrouter
        subnet = {"cidr": sheet.vrouter_subnet, "id": sheet.ocid}
        return {"vrouter": {"address": address, "gateway": gateway, "subnet": subnet}}
    requestor = "neighbour" if sheet.peer_id is None else "pod"
    return {"peering": {"lpgId": sheet.ocid, "requestor": requestor, "peerId": sheet.peer_id}}
