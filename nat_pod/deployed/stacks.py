"""Stacks of nat-pod's own in the engineer's backend: their programs run in this process, by Pulumi's Automation API."""

from __future__ import annotations

import json
import logging
import re
import shutil
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from tempfile import mkdtemp
from typing import Any

from pulumi import automation
from pulumi.runtime._callbacks import _CallbackServicer

from nat_pod.errors import NO_CLI, NatPodError, excerpt
from nat_pod.text import count

# A CLI that was interrupted no longer hears how the program in this process ended, and grpc would log that at length.
logging.getLogger("grpc._server").setLevel(logging.CRITICAL)

Say = Callable[[str], None]

_PROGRESS_SECONDS = 10.0


class CliError(NatPodError):
    """The CLI ended with an error.  `lines`: what it and the engine said, each thing once."""

    def __init__(self, what: str, lines: Sequence[str]) -> None:
        self.lines = tuple(lines)
        super().__init__(f"{what}: {'; '.join(lines)}")


class LockedError(CliError):
    """The backend holds a lock for the stack: somebody works on it, or was killed while doing so."""


def find(project: str, name: str) -> tuple[bool, str]:
    """Whether the backend has the stack, and which backend that is.  Raises NatPodError in the engine's words."""
    folder = mkdtemp(prefix="nat-pod-")
    try:
        with engine_errors(f"{project}, stack {name}"):
            settings = automation.ProjectSettings(name=project, runtime="python")
            workspace = automation.LocalWorkspace(work_dir=folder, project_settings=settings)
            names = {summary.name.rpartition("/")[2] for summary in workspace.list_stacks()}
            return name in names, workspace.who_am_i().url or "that pulumi is logged in to"
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class Stack:
    """One stack.  All methods raise NatPodError in the engine's words."""

    def __init__(
        self,
        project: str,
        name: str,
        program: Callable[[], None],
        config: Mapping[str, object],
        say: Say,
        *,
        hooks: bool = False,
    ) -> None:
        """config: by full name, as in a stack file.  hooks: the program has some, so deleting runs it, too."""
        self.project, self.name, self._say, self._hooks = project, name, say, hooks

        def alone() -> None:
            # Pulumi keeps the servers for hooks of all programs in one list, and each program stops all of them at its
            # end.  That of a failed program is on a closed loop, so no later program in this process could end.
            _CallbackServicer._servicers.clear()
            program()

        # Pulumi would make a folder for it, too, and leave that behind.
        folder = mkdtemp(prefix="nat-pod-")
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        options = automation.LocalWorkspaceOptions(work_dir=folder)
        with engine_errors(str(self)):
            self._stack = automation.create_or_select_stack(
                stack_name=name, project_name=project, program=alone, opts=options
            )
        self.configure(config)

    def __str__(self) -> str:
        return f"{self.project}, stack {self.name}"

    def configure(self, config: Mapping[str, object]) -> None:
        """Set the configuration, by its file: on a command line it might be too long."""
        workspace = self._stack.workspace
        with engine_errors(str(self)):
            try:
                settings = workspace.stack_settings(self.name)
            except FileNotFoundError:
                settings = automation.StackSettings()
            settings.config = {
                key: value if isinstance(value, str) else json.dumps(value) for key, value in config.items()
            }
            workspace.save_stack_settings(self.name, settings)

    def up(self) -> dict[str, Any]:
        """Deploy; returns the stack's outputs."""
        counter = _Counter(self._say)
        with engine_errors(str(self)):
            done = self._stack.up(on_event=counter.event)
        return {name: output.value for name, output in done.outputs.items()}

    def destroy(self) -> None:
        """Delete everything in it, and the stack."""
        counter = _Counter(self._say)
        with engine_errors(str(self)):
            if self.standing():
                self._stack.destroy(on_event=counter.event, run_program=self._hooks)
            self._stack.workspace.remove_stack(self.name)

    def standing(self) -> int:
        """How many resources it has."""
        with engine_errors(str(self)):
            exported = self._stack.export_stack().deployment or {}
        resources = exported.get("resources") or []
        return sum(one.get("custom", False) and not one["type"].startswith("pulumi:") for one in resources)

    def unlock(self) -> None:
        """Take away the lock that a killed program left."""
        with engine_errors(str(self)):
            self._stack.cancel()


class _Counter:
    """Says now and then how many resources an operation has dealt with."""

    def __init__(self, say: Say) -> None:
        self._say, self._done, self._said = say, 0, time.monotonic()

    def event(self, event: automation.EngineEvent) -> None:
        """Take an event of the engine."""
        ended = event.res_outputs_event
        if ended is not None and not ended.planning and ended.metadata.op not in ("same", "read"):
            self._done += 1
        if time.monotonic() - self._said > _PROGRESS_SECONDS:
            self._said = time.monotonic()
            self._say(f"{count(self._done, 'resource')} so far")


@contextmanager
def engine_errors(what: str) -> Iterator[None]:
    """Errors of the CLI as NatPodError, in its own words."""
    try:
        yield
    except automation.ConcurrentUpdateError as error:
        raise LockedError(what, _lines(error)) from None
    except automation.CommandError as error:
        raise CliError(what, _lines(error)) from None
    except automation.InvalidVersionError as error:
        raise NatPodError(f"the pulumi CLI is too old: {error}") from None
    except FileNotFoundError as error:
        if error.filename not in (None, "pulumi"):
            raise
        raise NatPodError(NO_CLI) from None


def _lines(error: Exception) -> list[str]:
    lines = re.findall(r"^\s*(?:stderr: )?error: (.+)$", str(error), re.MULTILINE) or [excerpt(str(error))]
    return list(dict.fromkeys(lines))
