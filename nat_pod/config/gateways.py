"""Customer gateways (`gateways`): which NAT VM1 a customer of a routed POD has.

A gateway is a NAT VM1, or a pair of them, with a subnet, a route table and a rule document of its own.  Its customers
do not overlap one another, because its route table has one route for each address.  Customers who do overlap go to
different gateways.  The first gateway is there in every POD, and a customer without a line is in it:

    gateways:
      globex: 2

A line never changes by itself: the aliases of a customer's hosts lie in blocks of its gateway, so to move is to get new
ones, and every flow ends.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from nat_pod.config.addressing import clash
from nat_pod.config.neighbours import CustomerConfig
from nat_pod.config.reader import Reader
from nat_pod.errors import Unsettled
from nat_pod.names import NAME, NAMESPACE, natural


def read_gateways(
    reader: Reader, value: object, customers: Sequence[CustomerConfig], listed: Collection[str], most: int
) -> dict[str, int]:
    """The gateway of every customer, by name.

    listed: the customers that have aliases, and so are where they are; one without a line is in the first gateway.
    most: how many gateways there is room for.  Who is new gets the first one where it fits, and if that is not the
    first of all, `allocate` has to write it down.
    """
    written = _lines(reader, value, customers, most)
    standing = {**{name: 1 for name in listed if name not in written}, **written}
    placed = place(customers, standing, most)
    names = {customer.name: customer for customer in customers}
    for name, number in placed.items():
        path = f"customers.{name}.cidr"
        if name in standing and number is not None:
            others = [names[other] for other, there in placed.items() if there == number and other != name]
            others = [other for other in others if other.name in standing]
            _judge(reader, names[name], [other for other in others if natural(other.name) < natural(name)], number)
        elif number is None:
            rule = f"fits none of the {most} gateways that the VCN's range has room for; {_MORE_ROOM}"
            reader.add(path, _ranges(names[name]), rule)
        elif number > 1:
            rule = f"needs gateway {number}: it does not fit beside the customers of {_before(number)}"
            command = f"python -m nat_pod allocate {reader.stack}"
            reader.unsettled.append(Unsettled(f"{NAMESPACE}:gateways.{name}", None, rule, command))
    return {name: number or 1 for name, number in placed.items()}


def written_gateways(value: object) -> dict[str, int]:
    """The lines of `gateways` as they stand, of a value that `read_gateways` found nothing wrong with."""
    return {str(name): int(number) for name, number in (value if isinstance(value, Mapping) else {}).items()}


def place(customers: Sequence[CustomerConfig], standing: Mapping[str, int], most: int) -> dict[str, int | None]:
    """A gateway for every customer: the one that it has, and for a new one the first where it fits, in order.

    None where none of `most` is left.
    """
    inside: dict[int, list[CustomerConfig]] = {}
    placed: dict[str, int | None] = {}
    for customer in customers:
        if customer.name in standing:
            placed[customer.name] = standing[customer.name]
            inside.setdefault(standing[customer.name], []).append(customer)
    for customer in customers:
        if customer.name not in placed:
            free = (number for number in range(1, most + 1) if fits(customer, inside.get(number, ())))
            placed[customer.name] = number = next(free, None)
            if number is not None:
                inside.setdefault(number, []).append(customer)
    return placed


def fits(customer: CustomerConfig, others: Collection[CustomerConfig]) -> bool:
    """Whether a gateway with these customers can take one more."""
    if customer.own_gateway:
        return not others
    return not any(other.own_gateway or clash(customer.cidrs, other.cidrs) for other in others)


def _lines(reader: Reader, value: object, customers: Sequence[CustomerConfig], most: int) -> dict[str, int]:
    """The lines as they are written; one of a customer that is gone, or was renamed, is for `allocate` to settle."""
    found: dict[str, int] = {}
    names = {customer.name for customer in customers}
    renamed = {customer.formerly: customer.name for customer in customers if customer.formerly is not None}
    command = f"python -m nat_pod allocate {reader.stack}"
    for name, entry in reader.named("gateways", value, "customers to gateways, e.g. globex: 2").items():
        number = reader.integer(f"gateways.{name}", entry, 1, most)
        if number is None:
            continue
        new = renamed.get(name, name)
        if new not in names:
            rule = "is no longer a customer; its line must be deleted"
            reader.unsettled.append(Unsettled(f"{NAMESPACE}:gateways.{name}", str(number), rule, command))
        elif new != name and NAME.fullmatch(name):
            rule = f"is {new} now; the line moves with the name"
            reader.unsettled.append(Unsettled(f"{NAMESPACE}:gateways.{name}", str(number), rule, command))
            found.setdefault(new, number)
        else:
            found[name] = number
    return found


def _judge(reader: Reader, customer: CustomerConfig, others: Sequence[CustomerConfig], number: int) -> None:
    """The problem of customers that may not share a gateway.  None is moved: that ends flows, so a person decides."""
    for other in others:
        found = clash(customer.cidrs, other.cidrs)
        if found is not None:
            why = f"overlaps {NAMESPACE}:customers.{other.name}.cidr ({found[1]}), and both are in gateway {number}"
        elif customer.own_gateway or other.own_gateway:
            owner = customer if customer.own_gateway else other
            why = f"is in gateway {number} beside {other.name}, and {owner.name} asks for one of its own"
        else:
            continue
        reader.add(
            f"customers.{customer.name}.cidr",
            str(found[0]) if found else _ranges(customer),
            f"{why}; to move it, which ends its flows, write gateways: "
            f"{{{customer.name}: {number + 1}}} and delete the lines of its hosts in addresses",
            f"python -m nat_pod allocate {reader.stack}",
        )


def _ranges(customer: CustomerConfig) -> str:
    return ", ".join(map(str, customer.cidrs))


def _before(number: int) -> str:
    return "gateway 1" if number == 2 else f"gateways 1 to {number - 1}"


_MORE_ROOM = "a larger vcnCidr has room for more (a /24 for 30), or move it to another POD"
