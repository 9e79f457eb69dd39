"""`python -m nat_pod <command> [STACK]`: what an engineer asks without logging in anywhere.

Exit status 0: fine; 1: findings (problems in a stack file, a flow that does not get through, a failed check);
2: the command line was wrong.  A user's mistake prints sentences, never a traceback.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from netaddr import INET_PTON, AddrFormatError, IPAddress, IPNetwork

from nat_pod import status
from nat_pod.commands import report
from nat_pod.commands.pods import new_pod, overlapping, overlaps, pods_dict, pods_text, read_pods, write_new
from nat_pod.config import address_book as book
from nat_pod.config.model import Capacity, PodConfig, read_draft
from nat_pod.config.neighbours import is_customer_name
from nat_pod.config.stack_file import file_at, read_stack, read_stack_at
from nat_pod.errors import ConfigError, NatPodError, Problem
from nat_pod.handbuilt import saved_rules
from nat_pod.handbuilt.draft import draft
from nat_pod.handbuilt.reconstruct import NOTES, reconstruct
from nat_pod.handbuilt.vnic_list import VnicList, read_vnics
from nat_pod.names import MANAGEMENT, SIDES, Side
from nat_pod.pages import drawing, handover, mermaid
from nat_pod.plan import guest
from nat_pod.plan.model import PodPlan
from nat_pod.plan.planner import plan_pod
from nat_pod.rules import article, iptables
from nat_pod.trace.diff import compare, with_user_data
from nat_pod.trace.expected import expected_topology, with_host
from nat_pod.trace.explain import proof_dict, proof_text, trace_text, verdict_text
from nat_pod.trace.proof import prove
from nat_pod.trace.walk import Disposition, Packet, trace

OK, FINDINGS, USAGE = 0, 1, 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A value from a stack file may hold what a terminal without UTF-8 cannot show: \xe4 instead of a traceback.
        sys.stdout.reconfigure(errors="backslashreplace")
    parsed = _parser().parse_args(arguments)
    command: Callable[[argparse.Namespace], int] = parsed.command
    try:
        status = command(parsed)
        sys.stdout.flush()  # here, where a closed pipe can still be caught
        return status
    except NatPodError as error:
        print(error, file=sys.stderr)
        return FINDINGS
    except BrokenPipeError:
        # `| head` closed our output; that is its business.  Keep the interpreter from complaining at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m nat_pod",
        description="NAT POD on OCI: plan, check and trace a POD from its stack file, or bring it up in the lab.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(
        name: str, function: Callable[[argparse.Namespace], int], words: str, stack: bool = True
    ) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=words, description=words[0].upper() + words[1:] + ".")
        sub.set_defaults(command=function)
        if stack:
            sub.add_argument("stack", metavar="STACK", help="the stack's name: `dev` for Pulumi.dev.yaml")
        return sub

    check = add("check", _check, "validate stack files, alone and against each other", stack=False)
    check.add_argument("stacks", metavar="STACK", nargs="*", help="stacks to check (default: all of this directory)")
    pods = add(
        "pods", _pods, "list the PODs of this directory, what is left in each, and the next free range", stack=False
    )
    new = add("new-pod", _new_pod, "write a stack file for a new POD, in the next free range", stack=False)
    new.add_argument("name", metavar="NAME", help="the new stack's name: `prod` for Pulumi.prod.yaml")
    new.add_argument("--size", type=_prefix, default=22, help="prefix length of its range, 16 to 25 (default: 22)")
    allocate = add("allocate", _allocate, "give new members a slot in the address book of the stack file")
    allocate.add_argument("--reuse", action="store_true", help="hand out slots that are kept as released")
    plan = add("plan", _plan, "show addresses, mappings, routes and the capacity left")
    plan.add_argument("--flow", nargs=2, metavar=("FROM", "TO"), help="the flow in the picture (default: the first)")
    form = plan.add_mutually_exclusive_group()
    form.add_argument("--markdown", action="store_true", help="for a document or a pull request, with Mermaid pictures")
    form.add_argument("--svg", metavar="FILE", type=Path, help="draw the POD and the way of a flow into a file")
    form.add_argument("--json", action="store_true", help="for programs")
    plan.set_defaults(wrong=plan.error)
    rules = add("rules", _rules, "print the rule set of a NAT VM")
    rules.add_argument("--vm", choices=SIDES, required=True, help="which NAT VM")
    rules.add_argument("--article", action="store_true", help="the same mappings as the article's iptables lines")
    tracing = add("trace", _trace, "follow a packet through both NAT VMs and back, and say where it dies")
    tracing.add_argument("sender", metavar="FROM", nargs="?", help="customer1/vm1, or customer1/10.0.0.77")
    tracing.add_argument("receiver", metavar="TO", nargs="?", help="the same, or an address to send to: 198.18.0.9")
    tracing.add_argument("--steps", action="store_true", help="every step, in the form of packet-tracer")
    tracing.add_argument("--all", action="store_true", help="every packet instead of one: what is not as declared")
    tracing.set_defaults(wrong=tracing.error)
    tracing.add_argument("--protocol", choices=("icmp", "tcp", "udp"), default="icmp", help="default icmp")
    tracing.add_argument("--port", type=_port, default=80, help="destination port for tcp and udp (default 80)")
    words = "print what a customer's (or management's) own engineer must set up, and the addresses to use"
    hand = add("handover", _handover, words)
    hand.add_argument("neighbour", metavar="CUSTOMER", help="a customer of the stack file, or `management`")
    hand.add_argument("--outputs", metavar="FILE", type=Path, help="what `pulumi stack output --json` printed: OCIDs")
    words = "show the flows gained, lost and renumbered since a git revision"
    diff = add("diff", _diff, words)
    diff.add_argument("--base", metavar="REV", required=True, help="the git revision to compare with: main, HEAD~1")
    diff.add_argument("--markdown", action="store_true", help="for a pull request")
    importing = _add_import(add)
    words = "compare what both NAT VMs run and count with the stack file"
    state = add("status", _status, words)
    state.formatter_class = argparse.RawDescriptionHelpFormatter
    state.epilog = _HOW_TO_FETCH
    state.add_argument(
        "--report",
        metavar="VM=FILE",
        action="append",
        type=_report_source,
        default=[],
        help="what natVm1 or natVm2 reported; - is standard input (default: ask the stack's lab)",
    )
    state.add_argument("--outputs", metavar="FILE", help="what `pulumi stack output --json` printed: what is deployed")
    for sub in (check, pods, new, rules, tracing, allocate, diff, hand, importing, state):
        sub.add_argument("--json", action="store_true", help="for programs")
    _add_lab(commands)
    return parser


def _add_import(add: Callable[..., argparse.ArgumentParser]) -> argparse.ArgumentParser:
    words = "make a stack file of a POD that was built by hand, and list what does not fit"
    sub = add("import", _import, words, stack=False)
    for number, whom in ((1, "the customers"), (2, "management")):
        sub.add_argument(
            f"--vm{number}",
            metavar="FILE",
            required=True,
            help=f"output of iptables-save, or the iptables commands, of the NAT VM that faces {whom}",
        )
    for number in (1, 2):
        sub.add_argument(
            f"--vnics{number}",
            metavar="FILE",
            action="append",
            default=[],
            help=f"JSON of /opc/v2/vnics/ on NAT VM{number}, of `oci compute instance list-vnics` or of "
            "`oci network private-ip list`; more than once for several",
        )
    sub.add_argument(
        "--customer",
        metavar="NAME=CIDR",
        type=_customer_network,
        action="append",
        default=[],
        help="a customer and its network, which rules do not say; once for each",
    )
    sub.add_argument(
        "--stack",
        metavar="NAME",
        type=_stack_name,
        help="write Pulumi.NAME.yaml (default: print it on standard output)",
    )
    return sub


def _customer_network(text: str) -> tuple[str, IPNetwork]:
    name, _, network = text.partition("=")
    try:
        first, last = saved_rules.network(network)
    except ValueError:
        first, last = 0, 0
    cidr = IPNetwork((first, 33 - (last - first + 1).bit_length()))
    if not is_customer_name(name) or str(cidr) != network:
        raise argparse.ArgumentTypeError(f"{text} is no name with a network, e.g. customer1=10.0.0.0/24")
    return name, cidr


def _stack_name(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", text):
        raise argparse.ArgumentTypeError(f"{text} is no name of a stack, e.g. prod")
    return text


def _add_lab(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    words = "bring a stack up on this machine: simulated region, real rules, real packets"
    lab = commands.add_parser("lab", help=words, description=words[0].upper() + words[1:] + ".")
    actions = lab.add_subparsers(required=True, metavar="ACTION")
    for name, help_text in (
        ("up", "deploy the stack into the simulated region and build it from network namespaces"),
        ("check", "send packets for every mapping and every refusal, and compare each hop with the tracer"),
        ("shell", "a shell on one machine of the lab"),
        ("down", "take the lab away"),
        ("demo", "up, check and down in one go"),
    ):
        action = actions.add_parser(name, help=help_text, description=help_text[0].upper() + help_text[1:] + ".")
        action.add_argument("stack", metavar="STACK")
        if name == "shell":
            action.add_argument("member", metavar="MEMBER", help="customer1/vm1, management/mgmt, natVm1, vrouter, ...")
        if name == "check":
            action.add_argument("--json", action="store_true", help="for programs")
        action.set_defaults(command=_lab, action=name)


_HOW_TO_FETCH = """\
a NAT VM's report from its serial console, without any way into the VM; it may
be 15 minutes old:
  oci compute console-history capture --instance-id OCID
  oci compute console-history get-content --length 1048576 --file one.log \\
      --instance-console-history-id OCID
