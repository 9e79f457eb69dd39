"""`import`: what does not fit is listed, and what rules do not say (networks, names, layout) is assumed and says so."""

import json
import re

import pytest
from handbuilt_pods import DAMAGED, DNAT, GOOD, damage, imported, mapped, shown

# --- one thing wrong -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("entry", DAMAGED, ids=lambda entry: entry["what"])
def test_what_is_wrong_with_a_pod_is_what_is_listed(run_import, directory, entry):
    for name, text in entry.get("files", {}).items():
        (directory / name).write_text(text, encoding="utf-8")
    files = damage(entry)
    status, out, err = run_import(files, "--json", *entry.get("options", ()))
    found = json.loads(out)["findings"]
    assert [shown(finding) for finding in found] == entry["findings"]
    harmless = all(finding["kind"] in ("unmet", "others") for finding in found)
    assert (status, err) == (0 if harmless else 1, "")
    for finding in found:
        if finding["line"] is not None:
            assert finding["rule"] == files[finding["vm"]].splitlines()[finding["line"] - 1].strip()


def test_there_are_more_than_twenty_damaged_pods_and_each_has_findings():
    assert len(DAMAGED) > 20
    assert all(entry["findings"] for entry in DAMAGED)


@pytest.mark.parametrize("base", GOOD)
def test_the_pods_that_are_damaged_were_good_before(run_import, base):
    imported(run_import, GOOD[base])


# --- customers and their networks ------------------------------------------------------------------------------------

