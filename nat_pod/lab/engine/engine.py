"""The real Pulumi engine, run against a simulated region: preview, up, refresh and destroy as an engineer runs them.

    engine = Engine(Path("."), "dev", Path("/tmp/lab/region"), find_cli())
    RegionFile.make(engine.region_file, Region("uk-london-1"))
    engine.up()

Nothing leaves this machine, and nothing of the user's is touched: no login, no network, no entry in ~/.pulumi, not a
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
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from nat_pod.config.stack_file import load_yaml
from nat_pod.errors import NatPodError
from nat_pod.lab.engine import language_host, provider
from nat_pod.lab.engine.plugin import urn_name, urn_type

PROJECT_FILE = "Pulumi.yaml"
_NO_CHANGE = ("same", "refresh", "read")


class EngineError(NatPodError):
    """A command of the engine failed.  str() has the engine's own errors, `run` what it did until then."""

    def __init__(self, message: str, run: Run) -> None:
        self.run = run
        super().__init__(message)


@dataclass(frozen=True, slots=True)
class ResourceStep:
    """One thing the engine plans or does to one resource.

    op: create, update, delete or replace; when a replacement is carried out, also its parts, create-replacement and
    delete-replaced.
    paths: the inputs that differ, with the kind of difference (add, update, delete; add-replace and so on).
    replaced_by: the inputs whose difference forces a replacement.
    """

    op: str
    type: str
    name: str
    paths: dict[str, str]
    replaced_by: tuple[str, ...]

    def __str__(self) -> str:
        paths = f" ({', '.join(self.paths)})" if self.paths else ""
        return f"{self.op} {self.type.rsplit(':', 1)[-1]} {self.name}{paths}"