or, where ssh leads to the VM itself, as it is now:
  ssh opc@198.18.0.130 sudo nat-pod-agent status > two.json
then:
  python -m nat_pod status dev --report natVm1=one.log --report natVm2=two.json

exit status 0: both run what the stack file says; 1: findings"""


def _report_source(text: str) -> tuple[str, str]:
    vm, _, file = text.partition("=")
    if vm not in SIDES or not file:
        raise argparse.ArgumentTypeError(f"{text} is not natVm1=FILE or natVm2=FILE")
    return vm, file


def _port(text: str) -> int:
    if not re.fullmatch(r"\d{1,5}", text) or not 1 <= int(text) <= 65535:
        raise argparse.ArgumentTypeError(f"{text} is not a port (1 to 65535)")
    return int(text)


def _prefix(text: str) -> int:
    if not re.fullmatch(r"/?\d{1,2}", text) or not 16 <= int(text.removeprefix("/")) <= 25:
        raise argparse.ArgumentTypeError(f"{text} is not the size of a POD (16 to 25, e.g. 21)")
    return int(text.removeprefix("/"))


def _load(stack: str) -> tuple[PodConfig, PodPlan]:
    config = read_stack(Path.cwd(), stack).checked()
    return config, plan_pod(config, stack)


def _width() -> int:
    """Columns to write for: the terminal's, 80 where there is none (COLUMNS says otherwise), and never too few."""
    return max(40, shutil.get_terminal_size((80, 24)).columns)


