"""`import`: hand-built PODs read from their rules.

Address plan: the article's (conftest.py).  Good pairs and damaged ones are in data/damaged_pods.yaml, whole outputs in
golden/import-*.  That a POD comes back as it was is tested on what `rules` prints, in both forms.
"""

import copy
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest
import yaml
from conftest import REPOSITORY, stack_mapping

from bench.pods import full_pod
from nat_pod.commands.cli import main
from nat_pod.config.model import PodConfig
from nat_pod.config.whole_file import create
from nat_pod.errors import NatPodError
from nat_pod.names import Side
from nat_pod.plan.planner import plan_pod
from nat_pod.rules import iptables
from nat_pod.rules.article import article_lines

DATA = yaml.safe_load((REPOSITORY / "tests" / "data" / "damaged_pods.yaml").read_text(encoding="utf-8"))
GOOD, DAMAGED = DATA["good"], DATA["damaged"]
VMS = ("natVm1", "natVm2")
FILES = ["--vm1", "vm1", "--vm2", "vm2"]


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    return tmp_path


@pytest.fixture
def run(directory: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """`run({"natVm1": text, "natVm2": text}, "--json")`: exit status, standard output, standard error."""

    def call(rules: dict[str, str | bytes], *options: str) -> tuple[int, str, str]:
        for number, vm in enumerate(VMS, 1):
            data = rules[vm]
            (directory / f"vm{number}").write_bytes(data.encode() if isinstance(data, str) else data)
        try:
            status = main(["import", *FILES, *options])
        except SystemExit as end:
            status = end.code
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return call


def damage(entry: dict) -> dict[str, str]:
    """The files of one damaged POD."""
    files = {}
    for vm in VMS:
        lines = dict(enumerate(GOOD[entry.get("base", "article")][vm].splitlines(), 1))
        lines |= entry.get(vm, {})
        files[vm] = "\n".join(lines[number] for number in sorted(lines)) + "\n"
    return files


# --- the article, and back -------------------------------------------------------------------------------------------


def filled(written: dict, like: dict) -> dict:
    """An imported configuration with the gaps filled from the stack that the rules are of."""
    config = copy.deepcopy(written)
    for key in ("compartmentId", "natVm"):
        config[key] = like[key]
    config["management"]["vrouter"] = like["management"]["vrouter"]
    if "subnets" in config:
        config["subnets"]["vrouter"] = like["subnets"]["vrouter"]
    return config


def renamed(mapping: dict, written: dict) -> dict:
    """A stack's configuration with the names that the import gave: by network, and by address within it."""
    result = copy.deepcopy(mapping)
    servers = {address: name for name, address in written["management"]["servers"].items()}
    names = {f"management/{name}": f"management/{servers[a]}" for name, a in mapping["management"]["servers"].items()}
    server_names = {name: servers[address] for name, address in mapping["management"]["servers"].items()}
    result["management"]["servers"] = {servers[a]: a for a in mapping["management"]["servers"].values()}
    result["customers"] = {}
    for name, entry in mapping["customers"].items():
        new, twin = next((n, c) for n, c in written["customers"].items() if c["cidr"] == entry["cidr"])
        hosts = {address: host for host, address in twin["hosts"].items()}
        names |= {f"{name}/{host}": f"{new}/{hosts[address]}" for host, address in entry["hosts"].items()}
        result["customers"][new] = {**entry, "hosts": {hosts[a]: a for a in entry["hosts"].values()}}
        if "servers" in entry:
            result["customers"][new]["servers"] = [server_names[server] for server in entry["servers"]]
    result["addresses"] = {names[member]: slot for member, slot in mapping["addresses"].items()}
    return result


def printed(mapping: dict, form: str) -> dict[str, str]:
    """What `rules STACK --vm` prints, or with --article."""
    config = PodConfig.from_mapping(mapping, "x")
    plan = plan_pod(config, "x")
    if form == "article":
        return {vm: "\n".join(article_lines(config, Side(vm))) for vm in VMS}
    texts = {}
    for vm in VMS:
        rules = plan.vm(vm).rules
        enters = [f"# {table}: {builtin} enters {chain} first" for table, builtin, chain in iptables.hooks(rules)]
        texts[vm] = "\n".join([*enters, iptables.render(rules)])
    return texts


def as_saved(text: str) -> str:
    """What iptables-save on the VM prints of the same: the built-in chains, their jumps, counters."""
    jumps = re.findall(r"# (\w+): (\w+) enters (\S+) first\n", text)
    for table in ("filter", "nat"):
        own = [f"[7:420] -A {builtin} -j {chain}\n" for name, builtin, chain in jumps if name == table]
        builtins = "".join(f":{builtin} ACCEPT [12:720]\n" for name, builtin, _ in jumps if name == table)
        start, body = text.split(f"*{table}\n", 1)
        chains, rules = body.split("-A ", 1)
        text = f"{start}*{table}\n{builtins}{chains}{''.join(own)}-A {rules}"
    text = re.sub(r"^-A ", "[0:0] -A ", re.sub(r"^# .*\n", "", text, flags=re.MULTILINE), flags=re.MULTILINE)
    return f"# Generated by iptables-save v1.8.8 on Wed Nov  5 10:00:00 2025\n{text}# Completed\n"


def imported(run, rules: dict[str, str], *options: str) -> dict:
    """The import of a POD that has nothing wrong."""
    status, out, err = run(rules, "--json", *options)
    answer = json.loads(out)
    kinds = {finding["kind"] for finding in answer["findings"]}
    assert (status, err, kinds - {"others"}) == (0, "", set()), answer["findings"][:3]
    return answer


def assert_same_plan(mapping: dict, written: dict) -> None:
    """The imported stack plans the same POD, byte for byte, metadata included, but for the names."""
    twin = plan_pod(PodConfig.from_mapping(filled(written, mapping), "x"), "x")
    assert twin == plan_pod(PodConfig.from_mapping(renamed(mapping, written), "x"), "x")


def test_the_articles_final_tables_are_the_dev_pod(run, dev):
    assert_same_plan(dev, imported(run, GOOD["article"])["config"])


PODS = {
    "dev": lambda: stack_mapping("dev"),
    "dev, static": lambda: {**stack_mapping("dev"), "sourceNat": "static"},
    "ten": lambda: stack_mapping("ten"),
    "ten, masquerade": lambda: {**stack_mapping("ten"), "sourceNat": "masquerade"},
}
FULL_PODS = {
    "a full /21": lambda: full_pod(source_nat="static"),
    "a full /21, masquerade": lambda: full_pod(source_nat="masquerade"),
}
FORMS = ("rules", "iptables-save", "article")


@pytest.mark.parametrize(
    ("name", "form"),
    [
        *((name, form) for name in PODS for form in FORMS),
        *(pytest.param(name, form, marks=pytest.mark.sweep) for name in FULL_PODS for form in ("rules", "article")),
    ],
)
def test_what_rules_prints_is_imported_as_the_same_plan(run, name, form):
    mapping = (PODS | FULL_PODS)[name]()
    mapping.setdefault("subnets", {}) if name.startswith("dev") else mapping.pop("subnets", None)
    texts = printed(mapping, "article" if form == "article" else "rules")
    if form == "iptables-save":
        texts = {vm: as_saved(text) for vm, text in texts.items()}
    written = imported(run, texts)["config"]
    assert_same_plan(mapping, written)
    if form != "article":  # comments have the names
        assert set(written["addresses"]) == set(mapping["addresses"])


# --- one thing wrong -------------------------------------------------------------------------------------------------


def shown(finding: dict) -> str:
    place = "" if finding["line"] is None else f" line {finding['line']}"
    where = f"{finding['vm']}{place}: " if finding["vm"] else ""
    return f"{finding['kind']}: {where}{finding['why']}"


@pytest.mark.parametrize("entry", DAMAGED, ids=lambda entry: entry["what"])
def test_what_is_wrong_with_a_pod_is_what_is_listed(run, directory, entry):
    for name, text in entry.get("files", {}).items():
        (directory / name).write_text(text, encoding="utf-8")
    files = damage(entry)
    status, out, err = run(files, "--json", *entry.get("options", ()))
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
def test_the_pods_that_are_damaged_were_good_before(run, base):
    imported(run, GOOD[base])


# --- other ways to write the same ------------------------------------------------------------------------------------

DNAT = "-j DNAT --to-destination"
SAME = {
    "typed by hand": (
        f"""#!/bin/sh
        iptables -t nat -F
        iptables -t nat -X
        sudo iptables --table nat --append PREROUTING --source 10.0.0.100/32 --dst 198.18.0.2 {DNAT}=198.18.0.130
        /sbin/iptables -A PREROUTING -t nat -s 10.0.0.130,10.0.1.100/255.255.255.255 -d 198.18.0.2 {DNAT} 198.18.0.130 #
        iptables -t nat -I PREROUTING 1 -s 198.18.0.130 -d 198.18.0.2 -j DNAT --to 10.0.0.100
        iptables -t nat -I PREROUTING -s 198.18.0.130 -d 198.18.0.34 {DNAT} 10.0.0.130-10.0.0.130
        iptables -w -t nat -I PREROUTING -s 198.18.0.130 -d 198.18.0.3 -p all {DNAT} "10.0.1.100" --random
        iptables -t nat -A POSTROUTING -o ens+ -j MASQUERADE --random-fully
        """,
        GOOD["article"]["natVm2"],
    ),
    "iptables -t nat -S": (
        "-P PREROUTING ACCEPT\n-P INPUT ACCEPT\n-P OUTPUT ACCEPT\n-P POSTROUTING ACCEPT\n"
        + GOOD["article"]["natVm1"].replace("iptables -t nat ", ""),
        GOOD["article"]["natVm2"],
    ),
    "chains with returns, gotos and negations": (
        f"""*nat
        :PREROUTING ACCEPT [0:0]
        :POSTROUTING ACCEPT [0:0]
        :FROM-VM2 - [0:0]
        :CUSTOMERS - [0:0]
        :MGMT - [0:0]
        :HIDE - [0:0]
        -A PREROUTING -s 198.18.0.130/32 -g FROM-VM2
        -A PREROUTING ! -s 198.18.0.0/15 -m state --state NEW -j CUSTOMERS
        -A FROM-VM2 -d 198.18.0.2/32 {DNAT} 10.0.0.100
        -A FROM-VM2 -d 198.18.0.3/32 {DNAT} 10.0.1.100
        -A FROM-VM2 -d 198.18.0.34/32 -m conntrack --ctstate NEW {DNAT} 10.0.0.130
        -A CUSTOMERS -s 10.0.2.0/24 -j RETURN
        -A CUSTOMERS -s 10.0.0.100/32 -j MGMT
        -A CUSTOMERS -s 10.0.0.130/32 -j MGMT
        -A CUSTOMERS -s 10.0.1.100/32 -g MGMT
        -A MGMT -d 198.18.0.2/32 {DNAT} 198.18.0.130
        -A POSTROUTING -j HIDE
        -A HIDE -o lo -j RETURN
        -A HIDE -m conntrack --ctstate DNAT -j SNAT --to-source 198.18.0.2
        COMMIT
        """,
        GOOD["article"]["natVm2"],
    ),
    "NETMAP of whole /27": (
        GOOD["article"]["natVm1"],
        f"""*nat
        -A PREROUTING -s 198.18.0.2/32 -d 198.18.0.130/32 {DNAT} 10.0.0.100
        -A PREROUTING -s 10.0.0.100/32 -d 198.18.0.128/27 -j NETMAP --to 198.18.0.0/27
        -A PREROUTING -s 10.0.0.100/32 -d 198.18.0.64/27 -j NETMAP --to 198.18.0.32/27
        -A POSTROUTING -j MASQUERADE
        COMMIT
        """,
    ),
    "firewalld masquerades": (
        GOOD["article"]["natVm1"],
        """*nat
        :POSTROUTING_ZONES - [0:0]
        :POST_public - [0:0]
        :POST_public_allow - [0:0]
        """
        + "\n".join(
            line.replace("iptables -t nat ", "")
            for line in GOOD["article"]["natVm2"].splitlines()
            if "MASQUERADE" not in line
        )
        + """
        -A POSTROUTING -j POSTROUTING_ZONES
        -A POSTROUTING_ZONES -o ens5 -g POST_public
        -A POSTROUTING_ZONES -o ens3 -g POST_public
        -A POSTROUTING_ZONES -g POST_public
        -A POST_public -j POST_public_allow
        -A POST_public_allow ! -o lo -j MASQUERADE
        COMMIT
        """,
    ),
}


@pytest.mark.parametrize("name", SAME)
def test_rules_that_do_the_same_are_imported_as_the_same(run, name):
    article = imported(run, GOOD["article"])["config"]
    assert imported(run, dict(zip(VMS, SAME[name], strict=True)))["config"] == article


def test_what_iptables_save_printed_on_vms_with_docker_is_imported_and_says_what_is_docker(run):
    """The files are real: typed into network namespaces and saved by iptables-nft-save 1.8.9."""
    saved = {vm: (REPOSITORY / "tests" / "data" / f"handbuilt-{vm}.save").read_text(encoding="utf-8") for vm in VMS}
    answer = imported(run, saved)
    assert answer["config"] == imported(run, GOOD["article"])["config"]
    notes = [shown(finding) for finding in answer["findings"] if finding["vm"] == "natVm1"]
    assert notes == [
        "others: natVm1: table filter: 1 rule, not read; nat-pod brings its own guard",
        "others: natVm1: chain DOCKER belongs to Docker: 2 rules, not followed",
        "others: natVm1 line 27: belongs to a container or VM host, judging by its interface",
    ]


# --- what cannot be imported -----------------------------------------------------------------------------------------

HOW = "on the NAT VM, run: sudo iptables-save > vm1.save"
ARTICLE = GOOD["article"]["natVm1"]
NO_FLOW = "no flow passes both NAT VMs: are these the rules of the two NAT VMs of one POD? (nothing was written)"


LIST = ",".join(f"198.18.0.{host}" for host in range(80))


def chains(count: int, jumps_each: int = 1) -> str:
    """A table whose chains lead on and on, with `jumps_each ** count` ways through them."""
    jumps = [f"-A C{number} -j C{number + 1}\n" * jumps_each for number in range(count)]
    names = "".join(f":C{number} - [0:0]\n" for number in range(count + 1))
    end = f"-A C{count} -d 198.18.0.2 {DNAT} 198.18.0.130\n"
    return f"*nat\n{names}-A PREROUTING -j C0\n{''.join(jumps)}{end}COMMIT\n"


HOSTILE = {
    "empty": ("", f"vm1: is empty; {HOW}"),
    "blank": (" \n\n", f"vm1: is empty; {HOW}"),
    "binary": (bytes(range(256)), f"vm1: is not text; {HOW}"),
    "not UTF-8": (ARTICLE.encode().replace(b"PREROUTING", b"PR\xc4ROUTING"), f"vm1: is not text; {HOW}"),
    "commands for a terminal": (ARTICLE + "\x1b[2J", f"vm1: is not text; {HOW}"),
    "huge": (b"#" * 16_000_001, "vm1: has more than 16 MB; a POD's rules have less than one"),
    "a web page": ("<!DOCTYPE html><html><body>*nat</body></html>", f"vm1: is a web page; {HOW}"),
    "JSON": ('{"nftables": []}', f"vm1: is JSON; {HOW}"),
    "nft": (
        "table ip nat {\n\tchain PREROUTING {\n\t\ttype nat hook prerouting priority dstnat;\n\t}\n}\n",
        f"vm1: is the output of `nft list ruleset`; {HOW}",
    ),
    "a listing": (
        "Chain PREROUTING (policy ACCEPT 0 packets, 0 bytes)\nnum   pkts bytes target     prot opt in     out\n",
        f"vm1: is a listing (`iptables -nvL`), which leaves out parts of the rules; {HOW}",
    ),
    "a stack file": (
        (REPOSITORY / "Pulumi.dev.yaml").read_text(encoding="utf-8"),
        f"vm1: has no rules in a nat table; {HOW}",
    ),
    "no nat table": ("*filter\n-A FORWARD -j DROP\nCOMMIT\n", f"vm1: has no rules in a nat table; {HOW}"),
    "an empty nat table": ("*nat\n:PREROUTING ACCEPT [0:0]\nCOMMIT\n", f"vm1: has no rules in a nat table; {HOW}"),
    "cut off": (
        f"*nat\n-A PREROUTING -d 198.18.0.2 {DNAT} 198.18.0.130\n",
        "vm1: ends inside table nat, before its COMMIT: a part of the file is missing",
    ),
    "a lost COMMIT": (
        f"*nat\n-A PREROUTING -d 198.18.0.2 {DNAT} 198.18.0.130\n*filter\nCOMMIT\n",
        "vm1: line 3: *filter stands inside table nat; is a COMMIT missing?",
    ),
    "two VMs in one file": (
        f"*nat\n-A PREROUTING -d 198.18.0.2 {DNAT} 198.18.0.130\nCOMMIT\n*nat\nCOMMIT\n",
        "vm1: line 4: begins a second nat table; give one file per VM",
    ),
    "rules that iptables cannot show": (
        f"# Table `nat' is incompatible, use 'nft' tool.\n{ARTICLE}",
        "vm1: line 1: iptables says that it cannot show all rules: # Table `nat' is incompatible, use 'nft' tool.",
    ),
    "a loop": (
        "*nat\n:A - [0:0]\n:B - [0:0]\n-A PREROUTING -j A\n-A A -g B\n-A B -j A\nCOMMIT\n",
        "vm1: chain A leads back to itself; no kernel has such rules",
    ),
    "chains without end": (chains(2000), "vm1: its chains are nested more than 100 deep; import gives up"),
    "ways without number": (
        "*nat\n:C - [0:0]\n"
        + "".join(
            f"-A PREROUTING -s 10.0.{n // 250}.{n % 250} -j C\n-A C -d 198.18.9.{n % 250} -j RETURN\n"
            for n in range(1100)
        )
        + "COMMIT\n",
        "there are too many ways through these chains; import gives up",
    ),
    "rules without number": (
        "*nat\n" + "-A X\n" * 100_001 + "COMMIT\n",
        "vm1: has more than 100000 rules; a full POD in the article's form has some 11000",
    ),
    "address lists without number": (  # 3 MB of such lines were 13 million rules: 80 s and 3.9 GB
        "*nat\n" + f"-A PREROUTING -s {LIST} -d {LIST} {DNAT} 198.18.0.130\n" * 16 + "COMMIT\n",
        "vm1: has more than 100000 rules, 6400 of them on line 17, which lists addresses; "
        "a full POD in the article's form has some 11000",
    ),
    "hosts without number": (
        "".join(
            f"iptables -t nat -A PREROUTING -s 10.{n >> 8}.{n & 255}.9 -d 198.18.0.2 {DNAT} 198.18.0.130\n"
            for n in range(5000)
        )
        + "iptables -t nat -A POSTROUTING -j MASQUERADE\n",
        "these rules connect 5000 hosts and 1 server, more than 5000 together; a POD has 696 slots at most",
    ),
    "the other VM's file": (
        GOOD["article"]["natVm2"],
        "--vm1 and --vm2 have the same rules: give the files of two different NAT VMs",
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_is_no_rule_set_is_answered_with_a_sentence_and_nothing_is_written(run, directory, name):
    content, sentence = HOSTILE[name]
    for options in (("--stack", "x"), ("--json",)):
        files = {"natVm1": content, "natVm2": GOOD["article"]["natVm2"]}
        assert run(files, *options) == (1, "", f"{sentence}\n")
    assert sorted(path.name for path in directory.iterdir()) == ["vm1", "vm2"]


def test_files_of_two_different_pods_give_no_stack_and_say_so(run, directory):
    other = GOOD["article"]["natVm2"].replace("198.18.", "198.19.")
    status, out, err = run({"natVm1": ARTICLE, "natVm2": other}, "--stack", "x")
    assert (status, err) == (1, f"{NO_FLOW}\n")
    assert "dead: natVm1 line 1: NAT VM2 does not translate 198.18.0.130" in out
    status, out, err = run({"natVm1": ARTICLE, "natVm2": other}, "--json")
    assert (status, json.loads(out)["config"], err) == (1, None, f"{NO_FLOW}\n")
    assert not (directory / "Pulumi.x.yaml").exists()


def test_two_nat_vms_in_one_subnet_have_no_layout_and_it_says_so(run, directory):
    """NAT VM2 has the upper half of NAT VM1's /27: the flows pass, but there are no pairs of /27."""
    rules = {
        vm: text.replace("198.18.0.130", "198.18.0.18").replace("198.18.0.131", "198.18.0.19")
        for vm, text in mapped("10.0.0.9").items()
    }
    status, out, err = run(rules, "--stack", "x")
    assert status == 1
    assert err == "both NAT VMs share their subnets; in nat-pod each VNIC has a /27 of its own (nothing was written)\n"
    assert "2 flows" in out
    assert "layout: no /27 of NAT VM1 translates into one of NAT VM2: there is no layout to pin" in out
    assert not (directory / "Pulumi.x.yaml").exists()


def test_exchanged_files_are_recognised_by_the_names_of_their_members(run, dev):
    texts = printed(dev, "rules")
    status, out, err = run({"natVm1": texts["natVm2"], "natVm2": texts["natVm1"]})
    assert (status, out) == (1, "")
    assert err == (
        "--vm1 has 10.0.0.100 as management/mgmt: --vm1 and --vm2 are exchanged; NAT VM1 is the one that faces the "
        "customers\n"
    )


def test_exchanged_files_without_names_are_suspected_by_their_numbers(run):
    files = {"natVm1": GOOD["article"]["natVm2"], "natVm2": GOOD["article"]["natVm1"]}
    status, out, _ = run(files, "--json")
    assert (status, [shown(finding) for finding in json.loads(out)["findings"]]) == (
        1,
        [
            "exchanged: --vm1 and --vm2 look exchanged: 1 host behind --vm1, 3 servers behind --vm2; "
            "--vm1 is the NAT VM that faces the customers"
        ],
    )
    _, out, err = run(files)
    assert "\nLook at this first (1)\n  exchanged: " in err
    assert "harmless" not in err


def test_a_tangle_of_chains_is_walked_once(run):
    """Two jumps from each of forty chains to the next: a million million ways, and one answer."""
    tangle = chains(40, 2).replace("COMMIT\n", "").replace("-d 198.18.0.2 ", "-d 198.18.0.9 ")
    rest = "".join(line.replace("iptables -t nat ", "") + "\n" for line in ARTICLE.splitlines())
    files = {"natVm1": f"{tangle}{rest}COMMIT\n", "natVm2": GOOD["article"]["natVm2"]}
    status, out, _ = run(files, "--json")
    assert (status, len(json.loads(out)["config"]["addresses"])) == (1, 4)


@pytest.mark.parametrize("name", [".", "missing"])
def test_a_file_that_cannot_be_read_is_named(directory, capsys, name):
    assert main(["import", "--vm1", name, "--vm2", name]) == 1
    error = "Is a directory" if name == "." else "No such file or directory"
    assert capsys.readouterr().err == f"{name}: cannot be read: {error}\n"


VNIC_FORMS = (
    "is not a list of VNICs; give the JSON of http://169.254.169.254/opc/v2/vnics/, of "
    "`oci compute instance list-vnics` or of `oci network private-ip list`"
)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("", f"v: {VNIC_FORMS}"),
        ("[]", f"v: {VNIC_FORMS}"),
        ('{"data": []}', f"v: {VNIC_FORMS}"),
        ("[" * 100_000, f"v: {VNIC_FORMS}"),
        ("[1]", "v: entry 1 is neither a VNIC nor a private IP: "),
        (
            '[{"privateIp": "x", "subnetCidrBlock": "y"}]',
            "v: entry 1 is neither a VNIC nor a private IP: x is not an IPv4 address",
        ),
        ('{"data": [{"private-ip": null}]}', "v: entry 1 is neither a VNIC nor a private IP: "),
        ('{"data": [{"id": "ocid1"}]}', "v: entry 1 is neither a VNIC nor a private IP: 'ip-address'"),
    ],
)
def test_what_is_no_list_of_vnics_is_answered_with_a_sentence(run, directory, content, sentence):
    (directory / "v").write_text(content, encoding="utf-8")
    status, out, err = run(GOOD["article"], "--vnics1", "v")
    assert (status, out) == (1, "")
    assert err.startswith(sentence)
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    "option",
    [
        "x",
        "acme",
        "acme=",
        "=10.0.0.0/24",
        "Acme=10.0.0.0/24",
        "pod=10.0.0.0/24",
        "acme=10.0.0.1/24",
        "acme=10.0.0.0/33",
    ],
)
def test_a_customer_that_is_no_name_with_a_network_is_a_wrong_command_line(run, option):
    status, out, err = run(GOOD["article"], "--customer", option)
    assert (status, out) == (2, "")
    assert f"{option} is not a name and a network, e.g. customer1=10.0.0.0/24" in err


