"""`plan --svg`: one drawing of a POD, with the way of a flow through it.

The upper part has the networks and machines with their addresses, the lower part the flow's packet on each leg.  The
tracer says which way the flow takes.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from nat_pod.names import MANAGEMENT, NAT_VM1, NAT_VM2, VROUTER, MemberName, Side
from nat_pod.pages import columns
from nat_pod.pages.journey import Journey, Machine, Stretch
from nat_pod.pages.ladder import draw_ladder
from nat_pod.pages.layout import Layout, Realm
from nat_pod.pages.svg import Paper, bend, document, fit, mono
from nat_pod.plan.model import PodPlan, VnicPlan
from nat_pod.text import count


def draw(plan: PodPlan, stack: str, flow: Journey | None) -> str:
    """The drawing as the text of an SVG file."""
    return Drawing(plan, stack, flow, Layout(plan, flow)).svg()


class Drawing:
    """Rows get their places first, because lines lead to them.  Then everything is painted from back to front."""

    def __init__(self, plan: PodPlan, stack: str, flow: Journey | None, layout: Layout) -> None:
        self.plan, self.stack, self.flow, self.layout = plan, stack, flow, layout
        self.paper = Paper()
        self.numbers: list[tuple[float, float, Stretch]] = []
        # The middle of the row of a member, a VNIC (by key), an LPG (by customer).
        self.row: dict[str, float] = {}

    def svg(self) -> str:
        """The file."""
        height = self.layout.height()
        middle = columns.TOP + max(48 + self.layout.vm_height() / 2, height / 2 - columns.CAPTION)
        paper = self.paper
        paper.box(columns.POD, columns.TOP, columns.POD_END - columns.POD, height, "pod", 10)
        what, cidr = self._head()
        paper.text(columns.VM1, columns.TOP + 24, what, "head")
        paper.text(columns.VM2, columns.TOP + 24, cidr, "mono")
        paper.box(columns.MANAGEMENT, columns.TOP, columns.END - columns.MANAGEMENT, height, "net", 10)
        self._customers(columns.TOP)
        top = middle - self.layout.vm_height() / 2
        vrouter = top + columns.VM_HEADER + (columns.VNIC - 4) / 2
        self._servers(columns.TOP, height, vrouter)
        for side, x in ((NAT_VM1, columns.VM1), (NAT_VM2, columns.VM2)):
            self._vm(side, x, top)
        self._links(vrouter)
        if self.flow is not None:
            for stretch in self.flow.stretches:
                self._stretch(stretch, vrouter)
        self._gateways()
        self._vrouter(vrouter)
        for across, down, stretch in self.numbers:
            paper.number(across, down, stretch.number, stretch.style)
        bottom = columns.TOP + height + 30
        if self.flow is not None:
            bottom = draw_ladder(paper, self.flow, bottom)
        return self._file(bottom + columns.MARGIN - 8)

    def _file(self, height: float) -> str:
        what = (
            "" if self.flow is None else f", and the way from {self.flow.sender.member} to {self.flow.receiver.member}"
        )
        head = Paper()
        head.text(columns.MARGIN, 42, f"NAT POD {fit(self.stack, 800, 20, bold=True)}", "title")
        head.text(columns.MARGIN, 64, self._about(), "quiet")
        return document(f"NAT POD {self.stack}{what}", columns.WIDTH, height, [*head.parts, *self.paper.parts])

    def _head(self) -> tuple[str, str]:
        """What stands above the NAT VMs: words, and a range."""
        return "VCN of the POD", self.plan.cidr

    def _about(self) -> str:
        """The line below the title."""
        capacity = self.plan.capacity
        used = f"{capacity.used} of {capacity.slots} slots used"
        return f"source NAT {self.plan.source_nat}, {used}, 2 x {self.plan.shape}"

    def _customers(self, y: float) -> None:
        paper = self.paper
        for name, realm in self.layout.customers.items():
            height = self.layout.customer_height(name)
            paper.box(columns.CUSTOMERS, y, columns.CUSTOMER_WIDTH, height, "net", 8)
            start, end = columns.CUSTOMERS + 12, columns.CUSTOMERS + columns.CUSTOMER_WIDTH - 18
            line = y + self.layout.header(name)
            paper.text(start, y + 21, fit(name, end - start, bold=True), "head")
            for above, network in enumerate(reversed(self.layout.networks(name))):
                paper.text(end, line - 11 - columns.CAPTION * above, network, "mono", "end")
            for host in realm.members:
                style = "used" if host.member in self.layout.touched else "cell"
                paper.box(columns.CUSTOMERS + 6, line, columns.CUSTOMER_WIDTH - 18, columns.HOST - 2, style, 4)
                short = fit(host.member.short, end - start - mono(host.real) - 8)
                paper.text(start, line + 14, short)
                paper.text(end, line + 14, host.real, "mono", "end")
                self.row[host.member] = line + (columns.HOST - 2) / 2
                line += columns.HOST
            if realm.more:
                paper.text(start, line + 13, _more(realm, "host"), "quiet")
            level = y + height / 2
            near = [self.row[host.member] for host in realm.members if host.member in self.layout.touched]
            self.row[name] = next((row for row in near if abs(row - level) < columns.HOST / 2), level)
            y += height + columns.BOX_GAP
        routes = sorted({destination for name in self.layout.customers for destination in self.plan.neighbours[name]})
        if self.layout.customers:
            paper.text(columns.CUSTOMERS + 2, y + 12, "each routes to its LPG:", "quiet")
            paper.text(columns.CUSTOMERS + 2, y + 12 + columns.CAPTION, _some(routes), "mono")

    def _servers(self, y: float, height: float, middle: float) -> None:
        """Near the height of the vRouter, if there is room."""
        paper = self.paper
        routes = self.plan.neighbours[MANAGEMENT]
        caption = y + height - 12 - columns.CAPTION * min(2, len(routes))
        tall = columns.SERVER * len(self.layout.servers.members) + (columns.MORE if self.layout.servers.more else 0)
        networks = self.layout.networks(MANAGEMENT)
        line = max(y + 44 + columns.CAPTION * (len(networks) - 1), min(middle - (tall - 4) / 2, caption - 20 - tall))
        paper.text(columns.MANAGEMENT + 16, y + 24, MANAGEMENT, "head")
        for below, network in enumerate(networks):
            paper.text(columns.END - 12, y + 24 + columns.CAPTION * below, network, "mono", "end")
        for server in self.layout.servers.members:
            style = "used" if server.member in self.layout.touched else "cell"
            paper.box(columns.SERVERS, line, columns.SERVER_WIDTH, columns.SERVER - 4, style, 4)
            paper.text(columns.SERVERS + 8, line + 15, fit(server.member.short, columns.SERVER_WIDTH - 16))
            paper.text(columns.SERVERS + 8, line + 31, server.real, "mono")
            self.row[server.member] = line + (columns.SERVER - 4) / 2
            line += columns.SERVER
        if self.layout.servers.more:
            paper.text(columns.SERVERS + 8, line + 13, _more(self.layout.servers, "server"), "quiet")
        paper.text(columns.MANAGEMENT + 16, caption, "routes to the vRouter:", "quiet")
        for number, shown in enumerate((routes[0], _some(routes[1:])) if len(routes) > 1 else routes, 1):
            paper.text(columns.MANAGEMENT + 16, caption + columns.CAPTION * number, shown, "mono")

    def _vm(self, side: Side, x: float, top: float) -> None:
        paper, vm = self.paper, self.plan.vms_on(side)[0]
        paper.box(x, top, columns.VM_WIDTH, self.layout.vm_height(), "vm", 8)
        paper.text(x + 12, top + 19, side.prose, "head")
        facing = "the customers" if side == NAT_VM1 else MANAGEMENT
        paper.text(x + 12, top + 36, f"faces {facing}, {vm.rules.rule_count()} rules", "quiet")
        subnets = {subnet.key: subnet.cidr for subnet in self.plan.subnets}
        line, before = top + columns.VM_HEADER, 0
        for vnic in vm.vnics:
            if vnic.index not in self.layout.vnics:
                continue
            if vnic.index > before + 1:
                missing = vnic.index - before - 1
                paper.text(x + 12, line + 14, f"{count(missing, 'more VNIC')}", "quiet")
                line += columns.ELLIPSIS
            before = vnic.index
            paper.box(
                x + 6,
                line,
                columns.VM_WIDTH - 12,
                columns.VNIC - 4,
                "used" if vnic.key in self.layout.busy else "row",
                4,
            )
            paper.text(x + 12, line + 15, f"VNIC {vnic.index}")
            paper.text(x + columns.VM_WIDTH - 12, line + 15, subnets[vnic.subnet], "mono", "end")
            paper.text(x + 12, line + 31, _addresses(vnic), "mono")
            self.row[vnic.key] = line + (columns.VNIC - 4) / 2
            line += columns.VNIC
        routes = self.plan.routes[side]
        words = f"{routes[0].destination} to the vRouter" if side == NAT_VM2 else "each customer's CIDR to its LPG"
        paper.text(x + 2, line + 20, f"routes {words}", "quiet")

    def _links(self, vrouter: float) -> None:
        """Who is connected to whom, where the flow's own lines do not show it."""
        paper = self.paper
        stretches = () if self.flow is None else self.flow.stretches
        ends = {name for stretch in stretches for name in (stretch.start, stretch.end)}
        shown = {name.realm for name in ends if isinstance(name, MemberName)}
        vm1, vm2 = (self.row[self.plan.vnics_on(side)[0].key] for side in (NAT_VM1, NAT_VM2))
        gateways = {role: self.row[self.plan.vms_of(role)[0].vnics[0].key] for role in self.plan.roles}
        for name in self.layout.customers:
            if name in shown:
                continue
            y = self.row[name]
            start = columns.CUSTOMERS + columns.CUSTOMER_WIDTH
            lpg = columns.POD + columns.LPG_WIDTH
            gateway = gateways[self.plan.gateways[name]]
            paper.path(f"M{start:g} {y:g}H{lpg:g}{bend(lpg, y, columns.VM1, gateway)}", "link")
        if NAT_VM2 not in ends:
            paper.path(f"M{columns.VM1 + columns.VM_WIDTH} {vm1:g}H{columns.VM2}", "link")
        if MANAGEMENT not in shown:
            paper.path(f"M{columns.VM2 + columns.VM_WIDTH} {vm2:g}H{columns.VROUTER}", "link")
        for server in self.layout.servers.members:
            if server.member in ends:
                continue
            y = self.row[server.member]
            start, left = columns.VROUTER + columns.VROUTER_WIDTH, columns.SERVERS
            paper.path(f"M{start} {vrouter:g}H{left - 13}V{y:g}H{left}", "link")

    def _gateways(self) -> None:
        for name in self.layout.customers:
            for x in (columns.CUSTOMERS + columns.CUSTOMER_WIDTH, columns.POD):
                self.paper.box(x, self.row[name] - 11, columns.LPG_WIDTH, 22, "lpg", 11)
                self.paper.text(x + columns.LPG_WIDTH / 2, self.row[name] + 4, "LPG", "quiet", "middle")

    def _vrouter(self, y: float) -> None:
        x, top = columns.VROUTER, y - columns.VROUTER_HEIGHT / 2
        subnet = next(subnet.cidr for subnet in self.plan.subnets if subnet.key == VROUTER)
        self.paper.box(x, top, columns.VROUTER_WIDTH, columns.VROUTER_HEIGHT, "lpg", 8)
        for line, (words, style) in enumerate((("vRouter", "head"), (self.plan.vrouter_ip, "mono"), (subnet, "quiet"))):
            self.paper.text(x + columns.VROUTER_WIDTH / 2, top + 20 + 18 * line, words, style, "middle")

    def _stretch(self, stretch: Stretch, vrouter: float) -> None:
        """One leg between two machines.  A NAT VM sends by its primary VNIC, where its default route leads."""
        off = columns.APART if stretch.reply else -columns.APART
        ends = [stretch.start, stretch.end]
        left = min(ends, key=columns.middle)
        points: list[tuple[float, float]]
        places = {name: (self.row[self._at(name, stretch)] + off) for name in ends}
        if NAT_VM1 in ends and NAT_VM2 in ends:
            points = [(columns.VM1 + columns.VM_WIDTH, places[NAT_VM1]), (columns.VM2, places[NAT_VM2])]
        elif isinstance(left, Side):
            server = next(name for name in ends if isinstance(name, MemberName))
            down = columns.SERVERS - 13.0 + off
            points = [
                (columns.VM2 + columns.VM_WIDTH, places[NAT_VM2]),
                (columns.VROUTER, vrouter + off),
                (down, vrouter + off),
            ]
            points += [(down, places[server]), (columns.SERVERS, places[server])]
        else:
            lpg = self.row[left.realm] + off
            edge = columns.CUSTOMERS + columns.CUSTOMER_WIDTH
            down = edge - 6 + off / 2
            points = [
                (edge - 12, places[left]),
                (down, places[left]),
                (down, lpg),
                (columns.POD + columns.LPG_WIDTH, lpg),
            ]
            points.append((columns.VM1, places[NAT_VM1]))
            self.numbers.append(((edge + columns.LPG_WIDTH + columns.POD) / 2, lpg + 3 * off, stretch))
        if stretch.start != left:
            points.reverse()
        if isinstance(left, Side):
            x, y = self._beside(stretch, points)
            self.numbers.append((x, y + 3.5 * off, stretch))
        kind = "reply" if stretch.reply else "request"
        pen = [f"M{points[0][0]:g} {points[0][1]:g}"]
        for (x1, y1), (x2, y2) in pairwise(points):
            pen.append(f"L{x2:g} {y2:g}" if x1 == x2 or y1 == y2 else bend(x1, y1, x2, y2, off))
        self.paper.path("".join(pen), kind, kind)

    def _beside(self, stretch: Stretch, points: Sequence[tuple[float, float]]) -> tuple[float, float]:
        """Where the number of a leg is: beside the beginning of its line, which is level there."""
        x, y = points[0] if isinstance(stretch.start, Side) else points[-2]
        return x + (20 if points[0][0] < points[-1][0] else -20), y

    def _at(self, machine: Machine, stretch: Stretch) -> str:
        """The row at which a leg begins or ends."""
        if isinstance(machine, MemberName):
            return machine
        return self.layout.held[stretch.dst] if machine == stretch.end else self.plan.vnics_on(machine)[0].key


def _more(realm: Realm, noun: str) -> str:
    return f"and {realm.more} more" if realm.members else count(realm.more, noun)


def _addresses(vnic: VnicPlan) -> str:
    """The private IPs of a VNIC.  All are in one /27, so after the first the last number is enough."""
    last = [f".{address.split('.')[3]}" for address in vnic.secondaries]
    if len(last) <= 2:
        return ", ".join([vnic.primary, *last])
    return f"{vnic.primary}\u2013{last[-1]} ({len(last) + 1})"


def _some(networks: Sequence[str]) -> str:
    return ", ".join(networks) if len(networks) <= 2 else f"{networks[0]} and {len(networks) - 1} more"
