"""`check`: whether the stack files hold, alone and against each other."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from nat_pod.commands.command import FINDINGS, OK, Subparsers, add_json, add_parser, print_json, stack_name
from nat_pod.config.model import Capacity
from nat_pod.config.pods import Pod, claimed, move_problems, no_stacks, partners, read_pod, too_few_balancers
from nat_pod.config.ranges import overlaps
from nat_pod.config.stack_file import read_stack, stack_names
from nat_pod.each import each
from nat_pod.errors import ConfigError, Problem, Unsettled, shorten
from nat_pod.plan.planner import plan_pod


def add(commands: Subparsers) -> None:
    """The command's parser."""
    parser = add_parser(commands, "check", "validate stack files, each on its own and against the others", _run)
    words = "stacks to check (default: all in this directory)"
    parser.add_argument("stacks", metavar="STACK", type=stack_name, nargs="*", help=words)
    add_json(parser)


def _run(arguments: argparse.Namespace) -> int:
    directory = Path.cwd()
    every: dict[str, Pod] = {}
    planned: dict[str, tuple[Capacity | None, list[Problem]]] = {}
    for pod, capacity, found in each(partial(_examined, directory, arguments.stacks), stack_names(directory)):
        every[pod.name], planned[pod.name] = pod, (capacity, found)
    names = list(dict.fromkeys(arguments.stacks)) or list(every)
    if not names:
        raise no_stacks(directory)
    for name in names:
        if name not in every:
            read_stack(directory, name)  # says so, and which stacks there are
    ranges = claimed(every)
    findings: dict[str, list[Problem]] = {name: list(every[name].problems) for name in names}
    for name in names:
        stack = every[name].stack
        if stack is not None:
            beside = overlaps(name, ranges, partners(name, every))
            more = [*too_few_balancers(name, every), *move_problems(name, every)]
            findings[name] += stack.located([*beside, *more])
    used: dict[str, Capacity] = {}
    for name in names:
        capacity, found = planned[name]
        findings[name] += found
        if capacity is not None:
            used[name] = capacity
    for problems in findings.values():
        problems.sort(key=lambda problem: isinstance(problem, Unsettled))  # mistakes first
    if arguments.json:
        print_json(
            {
                name: {"problems": [_problem_dict(p) for p in findings[name]], "example": every[name].example}
                for name in names
            }
        )
    else:
        for name in names:
            if findings[name]:
                print(ConfigError(f"Pulumi.{name}.yaml", findings[name]))
            else:
                what = "fine, an example" if every[name].example else "fine"
                print(f"Pulumi.{name}.yaml: {what}, {used[name].used} of {used[name].slots} slots used")
    return FINDINGS if any(findings.values()) else OK


def _examined(directory: Path, asked: Sequence[str], name: str) -> tuple[Pod, Capacity | None, list[Problem]]:
    """A POD, and of one that is asked for (all by default) what is left of it, or what only its plan shows."""
    pod = read_pod(directory, name)
    if pod.stack is None or pod.config is None or pod.problems or (asked and name not in asked):
        return pod, None, []
    try:
        return pod, plan_pod(pod.config, name).capacity, []
    except ConfigError as error:
        return pod, None, pod.stack.located(error.problems)


def _problem_dict(problem: Problem) -> dict[str, object]:
    value = problem.value if problem.value is None or isinstance(problem.value, str | int) else shorten(problem.value)
    return {
        "path": problem.path,
        "line": problem.line,
        "value": value,
        "rule": problem.rule,
        "command": problem.command or None,
    }
