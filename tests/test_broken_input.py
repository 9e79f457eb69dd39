"""Ten thousand broken stack files, rule documents, answers of IMDS and reports: no traceback, no write, no hang.

`make quick` tries the first few hundred of the same.

What the generator found once stands as a row of its own in the tables of test_config.py and test_agent.py.
"""

import base64
import bz2
import copy
import functools
import itertools
import json
import re
import shlex
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from broken_input import VALUES, http_answers, places, reports, rule_documents, stack_files, vnic_lists
from conftest import REPOSITORY
from handbuilt_pods import GOOD
from test_agent import agent
from test_status import NOW, reported

from nat_pod.commands import cli
from nat_pod.commands.status import status_dict, status_text
from nat_pod.config.model import PodConfig
from nat_pod.errors import ConfigError, NatPodError
from nat_pod.handbuilt.vnic_list import read_vnics
from nat_pod.lab.region.file import RegionFile, RegionFileError
from nat_pod.plan.document import FORMAT, from_printable, printable, read_document
from nat_pod.plan.planner import plan_pod
from nat_pod.rules import iptables
from nat_pod.status.compare import compare
from nat_pod.status.report import read_report

FEW, MANY = 100, 2_000
SEED = 198018
HANGS_AFTER = 20  # seconds; the slowest case takes a tenth of one


how_many = pytest.mark.parametrize("count", [FEW, pytest.param(MANY, marks=pytest.mark.sweep)])


@contextmanager
def no_hang() -> Iterator[None]:
    def hang(*_):
        raise AssertionError(f"still busy after {HANGS_AFTER} seconds")

    before = signal.signal(signal.SIGALRM, hang)
    signal.alarm(HANGS_AFTER)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


# --- stack files -----------------------------------------------------------------------------------------------------


def run(capsys, *arguments: str) -> tuple[int, str]:
    with no_hang():
        status = cli.main(arguments)
    out, err = capsys.readouterr()
    return status, out + err


@pytest.mark.slow
@pytest.mark.runs_commands  # git is asked whose a slot is that two members have
@how_many
def test_no_broken_stack_file_gets_a_traceback_or_is_written_unless_it_then_holds(tmp_path, monkeypatch, capsys, count):
    """`check` says what is wrong and where; `allocate` leaves alone what it cannot settle."""
    monkeypatch.chdir(tmp_path)
    parser = cli._parser("")  # built once: argparse takes longer for it than a command for a small stack
    monkeypatch.setattr(cli, "_parser", lambda _: parser)
    path = tmp_path / "Pulumi.dev.yaml"
    good = (REPOSITORY / "Pulumi.dev.yaml").read_text(encoding="utf-8")
    refused = settled = 0
    for case in stack_files(good, count, SEED):
        path.write_bytes(case)
        status, said = run(capsys, "check", "dev")
        assert status in (cli.OK, cli.FINDINGS), case
        if status == cli.OK:
            assert said.startswith("Pulumi.dev.yaml: fine"), (case, said)
            continue
        refused += 1
        lines = said.splitlines()
        assert lines[0].startswith("Pulumi.dev.yaml: "), (case, said)
        # Each problem names its place, in the file or in the configuration.
        for line in lines[1:]:
            assert without_line(line).startswith(
                ("  nat-pod", "  oci:", "  line ", "  lines ", "  file", "  config", "    run: ", "    and ")
            ) or has_no_namespace(line), (
                case,
                said,
            )
        status, said = run(capsys, "allocate", "dev")
        if status == cli.OK:
            settled += 1
            status, left = run(capsys, "check", "dev")
            # Slots have nothing to do with the place where the POD is made.
            assert status == cli.OK or all(map(of_the_place, left.splitlines()[1:])), (case, left)
        else:
            assert said, case
            assert path.read_bytes() == case
        assert list(tmp_path.iterdir()) == [path]
    # A generator of which everything is refused, or nothing, shows nothing.
    assert refused > count / 2
    assert refused < count
    assert settled > count / 200


def without_line(line: str) -> str:
    return re.sub(r"^  Pulumi\.dev\.yaml:[0-9]+: ", "  ", line)


def of_the_place(line: str) -> bool:
    return "oci:region" in line or " is in realm " in line


def has_no_namespace(line: str) -> bool:
    return any(words in line for words in ("has no namespace", "is in a namespace that nobody reads", "is encrypted"))


