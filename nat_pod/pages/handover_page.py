"""The hand-over sheet as a page in Markdown, which reads well in a terminal of 80 columns too."""

from __future__ import annotations

from collections.abc import Sequence

from netaddr import IPNetwork

from nat_pod.config.addressing import can_be_a_vcns
from nat_pod.config.services import TCP
from nat_pod.names import MANAGEMENT
from nat_pod.pages.handover import Attempt, NamesInDns, Sheet
from nat_pod.text import markdown_table, wrapped_lines
from nat_pod.trace.topology import SecurityRule


def sheet_markdown(sheet: Sheet) -> str:
    """The page itself."""
    management = sheet.realm == MANAGEMENT
    ours, others, theirs = ("hosts", "customers' hosts", "the customers know")
    if not management:
        ours, others, theirs = ("servers", "management's servers", "management knows")
    members = "servers" if management else "hosts"
    parts = [
        f"# {sheet.realm}: the way through POD `{sheet.stack}`",
        _wrap(
            f"{_yours(sheet)}, and {others} talk through {_pod(sheet)}. The networks at both ends "
            "may overlap: each side knows the other by the POD's addresses listed below, and by no others."
        ),
    ]
    if sheet.deployed is False:
        parts.append(
            _wrap(
                "**Not deployed yet**: what runs now comes from another state of the stack file. Run `pulumi up` first."
            )
        )
    parts.append(f"## 1. {'The vRouter' if management else 'The peering'}")
    parts.append(_vrouter(sheet) if management else _peering(sheet))
    for case, statements in sheet.policies:
        block = "\n".join(["```", *statements, "```"])
        parts += [_wrap(f"IAM, {case}; put in your own names for groups, compartments and tenancies:"), block]
    parts += [
        "## 2. Route rules",
        _wrap(f"In the route table of every subnet that holds one of the {members} of section 5:"),
        markdown_table(["destination", "target"], [[cidr, sheet.target] for cidr in sheet.destinations]),
        *([] if _is_vcns(sheet) else [_wrap(_behind(sheet))]),
        "## 3. Security rules",
        _wrap(
            f"In a security list of these subnets, or an NSG of these {members}. Stateful; narrow the protocols to "
            "those in use."
        ),
        markdown_table(
            ["direction", "source or destination", "protocol", "for"],
            [[rule.direction.lower(), rule.peer, _protocol(rule), rule.description] for rule in sheet.security],
        ),
        f"## 4. {others[0].upper()}{others[1:]}, as you know them",
        markdown_table(*_far_table(sheet)),
        f"## 5. Your {members}, as {theirs} them",
        markdown_table(*_near_table(sheet)),
    ]
    if sheet.attempts:
        parts += ["## 6. Try it", *(_attempt(attempt) for attempt in sheet.attempts)]
    if sheet.names is not None:
        parts += ["## Names, if you want them", *_names(sheet, sheet.names)]
    if sheet.passes:
        parts += [
            "## What passes",
            _wrap(
                "Of the flows listed here, only what the list says passes; several lines for one flow add up. All "
                "other flows between the addresses above pass, whatever their protocol and port."
            ),
            markdown_table(["who opens", "to whom", "what passes"], [list(row) for row in sheet.passes]),
        ]
    parts.append(f"## {7 if sheet.attempts else 6}. What does not work, by design")
    parts.append("\n".join(_wrap(f"- {line}") for line in _refusals(sheet, members, ours)))
    return "\n\n".join(parts)


def _all(sheet: Sheet) -> str:
    *before, last = sheet.cidrs
    return f"{', '.join(before)} and {last}" if before else last


def _yours(sheet: Sheet) -> str:
    return f"Your VCN, {sheet.cidrs[0]}" if _is_vcns(sheet) else f"Your networks, {_all(sheet)}"


def _is_vcns(sheet: Sheet) -> bool:
    """Whether its networks are just a VCN's own, as far as anybody can tell."""
    return len(sheet.cidrs) == 1 and can_be_a_vcns(IPNetwork(sheet.cidrs[0]))


def _behind(sheet: Sheet) -> str:
    """What is to be done for networks that are not the VCN's own."""
    if sheet.realm == MANAGEMENT:
        return (
            "For networks that lie behind this VCN: let the vRouter's own VCN route them, and let their routers lead "
            "these destinations to the vRouter."
        )
    return (
        "For networks that lie behind your VCN (a hub, a data centre), OCI has transit routing. Associate with this "
        "LPG a route table that leads these networks to your DRG. Add these destinations, with the LPG as the target, "
        "to the VCN route table of the DRG attachment. Let the routers behind the DRG lead the destinations to it."
    )


def _pod(sheet: Sheet) -> str:
    if sheet.vcn == sheet.pod:
        return f"the POD's VCN, {sheet.pod}"
    return f"the POD, {sheet.pod}, whose VCN has {sheet.vcn}"


def _wrap(text: str) -> str:
    """For a terminal of 80 columns; Markdown joins the lines."""
    indent = "  " if text.startswith("- ") else ""
    return "\n".join(wrapped_lines(text, 79, indent))


def _protocol(rule: SecurityRule) -> str:
    return "all" if rule.icmp_type is None else f"ICMP type {rule.icmp_type} code {rule.icmp_code}"