def _print_json(value: object) -> None:
    print(json.dumps(value, indent=2))


# --- check ---------------------------------------------------------------------------------------------------------


def _check(arguments: argparse.Namespace) -> int:
    directory = Path.cwd()
    every = read_pods(directory)
    names = list(dict.fromkeys(arguments.stacks)) or list(every)
    if not names:
        raise _no_stacks(directory)
    for name in names:
        if name not in every:
            read_stack(directory, name)  # says so, and which stacks there are
    findings = {name: [*every[name].problems, *overlaps(name, every)] for name in names}
    used: dict[str, Capacity] = {}
    for name in names:
        pod = every[name]
        if pod.config is None or pod.problems:
            continue
        try:
            used[name] = plan_pod(pod.config, name).capacity
        except ConfigError as error:
            findings[name] += error.problems
    if arguments.json:
        _print_json({name: {"problems": [_problem_dict(p) for p in findings[name]]} for name in names})
    else:
        for name in names:
            if findings[name]:
                print(ConfigError(f"Pulumi.{name}.yaml", findings[name]))
            else:
                print(f"Pulumi.{name}.yaml: fine, {used[name].used} of {used[name].slots} slots used")
    return FINDINGS if any(findings.values()) else OK


def _no_stacks(directory: Path) -> NatPodError:
    return NatPodError(f"there is no Pulumi.<stack>.yaml in {directory}; start from Pulumi.dev.yaml of nat-pod")