@pytest.mark.sweep
def test_a_message_names_the_place_that_was_changed_or_what_depends_on_it(dev):
    """One setting at a time takes every odd value: some problem is at that place, above it or below it.

    A list of members that is emptied is no mistake of its own: then it is their slots that are named.
    """
    refused = 0
    for path in places(dev):
        place = _dotted(path)
        for value in VALUES:
            changed = copy.deepcopy(dev)
            parent = functools.reduce(lambda found, key: found[key], path[:-1], changed)
            parent[path[-1]] = copy.deepcopy(value)
            try:
                PodConfig.from_mapping(changed, "dev")
            except ConfigError as error:
                refused += 1
                named = [_dotted_again(problem.path) for problem in error.problems]
                members = place.endswith(("customers", "hosts", "servers")) or place == "subnets"
                assert any(
                    other.startswith(place) or place.startswith(other) or (members and other.startswith("addresses."))
                    for other in named
                ), (place, value, named)
    assert refused > len(places(dev)) * len(VALUES) / 2


def _dotted(path: tuple) -> str:
    return "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in path).removeprefix(".")


def _dotted_again(path: str) -> str:
    return path.removeprefix("nat-pod:").replace('addresses["', "addresses.").replace('"]', "")


# --- rule documents --------------------------------------------------------------------------------------------------

FORBIDDEN = ("0.", "127.", "169.254.", *(f"{first}." for first in range(224, 256)))


@pytest.mark.slow
@how_many
def test_no_broken_rule_document_is_taken_for_more_than_it_says(dev, count):
    """Refused with a sentence, or else nothing in it reaches beyond our own chains or to a forbidden address."""
    vm = plan_pod(PodConfig.from_mapping(dev, "dev"), "dev").vm("natVm1")
    refused = 0
    for case in rule_documents(vm.metadata["nat-pod-rules"], count, SEED):
        with no_hang():
            try:
                document = agent.Document(case, "natVm1")
            except agent.AgentError:
                refused += 1
                continue
            check_harmless(document, case)
    assert count / 2 < refused < count


@pytest.mark.slow
@how_many
def test_no_broken_rule_document_is_a_traceback_in_the_lab(dev, count):
    """The lab reads what the program registered, as the agent would."""
    vm = plan_pod(PodConfig.from_mapping(dev, "dev"), "dev").vm("natVm1")
    refused = 0
    for case in [packed_deep(), *rule_documents(vm.metadata["nat-pod-rules"], count, SEED)]:
        with no_hang():
            try:
                document = read_document(case)
                iptables.parse(document.rules, document.hooks)
            except ValueError:
                refused += 1
    assert count / 4 < refused < count


def packed_deep() -> str:
    """A document of some hundred bytes: lists in one another, too deep for a reader that calls itself."""
    return f"{FORMAT}:{printable(bz2.compress(b'[' * 200_000))}"


REGION_FILES = {
    "nothing": "",
    "a number": "1\n",
    "brackets": "[" * 200_000,
    "no line feed": "{" * 9_000_000,
    "other types": (
        '{"region": 1, "attach_seconds": 0, "lpgs": [], "secondary_ips": 1, "balancers": 3, '
        '"domain_prefix": "", "avoids_downtime": true}\n'
    ),
}
HEADER = (
    '{"region": "x", "attach_seconds": 0, "lpgs": 10, "secondary_ips": 64, "balancers": 3, '
    '"domain_prefix": "x", "avoids_downtime": true}\n'
)
REGION_CHANGES = {
    "no JSON": "{\n",
    "a list": "[]\n",
    "nothing to do": "{}\n",
    "nobody's": '{"do": "delete", "ocid": "x"}\n',
    "another type": '{"do": "create", "type": "x", "inputs": {}, "name": "x", "ocid": null}\n',
    "inputs that are none": '{"do": "create", "type": "oci:Core/vcn:Vcn", "inputs": 1, "name": "x", "ocid": null}\n',
    "brackets": "[" * 200_000 + "\n",
}


@pytest.mark.parametrize("text", REGION_FILES.values(), ids=REGION_FILES.keys())
def test_a_file_that_holds_no_region_is_named(tmp_path, text):
    path = tmp_path / "region"
    path.write_text(text)
    with no_hang(), pytest.raises(RegionFileError, match=f"^{re.escape(str(path))}: "):
        RegionFile(path)


