"""The command line: what each command prints, word for word, and its exit status.

Address plan: the article's (conftest.py).  Whole outputs are in golden/; the article's rules and hops are literal,
here and in data/article_cases.json.
"""

import json
import subprocess
import sys
import tomllib
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest
from conftest import real_stack

import nat_pod
from nat_pod.commands.cli import main
from nat_pod.config import address_book
from nat_pod.config.model import PodConfig
from nat_pod.names import Side
from nat_pod.rules.compiler import compile_rules
from nat_pod.rules.netfilter import Accept, Match, Rule, Ruleset

REPOSITORY = Path(__file__).resolve().parent.parent
CASES = json.loads((REPOSITORY / "tests" / "data" / "article_cases.json").read_text(encoding="utf-8"))

# The article, section 4.2, word for word.
ARTICLE_RULES = {
    "natVm1": {
        "iptables -t nat -A PREROUTING -s 10.0.0.100 -d 198.18.0.2 -j DNAT --to-destination 198.18.0.130",
        "iptables -t nat -A PREROUTING -s 10.0.1.100 -d 198.18.0.2 -j DNAT --to-destination 198.18.0.130",
        "iptables -t nat -A PREROUTING -s 10.0.0.130 -d 198.18.0.2 -j DNAT --to-destination 198.18.0.130",
        "iptables -t nat -A PREROUTING -s 198.18.0.130 -d 198.18.0.2 -j DNAT --to-destination 10.0.0.100",
        "iptables -t nat -A PREROUTING -s 198.18.0.130 -d 198.18.0.3 -j DNAT --to-destination 10.0.1.100",
        "iptables -t nat -A PREROUTING -s 198.18.0.130 -d 198.18.0.34 -j DNAT --to-destination 10.0.0.130",
        "iptables -t nat -A POSTROUTING -o ens3 -j MASQUERADE",
    },
    "natVm2": {
        "iptables -t nat -A PREROUTING -s 198.18.0.2 -d 198.18.0.130 -j DNAT --to-destination 10.0.0.100",
        "iptables -t nat -A PREROUTING -s 10.0.0.100 -d 198.18.0.130 -j DNAT --to-destination 198.18.0.2",
        "iptables -t nat -A PREROUTING -s 10.0.0.100 -d 198.18.0.131 -j DNAT --to-destination 198.18.0.3",
        "iptables -t nat -A PREROUTING -s 10.0.0.100 -d 198.18.0.66 -j DNAT --to-destination 198.18.0.34",
        "iptables -t nat -A POSTROUTING -o ens3 -j MASQUERADE",
    },
}


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with the project file and the article's POD, no example here, as the current one."""
    (tmp_path / "Pulumi.yaml").write_bytes((REPOSITORY / "Pulumi.yaml").read_bytes())
    (tmp_path / "Pulumi.dev.yaml").write_text(real_stack("dev"), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    return tmp_path


@pytest.fixture
def run(project: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """`run("check", "dev")`: exit status, standard output, standard error."""

    def call(*arguments: str) -> tuple[int, str, str]:
        try:
            status = main(arguments)
        except SystemExit as end:  # argparse: --help, or a wrong command line
            status = end.code
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return call


def edit(project: Path, *changes: tuple[str, str], stack: str = "dev") -> str:
    """Replace text in a copy of the article's POD; each piece stands there exactly once."""
    text = real_stack("dev")
    for old, new in changes:
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    (project / f"Pulumi.{stack}.yaml").write_text(text, encoding="utf-8")
    return text


# --- whole outputs ---------------------------------------------------------------------------------------------------

COMMANDS = {
    "check": ["check", "dev"],
    "plan": ["plan", "dev"],
    "rules-natVm1": ["rules", "dev", "--vm", "natVm1"],
    "rules-natVm2": ["rules", "dev", "--vm", "natVm2"],
    "rules-natVm1-article": ["rules", "dev", "--vm", "natVm1", "--article"],
    "rules-natVm2-article": ["rules", "dev", "--vm", "natVm2", "--article"],
    "trace-case-1": ["trace", "dev", "customer1/vm1", "management/mgmt"],
    "trace-case-6-tcp": ["trace", "dev", "management/mgmt", "customer1/vm2", "--protocol", "tcp", "--port", "443"],
    "trace-case-6-steps": ["trace", "dev", "management/mgmt", "customer1/vm2", "--steps"],
    "trace-all": ["trace", "dev", "--all"],
    "allocate": ["allocate", "dev"],
}


@pytest.mark.parametrize("name", COMMANDS)
def test_the_text_of_a_command_is_the_golden_one(run, golden, name):
    status, out, err = run(*COMMANDS[name])
    assert (status, err) == (0, "")
    golden(f"cli-{name}.txt", out)


@pytest.mark.parametrize("name", COMMANDS)
def test_the_json_of_a_command_is_the_golden_one(run, golden, name):
    status, out, err = run(*COMMANDS[name], "--json")
    assert (status, err) == (0, "")
    json.loads(out)
    golden(f"cli-{name}.json", out)


HELP = [
    [],
    ["check"],
    ["pods"],
    ["new-pod"],
    ["allocate"],
    ["plan"],
    ["rules"],
    ["trace"],
    ["handover"],
    ["diff"],
    ["import"],
    ["status"],
    ["lab"],
    ["lab", "up"],
    ["lab", "check"],
    ["lab", "shell"],
    ["lab", "down"],
]


@pytest.mark.parametrize("command", HELP, ids=" ".join)
def test_the_help_of_a_command_is_the_golden_one(run, golden, command):
    status, out, err = run(*command, "--help")
    assert (status, err) == (0, "")
    golden(f"help{''.join(f'-{word}' for word in command)}.txt", out)


def test_each_command_has_its_help_among_the_golden_ones(run):
    _, out, _ = run("--help")
    listed = [line.split()[0] for line in out.splitlines() if line.startswith("    ") and line[4] != " "]
    assert sorted(set(listed) - {"COMMAND"}) == sorted({command[0] for command in HELP if command})


# --- the program's name and version ----------------------------------------------------------------------------------


def test_the_version_is_said_and_nothing_else(run):
    assert run("--version") == (0, f"nat-pod {nat_pod.__version__}\n", "")


def test_the_version_is_written_once():
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
    assert "version" not in project["project"]
    assert project["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "nat_pod.__version__"}


@pytest.mark.parametrize(
    ("started_as", "name"),
    [("/home/ops/.venv/bin/nat-pod", "nat-pod"), ("/work/nat_pod/__main__.py", "python -m nat_pod")],
)
def test_the_usage_has_the_name_that_was_typed(run, monkeypatch, started_as, name):
    monkeypatch.setattr("sys.argv", [started_as])
    assert run("plan")[2].startswith(f"usage: {name} plan ")


def test_the_installed_program_takes_the_command_line_and_passes_the_status_on(project, monkeypatch, capsys):
    """What pip makes of the entry point is `sys.exit(program())`."""
    declared = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"]
    assert list(declared) == ["nat-pod"]
    module, _, function = declared["nat-pod"].partition(":")
    monkeypatch.setattr("gc.disable", lambda: None)  # these tests go on after it
    monkeypatch.setattr("sys.argv", ["nat-pod", "check", "dve"])
    assert getattr(import_module(module), function)() == 1
    assert capsys.readouterr().err.startswith("Pulumi.dve.yaml: no such stack file")


# --- the article -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("vm", "count"), [("natVm1", 7), ("natVm2", 5)])
def test_the_article_lines_are_the_articles(run, vm, count):
    status, out, _ = run("rules", "dev", "--vm", vm, "--article")
    lines = out.splitlines()
    assert (status, len(lines)) == (0, count)
    assert set(lines) == ARTICLE_RULES[vm]


def hops(trace: dict) -> list[dict]:
    return [{key: hop[key] for key in ("at", "src", "dst")} for hop in trace["request"] + trace["reply"]]


def member(name: str) -> str:
    return f"management/{name}" if name == "mgmt" else name


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"case {case['case']}")
@pytest.mark.parametrize("protocol", ["icmp", "tcp", "udp"])
def test_the_six_cases_go_the_way_of_the_article(run, case, protocol):
    status, out, _ = run("trace", "dev", member(case["from"]), member(case["to"]), "--protocol", protocol, "--json")
    traced = json.loads(out)
    assert (status, traced["disposition"]) == (0, "delivered")
    assert hops(traced) == case["hops"]
    assert len(traced["request"]) == len(traced["reply"]) == 3


def test_there_are_six_cases():
    assert [case["case"] for case in CASES] == [1, 2, 3, 4, 5, 6]


# Each host keeps its own pair: the server sees the very address that it would use to call the host back.
STATIC = {
    ("customer1/vm1", "management/mgmt"): [
        ("customer1/vm1 -> nat_vm1", "10.0.0.100", "198.18.0.2"),
        ("nat_vm1 -> nat_vm2", "198.18.0.2", "198.18.0.130"),
        ("nat_vm2 -> mgmt", "198.18.0.130", "10.0.0.100"),
        ("mgmt -> nat_vm2", "10.0.0.100", "198.18.0.130"),
        ("nat_vm2 -> nat_vm1", "198.18.0.130", "198.18.0.2"),
        ("nat_vm1 -> customer1/vm1", "198.18.0.2", "10.0.0.100"),
    ],
    ("customer2/vm2", "management/mgmt"): [
        ("customer2/vm2 -> nat_vm1", "10.0.1.100", "198.18.0.2"),
        ("nat_vm1 -> nat_vm2", "198.18.0.3", "198.18.0.130"),
        ("nat_vm2 -> mgmt", "198.18.0.131", "10.0.0.100"),
        ("mgmt -> nat_vm2", "10.0.0.100", "198.18.0.131"),
        ("nat_vm2 -> nat_vm1", "198.18.0.130", "198.18.0.3"),
        ("nat_vm1 -> customer2/vm2", "198.18.0.2", "10.0.1.100"),
    ],
    ("customer1/vm2", "management/mgmt"): [
        ("customer1/vm2 -> nat_vm1", "10.0.0.130", "198.18.0.2"),
        ("nat_vm1 -> nat_vm2", "198.18.0.34", "198.18.0.130"),
        ("nat_vm2 -> mgmt", "198.18.0.66", "10.0.0.100"),
        ("mgmt -> nat_vm2", "10.0.0.100", "198.18.0.66"),
        ("nat_vm2 -> nat_vm1", "198.18.0.130", "198.18.0.34"),
        ("nat_vm1 -> customer1/vm2", "198.18.0.2", "10.0.0.130"),
    ],
    ("management/mgmt", "customer2/vm2"): [
        ("mgmt -> nat_vm2", "10.0.0.100", "198.18.0.131"),
        ("nat_vm2 -> nat_vm1", "198.18.0.130", "198.18.0.3"),
        ("nat_vm1 -> customer2/vm2", "198.18.0.2", "10.0.1.100"),
        ("customer2/vm2 -> nat_vm1", "10.0.1.100", "198.18.0.2"),
        ("nat_vm1 -> nat_vm2", "198.18.0.3", "198.18.0.130"),
        ("nat_vm2 -> mgmt", "198.18.0.131", "10.0.0.100"),
    ],
}


@pytest.mark.parametrize(("sender", "receiver"), STATIC, ids=" to ".join)
def test_with_the_policy_static_each_host_keeps_its_own_address(run, project, sender, receiver):
    edit(project, ("sourceNat: masquerade", "sourceNat: static"))
    status, out, _ = run("trace", "dev", sender, receiver, "--json")
    assert status == 0
    expected = [{"at": at, "src": src, "dst": dst} for at, src, dst in STATIC[sender, receiver]]
    assert hops(json.loads(out)) == expected


# --- packets that die ------------------------------------------------------------------------------------------------

DEAD = {
    "a host that is in no book to a server": (
        ("customer1/10.0.0.77", "management/mgmt"),
        ("no-mapping", "nat_vm1 drops 10.0.0.77 > 198.18.0.2 in INPUT: no mapping translated it"),
    ),
    "a management host that is in no book to a host": (
        ("management/10.0.0.77", "customer1/vm1"),
        ("no-mapping", "nat_vm2 drops 10.0.0.77 > 198.18.0.130 in INPUT: no mapping translated it"),
    ),
    "one customer to another": (
        ("customer1/vm1", "customer2/vm2"),
        ("no-mapping", "nat_vm1 drops 10.0.0.100 > 198.18.0.3 in FORWARD: no mapping translated it"),
    ),
    "one customer to another who shares a server's slot": (
        ("customer2/vm2", "customer1/vm1"),
        ("wrong-machine", "mgmt has that address too and answers, not customer1/vm1"),
    ),
    "a customer to an address that nobody has": (
        ("customer1/vm1", "198.18.0.9"),
        ("no-private-ip", "no VNIC in VCN pod has the private IP 198.18.0.9"),
    ),
    "a customer to the other customer's real address": (
        ("customer1/vm1", "10.0.1.100"),
        ("no-route", "subnet customer1 has no route rule for 10.0.1.100"),
    ),
    "management to a host that is in no book": (
        ("management/mgmt", "customer1/10.0.0.77"),
        (
            "no-mapping",
            "customer1/10.0.0.77 has no slot, so the other side has no address for it; "
            "name it in the stack file and run: python -m nat_pod allocate dev",
        ),
    ),
}


@pytest.mark.parametrize("name", DEAD)
def test_a_packet_that_dies_says_where_and_why_and_ends_with_1(run, name):
    (sender, receiver), (disposition, why) = DEAD[name]
    status, out, err = run("trace", "dev", sender, receiver)
    assert (status, err) == (1, "")
    said, meaning = (" ".join(part.split()) for part in out.split("=> ")[1].rsplit("(", 1))
    assert said == f"{disposition}: {why}"
    assert meaning
    status, out, err = run("trace", "dev", sender, receiver, "--json")
    assert (status, err) == (1, "")
    traced = json.loads(out)
    assert (traced["disposition"], traced["why"], traced["reply"]) == (disposition, why, [])


def test_a_packet_that_dies_shows_the_steps_of_the_machine_where_it_does(run, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    _, out, _ = run("trace", "dev", "customer1/vm1", "customer2/vm2")
    assert out == (
        "customer1/vm1 (10.0.0.100) to customer2/vm2: icmp\n"
        "  request\n"
        "    1. customer1/vm1 -> nat_vm1: 10.0.0.100 > 198.18.0.3\n"
        "    at nat_vm1: 10.0.0.100 > 198.18.0.3\n"
        "    5. security ingress      VNIC natVm1-vnic-1: 10.0.0.0/24 stateless (from\n"
        "                               customer1)\n"
        "    6. destination check     VNIC natVm1-vnic-1: skipped\n"
        "    7. conntrack             new flow\n"
        "    8. PREROUTING            NATPOD-PRE > NATPOD-C-customer1 > NATPOD-SERVERS\n"
        "                             no rule matches\n"
        "    9. routing decision      198.18.0.0/27 by VNIC natVm1-vnic-1\n"
        "   10. FORWARD               NATPOD-FORWARD\n"
        "                             DROPPED: nat_vm1 drops 10.0.0.100 > 198.18.0.3 in\n"
        "                               FORWARD: no mapping translated it\n"
        "=> no-mapping: nat_vm1 drops 10.0.0.100 > 198.18.0.3 in FORWARD: no mapping\n"
        "   translated it\n"
        "   (a NAT VM's guard drops it: no rule translates this source and destination)\n"
    )


def test_an_address_instead_of_a_member_is_traced_to_whoever_answers(run):
    status, out, _ = run("trace", "dev", "management/mgmt", "198.18.0.131", "--json")
    assert (status, json.loads(out)["request"][-1]["at"]) == (0, "nat_vm1 -> customer2/vm2")


MEMBERS = "management/mgmt, customer1/vm1, customer1/vm2, customer2/vm2"


@pytest.mark.parametrize(
    ("sender", "receiver", "sentence"),
    [
        ("mgmt", "customer1/vm1", "mgmt: is not a member; did you mean management/mgmt?"),
        ("customer1/vm1", "vm2", "vm2: is not a member; did you mean customer1/vm2 or customer2/vm2?"),
        (
            "customer3/vm1",
            "management/mgmt",
            f"customer3/vm1: is neither a member ({MEMBERS}) nor REALM/ADDRESS with a realm of this POD, "
            "e.g. customer1/10.0.0.77",
        ),
        (
            "customer1/vm1",
            "::1",
            f"::1: is neither a member ({MEMBERS}) nor REALM/ADDRESS with a realm of this POD, "
            "e.g. customer1/10.0.0.77",
        ),
        (
            "customer1/::1",
            "management/mgmt",
            f"customer1/::1: is neither a member ({MEMBERS}) nor REALM/ADDRESS with a realm of this POD, "
            "e.g. customer1/10.0.0.77",
        ),
        ("customer1/10.0.0.100", "management/mgmt", "customer1/10.0.0.100: that is customer1/vm1; use its name"),
        (
            "customer1/10.0.9.9",
            "management/mgmt",
            "customer1/10.0.9.9: 10.0.9.9 is outside 10.0.0.0/24, the network of customer1",
        ),
    ],
)
def test_a_name_that_is_nobodys_is_answered_with_those_that_are(run, sender, receiver, sentence):
    assert run("trace", "dev", sender, receiver) == (1, "", f"{sentence}\n")


# --- exit statuses and where things are printed ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["chekc"],
        ["plan"],
        ["plan", "dev", "prod"],
        ["plan", "dev", "--jsno"],
        ["rules", "dev"],
        ["rules", "dev", "--vm", "natVm3"],
        ["trace", "dev"],
        ["trace", "dev", "customer1/vm1"],
        ["trace", "dev", "customer1/vm1", "--all"],
        ["trace", "dev", "--all", "--steps"],
        ["trace", "dev", "customer1/vm1", "management/mgmt", "--protocol", "sctp"],
        ["trace", "dev", "customer1/vm1", "management/mgmt", "--port", "0"],
        ["trace", "dev", "customer1/vm1", "management/mgmt", "--port", "65536"],
        ["trace", "dev", "customer1/vm1", "management/mgmt", "--port", "http"],
        ["handover", "dev"],
        ["pods", "dev"],
        ["new-pod"],
        ["new-pod", "prod", "--size", "26"],
        ["new-pod", "prod", "--size", "15"],
        ["new-pod", "prod", "--size", "large"],
        ["lab"],
        ["lab", "pu", "dev"],
    ],
    ids=" ".join,
)
def test_a_wrong_command_line_ends_with_2_and_says_so_on_standard_error(run, arguments):
    status, out, err = run(*arguments)
    assert (status, out) == (2, "")
    assert err.startswith("usage: python -m nat_pod")
    assert ": error: " in err.splitlines()[-1]


@pytest.mark.parametrize("port", ["1", "65535"])
def test_the_first_and_the_last_port_are_ports(run, port):
    assert run("trace", "dev", "customer1/vm1", "management/mgmt", "--protocol", "tcp", "--port", port)[0] == 0


STACK_COMMANDS = [
    ["check", "dve"],
    ["allocate", "dve"],
    ["plan", "dve"],
    ["rules", "dve", "--vm", "natVm1"],
    ["trace", "dve", "customer1/vm1", "management/mgmt"],
    ["handover", "dve", "customer1"],
]


@pytest.mark.parametrize("arguments", STACK_COMMANDS, ids=lambda arguments: arguments[0])
def test_a_stack_that_does_not_exist_is_one_sentence(run, project, arguments):
    sentence = f"Pulumi.dve.yaml: no such stack file in {project}; stacks here are: dev\n"
    assert run(*arguments) == (1, "", sentence)


@pytest.mark.parametrize("arguments", STACK_COMMANDS[1:], ids=lambda arguments: arguments[0])
def test_a_stack_file_with_problems_is_reported_by_each_command(run, project, arguments):
    before = edit(project, ("sourceNat: masquerade", "sourceNat: snat"), ("/22 ", "/33 "), stack="dve")
    status, out, err = run(*arguments)
    assert (status, out) == (1, "")
    assert err == (
        "Pulumi.dve.yaml: 2 problems\n"
        '  Pulumi.dve.yaml:6: nat-pod:cidr: "198.18.0.0/33": must be an IPv4 network in CIDR form, e.g. 198.18.0.0/22\n'
        '  Pulumi.dve.yaml:23: nat-pod:sourceNat: "snat": must be masquerade or static\n'
    )
    assert (project / "Pulumi.dve.yaml").read_text(encoding="utf-8") == before
    assert sorted(path.name for path in project.iterdir()) == ["Pulumi.dev.yaml", "Pulumi.dve.yaml", "Pulumi.yaml"]


# --- check -----------------------------------------------------------------------------------------------------------


def test_check_reports_problems_on_standard_output_and_ends_with_1(run, project):
    edit(project, ("sourceNat: masquerade", "sourceNat: snat"))
    problem = '  Pulumi.dev.yaml:23: nat-pod:sourceNat: "snat": must be masquerade or static\n'
    assert run("check", "dev") == (1, f"Pulumi.dev.yaml: 1 problem\n{problem}", "")
    status, out, err = run("check", "--json")
    assert (status, err) == (1, "")
    assert json.loads(out) == {
        "dev": {
            "problems": [
                {
                    "path": "nat-pod:sourceNat",
                    "line": 23,
                    "value": "snat",
                    "rule": "must be masquerade or static",
                    "command": None,
                }
            ],
            "example": False,
        }
    }


def test_check_reports_a_file_that_is_not_yaml_beside_one_that_is_fine(run, project):
    (project / "Pulumi.torn.yaml").write_text("config: [\n")
    status, out, err = run("check")
    assert (status, err) == (1, "")
    assert out == (
        "Pulumi.dev.yaml: fine, 3 of 58 slots used\n"
        "Pulumi.torn.yaml: 1 problem\n"
        "  line 2, column 1: is not YAML that can be read: expected the node content, but found '<stream end>'\n"
    )


@pytest.mark.parametrize("command", ["check", "pods"])
def test_a_file_whose_name_is_an_escape_sequence_reaches_no_terminal(run, project, command):
    edit(project, stack="\x1b[2J\n")
    status, out, err = run(command)
    assert (status, "\x1b" in out + err, "\\x1b[2J\\n" in out) == (1, False, True)
    for arguments in (
        ["plan", "\x1b[2J\n", "--svg", "pod.svg"],
        ["new-pod", "prod"],
        ["trace", "dev", "\x1b[31m", "x"],
    ):
        status, out, err = run(*arguments)
        assert (status, out, "\x1b" in err, "\\x1b" in err) == (1, "", False, True)
    assert not (project / "pod.svg").exists()


@pytest.mark.parametrize("name", ["Pulumi.dev.yaml", "./Pulumi.dev.yaml"])
def test_the_file_of_a_stack_means_the_stack(run, project, name):
    assert run("check", name) == run("check", "dev")
    assert run("plan", name) == run("plan", "dev")
    assert run("trace", name, "--all") == run("trace", "dev", "--all")
    assert run("new-pod", "Pulumi.prod.yaml")[1].startswith("written  Pulumi.prod.yaml: ")
    status, out, err = run("check", "pods/Pulumi.dev.yaml")  # not the one of this directory
    assert (status, out, "no such stack file" in err) == (1, "", True)


# The lines of Pulumi.dev.yaml, by what is wrong in which.
PLACES = [
    (("shape: VM.Standard2.24", "shape: VM.Standard2.99"), 8, "nat-pod:natVm.shape:"),
    (("    shape: VM.Standard2.24\n", ""), 7, "nat-pod:natVm.shape: is missing"),
    (("vm2: 10.0.0.130", "vm2: 10.0.9.9"), 19, "nat-pod:customers.customer1.hosts.vm2:"),
    (("198.18.0.128/27, 198.18.0.64/27", "198.18.0.128/27, 198.18.0.65/27"), 26, "nat-pod:subnets.natVm2[1]:"),
    (
        ("    customer1/vm1: {natVm1: 198.18.0.2,", "    customer1/vm1: {natVm1: x,"),
        30,
        'nat-pod:addresses["customer1/vm1"].',
    ),
    (
        ("    customer1/vm1: {natVm1: 198.18.0.2, natVm2: 198.18.0.130}\n", ""),
        28,
        'nat-pod:addresses["customer1/vm1"]: has no',
    ),
    (("  nat-pod:sourceNat: masquerade", "  sourceNat: masquerade"), 23, "sourceNat: has no namespace"),
    (
        ("  nat-pod:sourceNat: masquerade", "  natpod:sourceNat: masquerade"),
        23,
        "natpod:sourceNat: is of another namespace",
    ),
]


@pytest.mark.parametrize(("change", "line", "start"), PLACES, ids=[start for _, _, start in PLACES])
def test_a_problem_says_in_which_line_of_the_file_it_is(run, project, change, line, start):
    edit(project, change)
    status, out, _ = run("check", "dev")
    assert (status, f"  Pulumi.dev.yaml:{line}: {start}" in out) == (1, True), out
    assert json.loads(run("check", "dev", "--json")[1])["dev"]["problems"][0]["line"] == line


def test_a_setting_that_is_nowhere_is_in_no_line(run, project):
    edit(project, ("  nat-pod:cidr: 198.18.0.0/22              # this POD's own range, from 198.18.0.0/15\n", ""))
    assert "\n  nat-pod:cidr: is missing; " in run("check", "dev")[1]


def test_a_namespace_that_is_misspelt_is_asked_about_and_one_of_others_is_theirs(run, project):
    for namespace in ("natpod", "nat_pod", "NAT-Pod", "nat-pods"):
        edit(project, ("  nat-pod:sourceNat: masquerade", f"  {namespace}:sourceNat: static"))
        asked = f"{namespace}:sourceNat: is of another namespace, which nobody reads; did you mean nat-pod:sourceNat?"
        assert asked in run("check", "dev")[1]
    for theirs in ("natpod:tags: 1", "network:cidr: 10.0.0.0/8", "nat-pod-lab:cidr: x", "natpod:cidr: 10.0.0.0/8"):
        edit(project, ("  nat-pod:sourceNat: masquerade", f"  nat-pod:sourceNat: masquerade\n  {theirs}"))
        assert run("check", "dev")[0] == 0, theirs


def test_check_finds_a_range_that_two_pods_share_and_says_so_for_both(run, project):
    edit(project, stack="prod")
    clash = (
        "Pulumi.{0}.yaml: 1 problem\n"
        '  Pulumi.{0}.yaml:6: nat-pod:cidr: "198.18.0.0/22": overlaps 198.18.0.0/22 of Pulumi.{1}.yaml; each POD '
        "has its own range\n"
    )
    assert run("check") == (1, clash.format("dev", "prod") + clash.format("prod", "dev"), "")
    assert run("check", "prod") == (1, clash.format("prod", "dev"), "")


def test_check_finds_a_range_inside_that_of_another_pod(run, project):
    edit(project, ("198.18.0.0/22 ", "198.18.0.0/21 "), stack="large")
    status, out, _ = run("check", "dev")
    assert status == 1
    assert 'nat-pod:cidr: "198.18.0.0/22": overlaps 198.18.0.0/21 of Pulumi.large.yaml' in out


def test_check_finds_nothing_when_the_pods_have_ranges_of_their_own(run, project):
    text = edit(project).replace("198.18.0.", "198.18.4.")
    (project / "Pulumi.prod.yaml").write_text(text, encoding="utf-8")
    fine = "Pulumi.dev.yaml: fine, 3 of 58 slots used\nPulumi.prod.yaml: fine, 3 of 58 slots used\n"
    assert run("check") == (0, fine, "")
    assert run("check", "prod", "prod") == (0, "Pulumi.prod.yaml: fine, 3 of 58 slots used\n", "")


def test_check_without_any_stack_file_says_where_it_looked(run, project):
    (project / "Pulumi.dev.yaml").unlink()
    sentence = f"there is no Pulumi.<stack>.yaml in {project}; start from Pulumi.dev.yaml of nat-pod\n"
    assert run("check") == (1, "", sentence)


# --- allocate --------------------------------------------------------------------------------------------------------

NEW_HOST = ("hosts: {vm2: 10.0.1.100}", "hosts: {vm2: 10.0.1.100, web: 10.0.1.11}")
GONE_HOST = ("{vm1: 10.0.0.100, vm2: 10.0.0.130}", "{vm1: 10.0.0.100}")


def test_allocate_gives_slots_prints_them_and_has_nothing_to_do_the_second_time(run, project):
    before = edit(project, NEW_HOST, GONE_HOST)
    assert run("plan", "dev")[0] == 1
    assert run("allocate", "dev") == (
        0,
        "added     customer2/web  198.18.0.4 / 198.18.0.132\nreleased  customer1/vm2  198.18.0.34 / 198.18.0.66\n",
        "",
    )
    after = (project / "Pulumi.dev.yaml").read_text(encoding="utf-8")
    assert after == (
        before.replace("natVm2: 198.18.0.66}", "natVm2: 198.18.0.66, released: true}")
        + "    customer2/web: {natVm1: 198.18.0.4, natVm2: 198.18.0.132}\n"
    )
    assert run("plan", "dev")[0] == 0
    assert run("allocate", "dev") == (0, "Pulumi.dev.yaml: every member has a slot; nothing to do\n", "")
    assert (project / "Pulumi.dev.yaml").read_text(encoding="utf-8") == after


@pytest.mark.parametrize("saves", [1, 2, 3])
def test_an_edit_that_is_saved_while_allocate_runs_is_not_lost(run, project, monkeypatch, saves):
    """Somebody saves the file after it was read and before it is replaced, so often; the third time it gives up."""
    text = edit(project, ("{vm2: 10.0.1.100}", "{vm2: 10.0.1.100, web: 10.0.1.9}"))
    path = project / "Pulumi.dev.yaml"
    settle, saved = address_book.settle, []

    def meanwhile(*arguments, **options):
        if len(saved) < saves:
            saved.append(f"# note {len(saved)}\n")
            path.write_text(text + saved[-1], encoding="utf-8")
        return settle(*arguments, **options)

    monkeypatch.setattr(address_book, "settle", meanwhile)
    status, out, err = run("allocate", "dev")
    after = path.read_text(encoding="utf-8")
    assert saved[-1] in after
    if saves < 3:
        assert (status, err) == (0, "")
        assert "    customer2/web: {natVm1: 198.18.0.4, natVm2: 198.18.0.132}\n" in after
        assert run("check", "dev")[0] == 0
    else:
        sentence = "Pulumi.dev.yaml: was changed by somebody else meanwhile; try again (nothing was changed)\n"
        assert (status, out, err, after) == (1, "", sentence, text + saved[-1])
    assert sorted(entry.name for entry in project.iterdir()) == ["Pulumi.dev.yaml", "Pulumi.yaml"]


def test_allocate_json_lists_the_changes(run, project):
    edit(project, NEW_HOST, GONE_HOST)
    status, out, _ = run("allocate", "dev", "--json")
    assert (status, json.loads(out)) == (
        0,
        {"added": ["customer2/web"], "returned": [], "released": ["customer1/vm2"], "reused": [], "renamed": []},
    )


def test_allocate_hands_out_a_released_slot_only_with_reuse(run, project):
    book = "    customer1/old: {natVm1: 198.18.0.4, natVm2: 198.18.0.132, released: true}\n"
    text = edit(project, NEW_HOST) + book
    (project / "Pulumi.dev.yaml").write_text(text, encoding="utf-8")
    assert run("allocate", "dev", "--reuse")[1] == (
        "added     customer2/web  198.18.0.4 / 198.18.0.132\nreused    customer1/old\n"
    )
    (project / "Pulumi.dev.yaml").write_text(text, encoding="utf-8")
    assert run("allocate", "dev")[1] == "added     customer2/web  198.18.0.5 / 198.18.0.133\n"


def test_allocate_keeps_windows_line_ends(run, project):
    text = edit(project, NEW_HOST).replace("\n", "\r\n")
    (project / "Pulumi.dev.yaml").write_bytes(text.encode())
    assert run("allocate", "dev")[0] == 0
    line = "    customer2/web: {natVm1: 198.18.0.4, natVm2: 198.18.0.132}\r\n"
    assert (project / "Pulumi.dev.yaml").read_bytes() == (text + line).encode()


def test_what_plan_tells_to_run_is_what_helps(run, project):
    edit(project, NEW_HOST)
    _, _, err = run("plan", "dev")
    command = err.splitlines()[-1].removeprefix("    run: python -m nat_pod ")
    assert run(*command.split())[0] == 0
    assert run("plan", "dev")[0] == 0


# --- natural order ---------------------------------------------------------------------------------------------------

MANY_HOSTS = ("hosts: {vm2: 10.0.1.100}", "hosts: {vm2: 10.0.1.100, n10: 10.0.1.10, n9: 10.0.1.9, n1: 10.0.1.8}")
IN_ORDER = ["customer2/n1", "customer2/n9", "customer2/n10"]


@pytest.fixture
def many(run, project):
    """Names whose order by letters is not the one that people expect, allocated."""
    edit(project, MANY_HOSTS)
    status, out, _ = run("allocate", "dev")
    assert status == 0
    return out


def test_allocate_lists_new_members_in_natural_order(many):
    assert [line.split()[1] for line in many.splitlines()] == IN_ORDER


def test_plan_lists_members_in_natural_order(run, many):
    members = [line.split()[0] for line in run("plan", "dev")[1].splitlines() if line.startswith("  customer2/")]
    assert members == [*IN_ORDER, "customer2/vm2"]


def test_the_order_of_a_text_changes_neither_slots_nor_rules(run, many):
    """They are in the order of the plan, and a rule that moves is a change on both VMs."""
    slots = list(json.loads(run("plan", "dev", "--json")[1])["slots"])
    assert slots[-4:] == ["customer2/n1", "customer2/n10", "customer2/n9", "customer2/vm2"]


def test_check_lists_stacks_in_natural_order(run, project):
    for name in ("dev10", "dev9"):
        edit(project, stack=name)
    shown = [line.split(":")[0] for line in run("check")[1].splitlines() if line.startswith("Pulumi.")]
    assert shown == ["Pulumi.dev.yaml", "Pulumi.dev9.yaml", "Pulumi.dev10.yaml"]


# --- the process -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [("customer1/vm1", "management/mgmt"), ("--all",)])
def test_a_rule_that_the_tracer_does_not_know_ends_with_a_sentence(run, monkeypatch, arguments):
    """`-i ens3` could be any VNIC: passing over it in silence would say that a packet dies which gets through."""
    compiled = compile_rules

    def compile_another(config: PodConfig) -> dict[Side, Ruleset]:
        made = compiled(config)
        guard = made[Side.NAT_VM1].filter
        ens3 = Rule(Match(in_interface="ens3"), Accept())
        chains = tuple(replace(chain, rules=(ens3, *chain.rules)) for chain in guard.chains)
        return {**made, Side.NAT_VM1: replace(made[Side.NAT_VM1], filter=replace(guard, chains=chains))}

    assert run("trace", "dev", *arguments)[0] == 0
    monkeypatch.setattr("nat_pod.plan.planner.compile_rules", compile_another)
    assert run("trace", "dev", *arguments) == (
        1,
        "",
        "-A NATPOD-FORWARD -i ens3 -j ACCEPT: the tracer cannot follow this rule and predicts nothing; "
        "it knows no interface but lo\n",
    )


def test_an_interruption_ends_with_130(run, monkeypatch):
    def interrupt(_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("nat_pod.commands.check.read_pods", interrupt)
    assert run("check") == (130, "", "")


@pytest.mark.runs_commands
@pytest.mark.parametrize("arguments", [["plan", "dev"], ["check"], ["plan", "dev", "--json"]], ids=" ".join)
def test_a_reader_that_goes_away_is_no_error(project, arguments):
    """`| head`: nothing on standard error, whether the output is larger than a buffer or not."""
    with subprocess.Popen(
        [sys.executable, "-m", "nat_pod", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=project,
        env={"PYTHONPATH": str(REPOSITORY), "PATH": ""},
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(timeout=60) == 0


@pytest.mark.runs_commands
def test_the_module_runs_as_a_program_and_passes_its_status_on(project):
    def status(*arguments: str) -> int:
        command = [sys.executable, "-m", "nat_pod", *arguments]
        environment = {"PYTHONPATH": str(REPOSITORY), "PATH": ""}
        return subprocess.run(command, cwd=project, env=environment, capture_output=True, check=False).returncode

    assert [status("check"), status("check", "dve"), status("chekc")] == [0, 1, 2]
