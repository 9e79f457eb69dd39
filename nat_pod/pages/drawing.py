"""`plan --svg`: one drawing of a POD, with the way of a flow through it.

Above, the networks and machines with their addresses; below, the flow's packet as it is on each leg.  The way is the
tracer's.  A large POD is summed up: what the flow touches is always shown, of the rest so much that it stays readable.
The file needs nothing beside it, and follows the reader's light or dark colours.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise

from nat_pod.names import MANAGEMENT, NAT_VM1, NAT_VM2, SIDES, VROUTER
from nat_pod.plan.model import PodPlan, SlotPlan, VnicPlan
from nat_pod.trace.expected import expected_topology
from nat_pod.trace.flows import declared_flows, flow_between
from nat_pod.trace.walk import Disposition, Hop, Packet, Trace, label, trace

NAMES: dict[str, str] = {NAT_VM1: "NAT VM1", NAT_VM2: "NAT VM2"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Stretch:
    """A packet between two machines: natVm1, natVm2 or a member.  `number` counts through both directions."""

    number: int
    reply: bool
    start: str
    end: str
    src: str
    dst: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Way:
    """A flow between two members as the tracer sees it; `dead` says why it does not get through, or nothing."""

    sender: SlotPlan
    receiver: SlotPlan
    address: str
    stretches: tuple[Stretch, ...]
    dead: str


def first_flow(plan: PodPlan) -> tuple[str, str] | None:
    """The flow that is shown when none is asked for: the first that the stack file declares."""
    flow = next(iter(declared_flows(plan)), None)
    return None if flow is None or flow.receiver is None else (flow.sender, flow.receiver)


def way(plan: PodPlan, sender: SlotPlan, receiver: SlotPlan) -> Way:
    """Trace the flow from one member to another."""
    flow = flow_between(sender, receiver)
    packet = Packet(src=flow.source, dst=flow.destination)
    traced = trace(expected_topology(plan), sender.member, packet, receiver.member)
    delivered = traced.disposition is Disposition.DELIVERED
    return Way(
        sender=sender,
        receiver=receiver,
        address=flow.destination,
        stretches=tuple(_stretches(plan, traced)),
        dead="" if delivered else f"{traced.disposition}: {traced.why}",
    )


def _stretches(plan: PodPlan, traced: Trace) -> Iterable[Stretch]:
    machines = {label(name): name for name in (*SIDES, *(slot.member for slot in plan.slots))}
    hops: list[tuple[bool, Hop]] = [(False, hop) for hop in traced.request.hops]
    hops += [] if traced.reply is None else [(True, hop) for hop in traced.reply.hops]
    for number, (reply, hop) in enumerate(hops, 1):
        start, end = (machines[name] for name in hop.at.split(" -> "))
        yield Stretch(number=number, reply=reply, start=start, end=end, src=hop.src, dst=hop.dst)


# --- the sheet -------------------------------------------------------------------------------------------------------

WIDTH = 1280
# Left edges of the columns, and widths.  A POD's LPGs lie inside its border, a customer's outside its own.
_CUSTOMERS, _CUSTOMER_WIDTH = 24, 226
_POD, _POD_END, _LPG_WIDTH = 312, 984, 38
_VM1, _VM2, _VM_WIDTH = 410, 682, 208
_VROUTER, _VROUTER_WIDTH, _VROUTER_HEIGHT = 934, 132, 66
_MANAGEMENT, _SERVERS, _SERVER_WIDTH = 1016, 1092, 156
_END = 1256
_TOP, _MARGIN = 84.0, 24.0
_HEADER, _HOST, _MORE, _BOX_GAP = 32, 22, 20, 10
_VM_HEADER, _VNIC, _ELLIPSIS, _SERVER, _CAPTION = 46, 42, 20, 42, 17
_MOST_HOSTS, _MOST_SERVERS, _MOST_VNICS = 14, 8, 4
_APART = 4  # request and reply, from the middle
_MONO = 0.61  # the width of a letter of an address, of its size: the widest of the fonts asked for

_STYLE = """\
text { font-family: system-ui, "Segoe UI", Roboto, Helvetica, Arial, sans-serif; fill: #1f2328; font-size: 13px }
.mono { font-family: ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", "Liberation Mono", monospace; font-size: 12px }
.title { font-size: 20px; font-weight: 600 }
.head { font-weight: 600 }
.quiet { fill: #59636e; font-size: 12px }
.changed { font-weight: 700 }
.paper { fill: #ffffff }
.net { fill: #f6f8fa; stroke: #afb8c1 }
.pod { fill: #eaf3ff; stroke: #0969da; stroke-width: 1.5 }
.vm { fill: #ffffff; stroke: #0969da }
.row { fill: #f6f8fa }
.cell { fill: #ffffff }
.used { fill: #fff8c5; stroke: #d4a72c }
.lpg { fill: #ffffff; stroke: #57606a }
.link { fill: none; stroke: #afb8c1 }
.life { stroke: #afb8c1; stroke-dasharray: 2 4 }
.request { fill: none; stroke: #1a7f37; stroke-width: 2 }
.reply { fill: none; stroke: #8250df; stroke-width: 2; stroke-dasharray: 7 4 }
.requests { fill: #1a7f37 }
.replies { fill: #8250df }
.dead { fill: #cf222e }
.number { fill: #ffffff; font-size: 11px; font-weight: 700 }
@media (prefers-color-scheme: dark) {
text { fill: #e6edf3 }
.quiet { fill: #9198a1 }
.paper { fill: #0d1117 }
.net { fill: #151b23; stroke: #656c76 }
.pod { fill: #10203a; stroke: #4493f8 }
.vm { fill: #0d1117; stroke: #4493f8 }
.row { fill: #151b23 }
.cell { fill: #0d1117 }
.used { fill: #3b2e0a; stroke: #bb8009 }
.lpg { fill: #0d1117; stroke: #9198a1 }
.link, .life { stroke: #656c76 }
.request { stroke: #3fb950 }
.reply { stroke: #ab7df8 }
.requests { fill: #3fb950 }
.replies { fill: #ab7df8 }
.dead { fill: #f85149 }
.number { fill: #0d1117 }
}"""


def fit(text: str, pixels: float, size: float = 13, bold: bool = False) -> str:
    """`text`, cut where it would not fit."""
    if _width(text, size, bold) <= pixels:
        return text
    while text and _width(f"{text}…", size, bold) > pixels:
        text = text[:-1]
    return f"{text}…"


def _width(text: str, size: float, bold: bool) -> float:
    """In the widest of the fonts asked for, DejaVu Sans."""
    letters = sum(0.98 if letter in "mwMW…" else 0.42 if letter in "fijlrt-./,: " else 0.66 for letter in text)
    return size * (letters + 0.08 * len(text) * bold)


class _Sheet:
    """The elements of the drawing, in the order in which they are painted."""

    def __init__(self) -> None:
        self.parts: list[str] = []

    def text(self, x: float, y: float, words: str, style: str = "", anchor: str = "start") -> None:
        where = "" if anchor == "start" else f' text-anchor="{anchor}"'
        kind = f' class="{style}"' if style else ""
        self.parts.append(f'<text x="{x:g}" y="{y:g}"{kind}{where}>{escape(words, quote=False)}</text>')

    def box(self, x: float, y: float, width: float, height: float, style: str, radius: float = 6) -> None:
        self.parts.append(
            f'<rect class="{style}" x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="{radius:g}"/>'
        )

    def path(self, points: str, style: str, marker: str = "") -> None:
        end = f' marker-end="url(#{marker})"' if marker else ""
        self.parts.append(f'<path class="{style}" d="{points}"{end}/>')

    def number(self, x: float, y: float, stretch: Stretch) -> None:
        style = "replies" if stretch.reply else "requests"
        self.parts.append(f'<circle class="{style}" cx="{x:g}" cy="{y:g}" r="8"/>')
        self.text(x, y + 4, str(stretch.number), "number", "middle")


def _bend(x1: float, y1: float, x2: float, y2: float, off: float = 0) -> str:
    """From where the pen is, (x1, y1), to (x2, y2): leaves and arrives level.

    off: how far below its pair the line runs; on a slope it is kept as far to the side.
    """
    middle = (x1 + x2) / 2 - (off if (x2 - x1) * (y2 - y1) > 0 else -off)
    return f"C{middle:g} {y1:g} {middle:g} {y2:g} {x2:g} {y2:g}"


def _arrow(name: str, style: str) -> str:
    return (
        f'<marker id="{name}" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="9" markerHeight="9" '
        f'markerUnits="userSpaceOnUse" orient="auto"><path class="{style}" d="M0 0L10 5L0 10z"/></marker>'
    )


def _mono(text: str) -> float:
    """The width of an address."""
    return len(text) * 12 * _MONO


def _more(realm: _Realm, noun: str) -> str:
    return f"and {realm.more} more" if realm.members else f"{realm.more} {noun}{'' if realm.more == 1 else 's'}"


def _addresses(vnic: VnicPlan) -> str:
    """The private IPs of a VNIC; all are in one /27, so the last number tells the others."""
    last = [f".{address.split('.')[3]}" for address in vnic.secondaries]
    if len(last) <= 2:
        return ", ".join([vnic.primary, *last])
    return f"{vnic.primary}\u2013{last[-1]} ({len(last) + 1})"


def _some(networks: Sequence[str]) -> str:
    return ", ".join(networks) if len(networks) <= 2 else f"{networks[0]} and {len(networks) - 1} more"


def draw(plan: PodPlan, stack: str, flow: Way | None) -> str:
    """The drawing as the text of an SVG file."""
    return _Drawing(plan, stack, flow).svg()


@dataclass(frozen=True, slots=True)
class _Realm:
    """A neighbour as it is shown: some members, and how many more there are."""

    members: tuple[SlotPlan, ...]
    more: int


class _Drawing:
    """Rows get their places first, which the lines then lead to; painted is from the back to the front."""

    def __init__(self, plan: PodPlan, stack: str, flow: Way | None) -> None:
        self.plan, self.stack, self.flow = plan, stack, flow
        self.touched = set() if flow is None else {flow.sender.member, flow.receiver.member}
        self.held = {
            address: vnic.key for vm in plan.vms for vnic in vm.vnics for address in (vnic.primary, *vnic.secondaries)
        }
        stretches = () if flow is None else flow.stretches
        self.busy = {self.held[stretch.dst] for stretch in stretches if stretch.end in SIDES}
        self.servers = self._realm(MANAGEMENT, _MOST_SERVERS)
        few = len(plan.slots) - self.servers.more - len(self.servers.members) <= _MOST_HOSTS
        self.customers = {name: self._realm(name, _MOST_HOSTS if few else 0) for name in plan.customer_cidrs}
        self.vnics = self._vnics()
        self.paper = _Sheet()
        self.numbers: list[tuple[float, float, Stretch]] = []
        self.row: dict[str, float] = {}  # the middle of the row of a member, a VNIC (by key), an LPG (by customer)

    # What is shown of many

    def _realm(self, realm: str, most: int) -> _Realm:
        members = [slot for slot in self.plan.slots if slot.member.startswith(f"{realm}/")]
        kept = {slot.member for slot in (members if len(members) <= most else members[: max(0, most - 1)])}
        shown = tuple(slot for slot in members if slot.member in kept | self.touched)
        return _Realm(shown, len(members) - len(shown))

    def _vnics(self) -> list[int]:
        """Indexes: of both VMs the same, a pair side by side."""
        vnics = self.plan.vms[0].vnics
        if len(vnics) <= _MOST_VNICS:
            return [vnic.index for vnic in vnics]
        busy = {vnic.index for vm in self.plan.vms for vnic in vm.vnics if vnic.key in self.busy}
        return sorted({vnics[0].index, vnics[1].index, vnics[-1].index} | busy)

    # Places

    def _customer_height(self, customer: str) -> float:
        realm = self.customers[customer]
        return self._header(customer) + _HOST * len(realm.members) + (_MORE if realm.more else 0) + 4

    def _header(self, customer: str) -> float:
        """Of a customer's box: a long name has a line of its own, above its CIDR."""
        beside = _CUSTOMER_WIDTH - 30 - _mono(self.plan.customer_cidrs[customer]) - 8
        return _HEADER + (0 if _width(customer, 13, True) <= beside else _CAPTION)

    def _vm_height(self) -> float:
        gaps = sum(1 for one, two in pairwise(self.vnics) if two > one + 1)
        return _VM_HEADER + _VNIC * len(self.vnics) + _ELLIPSIS * gaps + 4

    def _height(self) -> float:
        """Of the networks, captions included."""
        customers = sum(self._customer_height(name) + _BOX_GAP for name in self.customers) + 2 * _CAPTION
        vms = 48 + self._vm_height() + 3 * _CAPTION
        servers = 60 + _SERVER * len(self.servers.members) + (_MORE if self.servers.more else 0) + 4 * _CAPTION
        return max(customers, vms, servers, 230)

    # Painting

    def svg(self) -> str:
        """The file."""
        height = self._height()
        middle = _TOP + max(48 + self._vm_height() / 2, height / 2 - _CAPTION)
        paper = self.paper
        paper.box(_POD, _TOP, _POD_END - _POD, height, "pod", 10)
        paper.text(_VM1, _TOP + 24, "VCN of the POD", "head")
        paper.text(_VM2, _TOP + 24, self.plan.cidr, "mono")
        paper.box(_MANAGEMENT, _TOP, _END - _MANAGEMENT, height, "net", 10)
        self._customers(_TOP)
        top = middle - self._vm_height() / 2
        vrouter = top + _VM_HEADER + (_VNIC - 4) / 2
        self._servers(_TOP, height, vrouter)
        for side, x in ((NAT_VM1, _VM1), (NAT_VM2, _VM2)):
            self._vm(side, x, top)
        self._links(vrouter)
        if self.flow is not None:
            for stretch in self.flow.stretches:
                self._stretch(stretch, vrouter)
        self._gateways()
        self._vrouter(vrouter)
        for number in self.numbers:
            paper.number(*number)
        bottom = _TOP + height + 30
        if self.flow is not None:
            bottom = self._ladder(self.flow, bottom)
        return self._file(bottom + _MARGIN - 8)

    def _file(self, height: float) -> str:
        plan = self.plan
        capacity = plan.capacity
        what = (
            "" if self.flow is None else f", and the way from {self.flow.sender.member} to {self.flow.receiver.member}"
        )
        about = f"source NAT {plan.source_nat}, {capacity.used} of {capacity.slots} slots used, 2 x {plan.shape}"
        head = _Sheet()
        head.text(_MARGIN, 42, f"NAT POD {fit(self.stack, 800, 20, bold=True)}", "title")
        head.text(_MARGIN, 64, about, "quiet")
        return "\n".join(
            [
                f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:g}" width="{WIDTH}" '
                f'height="{height:g}" role="img">',
                f"<title>NAT POD {escape(self.stack, quote=False)}{what}</title>",
                f"<style>\n{_STYLE}\n</style>",
                f"<defs>{_arrow('request', 'requests')}{_arrow('reply', 'replies')}</defs>",
                f'<rect class="paper" width="{WIDTH}" height="{height:g}"/>',
                *head.parts,
                *self.paper.parts,
                "</svg>",
                "",
            ]
        )

    def _customers(self, y: float) -> None:
        paper = self.paper
        for name, realm in self.customers.items():
            height = self._customer_height(name)
            paper.box(_CUSTOMERS, y, _CUSTOMER_WIDTH, height, "net", 8)
            start, end = _CUSTOMERS + 12, _CUSTOMERS + _CUSTOMER_WIDTH - 18
            line = y + self._header(name)
            paper.text(start, y + 21, fit(name, end - start, bold=True), "head")
            paper.text(end, line - 11, self.plan.customer_cidrs[name], "mono", "end")
            for host in realm.members:
                style = "used" if host.member in self.touched else "cell"
                paper.box(_CUSTOMERS + 6, line, _CUSTOMER_WIDTH - 18, _HOST - 2, style, 4)
                short = fit(host.member.split("/")[1], end - start - _mono(host.real) - 8)
                paper.text(start, line + 14, short)
                paper.text(end, line + 14, host.real, "mono", "end")
                self.row[host.member] = line + (_HOST - 2) / 2
                line += _HOST
            if realm.more:
                paper.text(start, line + 13, _more(realm, "host"), "quiet")
            level = y + height / 2
            near = [self.row[host.member] for host in realm.members if host.member in self.touched]
            self.row[name] = next((row for row in near if abs(row - level) < _HOST / 2), level)
            y += height + _BOX_GAP
        routes = sorted({destination for name in self.customers for destination in self.plan.neighbours[name]})
        if self.customers:
            paper.text(_CUSTOMERS + 2, y + 12, "each routes to its LPG:", "quiet")
            paper.text(_CUSTOMERS + 2, y + 12 + _CAPTION, _some(routes), "mono")

    def _servers(self, y: float, height: float, middle: float) -> None:
        """Around the height of the vRouter, if there is room."""
        paper = self.paper
        routes = self.plan.neighbours[MANAGEMENT]
        caption = y + height - 12 - _CAPTION * min(2, len(routes))
        tall = _SERVER * len(self.servers.members) + (_MORE if self.servers.more else 0)
        line = max(y + 44, min(middle - (tall - 4) / 2, caption - 20 - tall))
        paper.text(_MANAGEMENT + 16, y + 24, MANAGEMENT, "head")
        paper.text(_END - 12, y + 24, self.plan.management_cidr, "mono", "end")
        for server in self.servers.members:
            style = "used" if server.member in self.touched else "cell"
            paper.box(_SERVERS, line, _SERVER_WIDTH, _SERVER - 4, style, 4)
            paper.text(_SERVERS + 8, line + 15, fit(server.member.split("/")[1], _SERVER_WIDTH - 16))
            paper.text(_SERVERS + 8, line + 31, server.real, "mono")
            self.row[server.member] = line + (_SERVER - 4) / 2
            line += _SERVER
        if self.servers.more:
            paper.text(_SERVERS + 8, line + 13, _more(self.servers, "server"), "quiet")
        paper.text(_MANAGEMENT + 16, caption, "routes to the vRouter:", "quiet")
        for number, shown in enumerate((routes[0], _some(routes[1:])) if len(routes) > 1 else routes, 1):
            paper.text(_MANAGEMENT + 16, caption + _CAPTION * number, shown, "mono")

    def _vm(self, side: str, x: float, top: float) -> None:
        paper, vm = self.paper, self.plan.vm(side)
        paper.box(x, top, _VM_WIDTH, self._vm_height(), "vm", 8)
        paper.text(x + 12, top + 19, NAMES[side], "head")
        facing = "the customers" if side == NAT_VM1 else MANAGEMENT
        paper.text(x + 12, top + 36, f"faces {facing}, {vm.rules.rule_count()} rules", "quiet")
        subnets = {subnet.key: subnet.cidr for subnet in self.plan.subnets}
        line, before = top + _VM_HEADER, 0
        for vnic in vm.vnics:
            if vnic.index not in self.vnics:
                continue
            if vnic.index > before + 1:
                missing = vnic.index - before - 1
                paper.text(x + 12, line + 14, f"{missing} more VNIC{'' if missing == 1 else 's'}", "quiet")
                line += _ELLIPSIS
            before = vnic.index
            paper.box(x + 6, line, _VM_WIDTH - 12, _VNIC - 4, "used" if vnic.key in self.busy else "row", 4)
            paper.text(x + 12, line + 15, f"VNIC {vnic.index}")
            paper.text(x + _VM_WIDTH - 12, line + 15, subnets[vnic.key], "mono", "end")
            paper.text(x + 12, line + 31, _addresses(vnic), "mono")
            self.row[vnic.key] = line + (_VNIC - 4) / 2
            line += _VNIC
        routes = self.plan.routes[side]
        words = f"{routes[0].destination} to the vRouter" if side == NAT_VM2 else "each customer's CIDR to its LPG"
        paper.text(x + 2, line + 20, f"routes {words}", "quiet")

    def _links(self, vrouter: float) -> None:
        """Who is connected with whom, where the flow's own lines do not show it."""
        paper = self.paper
        stretches = () if self.flow is None else self.flow.stretches
        ends = {name for stretch in stretches for name in (stretch.start, stretch.end)}
        shown = {name.split("/")[0] for name in ends}
        vm1, vm2 = (self.row[vm.vnics[0].key] for vm in self.plan.vms)
        for name in self.customers:
            if name in shown:
                continue
            y = self.row[name]
            start = _CUSTOMERS + _CUSTOMER_WIDTH
            paper.path(f"M{start:g} {y:g}H{_POD + _LPG_WIDTH:g}{_bend(_POD + _LPG_WIDTH, y, _VM1, vm1)}", "link")
        if NAT_VM2 not in shown:
            paper.path(f"M{_VM1 + _VM_WIDTH} {vm1:g}H{_VM2}", "link")
        if MANAGEMENT not in shown:
            paper.path(f"M{_VM2 + _VM_WIDTH} {vm2:g}H{_VROUTER}", "link")
        for server in self.servers.members:
            if server.member in ends:
                continue
            y = self.row[server.member]
            paper.path(f"M{_VROUTER + _VROUTER_WIDTH} {vrouter:g}H{_SERVERS - 13}V{y:g}H{_SERVERS}", "link")

    def _gateways(self) -> None:
        for name in self.customers:
            for x in (_CUSTOMERS + _CUSTOMER_WIDTH, _POD):
                self.paper.box(x, self.row[name] - 11, _LPG_WIDTH, 22, "lpg", 11)
                self.paper.text(x + _LPG_WIDTH / 2, self.row[name] + 4, "LPG", "quiet", "middle")

    def _vrouter(self, y: float) -> None:
        x, top = _VROUTER, y - _VROUTER_HEIGHT / 2
        subnet = next(subnet.cidr for subnet in self.plan.subnets if subnet.key == VROUTER)
        self.paper.box(x, top, _VROUTER_WIDTH, _VROUTER_HEIGHT, "lpg", 8)
        for line, (words, style) in enumerate((("vRouter", "head"), (self.plan.vrouter_ip, "mono"), (subnet, "quiet"))):
            self.paper.text(x + _VROUTER_WIDTH / 2, top + 20 + 18 * line, words, style, "middle")

    # The flow

    def _stretch(self, stretch: Stretch, vrouter: float) -> None:
        """One leg among the machines; a NAT VM sends by its primary VNIC, where its default route leads."""
        off = _APART if stretch.reply else -_APART
        ends = [stretch.start, stretch.end]
        left = min(ends, key=_column)
        points: list[tuple[float, float]]
        places = {name: (self.row[self._at(name, stretch)] + off) for name in ends}
        if NAT_VM1 in ends and NAT_VM2 in ends:
            points = [(_VM1 + _VM_WIDTH, places[NAT_VM1]), (_VM2, places[NAT_VM2])]
        elif left in SIDES:
            server = next(name for name in ends if name not in SIDES)
            down = _SERVERS - 13.0 + off
            points = [(_VM2 + _VM_WIDTH, places[NAT_VM2]), (_VROUTER, vrouter + off), (down, vrouter + off)]
            points += [(down, places[server]), (_SERVERS, places[server])]
        else:
            lpg = self.row[left.split("/")[0]] + off
            edge = _CUSTOMERS + _CUSTOMER_WIDTH
            down = edge - 6 + off / 2
            points = [(edge - 12, places[left]), (down, places[left]), (down, lpg), (_POD + _LPG_WIDTH, lpg)]
            points.append((_VM1, places[NAT_VM1]))
            self.numbers.append(((edge + _LPG_WIDTH + _POD) / 2, lpg + 3 * off, stretch))
        if stretch.start != left:
            points.reverse()
        if left in SIDES:  # beside the line where it sets out, for there it is level
            x, y = points[0] if stretch.start in SIDES else points[-2]
            self.numbers.append((x + (20 if stretch.start == left else -20), y + 3.5 * off, stretch))
        kind = "reply" if stretch.reply else "request"
        pen = [f"M{points[0][0]:g} {points[0][1]:g}"]
        for (x1, y1), (x2, y2) in pairwise(points):
            pen.append(f"L{x2:g} {y2:g}" if x1 == x2 or y1 == y2 else _bend(x1, y1, x2, y2, off))
        self.paper.path("".join(pen), kind, kind)

    def _at(self, machine: str, stretch: Stretch) -> str:
        """The row at which a leg begins or ends."""
        if machine not in SIDES:
            return machine
        return self.held[stretch.dst] if machine == stretch.end else self.plan.vm(machine).vnics[0].key

    def _ladder(self, flow: Way, y: float) -> float:
        """The packet on each leg, under the machines; returns the bottom."""
        paper = self.paper
        words = f"{flow.sender.member} opens a connection to {flow.receiver.member} at {flow.address}"
        paper.text(_MARGIN, y, fit(words, 960, bold=True), "head")
        paper.text(_END, y, "bold: changed by the NAT VM before", "quiet", "end")
        top, line = y + 34, y + 96
        rows = 1 + any(stretch.reply for stretch in flow.stretches)
        bottom = line + 44 * rows - 22
        ends = {_column(slot.member): slot for slot in (flow.receiver, flow.sender)}
        for x, slot in ends.items():
            paper.text(x, top, fit(slot.member, 190), "", "middle")
            paper.text(x, top + 17, slot.real, "mono", "middle")
        for side in SIDES:
            paper.text(_column(side), top + 8, NAMES[side], "", "middle")
        for x in (*ends, _column(NAT_VM1), _column(NAT_VM2)):
            paper.path(f"M{x} {top + 26:g}V{bottom:g}", "life")
        before: Stretch | None = None
        for stretch in flow.stretches:
            level = line + (44 if stretch.reply else 0)
            if before is None or before.reply != stretch.reply:
                before = None
                paper.text(_MARGIN, level + 4, "reply" if stretch.reply else "request", "quiet")
            self._rung(stretch, before, level)
            before = stretch
        if flow.dead:
            bottom += 26
            paper.text(_MARGIN, bottom, fit(flow.dead, _END - _MARGIN, bold=True), "dead head")
        return bottom

    def _rung(self, stretch: Stretch, before: Stretch | None, y: float) -> None:
        start, end = _column(stretch.start), _column(stretch.end)
        kind = "reply" if stretch.reply else "request"
        step = 6 if start < end else -6
        self.paper.path(f"M{start + step} {y:g}H{end - step}", kind, kind)
        words = [
            f'<tspan class="changed">{new}</tspan>' if before is not None and new != old else new
            for new, old in (
                (stretch.src, stretch.src if before is None else before.src),
                (stretch.dst, stretch.dst if before is None else before.dst),
            )
        ]
        middle = (start + end) / 2
        width = _mono(f"{stretch.src} > {stretch.dst}")
        self.paper.number(middle - width / 2 - 4, y - 13, stretch)
        self.paper.parts.append(
            f'<text x="{middle + 10:g}" y="{y - 9:g}" class="mono" text-anchor="middle">{" &gt; ".join(words)}</text>'
        )


_HOST_X, _SERVER_X = _CUSTOMERS + _CUSTOMER_WIDTH // 2, _SERVERS + _SERVER_WIDTH // 2


def _column(machine: str) -> int:
    """The middle of the column in which a machine stands."""
    if machine in SIDES:
        return (_VM1, _VM2)[SIDES.index(machine)] + _VM_WIDTH // 2
    return _SERVER_X if machine.startswith(f"{MANAGEMENT}/") else _HOST_X
