"""What a trial makes, and roughly what that costs, by Oracle's list prices."""

from __future__ import annotations

from collections.abc import Iterable

from nat_pod.plan.model import PodPlan
from nat_pod.text import count
from nat_pod.trial.neighbours import Neighbours, Shape

READ = "November 2026"
"""When the prices were read, in US dollars; https://www.oracle.com/cloud/price-list/ has today's."""

# By the beginning of a shape's name: an OCPU hour, a GB hour.  Those of VM.Standard2 include the memory.
_PRICES = {
    "VM.Standard2.": (0.065, 0.0),
    "VM.Standard3.": (0.04, 0.0015),
    "VM.Standard.E3.": (0.025, 0.0015),
    "VM.Standard.E4.": (0.025, 0.0015),
    "VM.Standard.E5.": (0.03, 0.002),
    "VM.Standard.E6.": (0.03, 0.002),
    "VM.Standard.A1.": (0.01, 0.0015),
    "VM.Standard.A2.": (0.014, 0.002),
    "VM.Optimized3.": (0.054, 0.0015),
}


def hourly(shapes: Iterable[Shape]) -> float | None:
    """US dollars for an hour of such VMs; None where a price is not known here."""
    total = 0.0
    for shape in shapes:
        found = next((price for name, price in _PRICES.items() if shape.shape.startswith(name)), None)
        if found is None:
            return None
        ocpus = shape.ocpus or int(shape.shape.rpartition(".")[2])  # VM.Standard2.24
        total += ocpus * found[0] + (shape.memory_gbs or 0) * found[1]
    return total


def what_it_makes(plan: PodPlan, neighbours: Neighbours, minutes: int) -> str:
    """What a trial makes, how long it stands, and roughly what that costs."""
    own = Shape(shape=plan.shape, ocpus=plan.ocpus, memory_gbs=plan.memory_gbs)
    price = hourly([own] * len(plan.vms) + [neighbours.shape] * len(neighbours.machines))
    members = sum(machine.name in {slot.member for slot in plan.slots} for machine in neighbours.machines)
    vcns = 2 + len(neighbours.customers)
    rough = "not known here" if price is None else f"about {price:.2f} US dollars (list prices of {READ})"
    balancers = f", {count(len(plan.balancers), 'network load balancer')}" if plan.balancers else ""
    return "\n".join(
        [
            f"This makes, in compartment {plan.compartment_id}:",
            f"  {count(len(plan.vms), 'NAT VM')} of {_size(own)}{balancers}",
            f"  {count(len(neighbours.machines), 'VM')} of {_size(neighbours.shape)} as neighbours, "
            f"for {members} of {len(plan.slots)} members",
            f"  {vcns} VCNs, {count(2 * len(neighbours.customers), 'local peering gateway')}; nothing has a public IP",
            f"It takes about {minutes} minutes and leaves nothing.  An hour of it costs {rough}.",
            "Nothing that exists is touched: all of it is new, in stacks of its own "
            f"({neighbours.stack} of nat-pod-trial, nat-pod-neighbours and nat-pod-consoles).",
        ]
    )


def _size(shape: Shape) -> str:
    return shape.shape if shape.ocpus is None else f"{shape.shape} ({shape.ocpus} OCPU, {shape.memory_gbs} GB)"
