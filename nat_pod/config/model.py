"""PodConfig: the stack file, checked once and frozen.

Every problem is reported in one go, each with its path, value, rule and next command; what comes out is a narrower
type that later code need not check again.  The provider checks no CIDR, no containment and no limit at plan time, so
whatever is not refused here fails halfway through `pulumi up`.

Interface: README, "The stack file".  Arithmetic: `addressing.py`.  Limits: `limits.py`.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from netaddr import INET_PTON, AddrFormatError, IPAddress, IPNetwork

from nat_pod import limits
from nat_pod.config.addressing import Layout, Pair, Slot, default_layout, overlap, reserved_by_oci
from nat_pod.errors import ConfigError, Problem
from nat_pod.names import MANAGEMENT, NAMESPACE, STRANGER

MASQUERADE = "masquerade"
STATIC = "static"
SOURCE_NATS = (MASQUERADE, STATIC)

_NAME = re.compile(r"[a-z][a-z0-9-]*")
_NAME_RULE = "a name is lower-case letters, digits and dashes, a letter first, e.g. vm1"
_SSH_KEY = re.compile(r"(ssh-(ed25519|rsa)|ecdsa-sha2-nistp(256|384|521)|sk-\S+@openssh\.com) \S+( .*)?")
_DOTTED = re.compile(r"[0-9]{1,3}(\.[0-9]{1,3}){3}")
# A POD's own names, beside which a customer's stand: networks and machines in a trace, keys of security rules.
_OWN_NAMES = (MANAGEMENT, "path-mtu", "pod", "transit", "vrouter")
_VROUTER_ADDRESSES = 2

# Never a target: a mapping to 169.254.169.254 hands the NAT VM's own metadata, with its instance certificates, to a
# remote peer (measured); the others are not unicast addresses of a VCN.
NEVER_MAPPED = tuple(IPNetwork(text) for text in ("0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/3"))


@dataclass(frozen=True, kw_only=True, slots=True)
class NatVmConfig:
    """What both NAT VMs are made of.  `ocpus` and `memory_gbs` are set for flex shapes only."""

    shape: str
    ocpus: int | None
    memory_gbs: int | None
    image_id: str
    availability_domain: str | None
    ssh_public_key: str

    @property
    def vnic_limit(self) -> int:
        """VNICs that a VM of this shape can have."""
        return limits.vnic_limit(self.shape, self.ocpus)


@dataclass(frozen=True, kw_only=True, slots=True)
class ManagementConfig:
    """The management network: its CIDR, the vRouter's floating IP in this POD, the servers by name."""

    cidr: IPNetwork
    vrouter: IPAddress
    servers: dict[str, IPAddress]


@dataclass(frozen=True, kw_only=True, slots=True)
class CustomerConfig:
    """A customer: its VCN's CIDR, its hosts by name, the servers it may reach (None: all), an LPG to peer with.

    `formerly` is the name it had before it was renamed: its LPG and its slots stay the ones of that name.
    """

    name: str
    cidr: IPNetwork
    hosts: dict[str, IPAddress]
    servers: tuple[str, ...] | None
    peer_id: str | None
    formerly: str | None


@dataclass(frozen=True, slots=True)
class Member:
    """Somebody who owns a slot: `management/mgmt` (customer None) or `customer1/vm1`."""

    name: str
    address: IPAddress
    customer: str | None


@dataclass(frozen=True, kw_only=True, slots=True)
class PodConfig:
    """A POD's configuration, without contradictions.

    `book` has the slot of every member and of nobody else; `released` the slots that are kept back because somebody
    may still send to them.
    """

    compartment_id: str
    cidr: IPNetwork
    nat_vm: NatVmConfig
    management: ManagementConfig
    customers: tuple[CustomerConfig, ...]
    source_nat: str
    lpg_limit: int
    layout: Layout
    book: dict[str, Slot]
    released: dict[str, Slot]

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, object], stack: str) -> PodConfig:
        """Check a stack's configuration.

        mapping: config keys without the `nat-pod:` prefix to plain values (strings, ints, dicts, lists), as YAML or
        JSON gives them.  stack: the stack's name, for messages.
        Raises ConfigError with every problem.
        """
        config, problems, unsettled = read_draft(mapping, stack)
        if problems or unsettled or config is None:
            raise ConfigError(f"Pulumi.{stack}.yaml", problems + unsettled)
        return config

    @property
    def members(self) -> tuple[Member, ...]:
        """Servers first, then hosts by customer, in the order of their names."""
        return tuple(_members(self.management, self.customers))