def _problem_dict(problem: Problem) -> dict[str, object]:
    value = problem.value if problem.value is None or isinstance(problem.value, str | int) else repr(problem.value)
    return {"path": problem.path, "value": value, "rule": problem.rule, "command": problem.command or None}


def _pods(arguments: argparse.Namespace) -> int:
    directory = Path.cwd()
    every = read_pods(directory)
    if not every:
        raise _no_stacks(directory)
    if arguments.json:
        _print_json(pods_dict(every))
    else:
        print(pods_text(every))
    return FINDINGS if any(pod.problems or overlapping(name, every) for name, pod in every.items()) else OK


def _new_pod(arguments: argparse.Namespace) -> int:
    new = new_pod(Path.cwd(), arguments.name, arguments.size)
    write_new(new)
    if arguments.json:
        _print_json({"file": new.path.name, "cidr": new.cidr, "slots": new.slots, "fillIn": list(new.fill_in)})
        return OK
    print(f"written  {new.path.name}: {new.cidr}, {new.slots} slots")
    for path in new.fill_in:
        print(f"fill in  {path}")
    print(f"then     python -m nat_pod check {arguments.name}     # names what is still wrong, each with its rule")
    print(f"         python -m nat_pod allocate {arguments.name}")
    return OK


# --- allocate, plan, rules -----------------------------------------------------------------------------------------


def _allocate(arguments: argparse.Namespace) -> int:
    stack = read_stack(Path.cwd(), arguments.stack)
    config, problems, _ = read_draft(stack.pod_config(), arguments.stack)
    if config is None:
        raise ConfigError(stack.path.name, problems)
    settled = book.settle(config, reuse=arguments.reuse)
    if settled.changed:
        book.write(stack.path, book.edit(book.read(stack.path), config, settled))
    changes = {
        "added": settled.added,
        "returned": settled.returned,
        "released": settled.released,
        "reused": settled.reused,
        "renamed": settled.renamed,
    }
    if arguments.json:
        _print_json({word: list(names) for word, names in changes.items()})
        return OK
    for word, names in changes.items():
        for name in names:
            entry = settled.entries.get(name)
            pair = "" if entry is None else " / ".join(config.layout.addresses(entry.slot))
            print(f"{word:9} {name}  {pair}".rstrip())
    if not settled.changed:
        print(f"{stack.path.name}: every member has a slot; nothing to do")
    return OK


def _plan(arguments: argparse.Namespace) -> int:
    if arguments.flow and not (arguments.markdown or arguments.svg):
        arguments.wrong("argument --flow: is for a picture: give --markdown or --svg FILE too")
    _, plan = _load(arguments.stack)
    if arguments.json:
        _print_json(report.plan_dict(plan))
    elif arguments.markdown:
        flow = _flow(plan, arguments.flow)
        pictures = [("Networks", mermaid.networks(plan, arguments.stack))]
        if flow is not None:
            pictures.append((f"From {flow.sender.member} to {flow.receiver.member}", mermaid.packets(flow)))
        print(report.plan_markdown(plan, arguments.stack, pictures))
    elif arguments.svg:
        text = drawing.draw(plan, arguments.stack, _flow(plan, arguments.flow))
        try:
            arguments.svg.write_text(text, encoding="utf-8", errors="replace")  # a stack's name may be no UTF-8
        except OSError as error:
            raise NatPodError(f"{arguments.svg}: cannot be written: {error.strerror}") from None
        print(f"{arguments.svg}: written")
    else:
        print(report.plan_text(plan, arguments.stack))
    return OK


