"""All stack files of a directory, as a POD has to know its neighbours.

A stack file that still has problems claims its range all the same: two new PODs must not be given the same one.  No
rules are compiled, because no question that is answered here needs them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

from netaddr import IPNetwork

from nat_pod.config.any_config import AnyConfig
from nat_pod.config.model import PodConfig
from nat_pod.config.move import pair_problems
from nat_pod.config.placement import REGION, placement_problems
from nat_pod.config.routed import MORE_BALANCERS, RoutedConfig
from nat_pod.config.stack_file import Stack, read_stack, stack_names
from nat_pod.config.subnets import claimed_range
from nat_pod.each import each
from nat_pod.errors import ConfigError, NatPodError, Problem
from nat_pod.names import NAMESPACE


@dataclass(frozen=True, kw_only=True)
class Pod:
    """A stack file as its neighbours need to know it; the rest is read when somebody asks.

    `cidr` is the range that it names, None when it names none.  `unknown`: it may name one that cannot be read.
    """

    name: str
    cidr: IPNetwork | None
    unknown: bool
    stack: Stack | None
    unreadable: tuple[Problem, ...] = ()

    @property
    def example(self) -> bool:
        """Whether it is an example (`Stack.example`): checked by itself, and its range stays free for others."""
        return self.stack is not None and self.stack.example

    @cached_property
    def moves_from(self) -> str | None:
        """The POD whose place this one takes (`movesFrom`), as it is written: None without one."""
        value = None if self.stack is None else self.stack.pod_config().get("movesFrom")
        return value if isinstance(value, str) and value else None

    @cached_property
    def config(self) -> AnyConfig | None:
        """The configuration, if the problems leave one; it has problems if only its address book lags behind."""
        return self._draft[0]

    @cached_property
    def problems(self) -> tuple[Problem, ...]:
        """What is wrong with this file alone."""
        return self._draft[1]

    @cached_property
    def _draft(self) -> tuple[AnyConfig | None, tuple[Problem, ...]]:
        if self.stack is None:
            return None, self.unreadable
        config, problems, unsettled = self.stack.draft()
        elsewhere = self.stack.located(placement_problems(self.stack.config))
        return config, (*elsewhere, *problems, *unsettled)


def read_pods(directory: Path) -> dict[str, Pod]:
    """All stack files of a directory, by the stack's name.

    Raises ConfigError for a project file with problems, because these are not a single stack's.
    """
    names = stack_names(directory)
    return dict(zip(names, each(partial(read_pod, directory), names), strict=True))


def read_pod(directory: Path, name: str) -> Pod:
    """One of them, with its problems read.  Raises as `read_pods` does."""
    try:
        stack = read_stack(directory, name)
    except ConfigError as error:
        if error.source != f"Pulumi.{name}.yaml":
            raise
        return Pod(name=name, cidr=None, unknown=True, stack=None, unreadable=error.problems)
    mapping = stack.pod_config()
    cidr = claimed_range(mapping)
    pod = Pod(name=name, cidr=cidr, unknown=cidr is None and mapping.get("cidr") is not None, stack=stack)
    _ = pod.problems  # read here and now: this may be a process of its own, and somebody asks for them anyway
    return pod


def claimed(pods: Mapping[str, Pod]) -> dict[str, IPNetwork | None]:
    """Each POD's range, None where it claims none, as examples do: what `config.ranges` computes with."""
    return {name: None if pod.example else pod.cidr for name, pod in pods.items()}


def too_few_balancers(name: str, pods: Mapping[str, Pod]) -> list[Problem]:
    """The problem that a region's routed PODs together need more network load balancers than it may have, if so."""
    needed = {other: config.balancers for other, config in _routed(pods, _region(pods[name])).items()}
    config = _routed(pods, _region(pods[name])).get(name)
    total = sum(needed.values())
    if config is None or config.balancers == 0 or len(needed) == 1 or total <= config.balancer_limit:
        return []
    rule = (
        f"the PODs of its region ({', '.join(needed)}) take {total} network load balancers together; {MORE_BALANCERS}"
    )
    return [Problem("nat-pod:balancerLimit", str(config.balancer_limit), rule)]


def balancers_of_region(name: str, pods: Mapping[str, Pod]) -> int:
    """How many network load balancers the other PODs of a POD's region take."""
    return sum(config.balancers for other, config in _routed(pods, _region(pods[name])).items() if other != name)


def _region(pod: Pod) -> object:
    return None if pod.stack is None else pod.stack.config.get(REGION)


def _routed(pods: Mapping[str, Pod], region: object) -> dict[str, RoutedConfig]:
    """The routed PODs of a region, examples apart."""
    return {
        name: pod.config
        for name, pod in pods.items()
        if not pod.example and _region(pod) == region and isinstance(pod.config, RoutedConfig)
    }


def partners(name: str, pods: Mapping[str, Pod]) -> list[str]:
    """The PODs that may share a POD's range: the one whose place it takes, and those that take its own."""
    return [other for other, pod in pods.items() if pods[name].moves_from == other or pod.moves_from == name]


def move_problems(name: str, pods: Mapping[str, Pod]) -> list[Problem]:
    """What is wrong between a POD and the one whose place it takes; nothing while either has problems of its own."""
    pod, former = pods[name], pods[name].moves_from
    if former is None or not isinstance(pod.config, RoutedConfig):
        return []
    old = pods.get(former)
    if old is None:
        return [_moves_from(former, f"there is no Pulumi.{former}.yaml any more: the move is over, take this line out")]
    if old.config is None:
        return []
    if not isinstance(old.config, PodConfig):
        return [_moves_from(former, "has delivery: routes itself; only a POD with delivery: privateIps can be moved")]
    return pair_problems(pod.config, old.config, former)


def _moves_from(former: str, rule: str) -> Problem:
    return Problem(f"{NAMESPACE}:movesFrom", former, rule)


def range_unknown(pods: Mapping[str, Pod]) -> list[str]:
    """The PODs whose range cannot be read and may be any; an example has none, whatever it says."""
    return [name for name, pod in pods.items() if pod.unknown and not pod.example]


def no_stacks(directory: Path) -> NatPodError:
    """What to say when `read_pods` finds none."""
    return NatPodError(
        f"there is no Pulumi.<stack>.yaml in {directory}; run: python -m nat_pod new-pod NAME, or for the examples: "
        "python -m nat_pod new-project --examples"
    )