def test_a_customer_given_twice_is_refused(run):
    status, out, err = run(GOOD["article"], "--customer", "a=10.0.0.0/24", "--customer", "a=10.0.1.0/24")
    assert (status, out, err) == (1, "", "--customer: a name was given twice; a customer has one network\n")


@pytest.mark.parametrize("name", ["", "../x", "a b", "-x", "x/y"])
def test_a_stack_name_that_is_none_is_a_wrong_command_line(run, directory, name):
    status, out, err = run(GOOD["article"], f"--stack={name}")
    assert (status, out) == (2, "")
    assert f"{name} is not a valid stack name; a stack's name is letters, digits" in err


def test_damaged_files_never_end_in_a_traceback(run):
    """Three hundred files with bytes, words and lines changed: each is read, or refused with a sentence."""
    random = Random(5)
    files = [text for entry in GOOD.values() for text in entry.values()]
    files += [(REPOSITORY / "tests" / "data" / f"handbuilt-{vm}.save").read_text(encoding="utf-8") for vm in VMS]
    words = [*{word for text in files for word in text.split()}, "!", "-g", "0.0.0.0/0", "169.254.169.254", '"', "-I"]
    statuses = set()
    for _ in range(300):
        changed = []
        for first in range(len(VMS)):
            lines = random.choice(files[first::2]).splitlines()
            for _ in range(random.randint(0, 4)):
                at = random.randrange(len(lines))
                parts = lines[at].split(" ")
                parts[random.randrange(len(parts))] = random.choice(words)
                lines[at] = random.choice([" ".join(parts), "", lines[at - 1], lines[at][: random.randrange(80)]])
            changed.append("\n".join(lines))
        status, out, err = run(dict(zip(VMS, changed, strict=True)), "--json")
        statuses.add(status)
        assert status in (0, 1)
        assert json.loads(out)["findings"] is not None if out else err.count("\n") == 1
    assert statuses == {0, 1}