def _flow(plan: PodPlan, names: Sequence[str] | None) -> drawing.Way | None:
    """The flow that a picture shows; without one asked for, the first that is declared, if there is any."""
    names = names or drawing.first_flow(plan)
    if names is None:
        return None
    slots = {slot.member: slot for slot in plan.slots}
    for name in names:
        if name not in slots:
            known = ", ".join(list(slots)[:6]) + (" ..." if len(slots) > 6 else "")
            raise NatPodError(f"--flow: {name}: is no member of this POD ({known})")
    return drawing.way(plan, slots[names[0]], slots[names[1]])


def _rules(arguments: argparse.Namespace) -> int:
    config, plan = _load(arguments.stack)
    vm = plan.vm(arguments.vm)
    hooks = iptables.hooks(vm.rules)
    if arguments.article:
        lines = article.article_lines(config, Side(arguments.vm))
    else:
        # The jumps are shown as comments: the agent puts them first in the built-in chains, in the same transaction.
        lines = [f"# {table}: {builtin} enters {chain} first" for table, builtin, chain in hooks]
        lines += iptables.render(vm.rules).splitlines()
    if arguments.json:
        _print_json({"vm": vm.key, "generation": vm.generation, "hooks": hooks, "rules": lines})
    else:
        print("\n".join(lines))
    return OK


# --- trace ---------------------------------------------------------------------------------------------------------


def _trace(arguments: argparse.Namespace) -> int:
    if arguments.all and (arguments.sender is not None or arguments.steps):
        arguments.wrong("--all traces every packet: it takes no FROM, no TO and no --steps")
    if not arguments.all and arguments.receiver is None:
        arguments.wrong("FROM and TO are missing, or --all")
    _, plan = _load(arguments.stack)
    if arguments.all:
        return _trace_all(plan, arguments)
    topology = expected_topology(plan)
    real = {slot.member: slot.real for slot in plan.slots}
    realms = {**plan.customer_cidrs, MANAGEMENT: plan.management_cidr}
    sender = arguments.sender
    source = real.get(sender)
    if source is None:
        source = _unlisted(sender, realms, real)
        topology = with_host(topology, sender, source)
    destination, expected = _destination(arguments.receiver, sender, plan, realms, real)
    if destination is None:
        return _no_address(arguments)
    port = {} if arguments.protocol == "icmp" else {"dport": arguments.port}
    packet = replace(Packet(src=source, dst=destination, protocol=arguments.protocol), **port)
    traced = trace(topology, sender, packet, expected)
    if arguments.json:
        _print_json(traced.to_dict(steps=arguments.steps))
    else:
        ports = "" if arguments.protocol == "icmp" else f" port {arguments.port}"
        title = f"{sender} ({source}) to {arguments.receiver}: {arguments.protocol}{ports}"
        print(trace_text(traced, title, every_step=arguments.steps, width=_width()))
    return OK if traced.disposition is Disposition.DELIVERED else FINDINGS


def _trace_all(plan: PodPlan, arguments: argparse.Namespace) -> int:
    proof = prove(plan)
    if arguments.json:
        _print_json(proof_dict(proof))
    else:
        print(proof_text(proof, arguments.stack, _width()))
    return FINDINGS if proof.counter_examples else OK


def _destination(
    receiver: str, sender: str, plan: PodPlan, realms: dict[str, str], real: dict[str, str]
) -> tuple[str | None, str | None]:
    """The address that the sender has to use (None: there is none), and who should answer there."""
    if "/" not in receiver and _is_address(receiver):
        return receiver, None
    slot = next((slot for slot in plan.slots if slot.member == receiver), None)
    if slot is not None:
        return (slot.nat_vm2 if sender.startswith(f"{MANAGEMENT}/") else slot.nat_vm1), receiver
    _unlisted(receiver, realms, real)
    return None, receiver


def _no_address(arguments: argparse.Namespace) -> int:
    """TO is in no address book: there is no packet that could be sent to it."""
    why = (
        f"{arguments.receiver} owns no slot, so the other side has no address for it; "
        f"name it in the stack file and run: python -m nat_pod allocate {arguments.stack}"
    )
    if arguments.json:
        _print_json({"disposition": str(Disposition.NO_MAPPING), "why": why, "request": [], "reply": []})
    else:
        print(verdict_text(Disposition.NO_MAPPING, why, _width()))
    return FINDINGS


