"""`import`: files that are no POD's rules are refused with a sentence, and nothing is written."""

import json
from random import Random

import pytest
from conftest import REPOSITORY
from handbuilt_pods import ARTICLE, DNAT, GOOD, VMS, mapped, printed, shown

from nat_pod.commands.cli import main

# --- what cannot be imported -----------------------------------------------------------------------------------------

HOW = "on the NAT VM, run: sudo iptables-save > vm1.save"
NO_FLOW = "no flow passes both NAT VMs; give the rules of the two NAT VMs of one POD (nothing was written)"


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


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.sweep) if name.endswith("without number") else name for name in HOSTILE],
)
def test_what_is_no_rule_set_is_answered_with_a_sentence_and_nothing_is_written(run_import, directory, name):
    content, sentence = HOSTILE[name]
    for options in (("--stack", "x"), ("--json",)):
        files = {"natVm1": content, "natVm2": GOOD["article"]["natVm2"]}
        assert run_import(files, *options) == (1, "", f"{sentence}\n")
    assert sorted(path.name for path in directory.iterdir()) == ["vm1", "vm2"]


def test_files_of_two_different_pods_give_no_stack_and_say_so(run_import, directory):
    other = GOOD["article"]["natVm2"].replace("198.18.", "198.19.")
    status, out, err = run_import({"natVm1": ARTICLE, "natVm2": other}, "--stack", "x")
    assert (status, err) == (1, f"{NO_FLOW}\n")
    assert "dead: natVm1 line 1: NAT VM2 does not translate 198.18.0.130" in out
    status, out, err = run_import({"natVm1": ARTICLE, "natVm2": other}, "--json")
    assert (status, json.loads(out)["config"], err) == (1, None, f"{NO_FLOW}\n")
    assert not (directory / "Pulumi.x.yaml").exists()


def test_two_nat_vms_in_one_subnet_have_no_layout_and_it_says_so(run_import, directory):
    """NAT VM2 has the upper half of NAT VM1's /27: the flows pass, but there are no pairs of /27."""
    rules = {
        vm: text.replace("198.18.0.130", "198.18.0.18").replace("198.18.0.131", "198.18.0.19")
        for vm, text in mapped("10.0.0.9").items()
    }
    status, out, err = run_import(rules, "--stack", "x")
    assert status == 1
    assert err == "both NAT VMs share their subnets; in nat-pod each VNIC has a /27 of its own (nothing was written)\n"
    assert "2 flows" in out
    assert "layout: no /27 of NAT VM1 translates into one of NAT VM2: there is no layout to pin" in out
    assert not (directory / "Pulumi.x.yaml").exists()


def test_exchanged_files_are_recognised_by_the_names_of_their_members(run_import, dev):
    texts = printed(dev, "rules")
    status, out, err = run_import({"natVm1": texts["natVm2"], "natVm2": texts["natVm1"]})
    assert (status, out) == (1, "")
    assert err == (
        "--vm1 has 10.0.0.100 as management/mgmt: --vm1 and --vm2 are exchanged; NAT VM1 is the one that faces the "
        "customers\n"
    )


def test_exchanged_files_without_names_are_suspected_by_their_numbers(run_import):
    files = {"natVm1": GOOD["article"]["natVm2"], "natVm2": GOOD["article"]["natVm1"]}
    status, out, _ = run_import(files, "--json")
    assert (status, [shown(finding) for finding in json.loads(out)["findings"]]) == (
        1,
        [
            "exchanged: --vm1 and --vm2 look exchanged: 1 host behind --vm1, 3 servers behind --vm2; "
            "--vm1 is the NAT VM that faces the customers"
        ],
    )
    _, out, err = run_import(files)
    assert "\nLook at this first (1)\n  exchanged: " in err
    assert "harmless" not in err


def test_a_tangle_of_chains_is_walked_once(run_import):
    """Two jumps from each of forty chains to the next: a million million ways, and one answer."""
    tangle = chains(40, 2).replace("COMMIT\n", "").replace("-d 198.18.0.2 ", "-d 198.18.0.9 ")
    rest = "".join(line.replace("iptables -t nat ", "") + "\n" for line in ARTICLE.splitlines())
    files = {"natVm1": f"{tangle}{rest}COMMIT\n", "natVm2": GOOD["article"]["natVm2"]}
    status, out, _ = run_import(files, "--json")
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
def test_what_is_no_list_of_vnics_is_answered_with_a_sentence(run_import, directory, content, sentence):
    (directory / "v").write_text(content, encoding="utf-8")
    status, out, err = run_import(GOOD["article"], "--vnics1", "v")
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
def test_a_customer_that_is_no_name_with_a_network_is_a_wrong_command_line(run_import, option):
    status, out, err = run_import(GOOD["article"], "--customer", option)
    assert (status, out) == (2, "")
    assert f"{option} is not a name and a network, e.g. customer1=10.0.0.0/24" in err


def test_a_customer_given_twice_has_several_networks(run_import):
    status, out, _ = run_import(GOOD["article"], "--customer", "a=10.0.0.0/24", "--customer", "a=10.0.1.0/24", "--json")
    found = json.loads(out)
    assert found["config"]["customers"]["a"]["cidr"] == ["10.0.0.0/24", "10.0.1.0/24"]
    assert (status, len(found["config"]["customers"]["a"]["hosts"])) == (0, 3)
    status, out, _ = run_import(GOOD["article"], "--customer", "a=10.0.0.0/24", "--customer", "a=10.0.0.0/25", "--json")
    refused = [one["why"] for one in json.loads(out)["findings"] if one["kind"] == "refused"]
    assert (status, ["overlaps 10.0.0.0/24 of the same list" in why for why in refused]) == (1, [True])


@pytest.mark.parametrize("name", ["", "../x", "a b", "-x", "x/y"])
def test_a_stack_name_that_is_none_is_a_wrong_command_line(run_import, directory, name):
    status, out, err = run_import(GOOD["article"], f"--stack={name}")
    assert (status, out) == (2, "")
    assert f"{name} is not a valid stack name; a stack's name is letters, digits" in err


@pytest.mark.slow
@pytest.mark.parametrize("count", [60, pytest.param(300, marks=pytest.mark.sweep)])
def test_damaged_files_never_end_in_a_traceback(run_import, count):
    """Files with bytes, words and lines changed: each is read, or refused with a sentence."""
    random = Random(5)
    files = [text for entry in GOOD.values() for text in entry.values()]
    files += [(REPOSITORY / "tests" / "data" / f"handbuilt-{vm}.save").read_text(encoding="utf-8") for vm in VMS]
    words = sorted({word for text in files for word in text.split()})  # a set's order is another in each run
    words += ["!", "-g", "0.0.0.0/0", "169.254.169.254", '"', "-I"]
    statuses = set()
    for _ in range(count):
        changed = []
        for first in range(len(VMS)):
            lines = random.choice(files[first::2]).splitlines()
            for _ in range(random.randint(0, 4)):
                at = random.randrange(len(lines))
                parts = lines[at].split(" ")
                parts[random.randrange(len(parts))] = random.choice(words)
                lines[at] = random.choice([" ".join(parts), "", lines[at - 1], lines[at][: random.randrange(80)]])
            changed.append("\n".join(lines))
        status, out, err = run_import(dict(zip(VMS, changed, strict=True)), "--json")
        statuses.add(status)
        assert status in (0, 1)
        assert json.loads(out)["findings"] is not None if out else err.count("\n") == 1
    assert statuses == {0, 1}