# --- what the stack file says ----------------------------------------------------------------------------------------


def test_what_import_prints_for_the_article_is_the_golden_one(run, directory, golden):
    status, out, err = run(GOOD["article"])
    assert status == 0
    golden("import-article.yaml", out)
    golden("import-article.txt", err)
    assert run(GOOD["article"], "--stack", "old") == (0, f"{err}\nwritten: Pulumi.old.yaml\n", "")
    assert (directory / "Pulumi.old.yaml").read_text(encoding="utf-8") == out
    status, out, err = run(GOOD["article"], "--json")
    assert (status, err) == (0, "")
    golden("import-article.json", out)


def test_what_import_prints_for_a_damaged_pod_is_the_golden_one(run, golden):
    changes = {"natVm1": {6: "", 8: ARTICLE.splitlines()[0], 9: "service iptables save"}, "natVm2": {6: "iptables -F"}}
    status, out, err = run(damage(changes), "--customer", "acme=10.0.0.0/24", "--customer", "birch=10.0.1.0/24")
    assert status == 1
    golden("import-damaged.yaml", out)
    golden("import-damaged.txt", err)


@pytest.mark.parametrize("options", [(), ("--customer", "on=10.0.0.0/24", "--customer", "null=10.0.0.0/16")])
def test_the_file_says_what_the_json_says(run, options):
    """Names that YAML takes for something else are quoted."""
    comments = {"vm1": "10.0.0.100", "yes": "10.0.0.130", "on/off": "10.0.1.100"}
    texts = dict(GOOD["article"])
    for comment, address in comments.items():
        texts["natVm1"] = texts["natVm1"].replace(
            f"{DNAT} {address}\n", f"-m comment --comment {comment} {DNAT} {address}\n"
        )
    _, out, _ = run(texts, *options)
    written = yaml.safe_load(out)["config"]
    answer = json.loads(run(texts, "--json", *options)[1])
    assert written == {"oci:region": "FILL-IN", **{f"nat-pod:{key}": value for key, value in answer["config"].items()}}
    hosts = {host for entry in answer["config"]["customers"].values() for host in entry["hosts"]}
    assert hosts == {"vm1", "yes", "off"}


