"""The real program, run in this process against a simulated region: what `pulumi up` does where no Pulumi CLI is.

`__main__.py` itself runs, with the stack file's configuration, under Pulumi's mocks; each registration becomes a
call to the region.  The mocks know only "create": there is no old state, no diff, no replacement and no deletion.
So a second run *adopts*: a resource that the region already has under the same type and name is updated in place to
the new inputs, a change that would replace it is an error, and what is gone from the program stays in the region.
That is enough for the two-step order of a new POD.  For changes as an engineer makes them, use the real engine.
"""

from __future__ import annotations

import asyncio
import contextvars
import json
import logging
import os
import runpy
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pulumi
from pulumi.runtime import mocks
from pulumi.runtime.rpc import _special_sig_key
from pulumi.runtime.stack import run_pulumi_func

from nat_pod.errors import NatPodError
from nat_pod.lab.oci_types import Inputs, Value
from nat_pod.lab.region import Region
from nat_pod.stack import Stack, read_stack

_PROJECT = "nat-pod"
_PREFIX = "oci:"


class DeployError(NatPodError):
    """The program could not be deployed; str() has the region's or the program's own words."""


@dataclass(frozen=True, slots=True)
class Registration:
    """One resource as the program registered it: names, inputs and the options that only an engine acts on."""

    type: str
    name: str
    inputs: Inputs
    request: Any
    """The raw RegisterResourceRequest: parent, dependencies, deletedWith, deleteBeforeReplace and so on."""


@dataclass(frozen=True, slots=True)
class Deployment:
    """What a run left behind: the stack's outputs, the warnings, and every registration in order of arrival."""

    outputs: dict[str, Any]
    warnings: tuple[str, ...]
    registrations: tuple[Registration, ...] = ()


def deploy(directory: Path, stack: str, region: Region) -> Deployment:
    """Run the program in `directory` for a stack against `region`.

    The first run creates, a later one adopts by type and name and updates in place (see above).
    Raises ConfigError for a stack file that does not hold, DeployError for everything else.
    """
    run = _Run(directory.resolve(), read_stack(directory, stack), region)
    # A thread of its own has no event loop yet and an empty context, so that neither Pulumi's settings nor a loop
    # of the caller leak in or out, and runs can follow one another in one process.
    worker = threading.Thread(target=contextvars.Context().run, args=(run,), name="pulumi program")
    worker.start()
    worker.join()
    if run.error is not None:
        if isinstance(run.error, NatPodError):
            raise run.error
        raise DeployError(f"{_PROJECT} {stack}: {_words(run.error)}") from run.error
    return Deployment(run.outputs, tuple(run.log.warnings), tuple(run.monitor.registrations))


class _Run:
    """One run of the program."""

    def __init__(self, directory: Path, stack: Stack, region: Region) -> None:
        self.directory = directory
        self.stack = stack
        self.outputs: dict[str, Any] = {}
        self.error: BaseException | None = None
        self.log = _Log()
        self.monitor = _Monitor(_RegionMocks(region))

    def __call__(self) -> None:
        loop = asyncio.new_event_loop()
        asyncio.set_event_loop(loop)
        try:
            with _quiet_asyncio(), _in_directory(self.directory):
                loop.run_until_complete(self._main())
        except BaseException as error:  # handed to the thread that waits for this one
            self.error = error
        finally:
            loop.run_until_complete(_wind_up())
            loop.close()
            asyncio.set_event_loop(None)

    async def _main(self) -> None:
        config = {key: _config_text(value) for key, value in self.stack.config.items()}
        pulumi.runtime.set_all_config(config, [])
        mocks.set_mocks(
            self.monitor.mocks,
            project=_PROJECT,
            stack=self.stack.name,
            preview=False,
            logger=self.log,
            monitor=self.monitor,
        )
        await run_pulumi_func(self._program)
        root: Any = pulumi.runtime.get_root_resource()
        for name, value in root.outputs.items():
            self.outputs[name] = await pulumi.Output.from_input(value).future()

    def _program(self) -> None:
        runpy.run_path(str(self.directory / "__main__.py"), run_name="__main__")


class _RegionMocks(mocks.Mocks):
    """Resources and data sources of the OCI provider, answered by the region."""

    def __init__(self, region: Region) -> None:
        self.region = region

    def call(self, args: mocks.MockCallArgs) -> tuple[dict[str, Any], list[tuple[str, str]]]:
        return self.region.invoke(args.token, _plain(args.args)), []

    def new_resource(self, args: mocks.MockResourceArgs) -> tuple[str | None, dict[str, Any]]:
        if not args.typ.startswith(_PREFIX):
            return "", args.inputs  # a component, or an explicit provider
        inputs = _plain(args.inputs)
        known = self.region.find(args.typ, args.name)
        if known is not None:
            return known, self.region.update(known, inputs)
        return self.region.create(args.typ, inputs, args.name)


class _Monitor(mocks.MockMonitor):
    """Pulumi's mock monitor, which also keeps what it hides from mocks: the options of each registration."""

    def __init__(self, region_mocks: _RegionMocks) -> None:
        super().__init__(region_mocks)
        self.registrations: list[Registration] = []
        self._seen: set[str] = set()

    def RegisterResource(self, request: Any) -> Any:  # noqa: ANN401, N802 the name and types of the protocol
        urn = self.make_urn(request.parent, request.type, request.name)
        # The engine refuses this; the mocks would let the second one overwrite the first.
        if urn in self._seen:
            raise DeployError(f"Duplicate resource URN {urn}")
        self._seen.add(urn)
        inputs = _plain(pulumi.runtime.rpc.deserialize_properties(request.object))
        self.registrations.append(Registration(request.type, request.name, inputs, request))
        return super().RegisterResource(request)  # type: ignore[no-untyped-call]


class _Log(logging.Logger):
    """What the program says to its engine."""

    def __init__(self) -> None:
        super().__init__("nat-pod.program", logging.INFO)
        self.warnings: list[str] = []
        self.addHandler(_Keep(self.warnings))


class _Keep(logging.Handler):
    def __init__(self, warnings: list[str]) -> None:
        super().__init__(logging.WARNING)
        self._warnings = warnings

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno == logging.WARNING:
            self._warnings.append(record.getMessage())


def _config_text(value: object) -> str:
    """A value as the CLI hands it to a program: text as it is, the rest as JSON."""
    return value if isinstance(value, str) else json.dumps(value)


def _plain(value: Value) -> Value:
    """Undo what the wire does: secrets are wrapped, and every number is a float."""
    if isinstance(value, Mapping):
        if _special_sig_key in value:
            return _plain(value.get("value"))
        return {key: _plain(member) for key, member in value.items()}
    if isinstance(value, list):
        return [_plain(member) for member in value]
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value


async def _wind_up() -> None:
    """End what a failed run left behind, or each task would complain when it is collected."""
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await asyncio.get_running_loop().shutdown_default_executor()


def _words(error: BaseException) -> str:
    return str(error) or type(error).__name__


@contextmanager
def _quiet_asyncio() -> Iterator[None]:
    """One refused resource leaves hundreds of futures that nobody awaits; each would print a traceback."""
    logger = logging.getLogger("asyncio")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


@contextmanager
def _in_directory(directory: Path) -> Iterator[None]:
    """The program's own directory as working directory and first on the path, as Pulumi's executor does it."""
    before, path = Path.cwd(), list(sys.path)
    os.chdir(directory)
    sys.path.insert(0, str(directory))
    try:
        yield
    finally:
        os.chdir(before)
        sys.path[:] = path
