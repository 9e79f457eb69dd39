"""`plan --svg` of a routed POD: two NAT VMs a side behind a balancer, and the routes by which aliases are reached.

A flow arrives at a side's next hop, which sends it to the active NAT VM, and leaves from there.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from nat_pod.names import LPGS, NAT_VM1, NAT_VM2, VROUTER, MemberName, Side
from nat_pod.pages import columns
from nat_pod.pages.drawing import Drawing
from nat_pod.pages.journey import Journey, Machine, Stretch
from nat_pod.pages.layout import Layout
from nat_pod.plan.model import BalancerPlan, NatVmPlan, PodPlan, RouteRulePlan
from nat_pod.text import count

_ROUTES = 6
"""Lines of the route tables."""


def draw(plan: PodPlan, stack: str, flow: Journey | None) -> str:
    """The drawing as the text of an SVG file."""
    return _RoutedDrawing(plan, stack, flow, _RoutedLayout(plan, flow)).svg()


class _RoutedLayout(Layout):
    """Below the NAT VMs there is room for the route tables."""

    def vm_height(self) -> float:
        rows = len(self.plan.vms_on(NAT_VM1)) + len(self.plan.balancers) // 2
        return columns.VM_HEADER + columns.VNIC * rows + 4

    def height(self) -> float:
        tables = columns.CAPTION * (_ROUTES + 2) + 10
        return max(super().height(), 60 + self.vm_height() + 2 * tables)


class _RoutedDrawing(Drawing):
    def _head(self) -> tuple[str, str]:
        return "VCN of the POD", self.plan.vcn_cidr

    def _about(self) -> str:
        plan, capacity = self.plan, self.plan.capacity
        return (
            f"{plan.cidr}: {capacity.used} of {capacity.slots} aliases used; an alias is a route to the NAT VM that "
            f"translates it, and no address of the VCN. {len(plan.vms)} x {plan.shape}"
        )

    def _vm(self, side: Side, x: float, top: float) -> None:
        paper, vms = self.paper, self.plan.vms_on(side)
        paper.box(x, top, columns.VM_WIDTH, self.layout.vm_height(), "vm", 8)
        paper.text(x + 12, top + 19, side.prose, "head")
        whom = "hosts" if side == NAT_VM1 else "servers"
        paper.text(x + 12, top + 36, f"translates {whom}, {vms[0].rules.rule_count()} rules", "quiet")
        line = top + columns.VM_HEADER
        balancer = self.plan.balancer_on(side)
        if balancer is not None:
            self._row(side, x, line, ("balancer", balancer.address), _sends_to(balancer))
            line += columns.VNIC
        for vm in vms:
            key = side if balancer is None else vm.vnics[0].key
            self._row(key, x, line, (vm.key, vm.vnics[0].primary), _part(vm, balancer))
            self.row[vm.vnics[0].key] = self.row[key]
            line += columns.VNIC
        if side == NAT_VM1:
            self._tables(line + 26)

    def _row(self, key: str, x: float, y: float, names: tuple[str, str], words: str) -> None:
        """A machine: its name and address, and below what it does."""
        stretches = () if self.flow is None else self.flow.stretches
        passed = {key for stretch in stretches for end in (stretch.start, stretch.end) for key in self._keys(end)}
        style = "used" if key in passed else "row"
        self.paper.box(x + 6, y, columns.VM_WIDTH - 12, columns.VNIC - 4, style, 4)
        self.paper.text(x + 12, y + 15, names[0])
        self.paper.text(x + columns.VM_WIDTH - 12, y + 15, names[1], "mono", "end")
        self.paper.text(x + 12, y + 31, words, "quiet")
        self.row[key] = y + (columns.VNIC - 4) / 2

    def _keys(self, machine: Machine) -> tuple[str, ...]:
        """The rows that a flow passes at a side: its next hop and its active NAT VM."""
        if isinstance(machine, MemberName):
            return ()
        return (machine, self.plan.vms_on(machine)[0].vnics[0].key)

    def _beside(self, stretch: Stretch, points: Sequence[tuple[float, float]]) -> tuple[float, float]:
        """Requests leave NAT VM2 below the replies' arrow; their number is at the vRouter, above it."""
        if stretch.start is NAT_VM2 and isinstance(stretch.end, MemberName):
            x, y = points[1]
            return x - 20, y
        return super()._beside(stretch, points)

    def _at(self, machine: Machine, stretch: Stretch) -> str:
        if isinstance(machine, MemberName):
            return machine
        return machine if machine == stretch.end else self.plan.vms_on(machine)[0].vnics[0].key

    def _tables(self, y: float) -> None:
        """Who sends what where: each table, and what is in it."""
        self.paper.text(columns.VM1, y, "Route tables: no other one leads to an alias", "head")
        for owner, key in (
            ("the LPGs", LPGS),
            ("NAT VM1's subnet", NAT_VM1),
            ("NAT VM2's subnet", NAT_VM2),
            ("the vRouter's subnet", VROUTER),
        ):
            for number, words in enumerate(self._rules(self.plan.routes[key], key)):
                y += columns.CAPTION
                if number == 0:
                    self.paper.text(columns.VM1, y, owner, "quiet")
                self.paper.text(columns.VM1 + 138, y, words, "quiet")

    def _rules(self, rules: Iterable[RouteRulePlan], key: str) -> Iterator[str]:
        """A line for each kind of rule in a table."""
        whose, side = ("servers'", NAT_VM1) if key == LPGS else ("servers'", NAT_VM2)
        if key in (NAT_VM2, VROUTER):
            whose, side = "hosts'", NAT_VM1 if key == NAT_VM2 else NAT_VM2
        inside = [rule for rule in rules if rule.customer is None and rule.private_ip != self.plan.vrouter_ip]
        to_side = [rule.destination for rule in inside]
        if to_side:
            more = f" and {count(len(to_side) - 1, 'more range')}" if len(to_side) > 1 else ""
            yield f"{whose} aliases {to_side[0]}{more} to {side.prose}"
        if any(rule.customer is not None for rule in rules):
            yield "each customer's CIDR to its LPG"
        if any(rule.private_ip == self.plan.vrouter_ip for rule in rules):
            yield f"{self.plan.management_cidr} to the vRouter"


def _sends_to(balancer: BalancerPlan) -> str:
    active = next(backend.vm for backend in balancer.backends if not backend.is_backup)
    return f"next hop, all to {active}"


def _part(vm: NatVmPlan, balancer: BalancerPlan | None) -> str:
    domain = vm.fault_domain.lower().replace("-", " ")
    if balancer is None:
        return f"next hop, {domain}"
    backup = any(backend.is_backup for backend in balancer.backends if backend.vm == vm.key)
    return f"{'standby' if backup else 'active'}, {domain}"