def _unlisted(name: str, realms: dict[str, str], real: dict[str, str]) -> str:
    """The address in `customer1/10.0.0.77`.  Raises NatPodError with what would be understood."""
    realm, _, address = name.partition("/")
    if realm in realms and _is_address(address):
        owner = next(
            (member for member, own in real.items() if own == address and member.startswith(realm + "/")), None
        )
        if owner is None and IPAddress(address) not in IPNetwork(realms[realm]):
            raise NatPodError(f"{name}: {address} is outside {realms[realm]}, the network of {realm}")
        if owner is None:
            return address
        raise NatPodError(f"{name}: that is {owner}; use its name")
    namesakes = [member for member in real if member.endswith(f"/{name}")]
    if namesakes:
        raise NatPodError(f"{name}: is no member; did you mean {' or '.join(namesakes)}?")
    known = ", ".join(list(real)[:6]) + (" ..." if len(real) > 6 else "")
    raise NatPodError(
        f"{name}: is neither a member ({known}) nor REALM/ADDRESS with a realm of this POD, "
        f"e.g. {next(iter(realms))}/10.0.0.77"
    )


def _is_address(text: str) -> bool:
    try:
        IPAddress(text, version=4, flags=INET_PTON)
    except (AddrFormatError, ValueError):
        return False
    return True


# --- handover ------------------------------------------------------------------------------------------------------


def _handover(arguments: argparse.Namespace) -> int:
    _, plan = _load(arguments.stack)
    sheet = handover.handover(plan, arguments.stack, arguments.neighbour)
    if arguments.outputs is not None:
        sheet = handover.with_outputs(sheet, plan, arguments.outputs)
    if arguments.json:
        _print_json(handover.sheet_dict(sheet))
    else:
        print(handover.sheet_markdown(sheet))
    return OK


# --- diff ----------------------------------------------------------------------------------------------------------


def _diff(arguments: argparse.Namespace) -> int:
    base = _plan_at(Path.cwd(), arguments.stack, arguments.base)
    _, plan = _load(arguments.stack)
    difference = compare(base, plan)
    if arguments.json:
        _print_json(report.difference_dict(difference))
    elif arguments.markdown:
        print(report.difference_markdown(difference, arguments.stack, arguments.base))
    else:
        print(report.difference_text(difference, arguments.stack, arguments.base))
    return OK if difference.harmless else FINDINGS


def _plan_at(directory: Path, name: str, revision: str) -> PodPlan | None:
    """The plan of the stack file as it was at a git revision, with the bootstrap of then."""
    stack = read_stack_at(directory, name, revision)
    if stack is None:
        return None
    try:
        plan = plan_pod(stack.checked(), name)
    except ConfigError as error:
        # Without the commands: they would change the file of today.
        problems = [replace(problem, command="") for problem in error.problems]
        raise ConfigError(f"{stack.path.name} at {revision}", problems) from None
    checkout = guest.SOURCES.parent
    if directory.resolve() != checkout:
        return plan  # nat-pod is installed elsewhere: its bootstrap has no history here
    user_data = file_at(directory, guest.ARTEFACT.relative_to(checkout).as_posix(), revision)
    return plan if user_data is None else with_user_data(plan, user_data.strip())


# --- import --------------------------------------------------------------------------------------------------------


