"""PODs of a chosen size, for benchmarks and tests alike: generated stack configurations.

By default every slot is taken: 8 servers, and the hosts of 10 customers.  A POD is a dict as
`PodConfig.from_mapping` takes it (a stack file's keys without `nat-pod:`); `stack_config` makes a stack file's
`config` of it.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from netaddr import IPAddress, IPNetwork

from nat_pod.config import routed
from nat_pod.config.address_book import as_written, settle
from nat_pod.config.model import PodConfig, read_draft
from nat_pod.errors import ConfigError
from nat_pod.names import NAMESPACE

REPOSITORY = Path(__file__).resolve().parent.parent
REGION = "uk-london-1"
SLASH_21 = "198.18.8.0/21"  # 696 slots
SLASH_22 = "198.18.0.0/22"  # 435 slots


def full_pod(
    cidr: str = SLASH_21,
    *,
    source_nat: str | None = None,
    servers: int = 8,
    customers: int = 10,
    hosts: int | None = None,
    shape: str = "VM.Standard2.24",
    scattered: random.Random | None = None,
    host_name: Callable[[int], str] = "vm{}".format,
) -> dict[str, Any]:
    """A POD with an address book.

    source_nat: None leaves the key out.  hosts: of all customers together; None takes the slots that are left.
    scattered: hosts at random addresses of a /16 per customer, instead of one after the other in a /24.  host_name:
    makes a host's name of its number among those of its customer.
    """
    pod = _without_hosts(cidr, servers, customers, shape, wide=scattered is not None)
    if source_nat is not None:
        pod["sourceNat"] = source_nat
    if hosts is None:
        hosts = _read(pod).layout.capacity - servers
    _add_hosts(pod, hosts, scattered, host_name)
    allocate(pod)
    return pod


def routed_pod(*, hosts: int = 427, servers: int = 8) -> dict[str, Any]:
    """A POD with `delivery: routes`, standbys and an address book, by default of the members of a /22 of `full_pod`."""
    pod = _without_hosts(SLASH_22, servers, 10, "", wide=False)
    pod["natVm"]["shape"] = {"shape": "VM.Standard.E5.Flex", "ocpus": 1, "memoryGbs": 8}
    pod["delivery"] = "routes"
    _add_hosts(pod, hosts, None, "vm{}".format)
    return _allocated(pod)


def overlapping_pod(*, customers: int = 20, ranges: int = 5, hosts: int = 1_000, servers: int = 5) -> dict[str, Any]:
    """A POD with `delivery: routes` and standbys, whose customers have so many ranges between them, and the same hosts.

    hosts: of all customers together.  Customers of one range have hosts of the same addresses.
    """
    pod = _without_hosts(SLASH_21, servers, customers, "", wide=False)
    pod["natVm"]["shape"] = {"shape": "VM.Standard.E5.Flex", "ocpus": 1, "memoryGbs": 8}
    pod |= {"delivery": "routes", "vcnCidr": "198.18.15.192/26", "balancerLimit": customers // ranges + 1}
    for number, customer in enumerate(pod["customers"].values()):
        customer["cidr"] = f"10.{number % ranges + 1}.0.0/24"
    _add_hosts(pod, hosts, None, "vm{}".format)
    return _allocated(pod)


def _allocated(pod: dict[str, Any]) -> dict[str, Any]:
    """The POD with what `allocate` writes."""
    config, problems, _ = routed.read_draft(pod, "bench")
    if config is None:
        raise ConfigError("this POD of numbers", problems)
    settled = settle(config)
    pod["addresses"] = {str(name): as_written(config, entry) for name, entry in settled.entries.items()}
    return {**pod, "gateways": settled.gateways} if settled.gateways else pod


def allocate(pod: dict[str, Any], *, reuse: bool = False) -> None:
    """Bring the address book up to date in place, as `allocate` does, or `allocate --reuse` with `reuse`."""
    config = _read(pod)
    pod["addresses"] = {}
    for name, entry in settle(config, reuse=reuse).entries.items():
        pod["addresses"][str(name)] = as_written(config, entry)  # a stack file is YAML, which knows plain strings alone


def shuffle_slots(pod: dict[str, Any], dice: random.Random) -> None:
    """Shuffle the hosts' slots in place, as after years in which hosts came and went.  Servers keep theirs."""
    book = pod["addresses"]
    names = [name for name in book if not name.startswith("management/")]
    slots = [book[name] for name in names]
    dice.shuffle(slots)
    book |= dict(zip(names, slots, strict=True))


def project_with(directory: Path, stack: str, text: str) -> Path:
    """A project with one stack file of its own; the program, the package and the guest are the real ones."""
    for name in ("Pulumi.yaml", "__main__.py", "nat_pod", "cloud-init"):
        (directory / name).symlink_to(REPOSITORY / name)
    (directory / f"Pulumi.{stack}.yaml").write_text(text, encoding="utf-8")
    return directory


def stack_config(pod: dict[str, Any]) -> dict[str, Any]:
    """What stands below `config:` in a stack file."""
    return {"oci:region": REGION, **{f"{NAMESPACE}:{key}": value for key, value in pod.items()}}


def _read(pod: dict[str, Any]) -> PodConfig:
    config, problems, _ = read_draft(pod, "bench")
    if config is None:
        raise ConfigError("this POD of numbers", problems)
    return config


def _without_hosts(cidr: str, servers: int, customers: int, shape: str, *, wide: bool) -> dict[str, Any]:
    pod: dict[str, Any] = {
        "compartmentId": "ocid1.compartment.oc1..examplebenchpod",
        "cidr": cidr,
        "natVm": {
            "shape": shape,
            "imageId": f"ocid1.image.oc1.{REGION}.exampleoraclelinux9",
            "sshPublicKey": f"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI{'A' * 43} ops@example",
        },
        "management": {
            "cidr": "10.0.0.0/16",
            "vrouter": str(IPNetwork(cidr)[-6]),
            "servers": {f"server{number}": f"10.0.200.{number + 10}" for number in range(servers)},
        },
        "customers": {
            f"customer{number}": {
                "cidr": f"10.{number + 1}.0.0/16" if wide else f"10.0.{number}.0/24",
                "hosts": {},
            }
            for number in range(customers)
        },
    }
    if customers > 10:
        pod["lpgLimit"] = 20
    return pod


def _add_hosts(
    pod: dict[str, Any], hosts: int, scattered: random.Random | None, host_name: Callable[[int], str]
) -> None:
    customers = pod["customers"]
    for number, customer in enumerate(customers.values()):
        count = len(range(number, hosts, len(customers)))
        at = range(10, 10 + count) if scattered is None else scattered.sample(range(2, 0xFFFE), count)
        first = IPAddress(IPNetwork(customer["cidr"]).first)
        customer["hosts"] = {host_name(host): str(first + offset) for host, offset in enumerate(at)}