def read_draft(mapping: Mapping[str, object], stack: str) -> tuple[PodConfig | None, list[Problem], list[Problem]]:
    """Read a configuration whose address book may lag behind its members.

    Returns the config (None when there are problems), the problems, and what `allocate` would settle: members
    without a slot and slots without a member.
    """
    reader = _Reader(stack)
    root = reader.section(
        "",
        dict(mapping),
        required=("compartmentId", "cidr", "natVm", "management", "customers"),
        optional=("sourceNat", "lpgLimit", "subnets", "addresses"),
    )
    compartment_id = reader.ocid("compartmentId", root.get("compartmentId"), ("compartment", "tenancy"))
    cidr = _pod_cidr(reader, root.get("cidr"))
    nat_vm = _nat_vm(reader, root.get("natVm"))
    management = _management(reader, root.get("management"))
    customers = _customers(reader, root.get("customers"), _written_members(root))
    source_nat = reader.choice("sourceNat", root.get("sourceNat", MASQUERADE), SOURCE_NATS)
    lpg_limit = reader.integer("lpgLimit", root.get("lpgLimit", limits.LPGS_PER_VCN), 1, limits.LPGS_PER_VCN_RAISED)
    pinned = root.get("subnets")
    layout = _layout(reader, None if pinned == {} else pinned, cidr, nat_vm)  # {} is Pulumi.yaml's "not pinned"
    _check_networks(reader, cidr, management, customers)
    if layout is not None and management is not None:
        _check_vrouter(reader, management.vrouter, layout)
    written = root.get("customers")
    if isinstance(written, Mapping) and lpg_limit is not None and len(written) > lpg_limit:
        reader.add(
            "customers",
            f"{len(written)} customers",
            f"a VCN has {lpg_limit} local peering gateways, one a customer"
            + ("; set nat-pod:lpgLimit: 20 if Oracle raised your limit, or" if lpg_limit < 20 else ";")
            + " move customers to another POD",
        )
    book: dict[str, Slot] = {}
    released: dict[str, Slot] = {}
    if layout is not None:
        book, released = _book(reader, root.get("addresses"), layout, _written_members(root), nat_vm)
    if (
        reader.problems
        or compartment_id is None
        or cidr is None
        or nat_vm is None
        or management is None
        or customers is None
        or source_nat is None
        or lpg_limit is None
        or layout is None
    ):
        return None, reader.problems, reader.unsettled
    config = PodConfig(
        compartment_id=compartment_id,
        cidr=cidr,
        nat_vm=nat_vm,
        management=management,
        customers=customers,
        source_nat=source_nat,
        lpg_limit=lpg_limit,
        layout=layout,
        book=book,
        released=released,
    )
    return config, [], reader.unsettled


