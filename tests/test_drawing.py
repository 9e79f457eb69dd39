"""The pictures of a POD: what is in them, and that nothing in them lies on anything else.

Address plan: the article's (conftest.py).  Nobody looks at a picture in CI, so its texts are measured: each by the
widest letters of the fonts that it asks for.
"""

import re
import xml.etree.ElementTree as ET
from functools import cache
from itertools import chain, combinations

import pytest
import routed_pods
from conftest import REPOSITORY, stack_mapping
from netaddr import IPAddress, IPNetwork

from bench.pods import allocate, full_pod
from nat_pod.commands.cli import main
from nat_pod.commands.plan import picture as picture_of
from nat_pod.config import any_config
from nat_pod.config.model import PodConfig
from nat_pod.names import SIDES
from nat_pod.pages import mermaid
from nat_pod.pages.columns import WIDTH
from nat_pod.pages.journey import Journey, first_flow, journey
from nat_pod.plan.model import PodPlan
from nat_pod.plan.planner import plan_pod
from nat_pod.trace.expected import expected_topology
from nat_pod.trace.flows import declared_flows, flow_between
from nat_pod.trace.walk import Packet, trace

SVG = "{http://www.w3.org/2000/svg}"


def twenty() -> dict:
    """Twenty customers with the longest names and widest addresses that a stack file may have."""
    mapping = stack_mapping("ten")
    del mapping["addresses"]
    mapping |= {"cidr": "198.18.128.0/17", "lpgLimit": 20}
    mapping["management"] = {
        "cidr": "100.100.0.0/16",
        "vrouter": "198.18.255.250",
        "servers": {f"{'m' * 60}{number:02}": f"100.100.200.{number + 100}" for number in range(12)},
    }
    mapping["customers"] = {
        f"{'w' * 17}{number:02}": {
            "cidr": f"172.16.{number + 100}.0/24",
            "hosts": {f"{'m' * 60}{host:02}": f"172.16.{number + 100}.{host + 100}" for host in range(9)},
        }
        for number in range(20)
    }
    allocate(mapping)
    return mapping


def alone() -> dict:
    """A POD without anybody yet."""
    mapping = stack_mapping("dev")
    mapping |= {"customers": {}, "addresses": {}, "subnets": {}}
    mapping["management"] = {"cidr": "10.0.0.0/16", "vrouter": "198.18.3.250", "servers": {}}
    allocate(mapping)
    return mapping


def crowd() -> dict:
    """One customer with as many hosts as are still shown one by one, and one without any."""
    mapping = stack_mapping("dev")
    mapping["customers"] = {
        "customer1": {"cidr": "10.0.0.0/24", "hosts": {f"vm{number}": f"10.0.0.{number + 10}" for number in range(14)}},
        "customer2": {"cidr": "10.0.1.0/24", "hosts": {}},
    }
    mapping["addresses"] = {}
    allocate(mapping)
    return mapping


def routed_twenty() -> dict:
    """The same as a routed POD, whose hosts' aliases are two blocks apart."""
    mapping = twenty()
    del mapping["sourceNat"]
    mapping["natVm"]["shape"] = {"shape": "VM.Standard.E5.Flex", "ocpus": 1, "memoryGbs": 4}
    mapping = routed_pods.allocated({**mapping, "delivery": "routes", "addresses": {}})
    last = next(reversed(mapping["addresses"]))
    mapping["addresses"][last] = "198.18.254.254"
    return mapping


def routed_alone() -> dict:
    """A routed POD without anybody yet, and without a standby."""
    mapping = {**routed_pods.small(), "standby": False, "customers": {}, "addresses": {}}
    mapping["management"]["servers"] = {}
    return mapping


MAPPINGS = {
    "dev": lambda: stack_mapping("dev"),
    "ten": lambda: stack_mapping("ten"),
    "full": full_pod,
    "twenty": twenty,
    "alone": alone,
    "crowd": crowd,
    "routed": lambda: stack_mapping("routed"),
    "routed twenty": routed_twenty,
    "routed alone": routed_alone,
    "routed without a standby": lambda: {**stack_mapping("routed"), "standby": False},
}  # fmt: skip


@pytest.fixture(scope="module")
def plans() -> dict[str, PodPlan]:
    return {name: planned(name) for name in MAPPINGS}


@cache
def planned(name: str) -> PodPlan:
    return plan_pod(any_config.read(MAPPINGS[name](), name), name)


def flow(plan: PodPlan, *names: str) -> Journey | None:
    chosen = names or first_flow(plan)
    slots = {slot.member: slot for slot in plan.slots}
    return None if chosen is None else journey(plan, slots[chosen[0]], slots[chosen[1]])


