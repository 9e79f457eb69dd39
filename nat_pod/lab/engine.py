"""The real Pulumi engine, run against a simulated region: preview, up, refresh and destroy as an engineer does them.

    engine = Engine(Path("."), "dev", Path("/tmp/lab/region"), find_cli())
    RegionFile.make(engine.region_file, Region("uk-london-1"))
    engine.up()

Nothing leaves this machine and nothing of the user's is touched: no login, no network, no entry in ~/.pulumi, not a
byte in the checkout.  State, plugins and a copy of the two Pulumi files lie beside the region's file.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from nat_pod.errors import NatPodError
from nat_pod.lab import language_host, provider
from nat_pod.stack import load_yaml

PROJECT_FILE = "Pulumi.yaml"


class EngineError(NatPodError):
    """A command of the engine failed; str() has the engine's own errors, `run` what it did before."""

    def __init__(self, message: str, run: Run) -> None:
        self.run = run
        super().__init__(message)


@dataclass(frozen=True, slots=True)
class Step:
    """One thing the engine plans or does to one resource.

    op: create, update, delete, or the parts of a replacement: replace, create-replacement, delete-replaced.
    paths: the inputs that differ, with the kind of difference (add, update, delete; add-replace and so on).
    """

    op: str
    type: str
    name: str
    urn: str
    paths: dict[str, str]

    def __str__(self) -> str:
        paths = f" ({', '.join(self.paths)})" if self.paths else ""
        return f"{self.op} {self.type.rsplit(':', 1)[-1]} {self.name}{paths}"


@dataclass(frozen=True, slots=True)
class Run:
    """What a command planned or did, in order, and what it said."""

    steps: tuple[Step, ...]
    warnings: tuple[str, ...]
    errors: tuple[str, ...]

    def ops(self, type_token: str | None = None) -> dict[str, list[str]]:
        """Names of resources by what happens to them, of one type or all."""
        found: dict[str, list[str]] = {}
        for step in self.steps:
            if type_token in (None, step.type):
                found.setdefault(step.op, []).append(step.name)
        return found


def find_cli() -> Path | None:
    """The `pulumi` on PATH, or the one that `.ci/pulumi/install` built."""
    on_path = shutil.which("pulumi")
    if on_path:
        return Path(on_path)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    built = cache / "nat-pod" / f"pulumi-{version('pulumi')}" / "bin" / "pulumi"
    return built if os.access(built, os.X_OK) else None


