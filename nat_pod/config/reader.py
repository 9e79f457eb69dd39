"""Typed access to the plain values of a stack file: what does not fit becomes a problem, and None.

One reader goes through the whole file and collects every problem, so that all of them are reported at once.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TypeVar

from netaddr import INET_PTON, AddrFormatError, IPAddress, IPNetwork

from nat_pod.errors import Problem
from nat_pod.ipv4 import number
from nat_pod.names import NAME, NAMESPACE

NAME_RULE = "a name is lower-case letters, digits and dashes, a letter first, e.g. vm1"
DOTTED = re.compile(r"[0-9]{1,3}(\.[0-9]{1,3}){3}")

_Choice = TypeVar("_Choice", bound=StrEnum)


@dataclass
class Reader:
    """Typed access to plain values; a value that does not fit becomes a problem and None."""

    stack: str
    problems: list[Problem] = field(default_factory=list)
    unsettled: list[Problem] = field(default_factory=list)

    def add(self, path: str, value: object, rule: str, command: str = "") -> None:
        """A problem at a path below `nat-pod:`."""
        self.problems.append(Problem(f"{NAMESPACE}:{path}" if path else NAMESPACE, value, rule, command))

    def section(
        self, path: str, value: object, *, required: tuple[str, ...] = (), optional: tuple[str, ...] = ()
    ) -> dict[str, object]:
        """A mapping with known keys.  What is missing or unknown is a problem; the rest is returned."""
        known = (*required, *optional)
        if not isinstance(value, Mapping):
            if value is not None:
                self.add(path, value, f"must be a mapping with {listed(known)}")
            return {}
        for key in value:
            if key not in known:
                guess = difflib.get_close_matches(str(key), known, 1)
                hint = f"; did you mean {guess[0]}?" if guess else f"; known are {listed(known)}"
                self.add(join(path, key), None, f"is not a setting of nat-pod{hint}")
        for key in required:
            if value.get(key) is None:
                place = join(path, key)
                self.add(place, None, f"is missing; {EXAMPLES.get(place) or EXAMPLES[key]}")
        return {key: value[key] for key in known if value.get(key) is not None}

    def named(self, path: str, value: object, what: str) -> dict[str, object]:
        """A mapping from names to values, the form of customers, hosts and servers."""
        if value is None:
            return {}
        if not isinstance(value, Mapping):
            self.add(path, value, f"must be a mapping of {what}")
            return {}
        good = {}
        for key, entry in value.items():
            if not isinstance(key, str) or not NAME.fullmatch(key):
                quote = "; YAML reads on, off, yes and no as true and false: quote it" if isinstance(key, bool) else ""
                self.add(join(path, key), None, NAME_RULE + quote)
            else:
                good[key] = entry
        return dict(sorted(good.items()))

    def text(self, path: str, value: object, rule: str, pattern: re.Pattern[str]) -> str | None:
        """A string of a form."""
        if value is None:
            return None
        if not isinstance(value, str) or not pattern.fullmatch(value):
            self.add(path, value, rule)
            return None
        return value

    def ocid(self, path: str, value: object, kinds: tuple[str, ...]) -> str | None:
        """The OCID of a resource of one of these kinds."""
        # ocid1.TYPE.REALM.[REGION][.FUTURE USE].UNIQUE ID (OCI docs, "Resource Identifiers"); strict, because it is
        # shown on pages and in terminals.
        pattern = re.compile(rf"ocid1\.({'|'.join(kinds)})\.[a-z0-9]+\.([a-z0-9-]*\.){{1,2}}[A-Za-z0-9_-]+")
        what = f"{'an' if kinds[0][0] in 'aeiou' else 'a'} {kinds[0]}"
        return self.text(path, value, f"must be the OCID of {what}, e.g. ocid1.{kinds[0]}.oc1..aaaa", pattern)

    def choice(self, path: str, value: object, choices: type[_Choice]) -> _Choice | None:
        """One of an enum's values."""
        if not isinstance(value, str) or value not in list(choices):
            self.add(path, value, f"must be {' or '.join(choices)}")
            return None
        return choices(value)

    def integer(self, path: str, value: object, least: int, most: int) -> int | None:
        """A whole number."""
        # `pulumi config set` writes scalars as strings, and people write them bare; both are numbers.
        # bool is an int to Python, but `true` is not a number to anybody else.
        if isinstance(value, str) and re.fullmatch(r"[0-9]{1,6}", value):
            value = int(value)
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            self.add(path, value, f"must be a whole number from {least} to {most}")
            return None
        return value

    def boolean(self, path: str, value: object) -> bool | None:
        """True or false; `pulumi config set` writes them as strings."""
        words = {"true": True, "false": False}
        if isinstance(value, str) and value in words:
            return words[value]
        if not isinstance(value, bool):
            self.add(path, value, "must be true or false")
            return None
        return value

    def network(self, path: str, value: object, example: str) -> IPNetwork | None:
        """An IPv4 network without host bits."""
        if value is None:
            return None
        rule = f"must be an IPv4 network in CIDR form, e.g. {example}"
        if not isinstance(value, str) or not re.fullmatch(rf"{DOTTED.pattern}/[0-9]{{1,2}}", value):
            self.add(path, value, rule)
            return None
        try:
            IPAddress(value.split("/")[0], flags=INET_PTON)
            network = IPNetwork(value)
        except (AddrFormatError, ValueError):
            self.add(path, value, rule)
            return None
        # netaddr keeps host bits and compares equal without them: 10.0.0.5/24 == 10.0.0.0/24.
        if network.ip != network.network:
            self.add(path, value, f"has host bits set; write the network's first address: {network.cidr}")
            return None
        return network

    def networks(self, path: str, value: object, example: str) -> tuple[IPNetwork, ...] | None:
        """One network or a list of them, in the order of the list; None when one of them cannot be read."""
        if not isinstance(value, list):
            network = self.network(path, value, example)
            return None if network is None else (network,)
        if not value:
            self.add(path, value, f"is an empty list; write a network, e.g. {example}")
        found = []
        for index, entry in enumerate(value):
            if entry is None:
                self.add(f"{path}[{index}]", None, f"is empty; write a network, e.g. {example}")
            found.append(self.network(f"{path}[{index}]", entry, example))
        good = tuple(network for network in found if network is not None)
        return good if good and len(good) == len(found) else None

    def address(self, path: str, value: object, example: str) -> IPAddress | None:
        """One IPv4 address."""
        if value is None:
            return None
        rule = f"must be one IPv4 address, e.g. {example}"
        if not isinstance(value, str) or not DOTTED.fullmatch(value):
            self.add(path, value, rule)
            return None
        try:
            return IPAddress(number(value), 4)
        except ValueError:
            self.add(path, value, rule)
            return None