def test_check_asks_for_exactly_what_is_to_be_filled_in(run, capsys):
    run(GOOD["article"], "--stack", "old")
    assert main(["check", "old", "--json"]) == 1
    problems = json.loads(capsys.readouterr().out)["old"]["problems"]
    assert [(problem["path"], problem["value"]) for problem in problems] == [
        (path, "FILL-IN") for path in json.loads(run(GOOD["article"], "--json")[1])["toFillIn"]
    ]


def test_members_without_a_slot_get_one_by_allocate(run, directory, dev, capsys):
    """The host whose pair has two offsets: the filled-in file passes `check` after `allocate`, and not before."""
    entry = next(entry for entry in DAMAGED if entry["what"] == "the pair of a host has two offsets")
    run(damage(entry), "--stack", "old")
    path = directory / "Pulumi.old.yaml"
    text = path.read_text(encoding="utf-8")
    for gap in (
        "uk-london-1", dev["compartmentId"], dev["natVm"]["shape"], dev["natVm"]["imageId"],
        dev["natVm"]["sshPublicKey"], "198.18.0.167", "198.18.0.160/28",
    ):  # fmt: skip
        at = text.index(": FILL-IN", text.index("config:"))
        text = f"{text[:at]}: {gap}{text[at + len(': FILL-IN') :]}"
    path.write_text(text, encoding="utf-8")
    assert main(["check", "old"]) == 1
    assert main(["allocate", "old"]) == 0
    assert main(["check", "old"]) == 0
    assert "added     customer2/host-10-0-1-100  198.18.0.3 / 198.18.0.131" in capsys.readouterr().out


