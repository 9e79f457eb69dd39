"""`trial`: the proof in the user's own tenancy, or rehearsed on this machine."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from nat_pod.commands.command import FINDINGS, OK, Subparsers, add_json, add_parser, add_stack, print_json
from nat_pod.config import whole_file
from nat_pod.config.stack_file import read_stack
from nat_pod.errors import NatPodError
from nat_pod.text import Progress
from nat_pod.trial.assumptions import Assumption
from nat_pod.trial.report import Mask, TrialReport, report_dict, report_page, report_text

_NOTES = """\
Makes a second POD from the stack's configuration, with throw-away neighbours. A
POD that is in use is not touched. Sends the packets of `lab check` between the
neighbours, looks at everything that only OCI can show, and takes it all down.
A trial that ended early goes on where it stopped when you run it again.

Exit status 0: all as declared and as assumed; 1: findings"""


def add(commands: Subparsers) -> None:
    """The command's parser."""
    words = "test the POD in your tenancy with throw-away neighbours and real packets, or rehearse it on this machine"
    parser = add_parser(commands, "trial", words, _run)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = _NOTES
    add_stack(parser)
    parser.add_argument("--yes", action="store_true", help="do not ask before anything is made")
    parser.add_argument("--keep", action="store_true", help="do not take the POD and its neighbours down at the end")
    parser.add_argument("--mask", action="store_true", help="write the report without OCIDs and real addresses")
    words = "who gets a VM: a few members that stand for all (the default), or all of them"
    parser.add_argument("--hosts", choices=["few", "all"], default="few", help=words)
    action = parser.add_mutually_exclusive_group()
    action.add_argument("--destroy", action="store_true", help="only take down what a trial left standing")
    action.add_argument("--unlock", action="store_true", help="only release the locks that a killed trial left")
    action.add_argument(
        "--rehearse", action="store_true", help="on this machine: the simulated region, and a lab that boots its VMs"
    )
    parser.add_argument(
        "--break",
        dest="broken",
        metavar="ASSUMPTION",
        choices=[str(one) for one in Assumption],
        help="with --rehearse: simulate that this assumption about OCI does not hold: " + ", ".join(Assumption),
    )
    add_json(parser)


def _run(arguments: argparse.Namespace) -> int:
    if arguments.broken is not None and not arguments.rehearse:
        raise NatPodError("--break is for a rehearsal; add --rehearse")
    directory, say = Path.cwd(), Progress(minutes=True)
    if not (directory / "__main__.py").is_file():
        raise NatPodError(
            f"{directory} has no __main__.py: a trial runs the Pulumi program of the directory that it is started in; "
            "run: python -m nat_pod new-project"
        )
    if arguments.rehearse:
        return _rehearse(arguments, directory, say)
    stack = read_stack(directory, arguments.stack)
    if stack.example:
        raise NatPodError(
            f"{stack.path.name}: is an example with a made-up compartment; make a stack of your own "
            f"(python -m nat_pod new-pod NAME), or: python -m nat_pod trial {arguments.stack} --rehearse"
        )
    from nat_pod.deployed.trial import Trial  # loads Pulumi, which takes a second

    trial = Trial(directory, arguments.stack, say, everyone=arguments.hosts == "all")
    if arguments.destroy or arguments.unlock:
        trial.check_is_there()
    if arguments.destroy:
        trial.destroy()
        print("nothing of the trial is left")
        return OK
    if arguments.unlock:
        trial.unlock()
        print(f"unlocked; next: python -m nat_pod trial {arguments.stack}")
        return OK
    _ask(trial.what_it_makes, arguments)
    report = trial.run()
    _tell(report, arguments, directory)
    if arguments.keep:
        print(f"still up; to take it down: python -m nat_pod trial {arguments.stack} --destroy", file=sys.stderr)
    else:
        trial.destroy()
    return OK if report.passed else FINDINGS


def _rehearse(arguments: argparse.Namespace, directory: Path, say: Progress) -> int:
    from nat_pod.deployed.trial import Trial, TrialEndedError
    from nat_pod.lab.rehearsal import PATIENCE, Rehearsal

    if arguments.keep:
        raise NatPodError(
            "--keep: a rehearsal's region ends with the command, so nothing could be kept; leave --keep out"
        )
    broken = None if arguments.broken is None else Assumption(arguments.broken)
    with Rehearsal(directory, arguments.stack, say, broken=broken):
        trial = Trial(
            directory, arguments.stack, say, patience=PATIENCE, everyone=arguments.hosts == "all", rehearsed=True
        )
        try:
            report = trial.run()
            trial.destroy()
        except TrialEndedError as error:
            raise NatPodError(
                f"{error.why}\nthe rehearsal has ended, and its region with it; "
                f"to start again: python -m nat_pod trial {arguments.stack} --rehearse"
            ) from None
    _tell(report, arguments, directory)
    return OK if report.passed else FINDINGS


def _ask(words: str, arguments: argparse.Namespace) -> None:
    """Say what will be made and what it costs, and ask.  Raises NatPodError for anything but a yes."""
    print(words, file=sys.stderr)
    if arguments.yes:
        return
    if not sys.stdin.isatty():
        raise NatPodError("standard input is not a terminal, so nobody can answer; add --yes (nothing was made)")
    print("Go on? [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise NatPodError("nothing was made")


def _tell(report: TrialReport, arguments: argparse.Namespace, directory: Path) -> None:
    """Print the report, and write it down."""
    found, page = report_dict(report), report_page(report)
    if arguments.mask:
        mask = Mask()
        found, page = mask.value(found), mask.text(page)
    written = [(f"trial-{report.stack}.json", json.dumps(found, indent=2) + "\n"), (f"trial-{report.stack}.md", page)]
    for name, text in written:
        whole_file.put(directory / name, text)
    if arguments.json:
        print_json(found)
    else:
        print(report_text(report))
    print(f"written  {' and '.join(name for name, _ in written)}", file=sys.stderr)
