"""`plan --svg` of a routed POD: two NAT VMs a role behind a balancer, and the routes by which aliases are reached.

A flow arrives at a side's next hop, which sends it to the active NAT VM, and leaves from there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from nat_pod.names import LPGS, NAT_VM1, NAT_VM2, SIDES, VROUTER, MemberName, Role, Side
from nat_pod.pages import columns
from nat_pod.pages.drawing import Drawing
from nat_pod.pages.journey import Journey, Machine, Stretch
from nat_pod.pages.layout import Layout
from nat_pod.plan.model import BalancerPlan, NatVmPlan, PodPlan, RouteRulePlan
from nat_pod.text import count, some

_ROUTES = 6
"""Lines of the route tables, but for those of further gateways."""

_GATEWAYS = 2
"""So many are listed in NAT VM2's table."""


def draw(plan: PodPlan, stack: str, flow: Journey | None) -> str:
    """The drawing as the text of an SVG file."""
    return _RoutedDrawing(plan, stack, flow, _RoutedLayout(plan, flow)).svg()


class _RoutedLayout(Layout):
    """Below the NAT VMs there is room for the route tables."""

    def vm_height(self) -> float:
        gateways = self.plan.gateway_roles
        rows = sum(len(self.plan.vms_of(role)) + (self.plan.balancer_of(role) is not None) for role in gateways)
        heads = columns.CAPTION * len(gateways) if len(gateways) > 1 else 0
        return columns.VM_HEADER + columns.VNIC * rows + heads + 4

    def height(self) -> float:
        gateways = len(self.plan.roles) - len(SIDES)
        tables = columns.CAPTION * (_ROUTES + 2 + min(gateways, _GATEWAYS)) + 10
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
        paper, roles = self.paper, [role for role in self.plan.roles if role.side is side]
        paper.box(x, top, columns.VM_WIDTH, self.layout.vm_height(), "vm", 8)
        head = side.prose if len(roles) == 1 else f"{side.prose}: {len(roles)} customer gateways"
        paper.text(x + 12, top + 19, head, "head")
        whom = "hosts" if side == NAT_VM1 else "servers"
        counts = [self.plan.vms_of(role)[0].rules.rule_count() for role in roles]
        rules = f"{counts[0]}" if len(roles) == 1 else f"{min(counts)} to {max(counts)}"
        paper.text(x + 12, top + 36, f"translates {whom}, {rules} rules", "quiet")
        line = top + columns.VM_HEADER
        for role in roles:
            if len(roles) > 1:
                names = [name for name, gateway in self.plan.gateways.items() if gateway == role]
                paper.text(x + 12, line + 12, f"{role.prose}: {some(names, 2)}", "quiet")
                line += columns.CAPTION
            line = self._role(role, x, line)
        if side == NAT_VM1:
            self._tables(top + self.layout.vm_height() + 22)

    def _role(self, role: Role, x: float, line: float) -> float:
        """The next hop and the NAT VMs of a role, and where the next row begins."""
        balancer, vms = self.plan.balancer_of(role), self.plan.vms_of(role)
        if balancer is not None:
            self._row(role, x, line, ("balancer", balancer.address), _sends_to(balancer))
            line += columns.VNIC
        for vm in vms:
            key = role if balancer is None else vm.vnics[0].key
            self._row(key, x, line, (vm.key, vm.vnics[0].primary), _part(vm, balancer))
            self.row[vm.vnics[0].key] = self.row[key]
            line += columns.VNIC
        return line

    def _of(self, side: Side) -> Role:
        """The role by which the flow passes a side: NAT VM2, or its customer's gateway."""
        ends = [] if self.flow is None else [self.flow.sender.member, self.flow.receiver.member]
        customers = [member for member in ends if not member.is_server]
        return self.plan.role(customers[0]) if side is NAT_VM1 and customers else Role(side)

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
        """The rows that the flow passes at a side: its next hop and its active NAT VM."""
        if isinstance(machine, MemberName):
            return ()
        return (self._of(machine), self.plan.vms_of(self._of(machine))[0].vnics[0].key)

    def _beside(self, stretch: Stretch, points: Sequence[tuple[float, float]]) -> tuple[float, float]:
        """Requests leave NAT VM2 below the replies' arrow; their number is at the vRouter, above it."""
        if stretch.start is NAT_VM2 and isinstance(stretch.end, MemberName):
            x, y = points[1]
            return x - 20, y
        return super()._beside(stretch, points)

    def _at(self, machine: Machine, stretch: Stretch) -> str:
        if isinstance(machine, MemberName):
            return machine
        role = self._of(machine)
        return role if machine == stretch.end else self.plan.vms_of(role)[0].vnics[0].key

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

    def _rules(self, rules: Sequence[RouteRulePlan], key: str) -> Iterator[str]:
        """A line for each kind of rule in a table."""
        whose = "hosts'" if key in (NAT_VM2, VROUTER) else "servers'"
        roles = {self.plan.next_hop(role): role for role in self.plan.roles}
        led: dict[Role, list[str]] = {}
        for rule in rules:
            if rule.private_ip in roles:
                led.setdefault(roles[rule.private_ip], []).append(rule.destination)
        for role, ranges in [*led.items()][:_GATEWAYS]:
            more = f" and {count(len(ranges) - 1, 'more range')}" if len(ranges) > 1 else ""
            where = "their gateway" if key == LPGS and len(self.plan.roles) > len(SIDES) else role.prose
            yield f"{whose} aliases {ranges[0]}{more} to {where}"
        if len(led) > _GATEWAYS:
            yield f"and those of {count(len(led) - _GATEWAYS, 'more gateway')} to it"
        if any(rule.customer is not None for rule in rules):
            several = any(len(cidrs) > 1 for cidrs in self.plan.customer_cidrs.values())
            yield f"each customer's {'CIDRs' if several else 'CIDR'} to its LPG"
        if any(rule.private_ip == self.plan.vrouter_ip for rule in rules):
            yield f"{some(self.plan.management_cidrs, 2)} to the vRouter"


def _sends_to(balancer: BalancerPlan) -> str:
    active = next(backend.vm for backend in balancer.backends if not backend.is_backup)
    return f"next hop, all to {active}"


def _part(vm: NatVmPlan, balancer: BalancerPlan | None) -> str:
    domain = vm.fault_domain.lower().replace("-", " ")
    if balancer is None:
        return f"next hop, {domain}"
    backup = any(backend.is_backup for backend in balancer.backends if backend.vm == vm.key)
    return f"{'standby' if backup else 'active'}, {domain}"