def ends(plan: PodPlan) -> tuple[str, str]:
    """The last server and the last host: the one on the last VNIC pair, by which management reaches it."""
    servers = [slot.member for slot in plan.slots if slot.member.is_server]
    return servers[-1], plan.slots[-1].member


PICTURES = [
    ("dev", ()),
    ("dev", ("management/mgmt", "customer1/vm2")),
    ("dev", ("customer1/vm1", "customer2/vm2")),
    ("ten", ()),
    ("ten", "ends"),
    ("full", ()),
    ("full", "ends"),
    ("full", ("management/server7", "customer4/vm30")),
    ("twenty", ()),
    ("twenty", "ends"),
    ("alone", ()),
    ("crowd", "ends"),
    ("routed", ()),
    ("routed", "ends"),
    ("routed", ("linden/app", "management/backup")),
    ("routed twenty", ()),
    ("routed twenty", "ends"),
    ("routed alone", ()),
    ("routed without a standby", ()),
]
LARGE = ("full", "twenty", "routed twenty")


def marked(name: str) -> list[pytest.MarkDecorator]:
    return [pytest.mark.sweep] if name in LARGE else []


def picture(name, names) -> ET.Element:
    return ET.fromstring(svg(name, names))


@cache  # each is measured by many tests
def svg(name: str, names: str | tuple[str, ...]) -> str:
    plan = planned(name)
    return picture_of(plan, name, flow(plan, *(ends(plan) if names == "ends" else names)))


@pytest.fixture(
    params=[pytest.param(one, marks=marked(one[0])) for one in PICTURES],
    ids=lambda picture: f"{picture[0]} {' to '.join(picture[1])}",
)
def drawn(request) -> ET.Element:
    return picture(*request.param)


# --- nothing lies on anything else -----------------------------------------------------------------------------------

# Widths of DejaVu Sans, the widest font that is asked for, of those letters that are far from 0.64 of the size.
DEJAVU = dict.fromkeys("ijl", 0.278) | dict.fromkeys(" .,", 0.318) | {"m": 0.974, "w": 0.818, "M": 0.863}
DEJAVU |= {"f": 0.352, "r": 0.411, "t": 0.392, "-": 0.361, "/": 0.337, ":": 0.337, "…": 1.0, "W": 0.989, "s": 0.521}

Box = tuple[float, float, float, float]


def texts(svg: ET.Element) -> list[tuple[str, Box]]:
    """Each text with the box that it takes: left, top, right, bottom."""
    found = []
    for element in svg.iter(f"{SVG}text"):
        styles = element.get("class", "").split()
        words = "".join(element.itertext())
        size = 20 if "title" in styles else 11 if "number" in styles else 12 if {"mono", "quiet"} & set(styles) else 13
        bold = bool({"title", "head"} & set(styles))
        width = size * sum(0.602 if "mono" in styles else DEJAVU.get(letter, 0.64) + 0.07 * bold for letter in words)
        x, y = float(element.get("x")), float(element.get("y"))
        left = x - {"start": 0, "middle": width / 2, "end": width}[element.get("text-anchor", "start")]
        found.append((words, (left, y - 0.75 * size, left + width, y + 0.2 * size)))
    return found