def _import(arguments: argparse.Namespace) -> int:
    path = Path.cwd() / f"Pulumi.{arguments.stack}.yaml"
    if arguments.stack and path.exists():
        raise NatPodError(f"{path.name}: is there already and stays as it is; take another name")
    tables: dict[str, saved_rules.SavedTable] = {
        vm: saved_rules.read_saved(_read_bytes(file), file)
        for vm, file in zip(SIDES, (arguments.vm1, arguments.vm2), strict=True)
    }
    vnics: dict[str, VnicList] = {
        vm: read_vnics([(file, _read_bytes(file)) for file in files])
        for vm, files in zip(SIDES, (arguments.vnics1, arguments.vnics2), strict=True)
        if files
    }
    customers = dict(arguments.customer)
    if len(customers) < len(arguments.customer):
        raise NatPodError("--customer: a name stands there twice; a customer has one network")
    pod = reconstruct(tables, vnics)
    found = draft(pod, customers, arguments.stack or "new") if pod.flows and pod.pairs else None
    if found is not None and arguments.stack:
        book.create(path, found.text())
    if arguments.json:
        _print_json(report.import_dict(pod, found, path.name if found is not None and arguments.stack else None))
    else:
        # Without --stack the file is what standard output is for.
        print(report.import_text(pod, found), file=sys.stdout if arguments.stack else sys.stderr)
        if found is not None:
            print(f"\nwritten: {path.name}" if arguments.stack else found.text(), end="\n" if arguments.stack else "")
    if found is None:
        why = "no flow passes both NAT VMs: are these the rules of the two NAT VMs of one POD?"
        if pod.flows:
            why = "both NAT VMs share their subnets; in nat-pod each VNIC has a /27 of its own"
        raise NatPodError(f"{why} (nothing was written)")
    return FINDINGS if any(finding.kind not in NOTES for finding in found.findings) else OK


def _read_bytes(name: str) -> bytes:
    try:
        with Path(name).open("rb") as stream:  # a pipe will do: <(ssh nat-vm1 sudo iptables-save)
            return stream.read(saved_rules.MOST_BYTES + 1)
    except OSError as error:
        raise NatPodError(f"{name}: cannot be read: {error.strerror}") from None


# --- status --------------------------------------------------------------------------------------------------------


def _status(arguments: argparse.Namespace) -> int:
    _, plan = _load(arguments.stack)
    deployed = None if arguments.outputs is None else _deployed_generations(arguments.outputs)
    files = dict(arguments.report)
    if len(files) < len(arguments.report) or list(files.values()).count("-") > 1:
        raise NatPodError("--report: one for each NAT VM, and only one of them from standard input")
    texts = {vm: _read(file) for vm, file in files.items()} or _reports_of_lab(arguments.stack)
    compared = status.compare(plan, {vm: _report_of(vm, texts.get(vm)) for vm in SIDES}, time.time(), deployed)
    if arguments.json:
        _print_json(report.status_dict(compared))
    else:
        print(report.status_text(compared, arguments.stack))
    return FINDINGS if compared.findings else OK


def _report_of(vm: str, text: str | None) -> status.Report | str:
    """A VM's report, or why there is none."""
    if text is None:
        return "none was given"
    try:
        found = status.read_report(text)
    except (ValueError, RecursionError) as error:
        return str(error)
    if found.vm not in (None, vm):
        raise NatPodError(f"--report {vm}: that is a report of {found.vm}")
    return found


def _reports_of_lab(stack: str) -> dict[str, str]:
    """What the NAT VMs of the stack's lab print.  Raises NatPodError when it is not up."""
    from nat_pod.lab.wire import sandbox

    key = sandbox.lab_key(stack)
    if sandbox.find(key) is None:
        raise NatPodError(
            f"there is no --report, and the lab of {stack} is not up; run: python -m nat_pod lab up {stack}\n"
            f"or give what the NAT VMs of the tenancy report: python -m nat_pod status --help"
        )
    answers = {vm: sandbox.call(key, "log_in", vm=vm, argv=["nat-pod-agent", "status"]) for vm in SIDES}
    return {vm: answer["stdout"] + answer["stderr"] for vm, answer in answers.items()}


def _read(file: str) -> str:
    """A file that the user names; - is standard input."""
    try:
        return (sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()).decode(errors="replace")
    except OSError as error:
        raise NatPodError(f"{file}: {error.strerror}") from None


def _deployed_generations(file: str) -> dict[str, str]:
    try:
        generations = json.loads(_read(file))["generations"]
        return {vm: str(generations[vm]) for vm in SIDES}
    except (ValueError, KeyError, TypeError):
        raise NatPodError(
            f"{file}: has no generations of natVm1 and natVm2; write it with: pulumi stack output --json"
        ) from None


# --- lab -----------------------------------------------------------------------------------------------------------


def _lab(arguments: argparse.Namespace) -> int:
    # Imported here: the lab brings Pulumi with it, which takes longer to load than any other command to run.
    from nat_pod.lab import commands

    return commands.run(Path.cwd(), arguments)