NETWORKS = {
    "a /24 around each host": (
        mapped("10.0.0.9", "10.0.0.200", "10.3.0.9"),
        (),
        {"customer1": "10.0.0.0/24", "customer2": "10.3.0.0/24"},
    ),
    "the names of comments": (
        mapped("10.0.0.9", "10.0.0.200", "10.3.0.9", comments=("acme/a", "acme/b", "birch/a")),
        (),
        {"acme": "10.0.0.0/24", "birch": "10.3.0.0/24"},
    ),
    "one customer by its comments, in two /24": (
        mapped("10.0.0.9", "10.0.1.9", comments=("acme/a", "acme/b")),
        (),
        {"acme": "10.0.0.0/23"},
    ),
    "two customers by their comments, in one /24": (
        mapped("10.0.0.9", "10.0.0.200", comments=("acme/a", "birch/a")),
        (),
        {"acme": "10.0.0.0/25", "birch": "10.0.0.128/25"},
    ),
    "what is given": (
        mapped("10.0.0.9", "10.0.0.200", "10.3.0.9"),
        ("--customer", "acme=10.0.0.0/25", "--customer", "birch=10.0.0.128/25", "--customer", "cedar=10.3.0.0/16"),
        {"acme": "10.0.0.0/25", "birch": "10.0.0.128/25", "cedar": "10.3.0.0/16"},
    ),
    "a customer without hosts": (
        mapped("10.0.0.9"),
        ("--customer", "acme=10.0.0.0/24", "--customer", "birch=10.0.1.0/24"),
        {"acme": "10.0.0.0/24", "birch": "10.0.1.0/24"},
    ),
    "a name that comments have and that is given to another": (
        mapped("10.0.0.9", "10.3.0.9", comments=("acme/a", "birch/a")),
        ("--customer", "birch=10.0.0.0/24", "--customer", "cedar=10.3.0.0/24"),
        {"birch": "10.0.0.0/24", "cedar": "10.3.0.0/24"},
    ),
    "a network that rules test for": (
        {**mapped("10.0.0.9"), "natVm1": mapped("10.0.0.9")["natVm1"].replace("-s 10.0.0.9 ", "-s 10.0.0.0/20 ")},
        (),
        {"customer1": "10.0.0.0/20"},
    ),
    "parts of networks that nat-pod's own chains test for": (
        {
            **mapped("10.0.0.9", "10.0.1.9", comments=("acme/a", "birch/a")),
            "natVm1": "\n".join(
                [
                    "iptables -t nat -N PART",
                    "iptables -t nat -A PREROUTING -s 10.0.0.0/23 -j PART",
                    "iptables -t nat -A PREROUTING -s 10.0.0.8/29 -j PART",
                    mapped("10.0.0.9", "10.0.1.9", comments=("acme/a", "birch/a"))["natVm1"],
                ]
            ),
        },
        (),
        {"acme": "10.0.0.0/24", "birch": "10.0.1.0/24"},
    ),
    "names that are nat-pod's own": (
        mapped("10.0.0.9", "10.3.0.9", comments=("vrouter/a", "a-name-of-more-than-nineteen/b")),
        (),
        {"customer1": "10.0.0.0/24", "customer2": "10.3.0.0/24"},
    ),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_customers_and_their_networks_are(run_import, name):
    rules, options, networks = NETWORKS[name]
    customers = json.loads(run_import(rules, "--json", *options)[1])["config"]["customers"]
    assert {name: entry["cidr"] for name, entry in customers.items()} == networks
    assert not any("servers" in entry for entry in customers.values())


def test_what_the_design_refuses_is_listed_as_check_would_say_it(run_import):
    """The first address of a /24 is no VM's, and eleven customers are one too many."""
    rules = mapped(*(f"10.{number}.0.9" for number in range(10)), "10.10.0.0")
    status, out, _ = run_import(rules, "--json", "--customer", "last=10.10.0.0/24")
    findings = [finding for finding in json.loads(out)["findings"] if finding["kind"] == "refused"]
    assert (status, [finding["why"] for finding in findings]) == (
        1,
        [
            'nat-pod:customers.last.hosts.host-10-10-0-0: "10.10.0.0": 10.10.0.0 is the first address of 10.10.0.0/24, '
            "which OCI reserves (it keeps the first two and the last); no VNIC can have it",
            'nat-pod:customers: "11 customers": a VCN has 10 local peering gateways, one per customer; set '
            "nat-pod:lpgLimit: 20 if Oracle raised your limit, or move customers to another POD",
        ],
    )


def test_equal_names_in_comments_are_nobodys(run_import):
    rules = mapped("10.0.0.9", "10.0.0.10", "10.0.0.11", comments=("web", "web", "host-10-0-0-9"))
    hosts = imported(run_import, rules)["config"]["customers"]["customer1"]["hosts"]
    assert hosts == {f"host-10-0-0-{number}": f"10.0.0.{number}" for number in (9, 10, 11)}


# --- lists of VNICs --------------------------------------------------------------------------------------------------

METADATA = json.dumps(
    [
        {"vnicId": "a", "privateIp": "198.18.0.66", "vlanTag": 1, "subnetCidrBlock": "198.18.0.64/27"},
        {"vnicId": "b", "privateIp": "198.18.0.130", "vlanTag": 2, "subnetCidrBlock": "198.18.0.128/27"},
    ]
)
LIST_VNICS = json.dumps(
    {
        "data": [
            {"id": "b", "private-ip": "198.18.0.130", "is-primary": False, "subnet-id": "ocid1.subnet.oc1..b"},
            {"id": "a", "private-ip": "198.18.0.66", "is-primary": True, "subnet-id": "ocid1.subnet.oc1..a"},
        ]
    }
)
IPS = json.dumps(
    {"data": [{"ip-address": f"198.18.0.{last}", "is-primary": last in (66, 130)} for last in (66, 130, 131, 135)]}
)


@pytest.mark.parametrize("form", [METADATA, LIST_VNICS], ids=["instance metadata", "list-vnics"])
def test_the_primary_vnic_comes_first_in_the_layout(run_import, directory, form):
    """Without the list the first pair is the one that holds NAT VM1's lowest address, and the one rules expect."""
    (directory / "v").write_text(form, encoding="utf-8")
    rules = {vm: text.replace("-o ens3 -j MASQUERADE", "-j MASQUERADE") for vm, text in GOOD["article"].items()}
    rules = {vm: re.sub(r"-s 198\.18\.0\.(2|130) ", "-s 198.18.0.0/24 ", text) for vm, text in rules.items()}
    without = json.loads(run_import(rules, "--json")[1])["config"]["subnets"]
    assert without["natVm2"] == ["198.18.0.128/27", "198.18.0.64/27"]
    with_list = json.loads(run_import(rules, "--json", "--vnics2", "v")[1])["config"]["subnets"]
    assert with_list == {
        "natVm1": ["198.18.0.32/27", "198.18.0.0/27"],
        "natVm2": ["198.18.0.64/27", "198.18.0.128/27"],
        "vrouter": "FILL-IN",
    }


def test_private_ips_that_no_mapping_needs_are_named(run_import, directory):
    (directory / "ips").write_text(IPS, encoding="utf-8")
    status, out, _ = run_import(GOOD["article"], "--json", "--vnics2", "ips")
    assert (status, [shown(finding) for finding in json.loads(out)["findings"]]) == (
        0,
        ["unused: natVm2: no mapping needs the private IPs 198.18.0.135"],
    )


def test_a_list_with_subnets_is_believed_before_one_without(run_import, directory):
    (directory / "ips").write_text(IPS, encoding="utf-8")
    (directory / "metadata").write_text(METADATA.replace("198.18.0.64/27", "198.18.0.64/26"), encoding="utf-8")
    for files in (("ips", "metadata"), ("metadata", "ips")):
        options = [word for name in files for word in ("--vnics2", name)]
        findings = json.loads(run_import(GOOD["article"], "--json", *options)[1])["findings"]
        expected = "layout: natVm2: a VNIC of NAT VM2 is in 198.18.0.64/26; nat-pod's are in a /27 each"
        assert expected in [shown(finding) for finding in findings]


# --- which /27 go together -------------------------------------------------------------------------------------------


def subnets(run_import, rules: dict[str, str]) -> tuple[list[str], list[str]]:
    pinned = json.loads(run_import(rules, "--json")[1])["config"]["subnets"]
    return pinned["natVm1"], pinned["natVm2"]


def test_mappings_that_lead_nowhere_have_no_say_in_the_layout(run_import):
    rules = mapped("10.0.0.9")
    for number in range(5):
        rules["natVm2"] += f"\niptables -t nat -A PREROUTING -s 10.200.0.9 -d 198.18.0.{140 + number} "
        rules["natVm2"] += f"{DNAT} 198.18.0.{108 + number}"
    assert subnets(run_import, rules) == (["198.18.0.0/27"], ["198.18.0.128/27"])


def test_one_mapping_with_equal_offsets_says_more_than_many_without(run_import):
    rules = mapped("10.0.0.9")
    for number in range(5):
        transit = f"198.18.0.{20 + number}"
        rules["natVm1"] += f"\niptables -t nat -A PREROUTING -s 198.18.0.130 -d {transit} {DNAT} 10.0.0.{50 + number}"
        rules["natVm2"] += f"\niptables -t nat -A PREROUTING -s 10.200.0.9 -d 198.18.0.{164 + number} {DNAT} {transit}"
    assert subnets(run_import, rules) == (["198.18.0.0/27"], ["198.18.0.128/27"])


def test_a_pair_that_is_two_hosts_for_two_servers_is_the_slot_of_one(run_import):
    """The rules tell the servers apart by their sources; a slot cannot."""
    static = {vm: text.splitlines() for vm, text in GOOD["static"].items()}
    static["natVm1"] += [
        f"iptables -t nat -A PREROUTING -s 198.18.0.135 -d 198.18.0.3 {DNAT} 10.0.1.101",
        "iptables -t nat -A POSTROUTING -s 198.18.0.135 -j SNAT --to-source 198.18.0.7",
    ]
    static["natVm2"] += [
        f"iptables -t nat -A PREROUTING -s 10.0.0.101 -d 198.18.0.131 {DNAT} 198.18.0.3",
        "iptables -t nat -A POSTROUTING -s 10.0.0.101 -j SNAT --to-source 198.18.0.135",
    ]
    _, out, _ = run_import({vm: "\n".join(lines) for vm, lines in static.items()}, "--json")
    assert (
        "asymmetric: natVm2 line 11: 10.0.1.101 is reached at 198.18.0.3 / 198.18.0.131, as 10.0.1.100 is for others; "
        "a slot is one member's for everybody"
    ) in [shown(finding) for finding in json.loads(out)["findings"]]


def test_an_assumed_network_keeps_off_one_that_is_given(run_import):
    _, out, _ = run_import(mapped("10.0.0.200"), "--json", "--customer", "acme=10.0.0.0/25")
    customers = json.loads(out)["config"]["customers"]
    assert {name: entry["cidr"] for name, entry in customers.items()} == {
        "acme": "10.0.0.0/25",
        "customer1": "10.0.0.128/25",
    }