@dataclass
class _Reader:
    """Typed access to plain values; a value that does not fit becomes a problem and None."""

    stack: str
    problems: list[Problem] = field(default_factory=list)
    unsettled: list[Problem] = field(default_factory=list)

    def add(self, path: str, value: object, rule: str, command: str = "") -> None:
        self.problems.append(Problem(f"{NAMESPACE}:{path}" if path else NAMESPACE, value, rule, command))

    def section(
        self, path: str, value: object, *, required: tuple[str, ...] = (), optional: tuple[str, ...] = ()
    ) -> dict[str, object]:
        """A mapping with known keys; what is missing or unknown is a problem, the rest comes back."""
        known = (*required, *optional)
        if not isinstance(value, Mapping):
            if value is not None:
                self.add(path, value, f"must be a mapping with {_listed(known)}")
            return {}
        for key in value:
            if key not in known:
                guess = difflib.get_close_matches(str(key), known, 1)
                hint = f"; did you mean {guess[0]}?" if guess else f"; known are {_listed(known)}"
                self.add(_join(path, key), None, f"is not a setting of nat-pod{hint}")
        for key in required:
            if value.get(key) is None:
                place = _join(path, key)
                self.add(place, None, f"is missing; {_EXAMPLES.get(place) or _EXAMPLES[key]}")
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
            if not isinstance(key, str) or not _NAME.fullmatch(key):
                quote = "; YAML reads on, off, yes and no as true and false: quote it" if isinstance(key, bool) else ""
                self.add(_join(path, key), None, _NAME_RULE + quote)
            else:
                good[key] = entry
        return dict(sorted(good.items()))

    def text(self, path: str, value: object, rule: str, pattern: re.Pattern[str]) -> str | None:
        if value is None:
            return None
        if not isinstance(value, str) or not pattern.fullmatch(value):
            self.add(path, value, rule)
            return None
        return value

    def ocid(self, path: str, value: object, kinds: tuple[str, ...]) -> str | None:
        pattern = re.compile(rf"ocid1\.({'|'.join(kinds)})\.\S+")
        what = f"{'an' if kinds[0][0] in 'aeiou' else 'a'} {kinds[0]}"
        return self.text(path, value, f"must be the OCID of {what}, e.g. ocid1.{kinds[0]}.oc1..aaaa", pattern)

    def choice(self, path: str, value: object, choices: tuple[str, ...]) -> str | None:
        if not isinstance(value, str) or value not in choices:
            self.add(path, value, f"must be {' or '.join(choices)}")
            return None
        return value

    def integer(self, path: str, value: object, least: int, most: int) -> int | None:
        # `pulumi config set` writes scalars as strings, a person writes them bare: both are a number.
        # bool is an int to Python, but `true` is not a number to anybody else.
        if isinstance(value, str) and re.fullmatch(r"[0-9]{1,6}", value):
            value = int(value)
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            self.add(path, value, f"must be a whole number from {least} to {most}")
            return None
        return value

    def network(self, path: str, value: object, example: str) -> IPNetwork | None:
        if value is None:
            return None
        rule = f"must be an IPv4 network in CIDR form, e.g. {example}"
        if not isinstance(value, str) or not re.fullmatch(rf"{_DOTTED.pattern}/[0-9]{{1,2}}", value):
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

    def address(self, path: str, value: object, example: str) -> IPAddress | None:
        if value is None:
            return None
        rule = f"must be one IPv4 address, e.g. {example}"
        if not isinstance(value, str) or not _DOTTED.fullmatch(value):
            self.add(path, value, rule)
            return None
        try:
            return IPAddress(value, flags=INET_PTON)
        except (AddrFormatError, ValueError):
            self.add(path, value, rule)
            return None


_EXAMPLES = {
    "compartmentId": "the compartment of the POD, e.g. compartmentId: ocid1.compartment.oc1..aaaa",
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
    "ocpus": "e.g. {shape: VM.Optimized3.Flex, ocpus: 12, memoryGbs: 48}",
    "memoryGbs": "e.g. {shape: VM.Optimized3.Flex, ocpus: 12, memoryGbs: 48}",
    "subnets.natVm1": "e.g. natVm1: [198.18.0.0/27]",
    "subnets.natVm2": "e.g. natVm2: [198.18.0.128/27]",
    "subnets.vrouter": "the network of the vRouter's floating IP, e.g. vrouter: 198.18.0.160/28",
    "natVm1": "the address on NAT VM1, e.g. natVm1: 198.18.0.2",
    "natVm2": "the address on NAT VM2, e.g. natVm2: 198.18.0.130",
}


def claimed_range(mapping: Mapping[str, object]) -> IPNetwork | None:
    """The POD's own range in a configuration that may be wrong elsewhere; None when none can be read."""
    return _pod_cidr(_Reader(""), mapping.get("cidr"))