def test_a_stack_file_that_is_there_stays(run, directory):
    (directory / "Pulumi.x.yaml").write_text("mine\n", encoding="utf-8")
    sentence = "Pulumi.x.yaml: exists already; import writes new files only (nothing was changed)\n"
    assert run(GOOD["article"], "--stack", "x") == (1, "", sentence)
    assert (directory / "Pulumi.x.yaml").read_text(encoding="utf-8") == "mine\n"


def test_a_file_that_appears_meanwhile_stays_too(directory):
    (directory / "Pulumi.x.yaml").write_text("mine\n", encoding="utf-8")
    with pytest.raises(NatPodError) as refused:
        create(directory / "Pulumi.x.yaml", "import's\n")
    assert str(refused.value) == "Pulumi.x.yaml: exists already; choose another name (nothing was changed)"
    assert (directory / "Pulumi.x.yaml").read_text(encoding="utf-8") == "mine\n"


def test_a_disk_that_is_full_leaves_no_half_file(directory, monkeypatch):
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(NatPodError) as refused:
        create(directory / "Pulumi.x.yaml", "text\n")
    assert str(refused.value) == "Pulumi.x.yaml: cannot be written: No space left on device (nothing was changed)"
    assert list(directory.iterdir()) == []


def mapped(*hosts: str, comments: tuple[str, ...] = ()) -> dict[str, str]:
    """A POD of one server and these hosts, each with the next slot."""
    vm1, vm2 = [], [f"iptables -t nat -A PREROUTING -s 198.18.0.2 -d 198.18.0.130 {DNAT} 10.200.0.9"]
    for number, host in enumerate(hosts):
        comment = f"-m comment --comment {comments[number]} " if comments else ""
        one, two = f"198.18.0.{3 + number}", f"198.18.0.{131 + number}"
        vm1.append(f"iptables -t nat -A PREROUTING -s {host} -d 198.18.0.2 {DNAT} 198.18.0.130")
        vm1.append(f"iptables -t nat -A PREROUTING -s 198.18.0.130 -d {one} {comment}{DNAT} {host}")
        vm2.append(f"iptables -t nat -A PREROUTING -s 10.200.0.9 -d {two} {DNAT} {one}")
    hide = "iptables -t nat -A POSTROUTING -o ens3 -j MASQUERADE"
    return {"natVm1": "\n".join([*vm1, hide]), "natVm2": "\n".join([*vm2, hide])}


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
def test_customers_and_their_networks_are(run, name):
    rules, options, networks = NETWORKS[name]
    customers = json.loads(run(rules, "--json", *options)[1])["config"]["customers"]
    assert {name: entry["cidr"] for name, entry in customers.items()} == networks
    assert not any("servers" in entry for entry in customers.values())