def _peering(sheet: Sheet) -> str:
    shown = _ocid(sheet, "lpgIds")
    if sheet.peer_id is not None:
        first = (
            f"The POD requests the peering from your LPG `{sheet.peer_id}`; your side accepts it by policy. The POD's "
            f"LPG: {shown}."
        )
    else:
        first = (
            "Make a local peering gateway (LPG) in your VCN, and establish the peering from it: you are the "
            f"requestor. The POD's LPG: {shown}."
        )
    return _wrap(f"{first} Once the peering is up, both LPGs show *Peered*.")


def _vrouter(sheet: Sheet) -> str:
    address, gateway = sheet.vrouter
    lines: tuple[str, ...] = (
        f"Attach a VNIC of each vRouter to the POD's subnet {sheet.vrouter_subnet}, with its source/destination "
        f"check skipped. Its OCID: {_ocid(sheet, 'vrouterSubnetId')}.",
        f"Give the active one the private IP {address} there; the POD routes {_all(sheet)} to it.",
        f"In its operating system, route {sheet.pod} by that VNIC, gateway {gateway}, and enable forwarding.",
    )
    if sheet.vcn != sheet.pod:
        lines += (f"The POD's own engineer reaches NAT VM2 by ssh at its address in {sheet.vcn}, by the same route.",)
    return "\n".join(_wrap(f"- {line}") for line in lines)


def _ocid(sheet: Sheet, output: str) -> str:
    return f"`{sheet.ocid}`" if sheet.ocid else f"see `pulumi stack output {output} --stack {sheet.stack}`"


def _names(sheet: Sheet, names: NamesInDns) -> list[str]:
    """How the owner of a VCN attaches the view; nothing else on the page needs it."""
    view = names.view_id or "VIEW_OCID"
    shown = f"`{names.view_id}`" if names.view_id else f"see `pulumi stack output nameViews --stack {sheet.stack}`"
    return [
        _wrap(
            f"The addresses of section 4 have names in `{names.zone}`, e.g. `{names.example}`. They are in a private "
            f"view of OCI DNS: {shown}. Your hosts resolve them once you attach it to your VCN's resolver (Console: "
            "Networking, your VCN, DNS Resolver, Associated private views), or by the OCI CLI. The command replaces "
            "the list of attached views: name those that are attached already, too."
        ),
        "\n".join(
            [
                "```",
                "oci network vcn-dns-resolver-association get --vcn-id YOUR_VCN",
                "oci dns resolver update --scope PRIVATE --resolver-id RESOLVER \\",
                f'    --attached-views \'[{{"viewId": "{view}"}}]\'',
                "dig +short " + names.example,
                "```",
            ]
        ),
        _wrap(
            "In the POD's own tenancy this takes `read dns-views` in its compartment, `manage dns-resolvers` in yours. "
            "Oracle does not document whether a VCN of another tenancy can attach it. There, use "
            f"`handover {sheet.stack} {sheet.realm} --zone-file {names.zone}` for a private zone of your own."
        ),
    ]


def _far_table(sheet: Sheet) -> tuple[Sequence[str], list[list[str]]]:
    if sheet.realm != MANAGEMENT:
        return ["server", "you call it at", "you see it as"], [
            [far.member.short, far.address or "not for you", far.seen_as or "-"] for far in sheet.far
        ]
    everybody = len(sheet.near)
    return ["host", "you call it at", "you see it as", "it may call"], [
        [
            far.member,
            far.address or "-",
            far.seen_as or "-",
            "all servers"
            if len(far.calls) == everybody
            else ", ".join(host.short for host in far.calls) or "no server",
        ]
        for far in sheet.far
    ]


def _near_table(sheet: Sheet) -> tuple[Sequence[str], list[list[str]]]:
    header = ["host", "its address", "management calls it at", "management sees it as"]
    if sheet.realm == MANAGEMENT:
        header = ["server", "its address", "customers call it at", "customers see it as"]
    return header, [[near.member.short, near.real, near.called_at, near.seen_as or "-"] for near in sheet.near]


def _attempt(attempt: Attempt) -> str:
    services, to = attempt.services, attempt.address
    commands = [f"ping -c 3 {to}"] if services.icmp else []
    if services.permits(TCP, 80):
        commands.append(f"curl -m 5 http://{to}/")
    if not commands:
        udp, ports = ("", services.tcp) if services.tcp else ("u", services.udp)
        commands = [f"nc -zv{udp} -w 5 {to} {max(ports[0].first, 1)}"]
    notes = [f"{attempt.receiver} sees {attempt.seen_as}", "the same, if it has a web server"]
    width = max(len(command) for command in commands)
    lines = [f"    {command:{width}}  # {note}" for command, note in zip(commands, notes, strict=False)]
    return "\n".join([f"On {attempt.sender}:", "", *lines])


def _refusals(sheet: Sheet, members: str, others: str) -> list[str]:
    lines = [
        f"Packets to and from {members} outside section 5: they have no address here. The POD's owner adds them.",
        f"Packets to addresses of {sheet.pod} that are not in section 4.",
        f"Packets to {others}' real addresses: where the networks overlap, a machine of your own may answer there.",
    ]
    if sheet.realm != MANAGEMENT:
        closed = [far.member.short for far in sheet.far if far.address is None]
        lines += (
            [f"Packets from your hosts to {', '.join(closed)}, which are not in your list of servers."]
            if closed
            else []
        )
        lines.append("Packets between you and other customers, at any address.")
    lines.append("The POD drops all of this without an answer: ping and curl time out.")
    return lines
