"""Ten thousand broken stack files, rule documents and answers of IMDS: no traceback, no write, no hang.

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
from broken_input import VALUES, http_answers, places, rule_documents, stack_files, vnic_lists
from conftest import REPOSITORY
from test_agent import agent

from nat_pod.commands import cli
from nat_pod.config.model import PodConfig
from nat_pod.errors import ConfigError
from nat_pod.plan.planner import plan_pod

FEW, MANY = 300, 10_000
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
    return any(words in line for words in ("has no namespace", "is of another namespace", "is encrypted"))


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


def check_harmless(document, case: str) -> None:
    text = agent.transaction(document, {})
    for line in text.splitlines():
        words = shlex.split(line)
        if line in ("*filter", "*nat", "COMMIT"):
            continue
        if line.startswith("-I "):
            assert words[1] in ("FORWARD", "INPUT", "PREROUTING", "POSTROUTING"), (line, case)
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


def test_the_documents_that_this_starts_from_are_good(dev):
    vm = plan_pod(PodConfig.from_mapping(dev, "dev"), "dev").vm("natVm1")
    value = vm.metadata["nat-pod-rules"]
    assert agent.Document(value, "natVm1").generation == vm.generation
    assert json.loads(bz2.decompress(base64.b64decode(value.partition(":")[2])))["vm"] == "natVm1"
    assert len(agent.read_vnics(json.dumps(VNICS))) == 2
