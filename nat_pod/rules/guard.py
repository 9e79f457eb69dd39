"""The filter table of a NAT VM, of either delivery: who may talk to the VM itself, and which errors are believed.

The names of chains that both deliveries have are here as well.

What may pass the VM is the delivery's own business (`compiler.py`, `routed.py`): it gives the chain for FORWARD.

RELATED is an ICMP error whose inside is a packet of a flow that exists.  Whoever guesses that packet can write such an
error: it would reset the flow or shrink its path MTU, and carry the sender's own bytes to both ends.  So an error
passes only from where the flow itself passes.

The VM's own errors (TTL exceeded, parameter problem, fragmentation needed) are written before FORWARD is asked.  They
go out if they are about a packet of a declared flow: traceroute then shows the VM, and a stranger learns of no machine.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from netaddr import IPNetwork

from nat_pod.config.services import Ports
from nat_pod.names import SSH
from nat_pod.rules.netfilter import Accept, Chain, Drop, Goto, Hook, Match, Rule, Table

PRE = "NATPOD-PRE"
POST = "NATPOD-POST"
FORWARD = "NATPOD-FORWARD"
INPUT = "NATPOD-INPUT"
OUTPUT = "NATPOD-OUTPUT"
FROM_VM1 = "NATPOD-FROM-VM1"
FROM_VM2 = "NATPOD-FROM-VM2"
SERVERS = "NATPOD-SERVERS"
HOSTS = "NATPOD-HOSTS"
ERRORS = "NATPOD-ERRORS"
OWN_ERRORS = "NATPOD-OWN-ERRORS"
REFUSED = "NATPOD-REFUSED"
"""The chain to which a routed POD's rules send what they refuse, so that it is counted in one place."""

# Families of chains; behind it stands a neighbour's name.
NEIGHBOUR_ERRORS = "NATPOD-E-"  # errors from a neighbour of several networks, about its own flows
SSH_ERRORS = "NATPOD-L-"  # and about its log-ins

FOREIGN = Rule(Match(), Drop(), note="not about a flow of the sender")

DHCP_SERVER, DHCP_CLIENT = 67, 68
DHCP_FROM = "169.254.169.254/32"
"""OCI's DHCP server; its metadata service and resolver have the same address.  A renewal needs no rule: the VM asks,
and the answer is ESTABLISHED.  The answer to a broadcast is not, and it comes from this address too."""


def guard(
    forward: Iterable[Rule],
    below: Iterable[Chain] = (),
    *,
    errors: Iterable[Rule],
    own_errors: Iterable[Rule],
    let_in: Iterable[Rule],
    said: Iterable[Rule],
) -> Table:
    """The filter table.

    forward, below: the chain for packets that pass, to its end, and the chains that it enters.  errors: from where
    errors about flows that pass are believed; own_errors: those about the VM's own flows.  let_in: who may open a flow
    to the VM itself.  said: which of the VM's own errors may go out.
    """
    own = (
        Rule(Match(in_interface="lo"), Accept(), note="the VM itself"),
        Rule(Match(ctstate=("ESTABLISHED",)), Accept(), note="answers to the VM"),
        Rule(Match(ctstate=("RELATED",)), Goto(OWN_ERRORS), note="errors about flows of the VM"),
        Rule(
            Match(
                source=DHCP_FROM,
                protocol="udp",
                source_port=Ports.one(DHCP_SERVER),
                destination_port=Ports.one(DHCP_CLIENT),
            ),
            Accept(),
            note="DHCP of the primary VNIC",
        ),
        *let_in,
        Rule(Match(), Drop(), note="no mapping translated it"),
    )
    to_strangers = Rule(Match(protocol="icmp", ctstate=("INVALID", "RELATED")), Drop(), note="errors to strangers")
    return Table(
        "filter",
        (Hook("FORWARD", FORWARD), Hook("INPUT", INPUT), Hook("OUTPUT", OUTPUT)),
        (
            Chain(FORWARD, tuple(forward)),
            *below,
            Chain(ERRORS, (*errors, FOREIGN)),
            Chain(INPUT, own),
            Chain(OWN_ERRORS, (*own_errors, FOREIGN)),
            Chain(OUTPUT, (*said, to_strangers)),
        ),
    )


def nat_table(
    pre: Iterable[Rule], post: Iterable[Rule], *, pre_below: Iterable[Chain], post_below: Iterable[Chain]
) -> Table:
    """The nat table: the rules for destinations and for sources, each with the chains that they enter."""
    return Table(
        "nat",
        (Hook("PREROUTING", PRE), Hook("POSTROUTING", POST)),
        (Chain(PRE, tuple(pre)), *pre_below, Chain(POST, tuple(post)), *post_below),
    )


def ssh(networks: Iterable[IPNetwork], note: str) -> list[Rule]:
    """Who may log in to the VM."""
    return [
        Rule(Match(source=str(network), protocol="tcp", destination_port=Ports.one(SSH)), Accept(), note=note)
        for network in networks
    ]


def about_own(networks: Sequence[IPNetwork], name: str) -> tuple[list[Rule], list[Chain]]:
    """Errors from a neighbour's networks about flows which one of its machines opened, or answers.

    Of several networks any may have the router that writes it, so each leads into one chain that knows all of them.
    """
    return _about(networks, f"{NEIGHBOUR_ERRORS}{name}", name, answers=True)


def about_ssh(networks: Sequence[IPNetwork], name: str) -> tuple[list[Rule], list[Chain]]:
    """Errors from a neighbour's networks about ssh to the VM, which its machines opened."""
    return _about(networks, f"{SSH_ERRORS}{name}", "errors about ssh", answers=False)


def _about(networks: Sequence[IPNetwork], chain: str, note: str, *, answers: bool) -> tuple[list[Rule], list[Chain]]:
    cidrs = [str(network) for network in networks]
    source = cidrs[0] if len(cidrs) == 1 else None  # in the chain it has been asked for
    theirs = [Rule(Match(source=source, opened_from=cidr), Accept(), note=note) for cidr in cidrs]
    theirs += [Rule(Match(source=source, answered_from=cidr), Accept(), note=note) for cidr in cidrs if answers]
    if source is not None:
        return theirs, []
    top = [Rule(Match(source=cidr), Goto(chain), note=note) for cidr in cidrs]
    return top, [Chain(chain, (*theirs, FOREIGN))]


def from_all(networks: Iterable[IPNetwork], note: str) -> list[Rule]:
    """Packets from any of these networks."""
    return [Rule(Match(source=str(network)), Accept(), note=note) for network in networks]
