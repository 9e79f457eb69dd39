"""What VMs have written to their serial consoles, fetched by Pulumi.

A capture of a console is a resource, and its text a data source.  So it takes no client but the one that deployed the
POD, with its backend and its credentials.  The captures are in a stack of their own, which goes again at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import pulumi
from pulumi import automation
from pulumi_oci import core

from nat_pod.deployed.stacks import Say, Stack, engine_errors
from nat_pod.errors import NatPodError
from nat_pod.limits import CONSOLE_BYTES

PROJECT = "nat-pod-consoles"


@dataclass(frozen=True, slots=True)
class Fetched:
    """consoles: the text of each NAT VM's serial console.  outputs: those of the POD's stack."""

    consoles: dict[str, str]
    outputs: dict[str, Any]


class Captures:
    """For the length of a `with` block, consoles can be read.  Each reading replaces the captures of the one before.

    Raises NatPodError in the engine's words.  The next block removes what is left then.
    """

    def __init__(self, stack: str, config: Mapping[str, object], say: Say) -> None:
        """config: of the provider, by full name."""
        self._name, self._say, self._turn = stack, say, 0
        self._wanted: Mapping[str, str] = {}
        self._stack = Stack(PROJECT, stack, self._program, config, say)
        if self._stack.standing():
            say("removing the captures of a call that was cut short")
            self._stack.destroy()
            self._stack = Stack(PROJECT, stack, self._program, config, say)

    def __enter__(self) -> Captures:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._say("removing the captures")
        self._stack.destroy()

    def read(self, vms: Mapping[str, str]) -> dict[str, str]:
        """The text of each console.  vms: OCIDs, by name."""
        self._wanted, self._turn = vms, self._turn + 1
        captured = self._stack.up()
        return {vm: str(captured[vm]) for vm in vms}

    def _program(self) -> None:
        """A capture of each console, and its text; a new one at each reading."""
        for vm, instance in self._wanted.items():
            captured = core.ConsoleHistory(
                f"{vm} {self._turn}", instance_id=instance, display_name=f"nat-pod-{self._name}-{vm.replace('/', '-')}"
            )
            found = core.get_console_history_data_output(console_history_id=captured.id, length=CONSOLE_BYTES)
            pulumi.export(vm, found.data)


def captures_stack(stack: str, config: Mapping[str, object], say: Say) -> Stack:
    """The stack of captures that a reading which was cut short may have left; to be destroyed or unlocked."""
    return Stack(PROJECT, stack, lambda: None, config, say)


def fetch(directory: Path, stack: str, say: Say) -> Fetched:
    """Capture the serial consoles of a deployed POD and read them.

    directory: the project's.  Raises NatPodError in the engine's words.
    """
    with engine_errors(f"{PROJECT}, stack {stack}"):
        pod = _pod(directory, stack)
        outputs = {name: output.value for name, output in pod.outputs().items()}
        provider = {name: value.value for name, value in pod.get_all_config().items() if name.startswith("oci:")}
    vms = outputs.get("natVmIds")
    if not isinstance(vms, dict) or not vms:
        raise NatPodError(f"stack {stack} has no NAT VMs; next: pulumi up --stack {stack}")
    with Captures(stack, provider, say) as captures:
        say(f"capturing the serial consoles of {', '.join(vms)}")
        consoles = captures.read(vms)
    return Fetched(consoles, outputs)


def _pod(directory: Path, stack: str) -> automation.Stack:
    try:
        return automation.select_stack(stack_name=stack, work_dir=str(directory))
    except automation.StackNotFoundError:
        raise NatPodError(
            f"the backend that pulumi is logged in to has no stack {stack} of this project; next: pulumi stack ls"
        ) from None