def test_what_the_design_refuses_is_listed_as_check_would_say_it(run):
    """The first address of a /24 is no VM's, and eleven customers are one too many."""
    rules = mapped(*(f"10.{number}.0.9" for number in range(10)), "10.10.0.0")
    status, out, _ = run(rules, "--json", "--customer", "last=10.10.0.0/24")
    findings = [finding for finding in json.loads(out)["findings"] if finding["kind"] == "refused"]
    assert (status, [finding["why"] for finding in findings]) == (
        1,
        [
            'nat-pod:customers.last.hosts.host-10-10-0-0: "10.10.0.0": 10.10.0.0 is the first address of 10.10.0.0/24, '
            "which OCI reserves (it keeps the first two and the last); no VNIC can have it",
            'nat-pod:customers: "11 customers": a VCN has 10 local peering gateways, one a customer; set '
            "nat-pod:lpgLimit: 20 if Oracle raised your limit, or move customers to another POD",
        ],
    )


def test_equal_names_in_comments_are_nobodys(run):
    rules = mapped("10.0.0.9", "10.0.0.10", "10.0.0.11", comments=("web", "web", "host-10-0-0-9"))
    hosts = imported(run, rules)["config"]["customers"]["customer1"]["hosts"]
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
def test_the_primary_vnic_comes_first_in_the_layout(run, directory, form):
    """Without the list the first pair is the one that holds NAT VM1's lowest address, and the one rules expect."""
    (directory / "v").write_text(form, encoding="utf-8")
    rules = {vm: text.replace("-o ens3 -j MASQUERADE", "-j MASQUERADE") for vm, text in GOOD["article"].items()}
    rules = {vm: re.sub(r"-s 198\.18\.0\.(2|130) ", "-s 198.18.0.0/24 ", text) for vm, text in rules.items()}
    without = json.loads(run(rules, "--json")[1])["config"]["subnets"]
    assert without["natVm2"] == ["198.18.0.128/27", "198.18.0.64/27"]
    with_list = json.loads(run(rules, "--json", "--vnics2", "v")[1])["config"]["subnets"]
    assert with_list == {
        "natVm1": ["198.18.0.32/27", "198.18.0.0/27"],
        "natVm2": ["198.18.0.64/27", "198.18.0.128/27"],
        "vrouter": "FILL-IN",
    }