def overlap(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def boxes(svg: ET.Element, *styles: str) -> list[Box]:
    found = []
    for element in svg.iter(f"{SVG}rect"):
        if element.get("class") in styles:
            x, y, width, height = (float(element.get(key)) for key in ("x", "y", "width", "height"))
            found.append((x, y, x + width, y + height))
    return found


def test_no_text_lies_on_another_or_beyond_the_edge(drawn):
    height = float(drawn.get("height"))
    found = texts(drawn)
    clashes = [(one[0], other[0]) for one, other in combinations(found, 2) if overlap(one[1], other[1])]
    assert clashes == []
    beyond = [words for words, (x1, y1, x2, y2) in found if x1 < 0 or y1 < 0 or x2 > WIDTH or y2 > height]
    assert beyond == []


def test_text_in_a_row_ends_before_the_row_does(drawn):
    rows = boxes(drawn, "row", "cell", "used")
    inside = 0
    for words, (x1, y1, x2, y2) in texts(drawn):
        for left, top, right, bottom in rows:
            if left <= x1 < right and top <= (y1 + y2) / 2 <= bottom:
                assert x2 <= right, words
                inside += 1
    assert inside >= 2 * len(rows)


def test_the_boxes_of_members_vms_and_networks_are_apart(drawn):
    for styles in (("row", "cell", "used"), ("net", "pod"), ("vm",), ("lpg",)):
        assert [pair for pair in combinations(boxes(drawn, *styles), 2) if overlap(*pair)] == []


def test_the_measure_of_texts_finds_one_that_lies_on_another():
    svg = ET.fromstring(
        '<svg xmlns="http://www.w3.org/2000/svg">'
        '<text x="0" y="20">customer1</text><text x="50" y="20">vm1</text></svg>'
    )
    (_, one), (_, other) = texts(svg)
    assert overlap(one, other)


def test_a_drawing_needs_nothing_beside_it(drawn):
    text = ET.tostring(drawn, encoding="unicode")
    assert not re.search(r"(?:href|src|@import|<script|<image|foreignObject|url\((?!#))", text)
    assert {element.get("marker-end") for element in drawn.iter() if element.get("marker-end")} <= {
        "url(#request)",
        "url(#reply)",
    }
    styles = drawn.find(f"{SVG}style").text
    used = {style for element in drawn.iter() for style in element.get("class", "").split()}
    assert {style for style in used if f".{style}" not in styles} == set()
    assert "prefers-color-scheme: dark" in styles


# --- what is in it ---------------------------------------------------------------------------------------------------


def all_words(svg: ET.Element) -> str:
    return "\n".join(words for words, _ in texts(svg))


@pytest.fixture
def small(plans) -> str:
    """The words of the drawing of the article's POD."""
    return all_words(picture("dev", ()))


def test_all_members_of_a_small_pod_are_in_its_drawing(plans, small):
    parts = [part for slot in plans["dev"].slots for part in (slot.real, slot.member.short)]
    assert [part for part in parts if part not in small] == []


def test_all_networks_of_a_small_pod_are_in_its_drawing(plans, small):
    plan = plans["dev"]
    parts = [*(subnet.cidr for subnet in plan.subnets), *plan.customer_cidrs, *chain(*plan.customer_cidrs.values())]
    assert [part for part in [*parts, "10.0.0.0/16"] if part not in small] == []


def test_all_addresses_of_the_nat_vms_and_the_vrouter_are_in_a_small_drawing(small):
    parts = ["198.18.0.2, .3", "198.18.0.130, .131", "198.18.0.34", "198.18.0.66", "198.18.0.167"]
    assert [part for part in parts if part not in small] == []


def test_the_drawing_of_a_routed_pod_has_its_machines_next_hops_and_route_tables(plans):
    plan, words = plans["routed"], all_words(picture("routed", ()))
    parts = [part for vm in plan.vms for part in (vm.key, vm.vnics[0].primary)]
    parts += [part for balancer in plan.balancers for part in (balancer.address, f"next hop, all to {balancer.role}a")]
    parts += [rule.destination for rules in plan.routes.values() for rule in rules if rule.customer is None]
    parts += [plan.cidr, plan.vcn_cidr, "active, fault domain 1", "standby, fault domain 2"]
    parts += ["servers' aliases 198.18.8.0/27 to their gateway", "hosts' aliases 198.18.10.0/26 to NAT VM2"]
    parts += ["hosts' aliases 198.18.10.0/27 to NAT VM1", "hosts' aliases 198.18.10.32/27 to NAT VM1-2"]
    parts += ["NAT VM1: fern, hazel and 1 more", "NAT VM1-2: maple"]
    assert [part for part in parts if part not in words] == []
    alone = all_words(picture("routed without a standby", ()))
    assert "next hop, fault domain 1" in alone
    assert "balancer" not in alone
    assert "standby," not in alone


def test_each_customer_of_a_small_pod_has_an_lpg_at_both_ends(plans, small):
    assert small.split("\n").count("LPG") == 2 * len(plans["dev"].customer_cidrs)


@pytest.mark.parametrize(("name", "names"), [pytest.param(*one, marks=marked(one[0])) for one in PICTURES], ids=str)
def test_the_legs_are_the_tracers(plans, name, names):
    plan = plans[name]
    chosen = flow(plan, *(ends(plan) if names == "ends" else names))
    if chosen is None:
        return
    asked = flow_between(chosen.sender, chosen.receiver)
    packet = Packet(src=asked.source, dst=asked.destination)
    traced = trace(expected_topology(plan), asked.sender, packet, asked.receiver)
    hops = [*traced.request.hops, *([] if traced.reply is None else traced.reply.hops)]
    assert [(stretch.src, stretch.dst) for stretch in chosen.stretches] == [(hop.src, hop.dst) for hop in hops]
    words = all_words(picture(name, names))
    diagram = mermaid.packets(chosen)
    for stretch in chosen.stretches:
        assert f"{stretch.src} > {stretch.dst}" in words
        assert f": {stretch.src} to {stretch.dst}" in diagram


def test_case_6_comes_in_by_the_second_vnics_and_each_change_is_bold():
    drawing = picture("dev", ("management/mgmt", "customer1/vm2"))
    rungs = [
        [(part.text, "changed") for part in element.iter(f"{SVG}tspan")]
        for element in drawing.iter(f"{SVG}text")
        if " > " in "".join(element.itertext())
    ]
    both = [[(src, "changed"), (dst, "changed")] for src, dst in (
        ("198.18.0.130", "198.18.0.34"), ("198.18.0.2", "10.0.0.130"), ("198.18.0.34", "198.18.0.130"),
        ("198.18.0.66", "10.0.0.100"),
    )]  # fmt: skip
    assert rungs == [[], both[0], both[1], [], both[2], both[3]]
    assert len(boxes(drawing, "used")) == 6  # both members, and both VNICs of both VMs


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dev", "ten"])
def test_a_nat_vm_sends_to_no_network_of_its_own_so_its_lines_set_out_at_the_primary_vnic(plans, name):
    """Its default route leads there."""
    plan = plans[name]
    own = {side: [IPNetwork(subnet.cidr) for subnet in plan.subnets if subnet.side == side] for side in SIDES}
    for declared in declared_flows(plan)[:40]:
        for stretch in flow(plan, declared.sender, declared.receiver).stretches:
            assert not any(IPAddress(stretch.dst) in network for network in own.get(stretch.start, []))


def test_a_flow_that_dies_is_drawn_up_to_where_it_does(plans):
    words = all_words(picture("dev", ("customer1/vm1", "customer2/vm2")))
    assert "no-mapping: nat_vm1 drops 10.0.0.100 > 198.18.0.3 in FORWARD: no mapping translated it" in words
    assert "reply" not in words.split("\n")


def test_of_a_full_pod_the_flow_is_shown_and_the_rest_summed_up():
    drawing = picture("full", ("management/server7", "customer4/vm30"))
    words = all_words(drawing).split("\n")
    assert {"vm30", "and 68 more", "69 hosts", "server7", "VNIC 1", "VNIC 2", "VNIC 24"} <= set(words)
    assert sum(1 for word in words if word.endswith("more VNICs")) == 4
    assert float(drawing.get("height")) < WIDTH


def test_a_pod_without_anybody_has_a_drawing_without_a_flow(plans):
    words = all_words(picture("alone", ()))
    assert ("VCN of the POD" in words, "request" in words) == (True, False)


# --- mermaid ---------------------------------------------------------------------------------------------------------


def flowchart(plan: PodPlan) -> list[str]:
    return mermaid.networks(plan, 'a"b;<x>#&`').split("\n")


def nodes_of(lines: list[str]) -> list[str]:
    nodes = [found[1] for line in lines if (found := re.fullmatch(r'    (\w+)\["[^"]*"\]', line))]
    return nodes + [found[1] for line in lines if (found := re.fullmatch(r'  (vr)\(\["[^"]*"\]\)', line))]


def edges_of(lines: list[str]) -> list[tuple[str, ...]]:
    return [found.groups() for line in lines if (found := re.fullmatch(r"  (\w+) <--(?: LPG --|)> (\w+)", line))]


@pytest.mark.parametrize("name", MAPPINGS)
def test_a_flowchart_closes_each_network_that_it_opens(plans, name):
    lines = flowchart(plans[name])
    opened = [line for line in lines if line.startswith("  subgraph ")]
    assert len(opened) == lines.count("  end") == len(plans[name].customer_cidrs) + 2


@pytest.mark.parametrize("name", MAPPINGS)
def test_a_flowchart_connects_each_node_that_it_defines_and_no_other(plans, name):
    lines = flowchart(plans[name])
    nodes = nodes_of(lines)
    assert len(nodes) == len(set(nodes)) == len(plans[name].customer_cidrs) + len(plans[name].roles) + 2
    assert {end for edge in edges_of(lines) for end in edge} == set(nodes)


@pytest.mark.parametrize("name", MAPPINGS)
def test_a_flowchart_has_no_line_of_another_kind(plans, name):
    lines = flowchart(plans[name])
    assert lines[0] == "flowchart LR"
    opened = lines.count("  end")
    assert len(lines) == 1 + 2 * opened + len(nodes_of(lines)) + len(edges_of(lines))


@pytest.mark.parametrize("name", MAPPINGS)
def test_a_flowchart_has_no_label_that_mermaid_or_html_would_read(plans, name):
    labels = "".join(re.findall(r'"([^"]*)"', "\n".join(flowchart(plans[name])))).replace("<br>", "")
    assert not re.search(r"[<>`&]|#(?!\d+;)|(?<!\d);", labels)


def test_the_words_of_mermaid_are_no_identifiers(plans):
    """A host called `end` closes no subgraph: names stand in labels only."""
    mapping = stack_mapping("dev")
    mapping["customers"] = {"graph": {"cidr": "10.0.0.0/24", "hosts": {"end": "10.0.0.9"}}}
    mapping["addresses"] = {}
    allocate(mapping)
    plan = plan_pod(PodConfig.from_mapping(mapping, "x"), "x")
    text = mermaid.networks(plan, "x")
    assert '  subgraph c0["graph: 10.0.0.0/24"]\n    h0["end 10.0.0.9"]\n  end\n' in text
    assert "participant a as graph/end<br>10.0.0.9" in mermaid.packets(flow(plan))


def test_a_flow_that_dies_says_so_in_the_sequence_diagram(plans):
    lines = mermaid.packets(flow(plans["dev"], "customer1/vm1", "customer2/vm2")).split("\n")
    assert lines[-2:] == [
        "  a->>vm1: 10.0.0.100 to 198.18.0.3",
        "  Note over a,b: no-mapping: nat_vm1 drops 10.0.0.100 #62; 198.18.0.3 in FORWARD: no mapping translated it",
    ]


# --- the command -----------------------------------------------------------------------------------------------------


@pytest.fixture
def run(monkeypatch, capsys):
    monkeypatch.chdir(REPOSITORY)

    def call(*arguments):
        try:
            status = main(arguments)
        except SystemExit as end:
            status = end.code
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return call


@pytest.mark.parametrize("stack", ["dev", "ten", "routed"])
def test_plan_as_markdown_is_the_golden_one(run, golden, stack):
    status, out, err = run("plan", stack, "--markdown")
    assert (status, err, out.isascii()) == (0, "", True)
    golden(f"plan-{stack}.md", out)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("../../docs/pod.svg", ["dev"]),  # README's picture
        ("plan-dev-case-6.svg", ["dev", "--flow", "management/mgmt", "customer1/vm2"]),
        ("plan-ten.svg", ["ten"]),
        ("../../docs/routed.svg", ["routed", "--flow", "fern/web", "management/mgmt"]),
    ],
)
def test_the_drawing_of_plan_is_the_golden_one(run, golden, tmp_path, name, arguments):
    path = tmp_path / "pod.svg"
    assert run("plan", *arguments, "--svg", str(path)) == (0, f"{path}: written\n", "")
    assert run("plan", *arguments, "--svg", str(path)) == (0, f"{path}: written\n", "")  # a picture may be drawn again
    path.write_bytes(b"")  # as `mktemp`, or a shell's `>`, leaves it
    assert run("plan", *arguments, "--svg", str(path)) == (0, f"{path}: written\n", "")
    other = path.with_name("Pulumi.other.yaml")
    other.write_text("config: {}\n", encoding="utf-8")
    status, _, complaint = run("plan", *arguments, "--svg", str(other))
    assert (status, "is not an SVG" in complaint, other.read_text()) == (1, True, "config: {}\n")
    golden(name, path.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    "arguments",
    [
        ["--flow", "customer1/vm1", "management/mgmt"],
        ["--json", "--markdown"],
        ["--svg", "x.svg", "--markdown"],
        ["--svg"],
        ["--markdown", "--flow", "customer1/vm1"],
    ],
    ids=" ".join,
)
def test_options_that_do_not_go_together_are_a_wrong_command_line(run, arguments):
    status, out, err = run("plan", "dev", *arguments)
    assert (status, out) == (2, "")
    assert err.startswith("usage: ")


def test_a_flow_of_somebody_unknown_writes_no_file(run, tmp_path):
    path = tmp_path / "pod.svg"
    members = "management/mgmt, customer1/vm1, customer1/vm2, customer2/vm2"
    sentence = f"--flow: customer1/vm9: is not a member of this POD ({members})\n"
    assert run("plan", "dev", "--svg", str(path), "--flow", "customer1/vm9", "management/mgmt") == (1, "", sentence)
    assert not path.exists()


def test_a_drawing_that_cannot_be_written_is_a_sentence(run, tmp_path):
    path = tmp_path / "none" / "pod.svg"
    sentence = f"{path}: cannot be written: No such file or directory\n"
    assert run("plan", "dev", "--svg", str(path)) == (1, "", sentence)