def _pod_cidr(reader: _Reader, value: object) -> IPNetwork | None:
    cidr = reader.network("cidr", value, "198.18.0.0/22")
    if cidr is None:
        return None
    if cidr not in IPNetwork(limits.POD_SPACE):
        reader.add("cidr", str(cidr), f"must lie in {limits.POD_SPACE}, e.g. 198.18.0.0/22")
        return None
    if not 16 <= cidr.prefixlen <= 25:
        reader.add("cidr", str(cidr), "must be a /16 to a /25: a /22 holds 435 slots, a /21 the 696 of a 2.24 VM")
        return None
    return cidr


def _nat_vm(reader: _Reader, value: object) -> NatVmConfig | None:
    before = len(reader.problems)
    section = reader.section(
        "natVm", value, required=("shape", "imageId", "sshPublicKey"), optional=("availabilityDomain",)
    )
    if not section:
        return None
    shape, ocpus, memory_gbs = _shape(reader, section.get("shape"))
    image_id = reader.ocid("natVm.imageId", section.get("imageId"), ("image",))
    availability_domain = reader.text(
        "natVm.availabilityDomain",
        section.get("availabilityDomain"),
        "must be the name of an availability domain, e.g. Uocm:UK-LONDON-1-AD-1",
        re.compile(r"\S+-AD-\d", re.IGNORECASE),
    )
    key = reader.text(
        "natVm.sshPublicKey",
        section.get("sshPublicKey"),
        "must be one public key as in authorized_keys, e.g. ssh-ed25519 AAAA... ops",
        _SSH_KEY,
    )
    if len(reader.problems) > before or shape is None or image_id is None or key is None:
        return None
    return NatVmConfig(
        shape=shape,
        ocpus=ocpus,
        memory_gbs=memory_gbs,
        image_id=image_id,
        availability_domain=availability_domain,
        ssh_public_key=key,
    )


def _shape(reader: _Reader, value: object) -> tuple[str | None, int | None, int | None]:
    path, ocpus, memory_gbs = "natVm.shape", None, None
    name = value
    if isinstance(value, Mapping):
        flex = ("ocpus", "memoryGbs")
        fixed = value.get("shape") in limits.known_shapes() and not limits.is_flex(str(value["shape"]))
        required, optional = (("shape",), flex) if fixed else (("shape", *flex), ())
        section = reader.section(path, value, required=required, optional=optional)
        name = section.get("shape")
        path = "natVm.shape.shape"
    if name is None:
        return None, None, None
    if not isinstance(name, str) or name not in limits.known_shapes():
        guess = difflib.get_close_matches(str(name), limits.known_shapes(), 1)
        hint = guess[0] if guess else "VM.Standard2.24 or VM.Optimized3.Flex"
        reader.add(path, name, f"is not a shape whose VNIC limit nat-pod knows, e.g. {hint}")
        return None, None, None
    if limits.is_flex(name):
        if not isinstance(value, Mapping):
            reader.add(path, name, f"is a flex shape, e.g. shape: {{shape: {name}, ocpus: 12, memoryGbs: 48}}")
            return None, None, None
        if section.get("ocpus") is not None:
            ocpus = reader.integer("natVm.shape.ocpus", section["ocpus"], 1, limits.max_ocpus(name))
        if section.get("memoryGbs") is not None:
            memory_gbs = reader.integer("natVm.shape.memoryGbs", section["memoryGbs"], 1, 1760)
        if ocpus is None or memory_gbs is None:
            return None, None, None
        if not ocpus <= memory_gbs <= 64 * ocpus:
            reader.add("natVm.shape.memoryGbs", memory_gbs, f"must be 1 to 64 GB an OCPU: {ocpus} to {64 * ocpus}")
            return None, None, None
    elif isinstance(value, Mapping) and len(section) > 1:
        reader.add(path, name, f"is a fixed shape and takes no ocpus or memoryGbs, e.g. shape: {name}")
        return None, None, None
    return name, ocpus, memory_gbs