def test_private_ips_that_no_mapping_needs_are_named(run, directory):
    (directory / "ips").write_text(IPS, encoding="utf-8")
    status, out, _ = run(GOOD["article"], "--json", "--vnics2", "ips")
    assert (status, [shown(finding) for finding in json.loads(out)["findings"]]) == (
        0,
        ["unused: natVm2: no mapping needs the private IPs 198.18.0.135"],
    )


def test_a_list_with_subnets_is_believed_before_one_without(run, directory):
    (directory / "ips").write_text(IPS, encoding="utf-8")
    (directory / "metadata").write_text(METADATA.replace("198.18.0.64/27", "198.18.0.64/26"), encoding="utf-8")
    for files in (("ips", "metadata"), ("metadata", "ips")):
        options = [word for name in files for word in ("--vnics2", name)]
        findings = json.loads(run(GOOD["article"], "--json", *options)[1])["findings"]
        expected = "layout: natVm2: a VNIC of NAT VM2 is in 198.18.0.64/26; nat-pod's are in a /27 each"
        assert expected in [shown(finding) for finding in findings]


# --- which /27 go together -------------------------------------------------------------------------------------------


def subnets(run, rules: dict[str, str]) -> tuple[list[str], list[str]]:
    pinned = json.loads(run(rules, "--json")[1])["config"]["subnets"]
    return pinned["natVm1"], pinned["natVm2"]