EXAMPLES = {
    "compartmentId": "the compartment of the POD, e.g. compartmentId: ocid1.compartment.oc1..aaaa",
    "management.cidr": "the management network, e.g. cidr: 10.0.0.0/16",
    "cidr": "e.g. cidr: 198.18.0.0/22 for a POD, 10.0.0.0/24 for a customer",
    "natVm": "e.g. natVm: {shape: VM.Standard2.24, imageId: ocid1.image.oc1..aaaa, sshPublicKey: ssh-ed25519 AAAA}",
    "management": "e.g. management: {cidr: 10.0.0.0/16, vrouter: 198.18.3.250, servers: {mgmt: 10.0.0.100}}",
    "customers": "e.g. customers: {customer1: {cidr: 10.0.0.0/24, hosts: {vm1: 10.0.0.100}}}",
    "shape": "e.g. shape: VM.Standard2.24, or shape: {shape: VM.Optimized3.Flex, ocpus: 12, memoryGbs: 48}",
    "imageId": "the OCID of an Oracle Linux or Ubuntu platform image, e.g. imageId: ocid1.image.oc1..aaaa",
    "sshPublicKey": "one line of an authorized_keys file, e.g. sshPublicKey: ssh-ed25519 AAAA... ops",
    "vrouter": "the vRouter's floating IP in this POD, e.g. vrouter: 198.18.3.250",
    "servers": "e.g. servers: {mgmt: 10.0.0.100}",
    "hosts": "e.g. hosts: {vm1: 10.0.0.100}",
    "from": "the end that opens flows, e.g. from: management/mgmt",
    "to": "the end that they are opened to, e.g. to: customer1",
    "allow": "what passes, e.g. allow: [tcp/22, icmp]",
    "ocpus": "e.g. {shape: VM.Optimized3.Flex, ocpus: 12, memoryGbs: 48}",
    "memoryGbs": "e.g. {shape: VM.Optimized3.Flex, ocpus: 12, memoryGbs: 48}",
    "subnets.natVm1": "e.g. natVm1: [198.18.0.0/27]",
    "subnets.natVm2": "e.g. natVm2: [198.18.0.128/27]",
    "subnets.vrouter": "the network of the vRouter's floating IP, e.g. vrouter: 198.18.0.160/28",
    "natVm1": "the address on NAT VM1, e.g. natVm1: 198.18.0.2",
    "natVm2": "the address on NAT VM2, e.g. natVm2: 198.18.0.130",
    "zone": "e.g. zone: pod1.example.internal",
    "address": "the alias, e.g. address: 198.18.2.17",
}


def join(path: str, key: object) -> str:
    """The path of a key in a section."""
    return f"{path}.{key}" if path else str(key)


def listed(names: tuple[str, ...]) -> str:
    """Names as a list in a sentence."""
    return ", ".join(names)