@dataclass(frozen=True, slots=True)
class Run:
    """What a command planned or did, in order, and what it said.

    counts: resources by what happens to them (create, update, replace, delete), as the CLI sums them up.
    """

    steps: tuple[ResourceStep, ...]
    counts: dict[str, int]
    warnings: tuple[str, ...]
    errors: tuple[str, ...]

    def ops(self, type_token: str | None = None) -> dict[str, list[str]]:
        """Names of resources by what happens to them, of one type or of all types."""
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
        instead: Mapping[str, object] | None = None,
    ) -> None:
        """stack_file: is read instead of Pulumi.<stack>.yaml.  instead: values of keys, whatever the file says."""
        self._instead = dict(instead or {})
        self.directory = directory.resolve()
        self.stack = stack
        self.stack_file = stack_file or self.directory / f"Pulumi.{stack}.yaml"
        self.region_file = region_file.resolve()
        self._cli = cli
        self._base = self.region_file.parent / "pulumi"
        self._process: subprocess.Popen[str] | None = None

    def preview(self) -> Run:
        """What `up` would do, as `pulumi preview --json` tells it."""
        return self._plan()

    def expect_no_changes(self) -> None:
        """Raise EngineError with what `up` would do, unless it would do nothing."""
        try:
            self._plan("--expect-no-changes")
        except EngineError as error:
            raise EngineError("\n".join([str(error), *map(str, error.run.steps)]), error.run) from None

    def up(self) -> Run:
        """Make the region what the program says."""
        return self._operate("up")

    def refresh(self) -> Run:
        """Take into the stack's state what has changed in the region."""
        return self._operate("refresh")

    def destroy(self) -> Run:
        """Delete everything the stack has."""
        return self._operate("destroy", "--run-program")

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
        """Do what ^C does, from another thread: the running command finishes the calls it has begun, and fails."""
        if self._process is not None:
            self._process.send_signal(signal.SIGINT)

    def shell(self) -> dict[str, str]:
        """The environment in which a `pulumi` that somebody else starts finds this backend, these plugins, this region.

        In addition to one's own, and without one's own variables of Pulumi.  State is written after each step, as for
        anybody.
        """
        self._prepare_home()
        path = os.pathsep.join([str(self._cli.parent), os.environ.get("PATH", "")])
        return {**self._own_environment(), "PULUMI_SKIP_CHECKPOINTS": "false", "PATH": path}

    # How the CLI is run

    def _plan(self, *options: str) -> Run:
        self._prepare()
        status, output, complaint = self._ask("preview", "--json", *options)
        digest = json.loads(output) if output and status >= 0 else {}
        run = _run(
            [_step(step["urn"], step, step.get("replaceReasons")) for step in digest.get("steps") or ()],
            digest.get("changeSummary") or {},
            digest.get("diagnostics") or (),
        )
        if status:
            raise self._failure("preview", run, complaint)
        return run

    def _operate(self, command: str, *options: str) -> Run:
        self._prepare()
        status, output, complaint = self._ask(command, "--yes", "--skip-preview", "--json", *options)
        # The engine's events, one per line.  What follows the last newline was cut short because the CLI was killed.
        events = [json.loads(line) for line in output.split("\n")[:-1]]
        # What a refresh finds is known only after it has asked; a step of any other command is known when it begins.
        kind = "resOutputsEvent" if command == "refresh" else "resourcePreEvent"
        steps = [event[kind]["metadata"] for event in events if event.get(kind)]
        summaries = [event["summaryEvent"]["resourceChanges"] for event in events if event.get("summaryEvent")]
        run = _run(
            [_step(step["urn"], step, step.get("keys")) for step in steps],
            summaries[-1] if summaries else {},
            [event["diagnosticEvent"] for event in events if event.get("diagnosticEvent")],
        )
        if status:
            raise self._failure(command, run, complaint)
        return run

    def _query(self, *arguments: str) -> str:
        status, output, complaint = self._ask(*arguments)
        if status:
            raise self._failure(" ".join(arguments), Run((), {}, (), ()), complaint)
        return output

    def _failure(self, command: str, run: Run, complaint: str) -> EngineError:
        said = "\n".join(run.errors) or complaint
        return EngineError(f"pulumi {command} of stack {self.stack}: {said}", run)

    def _ask(self, *arguments: str) -> tuple[int, str, str]:
        """Run the CLI; returns its exit status, what it printed, and its complaint where it failed."""
        with subprocess.Popen(
            [self._cli, *arguments, "--stack", self.stack, "--non-interactive", "--color", "never"],
            cwd=self._base / "project",
            env=self._environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            self._process = process
            try:
                output, errors = process.communicate()
            except KeyboardInterrupt:
                process.communicate()  # a ^C reaches the CLI too: let it finish what it has begun
                raise
        if process.returncode < 0:
            return process.returncode, output, f"it was ended by signal {-process.returncode}"
        return process.returncode, output, _complaint(errors or output)

    def _environment(self) -> dict[str, str]:
        # Without the caller's own settings, which may name another backend, organization or home.
        own = {key: value for key, value in os.environ.items() if not key.startswith("PULUMI_")}
        return own | self._own_environment()

    def _own_environment(self) -> dict[str, str]:
        return {
            provider.REGION_VARIABLE: str(self.region_file),
            "PULUMI_HOME": str(self._base / "home"),
            "PULUMI_BACKEND_URL": f"file://{self._base / 'state'}",
            "PULUMI_CONFIG_PASSPHRASE": "",  # nat-pod has no secrets; if this were unset, the CLI would ask
            # The plugins are those in PULUMI_HOME, whatever lies on PATH, and nothing is downloaded.
            "PULUMI_IGNORE_AMBIENT_PLUGINS": "true",
            "PULUMI_DISABLE_AUTOMATIC_PLUGIN_ACQUISITION": "true",
            "PULUMI_DISABLE_REGISTRY_RESOLVE": "true",
            "PULUMI_SKIP_UPDATE_CHECK": "true",
            "PULUMI_DIY_BACKEND_DISABLE_CHECKPOINT_BACKUPS": "true",
            # Write the state once, at the end, even of an interrupted run.  By default the CLI writes it after every
            # step, so that a crash loses nothing; for a full POD that takes most of the time.
            "PULUMI_SKIP_CHECKPOINTS": "true",
            # The CLI lives for seconds: collecting garbage as often as Go does takes a fifth of a command's time.  So
            # it collects none until it has a gigabyte, which a full POD does not take.
            "GOGC": os.environ.get("GOGC", "off"),
            "GOMEMLIMIT": os.environ.get("GOMEMLIMIT", "1GiB"),
        }

    # What the CLI finds

    def _prepare(self) -> None:
        """Lay out plugins and project, and make the stack unless it exists.

        The project is a directory of links to the real one.  The CLI writes a salt into the stack's file, and that file
        may name a secrets provider or an organization that has nothing to do with the lab.
        """
        self._prepare_home()
        project = self._base / "project"
        project.mkdir(exist_ok=True)
        self._link_project(project)
        copy = project / f"Pulumi.{self.stack}.yaml"
        salt = load_yaml(copy).get("encryptionsalt") if copy.exists() else None
        if salt is None:
            copy.unlink(missing_ok=True)
            self._query("stack", "init", "--no-select")
            salt = load_yaml(copy)["encryptionsalt"]
        config = {**(load_yaml(self.stack_file).get("config") or {}), **self._instead}
        settings = {"config": config, "encryptionsalt": salt}
        copy.write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")

    def _prepare_home(self) -> None:
        home = self._base / "home"
        for path in (home, self._base / "state"):
            path.mkdir(parents=True, exist_ok=True)
        provider.write_plugin(home)
        language_host.write_plugin(home)

    def _link_project(self, project: Path) -> None:
        shutil.copyfile(self.directory / PROJECT_FILE, project / PROJECT_FILE)
        sources = {path.name: path for path in self.directory.iterdir()}
        if sys.prefix != sys.base_prefix:
            # Pulumi.yaml names .venv; where the project has none, use the one that this runs in.
            sources.setdefault(".venv", Path(sys.prefix))
        for name, source in sources.items():
            link = project / name
            if name.startswith(("Pulumi.", ".git")) or (link.is_symlink() and link.readlink() == source):
                continue
            link.unlink(missing_ok=True)
            link.symlink_to(source)


def _run(steps: list[ResourceStep], counts: dict[str, int], diagnostics: Iterable[dict[str, Any]]) -> Run:
    said: dict[str, list[str]] = {"warning": [], "error": []}
    for diagnostic in diagnostics:
        if diagnostic["severity"] in said:
            said[diagnostic["severity"]].append(_said(diagnostic))
    return Run(
        tuple(step for step in steps if step.op not in _NO_CHANGE),
        {op: count for op, count in counts.items() if op not in _NO_CHANGE},
        tuple(said["warning"]),
        tuple(said["error"]),
    )


def _step(urn: str, step: dict[str, Any], replaced_by: Iterable[str] | None) -> ResourceStep:
    paths = {path: diff.get("diffKind") or diff["kind"] for path, diff in (step.get("detailedDiff") or {}).items()}
    return ResourceStep(step["op"], urn_type(urn), urn_name(urn), paths, tuple(replaced_by or ()))


def _said(diagnostic: dict[str, Any]) -> str:
    """The resource that a diagnostic is about, and its text without the engine's colour marks, e.g. <{%reset%}>."""
    text = re.sub(r"<\{%.*?%\}>", "", diagnostic["message"]).strip().removeprefix(f"{diagnostic['severity']}: ")
    return f"{urn_name(diagnostic['urn'])}: {text}" if diagnostic.get("urn") else text


def _complaint(output: str) -> str:
    """The CLI's own error, where there is no event for it (e.g. a locked stack); otherwise everything it printed."""
    _, found, text = output.rpartition("error: ")
    return text.strip() if found else output.strip()