def _management(reader: _Reader, value: object) -> ManagementConfig | None:
    section = reader.section("management", value, required=("cidr", "vrouter", "servers"))
    cidr = reader.network("management.cidr", section.get("cidr"), "10.0.0.0/16")
    vrouter = reader.address("management.vrouter", section.get("vrouter"), "198.18.3.250")
    servers = _addresses_in(reader, "management.servers", section.get("servers"), "servers", cidr)
    if cidr is None or vrouter is None:
        return None
    usable = cidr.size - limits.RESERVED_LOW - limits.RESERVED_HIGH
    if usable - len(servers) < _VROUTER_ADDRESSES:
        reader.add(
            "management.cidr",
            str(cidr),
            f"has {usable} usable addresses for {len(servers)} servers; the vRouter needs {_VROUTER_ADDRESSES} of its "
            "own there, its VNIC's and the floating IP",
        )
    return ManagementConfig(cidr=cidr, vrouter=vrouter, servers=servers)


def _customers(
    reader: _Reader, value: object, written: tuple[set[str], tuple[str, ...]]
) -> tuple[CustomerConfig, ...] | None:
    """The customers whose network can be read: a mistake in one must not hide those of the others."""
    if value is None:
        return None
    entries = reader.named("customers", value, "customers, e.g. customer1: {cidr: 10.0.0.0/24, hosts: {}}")
    customers = []
    peers: dict[str, str] = {}
    former: dict[str, str] = {}
    for name, entry in entries.items():
        path = f"customers.{name}"
        if len(name) > limits.CHAIN_MEMBER_NAME:
            longest = limits.CHAIN_MEMBER_NAME
            reader.add(path, None, f"is longer than {longest} characters; the name is part of a chain's name")
        if name in _OWN_NAMES:
            reader.add(path, None, f"{name} is a name of nat-pod's own; call the customer something else")
        section = reader.section(path, entry, required=("cidr", "hosts"), optional=("peerId", "servers", "formerly"))
        if entry is None:
            reader.add(path, None, f"is empty; {_EXAMPLES['customers']}")
        cidr = reader.network(f"{path}.cidr", section.get("cidr"), "10.0.0.0/24")
        hosts = _addresses_in(reader, f"{path}.hosts", section.get("hosts"), "hosts", cidr)
        peer_id = reader.ocid(f"{path}.peerId", section.get("peerId"), ("localpeeringgateway",))
        servers = _server_list(reader, f"{path}.servers", section.get("servers"), written)
        formerly = reader.text(f"{path}.formerly", section.get("formerly"), _NAME_RULE, _NAME)
        if formerly is not None and formerly in entries:
            reader.add(f"{path}.formerly", formerly, "is a customer of this POD still; it names one that was renamed")
        elif formerly is not None and former.setdefault(formerly, name) != name:
            reader.add(f"{path}.formerly", formerly, f"is already what {former[formerly]} was called")
        if peer_id is not None and peers.setdefault(peer_id, name) != name:
            reader.add(f"{path}.peerId", peer_id, f"is already the LPG of {peers[peer_id]}; an LPG has one peer")
        if cidr is not None:
            customers.append(
                CustomerConfig(name=name, cidr=cidr, hosts=hosts, servers=servers, peer_id=peer_id, formerly=formerly)
            )
    return tuple(customers)


def _server_list(
    reader: _Reader, path: str, value: object, written: tuple[set[str], tuple[str, ...]]
) -> tuple[str, ...] | None:
    if value is None:
        return None
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        reader.add(path, value, "must be a list of names from management.servers, e.g. [mgmt]")
        return None
    names, unknown = written
    prefix = f"{MANAGEMENT}/"
    for name in value:
        if f"{prefix}{name}" not in names and prefix not in unknown:
            known = sorted(server.removeprefix(prefix) for server in names if server.startswith(prefix))
            reader.add(path, name, f"is no server of management.servers; known are {_listed(tuple(known)) or 'none'}")
    for name in sorted({name for name in value if value.count(name) > 1}):
        reader.add(path, name, "stands in the list twice")
    return tuple(sorted(set(value)))