@pytest.mark.parametrize("text", REGION_CHANGES.values(), ids=REGION_CHANGES.keys())
def test_a_change_that_no_region_wrote_is_a_sentence_with_the_files_name(tmp_path, text):
    path = tmp_path / "region"
    path.write_text(HEADER + text)
    region = RegionFile(path)
    with no_hang(), pytest.raises(RegionFileError, match=f"^{re.escape(str(path))} was written by another release"):
        region.to_json()


def check_harmless(document, case: str) -> None:
    text = agent.transaction(document, {})
    guard = agent.transaction(None, {}).splitlines()  # the agent's own, whatever a document says
    for line in text.splitlines():
        words = shlex.split(line)
        if line in ("*filter", "*nat", *guard):
            continue
        if line.startswith("-I "):
            assert words[1] in ("FORWARD", "INPUT", "OUTPUT", "PREROUTING", "POSTROUTING"), (line, case)
            assert words[3] == "-j", (line, case)
            assert words[4].startswith("NATPOD-"), (line, case)
        elif line.startswith(":"):
            assert words[0].startswith(":NATPOD-"), (line, case)
        else:
            assert words[:2] == ["[0:0]", "-A"], (line, case)
            assert words[2].startswith("NATPOD-"), (line, case)
            for option, value in itertools.pairwise(words):
                if option in ("--to", "--to-source", "--to-destination"):
                    assert not value.startswith(FORBIDDEN), (line, case)
                if option in ("-j", "-g"):
                    known = ("ACCEPT", "DROP", "DNAT", "SNAT", "NETMAP", "MASQUERADE")
                    assert value.startswith("NATPOD-") or value in known, (line, case)
    said = document.hooks["filter"].get("OUTPUT")
    assert all(rule.get("-p") == "icmp" for rule in document.rules["filter"].get(said, ())), case
    # Following its chains ends.
    document.translate(agent.number("10.0.0.100"), agent.number("198.18.0.2"), set())


# --- IMDS ------------------------------------------------------------------------------------------------------------

VNICS = [
    {
        "vnicId": f"ocid1.vnic.oc1..{number}",
        "privateIp": f"198.18.0.{number * 32 + 2}",
        "vlanTag": number,
        "macAddr": f"02:00:17:00:00:0{number}",
        "virtualRouterIp": f"198.18.0.{number * 32 + 1}",
        "subnetCidrBlock": f"198.18.0.{number * 32}/27",
    }
    for number in range(2)
]


@how_many
def test_no_broken_vnic_list_is_taken_for_interfaces_it_does_not_name(count):
    refused = 0
    for case in vnic_lists(VNICS, count, SEED):
        with no_hang():
            try:
                vnics = agent.read_vnics(case)
            except agent.AgentError:
                refused += 1
                continue
        for mac, address in vnics:
            assert isinstance(mac, str), case
            host, _, prefix = address.partition("/")
            assert agent.number(host) >= 0, case
            assert 0 <= int(prefix) <= 32, case
    assert count / 4 < refused < count


@contextmanager
def server(monkeypatch, answer: bytes) -> Iterator[None]:
    """Every HTTP connection leads to a server that says `answer`, whatever it is asked, and hangs up."""
    ends = []

    def connect(connection) -> None:
        connection.sock, theirs = socket.socketpair()
        ends.append(theirs)
        connection.sock.settimeout(connection.timeout)
        theirs.sendall(answer)
        theirs.shutdown(socket.SHUT_WR)

    monkeypatch.setattr(agent.http.client.HTTPConnection, "connect", connect)
    yield
    for end in ends:
        end.close()