def test_mappings_that_lead_nowhere_have_no_say_in_the_layout(run):
    rules = mapped("10.0.0.9")
    for number in range(5):
        rules["natVm2"] += f"\niptables -t nat -A PREROUTING -s 10.200.0.9 -d 198.18.0.{140 + number} "
        rules["natVm2"] += f"{DNAT} 198.18.0.{108 + number}"
    assert subnets(run, rules) == (["198.18.0.0/27"], ["198.18.0.128/27"])


def test_one_mapping_with_equal_offsets_says_more_than_many_without(run):
    rules = mapped("10.0.0.9")
    for number in range(5):
        transit = f"198.18.0.{20 + number}"
        rules["natVm1"] += f"\niptables -t nat -A PREROUTING -s 198.18.0.130 -d {transit} {DNAT} 10.0.0.{50 + number}"
        rules["natVm2"] += f"\niptables -t nat -A PREROUTING -s 10.200.0.9 -d 198.18.0.{164 + number} {DNAT} {transit}"
    assert subnets(run, rules) == (["198.18.0.0/27"], ["198.18.0.128/27"])


def test_a_pair_that_is_two_hosts_for_two_servers_is_the_slot_of_one(run):
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
    _, out, _ = run({vm: "\n".join(lines) for vm, lines in static.items()}, "--json")
    assert (
        "asymmetric: natVm2 line 11: 10.0.1.101 is reached at 198.18.0.3 / 198.18.0.131, as 10.0.1.100 is for others; "
        "a slot is one member's for everybody"
    ) in [shown(finding) for finding in json.loads(out)["findings"]]


def test_an_assumed_network_keeps_off_one_that_is_given(run):
    _, out, _ = run(mapped("10.0.0.200"), "--json", "--customer", "acme=10.0.0.0/25")
    customers = json.loads(out)["config"]["customers"]
    assert {name: entry["cidr"] for name, entry in customers.items()} == {
        "acme": "10.0.0.0/25",
        "customer1": "10.0.0.128/25",
    }