class Engine:
    """The Pulumi CLI, for one stack of the project in `directory`, against the region in `region_file`.

    Several stacks may share a region, as several PODs do.
    """

    def __init__(
        self,
        directory: Path,
        stack: str,
        region_file: Path,
        cli: Path,
        *,
        stack_file: Path | None = None,
        progress: Callable[[Step], None] | None = None,
    ) -> None:
        """stack_file: read in place of Pulumi.<stack>.yaml.  progress: called as each step begins."""
        self.directory = directory.resolve()
        self.stack = stack
        self.stack_file = stack_file or self.directory / f"Pulumi.{stack}.yaml"
        self.region_file = region_file.resolve()
        self._cli = cli
        self._progress = progress
        self._base = self.region_file.parent / "pulumi"
        self._process: subprocess.Popen[str] | None = None

    def preview(self) -> Run:
        """What `up` would do."""
        return self._operate("preview")

    def expect_no_changes(self) -> None:
        """Raise EngineError, with what `up` would do, unless that is nothing."""
        try:
            self._operate("preview", "--expect-no-changes")
        except EngineError as error:
            raise EngineError("\n".join([str(error), *map(str, error.run.steps)]), error.run) from None

    def up(self) -> Run:
        """Make the region what the program says."""
        return self._operate("up", "--yes", "--skip-preview")

    def refresh(self) -> Run:
        """Take into the stack's state what has changed in the region."""
        return self._operate("refresh", "--yes", "--skip-preview")

    def destroy(self) -> Run:
        """Delete everything the stack has."""
        return self._operate("destroy", "--yes", "--skip-preview")

    def outputs(self) -> dict[str, Any]:
        """The stack's outputs."""
        self._prepare()
        outputs: dict[str, Any] = json.loads(self._query("stack", "output", "--json"))
        return outputs

    def resources(self) -> list[dict[str, Any]]:
        """The stack's state: every resource with its URN, inputs and outputs."""
        self._prepare()
        exported = json.loads(self._query("stack", "export"))
        found: list[dict[str, Any]] = exported["deployment"].get("resources", [])
        return found

    def interrupt(self) -> None:
        """As ^C does, from another thread: the command under way finishes the calls it has begun, and fails."""
        if self._process is not None:
            self._process.send_signal(signal.SIGINT)

    # How the CLI is run

    def _operate(self, command: str, *options: str) -> Run:
        self._prepare()
        with tempfile.TemporaryDirectory(dir=self._base) as scratch:
            events, output = Path(scratch, "events"), Path(scratch, "output")
            events.touch()
            with output.open("w", encoding="utf-8") as sink:
                self._process = self._start(command, "--event-log", str(events), *options, stdout=sink)
                # What a refresh finds is known after it has asked; a step of the others when it begins.
                kind = "resOutputsEvent" if command == "refresh" else "resourcePreEvent"
                try:
                    run = self._follow(events, self._process, kind)
                finally:
                    self._process.wait()  # a ^C reaches the CLI too, which then finishes what it has begun
            if self._process.returncode:
                said = "\n".join(run.errors) or _complaint(output.read_text(encoding="utf-8"))
                if self._process.returncode < 0:
                    said = f"it was ended by signal {-self._process.returncode}"
                raise EngineError(f"pulumi {command} of stack {self.stack}: {said}", run)
        return run

    def _follow(self, events: Path, process: subprocess.Popen[str], kind: str) -> Run:
        """Read the engine's events until it ends."""
        steps: list[Step] = []
        said: dict[str, list[str]] = {"warning": [], "error": []}
        for event in _events(events, process):
            metadata = (event.get(kind) or {}).get("metadata")
            diagnostic = event.get("diagnosticEvent")
            if metadata and metadata["op"] not in ("same", "refresh", "read"):
                steps.append(_step(metadata))
                if self._progress is not None:
                    self._progress(steps[-1])
            if diagnostic and diagnostic["severity"] in said:
                said[diagnostic["severity"]].append(_said(diagnostic))
        return Run(tuple(steps), tuple(said["warning"]), tuple(said["error"]))

    def _query(self, *arguments: str) -> str:
        with self._start(*arguments, stdout=subprocess.PIPE) as process:
            output, _ = process.communicate()
        if process.returncode:
            command = " ".join(arguments)
            raise EngineError(f"pulumi {command} of stack {self.stack}: {_complaint(output)}", Run((), (), ()))
        return output

    def _start(self, *arguments: str, stdout: Any) -> subprocess.Popen[str]:  # noqa: ANN401 as Popen takes it
        return subprocess.Popen(
            [self._cli, *arguments, "--stack", self.stack, "--non-interactive", "--color", "never"],
            cwd=self._base / "project",
            env=self._environment(),
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def _environment(self) -> dict[str, str]:
        mine = {
            provider.REGION_VARIABLE: str(self.region_file),
            "PULUMI_HOME": str(self._base / "home"),
            "PULUMI_BACKEND_URL": f"file://{self._base / 'state'}",
            "PULUMI_CONFIG_PASSPHRASE": "",  # nat-pod has no secrets; unset, the CLI would ask for one
            "PULUMI_DEBUG_COMMANDS": "true",  # has the flag --event-log, which Pulumi's automation API uses too
            # The plugins are those in PULUMI_HOME, whatever lies on PATH, and nothing is downloaded.
            "PULUMI_IGNORE_AMBIENT_PLUGINS": "true",
            "PULUMI_DISABLE_AUTOMATIC_PLUGIN_ACQUISITION": "true",
            "PULUMI_DISABLE_REGISTRY_RESOLVE": "true",
            "PULUMI_SKIP_UPDATE_CHECK": "true",
            "PULUMI_DIY_BACKEND_DISABLE_CHECKPOINT_BACKUPS": "true",
            # Write the state once at the end, also of an interrupted run: written after every step, as the CLI does by
            # default so that a crash loses nothing, it is most of the time that a full POD takes.
            "PULUMI_SKIP_CHECKPOINTS": "true",
        }
        # Without the caller's own settings, which may name another backend, organization or home.
        return {key: value for key, value in os.environ.items() if not key.startswith("PULUMI_")} | mine

    # What the CLI finds

    def _prepare(self) -> None:
        """Lay out plugins and project, and make the stack unless it exists.

        The project is a directory of links to the real one, because the CLI writes a salt into the stack's file, and
        because that file may name a secrets provider or an organization that the lab has no part in.
        """
        project, home, state = (self._base / name for name in ("project", "home", "state"))
        for path in (project, home, state):
            path.mkdir(parents=True, exist_ok=True)
        provider.write_plugin(home)
        language_host.write_plugin(home)
        self._link_project(project)
        copy = project / f"Pulumi.{self.stack}.yaml"
        salt = load_yaml(copy).get("encryptionsalt") if copy.exists() else None
        if salt is None:
            copy.unlink(missing_ok=True)
            self._query("stack", "init", "--no-select")
            salt = load_yaml(copy)["encryptionsalt"]
        settings = {"config": load_yaml(self.stack_file).get("config") or {}, "encryptionsalt": salt}
        copy.write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")

    def _link_project(self, project: Path) -> None:
        shutil.copyfile(self.directory / PROJECT_FILE, project / PROJECT_FILE)
        sources = {path.name: path for path in self.directory.iterdir()}
        if sys.prefix != sys.base_prefix:
            # Pulumi.yaml names .venv; where the project has none, the one this runs in.
            sources.setdefault(".venv", Path(sys.prefix))
        for name, source in sources.items():
            link = project / name
            if name.startswith(("Pulumi.", ".git")) or (link.is_symlink() and link.readlink() == source):
                continue
            link.unlink(missing_ok=True)
            link.symlink_to(source)


def _events(path: Path, process: subprocess.Popen[str]) -> Iterator[dict[str, Any]]:
    """The engine's events as they come, until its process has ended."""
    part = ""
    with path.open(encoding="utf-8") as log:
        while True:
            ended = process.poll() is not None
            while chunk := log.readline():
                part += chunk
                if part.endswith("\n"):
                    yield json.loads(part)
                    part = ""
            if ended:
                return
            time.sleep(0.05)


def _step(metadata: dict[str, Any]) -> Step:
    paths = {path: diff["diffKind"] for path, diff in (metadata.get("detailedDiff") or {}).items()}
    return Step(metadata["op"], metadata["type"], _name(metadata["urn"]), metadata["urn"], paths)


def _name(urn: str) -> str:
    return urn.split("::", 3)[3]


def _said(diagnostic: dict[str, Any]) -> str:
    """The resource that it is about, and the text without the engine's colour marks, e.g. <{%reset%}>."""
    text = re.sub(r"<\{%.*?%\}>", "", diagnostic["message"]).strip()
    return f"{_name(diagnostic['urn'])}: {text}" if diagnostic.get("urn") else text


def _complaint(output: str) -> str:
    """The CLI's own error, for one that is no event, e.g. a locked stack; all it printed where there is none."""
    _, found, text = output.rpartition("error: ")
    return text.strip() if found else output.strip()