@pytest.fixture
def vm(tmp_path, monkeypatch):
    """The agent on a VM whose kernel takes no rules: whatever is saved as good was not loaded first."""
    for name, path in (("STATE", "state"), ("RUN", "run")):
        (tmp_path / path).mkdir()
        monkeypatch.setattr(agent, name, str(tmp_path / path))
    monkeypatch.setattr(agent, "GOOD_RULES", str(tmp_path / "state/rules"))
    monkeypatch.setattr(agent, "GOOD_VNICS", str(tmp_path / "state/vnics"))
    monkeypatch.setattr(agent, "LOADED", str(tmp_path / "run/loaded.json"))
    monkeypatch.setattr(agent, "STATUS", str(tmp_path / "run/status.json"))
    monkeypatch.setattr(agent, "SETTINGS", str(tmp_path / "none"))
    monkeypatch.setattr(agent, "FORWARDING", str(tmp_path / "none"))
    monkeypatch.setattr(agent, "PLATFORM", str(tmp_path / "none"))
    monkeypatch.setattr(agent, "say", lambda level, text: None)
    monkeypatch.setattr(agent, "set_kernel", lambda name, value, notes: None)  # the kernel is this machine's
    monkeypatch.setattr(agent.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(agent, "report", dict)  # asks the kernel for its flows
    monkeypatch.setattr(agent.os, "fsync", lambda file: None)

    def fake(command, text=None):
        if command[0] == "iptables-save":
            return ""
        if command[:2] == ["ip", "-json"]:
            return "[]"
        raise agent.AgentError(f"{command[0]}: refused")

    monkeypatch.setattr(agent, "run", fake)
    return tmp_path


@pytest.mark.slow
@how_many
def test_no_broken_answer_of_imds_stops_a_round_or_is_saved_as_good(vm, monkeypatch, count):
    """Each answer stands for all three questions of a round: VNICs, which VM, rules."""
    refused = 0
    for case in http_answers(json.dumps(VNICS), count, SEED):
        with no_hang(), server(monkeypatch, case):
            refused += agent.poll()
        assert not (vm / "state/rules").exists(), case
        saved = vm / "state/vnics"
        if saved.exists():
            assert agent.read_vnics(saved.read_text()), case
            saved.unlink()
        status = json.loads((vm / "run/status.json").read_text())
        assert status["error"], case
    assert refused == count  # no answer can be a VNIC list and a rule document at once


# --- reports and other files -----------------------------------------------------------------------------------------


def shows_what_it_says(output: str) -> bool:
    """Whether each character is one that a terminal prints."""
    return all(sign.isprintable() or sign == "\n" for sign in output)


@pytest.mark.parametrize("count", [40, pytest.param(1_000, marks=pytest.mark.sweep)])
def test_no_broken_report_gets_a_traceback_or_reaches_the_terminal_as_it_is(dev, count):
    plan = plan_pod(PodConfig.from_mapping(dev, "dev"), "dev")
    good = reported(plan, "natVm1")
    other = read_report(json.dumps(reported(plan, "natVm2")))
    refused = 0
    for case in reports(good, count, SEED):
        with no_hang():
            try:
                report = read_report(case)
            except ValueError as error:
                report = str(error)
                refused += 1
            compared = compare(plan, {"natVm1": report, "natVm2": other}, NOW)
            text = status_text(compared, "dev")
            json.dumps(status_dict(compared), allow_nan=False)
        assert shows_what_it_says(text), case
        assert len(text) < 200_000, case
    assert count / 8 < refused < count


def bombs(size: int) -> str:
    """Packed reports of some 60 bytes, each of which unpacks to 16 MB."""
    line = f"[ 9.0] nat-pod: {{}} report {base64.b64encode(bz2.compress(bytes(16 << 20))).decode()}\r\n"
    return line * (size // len(line))


LARGE = {
    "bombs": (bombs(1_000_000), "reports in it the newest 50 are damaged"),
    "lines that are damaged": (" report QlpoOTFBWSZTWQ==\n" * 40_000, "the newest 50 are damaged"),
    "an open bracket and another": ("{" + "[" * 1_000_000, "its JSON cannot be read"),
    "blanks": (" report A" + " " * 4_000_000 + "x", "there is no report in it"),
    "numbers": ('{"stale": ' + "9" * 1_000_000 + "}", "its JSON cannot be read"),
    "VNICs": ('{"vnics": [' + "[]," * 1_000_000 + "[]]}", "it is not the report of a NAT VM"),
}


@pytest.mark.slow
@pytest.mark.parametrize(("text", "reason"), LARGE.values(), ids=LARGE.keys())
def test_a_large_report_is_refused_before_it_takes_memory_or_time(text, reason):
    with no_hang(), pytest.raises(ValueError, match=re.escape(reason)):
        read_report(text)


@pytest.mark.parametrize("command", [["status", "dev", "--report", "natVm1={}"], ["status", "dev", "--outputs", "{}"],
                                     ["handover", "dev", "customer1", "--outputs", "{}"]])  # fmt: skip
def test_a_file_of_more_than_8_megabytes_is_refused_by_name(tmp_path, monkeypatch, capsys, command):
    monkeypatch.chdir(REPOSITORY)
    path = tmp_path / "large\x1b[2J"
    path.write_bytes(bytes((8 << 20) + 1))
    status, said = run(capsys, *(word.format(path) for word in command))
    assert (status, said) == (
        1,
        f"{tmp_path}/large\\x1b[2J: has more than 8 MB, and nothing that this command reads is so large\n",
    )


@pytest.mark.slow
@pytest.mark.parametrize("count", [20, pytest.param(200, marks=pytest.mark.sweep)])
def test_outputs_that_are_not_what_they_say_reach_no_terminal(tmp_path, monkeypatch, capsys, dev, count):
    monkeypatch.chdir(REPOSITORY)
    path = tmp_path / "outputs"
    plan = plan_pod(PodConfig.from_mapping(dev, "dev"), "dev")
    files = []
    for vm in ("natVm1", "natVm2"):
        (tmp_path / vm).write_text(json.dumps(reported(plan, vm)))
        files += ["--report", f"{vm}={tmp_path / vm}"]
    good = {"generations": {"natVm1": "\x1b[2J" * 9, "natVm2": "w" * 100_000}, "lpgIds": {"customer1": "ocid1.a.b"}}
    for case in reports(good, count, SEED):
        path.write_bytes(case.encode(errors="surrogatepass"))
        for command in (["status", "dev", *files], ["handover", "dev", "customer1"]):
            status, said = run(capsys, *command, "--outputs", str(path))
            assert status in (cli.OK, cli.FINDINGS), case
            assert shows_what_it_says(said), case
            assert len(said) < 20_000, case


# --- import ----------------------------------------------------------------------------------------------------------

PRIVATE_IPS = [
    {"ip-address": f"198.18.0.{number}", "is-primary": number == 2, "vnic-id": "x"} for number in range(2, 9)
]


def test_no_broken_list_of_vnics_gets_import_a_traceback():
    refused = 0
    for good in (VNICS, PRIVATE_IPS):
        for case in vnic_lists(good, FEW, SEED):
            with no_hang():
                try:
                    read_vnics([("one.json", case.encode())])
                    said = ""
                except NatPodError as error:
                    said = str(error)
            refused += bool(said)
            assert shows_what_it_says(said), case
            assert len(said) < 1000, case
    assert FEW / 4 < refused < 2 * FEW


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (json.dumps([{"ip-address": f"10.{n >> 11}.{n >> 3 & 255}.{(n & 7) * 32}"} for n in range(40_000)]).encode(),
         "40000 entries are more than one VM can have"),
        (b"[" + b"{}," * 1_000_000 + b"{}]", "has more than 2 MB"),
    ],
    ids=["as many subnets", "as many objects"],
)  # fmt: skip
def test_a_large_list_of_vnics_is_refused(data, reason):
    with no_hang(), pytest.raises(NatPodError, match=reason):
        read_vnics([("one.json", data)])


def test_what_hides_in_a_rule_is_shown_by_import(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for vm, file in (("natVm1", "one\u202e"), ("natVm2", "two")):
        odd = "iptables -t nat -A POSTROUTING -m comment --comment \u202etcennoc\u2028x -j LOG\n\u202ex -j \u2028\n"
        (tmp_path / file).write_text(f"{GOOD['article'][vm]}\n{odd}", encoding="utf-8")
    _, said = run(capsys, "import", "--vm1", "one\u202e", "--vm2", "two", "--stack", "new")
    assert "\\u202ex -j" in said
    assert shows_what_it_says(said)


def test_the_documents_that_this_starts_from_are_good(dev):
    vm = plan_pod(PodConfig.from_mapping(dev, "dev"), "dev").vm("natVm1")
    value = vm.metadata["nat-pod-rules"]
    assert agent.Document(value, "natVm1").generation == vm.generation
    assert json.loads(bz2.decompress(from_printable(value.partition(":")[2])))["vm"] == "natVm1"
    assert len(agent.read_vnics(json.dumps(VNICS))) == 2