def _addresses_in(reader: _Reader, path: str, value: object, what: str, cidr: IPNetwork | None) -> dict[str, IPAddress]:
    """Named addresses that lie in `cidr`, no two the same."""
    good: dict[str, IPAddress] = {}
    owner: dict[IPAddress, str] = {}
    for name, entry in reader.named(path, value, f"{what}, e.g. vm1: 10.0.0.100").items():
        place = f"{path}.{name}"
        if entry is None:
            reader.add(place, None, "has no address, e.g. vm1: 10.0.0.100")
        if len(name) > limits.MEMBER_NAME:
            reader.add(place, None, f"has a name of more than {limits.MEMBER_NAME} characters")
        if name == STRANGER:
            reader.add(place, None, f"{STRANGER} is the lab's name for a host without a slot; take another one")
        address = reader.address(place, entry, "10.0.0.100")
        if address is None:
            continue
        if cidr is not None and address not in cidr:
            reader.add(place, str(address), f"is outside the VCN's {cidr}")
            continue
        if cidr is not None and reserved_by_oci(address, cidr):
            reader.add(place, str(address), f"{reserved_by_oci(address, cidr)}; no VNIC can have it")
            continue
        if address in owner:
            reader.add(place, str(address), f"is already the address of {owner[address]}; one name an address")
            continue
        owner[address] = name
        good[name] = address
    return good


def _layout(reader: _Reader, value: object, cidr: IPNetwork | None, nat_vm: NatVmConfig | None) -> Layout | None:
    if value is None:
        return None if cidr is None or nat_vm is None else default_layout(cidr, nat_vm.vnic_limit)
    before = len(reader.problems)
    section = reader.section("subnets", value, required=("natVm1", "natVm2", "vrouter"))
    sides: dict[str, list[IPNetwork]] = {}
    for side in ("natVm1", "natVm2"):
        entries = section.get(side, [])
        if not isinstance(entries, list):
            reader.add(f"subnets.{side}", entries, "must be a list of /27 networks, e.g. [198.18.0.0/27]")
            entries = []
        elif side in section and not entries:
            reader.add(f"subnets.{side}", entries, "must list a /27 for the primary VNIC at least")
        sides[side] = []
        for index, entry in enumerate(entries):
            path = f"subnets.{side}[{index}]"
            if entry is None:
                reader.add(path, None, "is empty; write a /27, e.g. 198.18.0.0/27")
            network = reader.network(path, entry, "198.18.0.0/27")
            if network is None:
                continue
            if network.prefixlen != limits.VNIC_SUBNET_PREFIX:
                reader.add(path, str(network), "must be a /27: 29 usable addresses, one VNIC's worth")
            sides[side].append(network)
    vrouter = reader.network("subnets.vrouter", section.get("vrouter"), "198.18.0.160/28")
    if vrouter is not None and not 24 <= vrouter.prefixlen <= 29:
        reader.add("subnets.vrouter", str(vrouter), "must be a /24 to a /29, e.g. 198.18.0.160/28")
    if len(reader.problems) > before or vrouter is None or cidr is None:
        return None
    if len(sides["natVm1"]) != len(sides["natVm2"]):
        reader.add(
            "subnets",
            None,
            f"natVm1 lists {len(sides['natVm1'])} and natVm2 {len(sides['natVm2'])}; subnets go in pairs",
        )
    if nat_vm is not None and len(sides["natVm1"]) > nat_vm.vnic_limit:
        reader.add("subnets.natVm1", None, _vnic_rule(len(sides["natVm1"]), nat_vm))
    placed = [(f"subnets.{side}[{i}]", net) for side, nets in sides.items() for i, net in enumerate(nets)]
    placed.append(("subnets.vrouter", vrouter))
    for index, (path, network) in enumerate(placed):
        if network not in cidr:
            reader.add(path, str(network), f"is outside the POD's range {cidr}")
        for other_path, other in placed[:index]:
            if overlap(network, other):
                reader.add(path, str(network), f"overlaps {NAMESPACE}:{other_path} ({other})")
    if len(reader.problems) > before:
        return None
    pairs = tuple(
        Pair(index + 1, one, two) for index, (one, two) in enumerate(zip(sides["natVm1"], sides["natVm2"], strict=True))
    )
    return Layout(cidr=cidr, pairs=pairs, vrouter=vrouter, pinned=True)


