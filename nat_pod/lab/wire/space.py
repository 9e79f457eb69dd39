"""A machine or network of the lab as a namespace: in values and texts, with what all kinds of them share."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from urllib.parse import quote

MTU = 9000
IMDS_ADDRESS = "169.254.169.254"
ROUTER_MAC = "00:00:17:ff:ff:01"  # on every veth of a VCN; 00:00:17 is Oracle's, as on OCI's virtual router
LINK_ADDRESS = "169.254.0.1"  # next hop across a peering; nobody has it, only its neighbour entry exists

_NO_IPV6 = (("net/ipv6/conf/all/disable_ipv6", "1"), ("net/ipv6/conf/default/disable_ipv6", "1"))


@dataclass(frozen=True, kw_only=True, slots=True)
class Space:
    """A namespace.  `sysctls` are set before its links exist (they inherit), `link_sysctls` after.

    `rule_sysctls` are set after its rules.

    `batch` is for `ip -batch`, `rules` for iptables-restore, both inside the namespace.
    """

    name: str
    sysctls: tuple[tuple[str, str], ...]
    link_sysctls: tuple[tuple[str, str], ...] = ()
    rule_sysctls: tuple[tuple[str, str], ...] = ()
    batch: str
    rules: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Port:
    """Both ends of a VNIC: `nic` in the VM (ens3), `link` in the VCN (v7)."""

    vnic: str
    vm: str
    vcn: str
    mac: str
    nic: str
    link: str


@dataclass(frozen=True, kw_only=True, slots=True)
class BalancerLinks:
    """A load balancer's VNIC, its number in the names of its links, and the backend's address at the end of each.

    A backend that is gone keeps its link: the others must keep theirs, or their flows would leave by the wrong one.
    """

    number: int
    vcn: str
    mac: str
    address: str
    backends: tuple[str, ...]

    @property
    def vnic(self) -> tuple[str, str, str]:
        """What makes it another load balancer when it changes."""
        return self.vcn, self.mac, self.address


def vcn_namespace(name: str) -> str:
    """The namespace of a VCN: `vcn-customer1`."""
    return f"vcn-{safe(name)}"


def vm_namespace(name: str) -> str:
    """The namespace of a VM: `vm-customer1.vm1` for customer1/vm1."""
    return f"vm-{safe(name)}"


def balancer_namespace(name: str) -> str:
    """The namespace of a load balancer: `nlb-natVm2`."""
    return f"nlb-{safe(name)}"


def safe(name: str) -> str:
    """A name that is a file name and one word for `ip -batch`; different names stay different."""
    return quote(name, safe="/").replace(".", "%2e").replace("/", ".")


def kernel(*, forward: bool, rp_filter: int) -> tuple[tuple[str, str], ...]:
    """Settings of a namespace.  All are written: a new namespace inherits those of the machine the lab runs on."""
    settings = [("net/ipv4/ip_forward", str(int(forward)))]
    for scope in ("all", "default"):
        settings.append((f"net/ipv4/conf/{scope}/rp_filter", str(rp_filter)))
        # OCI's fabric tells nobody of a better way, and a redirect would teach a VM a route it does not have.
        settings.append((f"net/ipv4/conf/{scope}/send_redirects", "0"))
        settings.append((f"net/ipv4/conf/{scope}/accept_redirects", "0"))
    return (*settings, *_NO_IPV6)


def text(lines: Iterable[str]) -> str:
    """Lines as `ip -batch` and iptables-restore read them."""
    return "".join(f"{line}\n" for line in lines)
