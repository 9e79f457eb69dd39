"""The real program, run in this process against a simulated region: in place of `pulumi up` where there is no CLI.

`__main__.py` itself runs, with the stack file's configuration, under Pulumi's mocks, and each registration becomes a
call to the region.  The mocks know only "create": there is no old state, no diff, no replacement and no deletion.  So a
second run *adopts*.  A resource that the region already has under the same type and name is updated in place to the
new inputs.  A change that would replace it is an error, and what is gone from the program stays in the region.  That
is enough for the two-step order of a new POD.  For changes as an engineer makes them, use the real engine.
"""

from __future__ import annotations

import asyncio
import contextvars
import gc
import json
import logging
import os
import runpy
import sys
import threading
from collections.abc import Callable, Coroutine, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pulumi
from pulumi.runtime import mocks
from pulumi.runtime.rpc import _special_sig_key
from pulumi.runtime.settings import SETTINGS
from pulumi.runtime.stack import run_pulumi_func

from nat_pod.config.stack_file import read_stack
from nat_pod.errors import NatPodError
from nat_pod.lab.region.inputs import Inputs, Value
from nat_pod.lab.region.region import Region

_PROJECT = "nat-pod"
_PREFIX = "oci:"


class DeployError(NatPodError):
    """The program could not be deployed; str() has the region's or the program's own words."""


@dataclass(frozen=True, slots=True)
class Registration:
    """One resource as the program registered it: its names, inputs and the options on which only an engine acts."""

    type: str
    name: str
    inputs: Inputs
    request: Any
    """The raw RegisterResourceRequest: parent, dependencies, deletedWith, deleteBeforeReplace and so on."""


@dataclass(frozen=True, slots=True)
class Deployment:
    """What came of a run: the stack's outputs, the warnings, and every registration in the order of arrival."""

    outputs: dict[str, Any]
    warnings: tuple[str, ...]
    registrations: tuple[Registration, ...] = ()


def deploy(directory: Path, stack: str, region: Region) -> Deployment:
    """Run the program in `directory` for a stack against `region`.

    The first run creates, a later one adopts by type and name and updates in place (see above).
    Raises ConfigError for a stack file with problems, DeployError for everything else.
    """
    return run_program(directory, _PROJECT, stack, read_stack(directory, stack).config, region)


def run_program(directory: Path, project: str, stack: str, config: Mapping[str, object], region: Region) -> Deployment:
    """The same for any project.  config: by full name, `nat-pod:cidr`."""
    monitor, log = _Monitor(_RegionMocks(region)), _Log()
    outputs: dict[str, Any] = {}

    async def program() -> None:
        pulumi.runtime.set_all_config({key: _config_text(value) for key, value in config.items()}, [])
        mocks.set_mocks(monitor.mocks, project=project, stack=stack, preview=False, logger=log, monitor=monitor)
        SETTINGS.callbacks = _NoHooks()
        await run_pulumi_func(_main)
        root: Any = pulumi.runtime.get_root_resource()
        for name, value in root.outputs.items():
            outputs[name] = await pulumi.Output.from_input(value).future()

    try:
        with _in_directory(directory.resolve()):
            run_apart(program)
    except NatPodError:
        raise
    except BaseException as error:
        raise DeployError(f"{project} {stack}: {str(error) or type(error).__name__}") from error
    return Deployment(outputs, tuple(log.warnings), tuple(monitor.registrations))


def run_apart(program: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run a Pulumi program in its own thread, with an empty context and a fresh event loop.

    So neither Pulumi's settings nor the caller's loop leak in or out, and one run can follow another.  Garbage is not
    collected meanwhile: a full POD's run makes millions of objects, and looking at them takes a fifth of its time.
    """
    errors: list[BaseException] = []

    def work() -> None:
        loops: list[asyncio.AbstractEventLoop] = []
        loop = _new_loop(loops)
        # The mocks themselves would make a loop in each worker thread, and never close it.
        loop.set_default_executor(ThreadPoolExecutor(initializer=_new_loop, initargs=(loops,)))
        # Pulumi keeps a program's outputs where all contexts share them, so a failed run may have left some there.
        SETTINGS.outputs.clear()
        try:
            loop.run_until_complete(program())
        except BaseException as error:
            errors.append(error)
        finally:
            loop.run_until_complete(_wind_up())
            for used in loops:
                used.close()

    worker = threading.Thread(target=contextvars.Context().run, args=(work,), name="pulumi program")
    collects = gc.isenabled()
    gc.disable()
    try:
        worker.start()
        worker.join()
    finally:
        if collects:
            gc.enable()
    if errors:
        raise errors[0]


class _RegionMocks(mocks.Mocks):
    """Resources and data sources of the OCI provider, answered by the region."""

    def __init__(self, region: Region) -> None:
        self.region = region

    def call(self, args: mocks.MockCallArgs) -> tuple[dict[str, Any], list[tuple[str, str]]]:
        return self.region.invoke(args.token, _plain(args.args)), []

    def new_resource(self, args: mocks.MockResourceArgs) -> tuple[str | None, dict[str, Any]]:
        if not args.typ.startswith(_PREFIX):
            return "", args.inputs  # a component, or an explicit provider
        if args.resource_id:
            return args.resource_id, self.region.read(args.resource_id)  # somebody else's, which is asked for
        inputs = _plain(args.inputs)
        known = self.region.find(args.typ, args.name)
        if known is not None:
            return known, self.region.update(known, inputs)
        return self.region.create(args.typ, inputs, args.name)


class _Monitor(mocks.MockMonitor):
    """Pulumi's mock monitor, which here also keeps what it hides from mocks: the options of each registration."""

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


class _NoHooks:
    """Stands in for the server that an engine calls a program's hooks at: nothing is replaced here, so none is called.

    Pulumi's mocks say that they know hooks, and have no such server.
    """

    def register_resource_hook(self, hook: pulumi.ResourceHook) -> None:
        """Take a hook in."""


class _Log(logging.Logger):
    """What the program tells its engine."""

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


def _main() -> None:
    runpy.run_path("__main__.py", run_name="__main__")


def _new_loop(loops: list[asyncio.AbstractEventLoop]) -> asyncio.AbstractEventLoop:
    """An event loop for the calling thread, noted in `loops`."""
    loop = asyncio.new_event_loop()
    # One refused resource leaves hundreds of futures that nobody awaits, and each would print a traceback.
    loop.set_exception_handler(lambda *_: None)
    asyncio.set_event_loop(loop)
    loops.append(loop)
    return loop


async def _wind_up() -> None:
    """End the tasks that a failed run left behind; otherwise each would complain when it is collected."""
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await asyncio.get_running_loop().shutdown_default_executor()


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