def _check_networks(
    reader: _Reader,
    cidr: IPNetwork | None,
    management: ManagementConfig | None,
    customers: tuple[CustomerConfig, ...] | None,
) -> None:
    """Peered VCNs may not overlap, nor may customers of one POD: NAT VM1 has one route table for them all."""
    management_cidr = None if management is None else management.cidr
    named = [] if management_cidr is None else [("management.cidr", management_cidr)]
    of_customers = [(f"customers.{customer.name}.cidr", customer.cidr) for customer in customers or ()]
    for path, network in named + of_customers:
        if network.prefixlen not in limits.VCN_PREFIXES:
            reader.add(path, str(network), "must be a /16 to a /30, as every VCN, e.g. 10.0.0.0/24")
        for never in NEVER_MAPPED:
            if overlap(network, never):
                reader.add(path, str(network), f"overlaps {never}, which is never the address of a VM in a VCN")
        if cidr is not None and overlap(network, cidr):
            why = "OCI refuses to peer the two"
            if network is management_cidr:
                why = "the vRouter could not tell the two apart"
            reader.add(path, str(network), f"overlaps the POD's own range {cidr}; {why}")
    for index, (path, network) in enumerate(of_customers):
        for other_path, other in of_customers[:index]:
            if overlap(network, other):
                reader.add(
                    path,
                    str(network),
                    f"overlaps {NAMESPACE}:{other_path} ({other}); in one POD customers may overlap management, "
                    "not each other: move one to another POD",
                )


def _check_vrouter(reader: _Reader, vrouter: IPAddress, layout: Layout) -> None:
    path = "management.vrouter"
    if vrouter not in layout.vrouter:
        usable = f"{IPAddress(layout.vrouter.first + 2)} to {IPAddress(layout.vrouter.last - 1)}"
        reader.add(path, str(vrouter), f"is outside the vRouter's subnet {layout.vrouter}; usable are {usable}")
        return
    reserved = reserved_by_oci(vrouter, layout.vrouter)
    if reserved:
        reader.add(path, str(vrouter), reserved)


def _vnic_rule(count: int, nat_vm: NatVmConfig) -> str:
    shape = nat_vm.shape if nat_vm.ocpus is None else f"{nat_vm.shape} with {nat_vm.ocpus} OCPUs"
    return f"{count} VNIC pairs need {count} VNICs a VM; {shape} has {nat_vm.vnic_limit}"


def _written_members(root: Mapping[str, object]) -> tuple[set[str], tuple[str, ...]]:
    """The members' names as they stand in the file, and the beginnings of names that cannot be known.

    A member whose address is wrong is a member all the same: its slot must not be called a leftover.
    """
    management, customers = root.get("management"), root.get("customers")
    realms: dict[str, object] = {MANAGEMENT: management.get("servers") if isinstance(management, Mapping) else None}
    unknown = []
    if isinstance(customers, Mapping):
        for name, entry in customers.items():
            if name == MANAGEMENT:
                continue  # reported; its hosts are no servers
            realms[str(name)] = entry.get("hosts") if isinstance(entry, Mapping) else None
    else:
        unknown.append("")
    names = set()
    for realm, members in realms.items():
        if isinstance(members, Mapping) and _NAME.fullmatch(realm):
            names |= {f"{realm}/{member}" for member in members if _NAME.fullmatch(f"{member}")}
        else:
            unknown.append(f"{realm}/")
    return names, tuple(unknown)


def _book(
    reader: _Reader,
    value: object,
    layout: Layout,
    written: tuple[set[str], tuple[str, ...]],
    nat_vm: NatVmConfig | None,
) -> tuple[dict[str, Slot], dict[str, Slot]]:
    """The address book: member -> slot, and the released ones.

    One server and one host may share a slot: the rules tell them apart by where a packet comes from.  Two servers,
    or two hosts, may not: their translations would shadow one another.
    """
    book: dict[str, Slot] = {}
    released: dict[str, Slot] = {}
    command = f"python -m nat_pod allocate {reader.stack}"
    if value is not None and not isinstance(value, Mapping):
        rule = "must be a mapping of members to slots; take it out and let it be written for you"
        reader.add("addresses", value, rule, command)
        value = {}
    names, unknown = written
    owners: dict[tuple[Slot, bool], str] = {}
    listed = set()
    for name, entry in (value or {}).items():
        path = f'addresses["{name}"]'
        listed.add(name)
        section = reader.section(path, entry, required=("natVm1", "natVm2"), optional=("released",))
        if entry is None:
            reader.add(path, None, "is empty; remove it and let it be written for you", command)
        gone = section.get("released", False)
        if not isinstance(gone, bool):
            reader.add(f"{path}.released", gone, "must be true or false")
        one = reader.address(f"{path}.natVm1", section.get("natVm1"), "198.18.0.2")
        two = reader.address(f"{path}.natVm2", section.get("natVm2"), "198.18.0.130")
        if one is None or two is None:
            continue
        slot = layout.find(one, two)
        if isinstance(slot, str):
            beyond = default_layout(layout.cidr, limits.MAX_VNICS).find(one, two)
            if nat_vm is not None and not layout.pinned and isinstance(beyond, Slot):
                # The shape was made smaller under a book that already reaches further.
                slot = _vnic_rule(beyond.pair, nat_vm)
            reader.add(path, f"{one} / {two}", slot)
            continue
        server = str(name).startswith(f"{MANAGEMENT}/")
        other = owners.setdefault((slot, server), str(name))
        if other != name:
            who = "two servers" if server else "two hosts"
            reader.add(
                path, f"{one} / {two}", f"is already the slot of {other}; {who} cannot share one: take one out", command
            )
            continue
        if gone is True:
            released[str(name)] = slot
        else:
            book[str(name)] = slot
    for name in sorted(name for name in set(book) - names if not name.startswith(unknown)):
        reader.unsettled.append(
            Problem(
                f'{NAMESPACE}:addresses["{name}"]',
                None,
                "owns a slot but is neither a server nor a host any more; the slot must be kept as released",
                command,
            )
        )
    for name in sorted(names & set(released)):
        reader.unsettled.append(
            Problem(f'{NAMESPACE}:addresses["{name}"]', None, "is marked released but is a member again", command)
        )
    missing = sorted(names - listed)
    reader.unsettled.extend(
        Problem(f'{NAMESPACE}:addresses["{name}"]', None, "has no slot; addresses are never invented by up", command)
        for name in missing
    )
    return book, released


def _members(management: ManagementConfig, customers: Iterable[CustomerConfig]) -> Iterator[Member]:
    for name, address in management.servers.items():
        yield Member(f"{MANAGEMENT}/{name}", address, None)
    for customer in customers:
        for name, address in customer.hosts.items():
            yield Member(f"{customer.name}/{name}", address, customer.name)


def is_customer_name(text: str) -> bool:
    """Whether a customer can be called this."""
    return bool(_NAME.fullmatch(text)) and len(text) <= limits.CHAIN_MEMBER_NAME and text not in _OWN_NAMES


def is_member_name(text: str) -> bool:
    """Whether a host or a server can be called this."""
    return bool(_NAME.fullmatch(text)) and len(text) <= limits.MEMBER_NAME and text != STRANGER


def _join(path: str, key: object) -> str:
    return f"{path}.{key}" if path else str(key)


def _listed(names: tuple[str, ...]) -> str:
    return ", ".join(names)
