"""A simulated tenancy in a folder: a region's file, and beside it the state of the stack that is deployed into it.

A running lab keeps a copy of the folder (`packed`), and so `lab apply` goes on where `lab up` ended.  What it does, it
does to the copy: a change that fails leaves the lab and its state as they are.
"""

from __future__ import annotations

import base64
import io
import json
import tarfile
from pathlib import Path

from nat_pod.config.protect import Protect
from nat_pod.errors import NatPodError
from nat_pod.lab.engine.engine import Engine, find_cli
from nat_pod.lab.engine.program import Deployment, deploy
from nat_pod.lab.region import registry
from nat_pod.lab.region.file import RegionFile
from nat_pod.lab.region.inputs import Inputs
from nat_pod.lab.region.region import Region
from nat_pod.lab.surroundings import delete_all
from nat_pod.lab.wire.load import PORT, TCP
from nat_pod.names import NAMESPACE
from nat_pod.plan.model import PodPlan
from nat_pod.trace.flows import declared_flows

_REGION, _REGISTERED, _DECLARED = "region", "registered.json", "declared.json"
_STATE, _PROJECT = "pulumi/state", "pulumi/project"  # of the engine


class Tenancy:
    """The region, and `up`: by the Pulumi engine, or without a CLI by the program under Pulumi's mocks."""

    def __init__(self, folder: Path, directory: Path, stack: str, *, by_engine: bool) -> None:
        self._folder, self._directory, self._stack = folder, directory, stack
        self.region = RegionFile(folder / _REGION)
        cli = find_cli()
        if by_engine and cli is None:
            raise NatPodError(f"this lab was brought up by the pulumi CLI, which is not here now; {start_again(stack)}")
        self._engine = None
        if by_engine and cli is not None:
            # In a lab one looks at what a replacement does; nothing of it has to be kept from that.
            unprotected = {f"{NAMESPACE}:protect": str(Protect.NOTHING)}
            self._engine = Engine(directory, stack, folder / _REGION, cli, instead=unprotected)

    @classmethod
    def make(cls, folder: Path, directory: Path, stack: str, region: Region) -> Tenancy:
        """A new one, with the name and the limits of `region`."""
        RegionFile.make(folder / _REGION, region).close()
        return cls(folder, directory, stack, by_engine=find_cli() is not None)

    @classmethod
    def unpacked(cls, folder: Path, directory: Path, stack: str, packed: str) -> Tenancy:
        """One that `packed` wrote."""
        with tarfile.open(fileobj=io.BytesIO(base64.b64decode(packed))) as archive:
            archive.extractall(folder, filter="data")
        return cls(folder, directory, stack, by_engine=(folder / _STATE).exists())

    def packed(self) -> str:
        """All that `unpacked` needs, in base64."""
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
            for name in (_REGION, _REGISTERED, _DECLARED, _STATE, f"{_PROJECT}/Pulumi.{self._stack}.yaml"):
                if (self._folder / name).exists():
                    archive.add(self._folder / name, name)
        return base64.b64encode(buffer.getvalue()).decode()

    @property
    def by_engine(self) -> bool:
        """Whether `up` is done by the Pulumi engine."""
        return self._engine is not None

    @property
    def means(self) -> str:
        """What `up` is done by, for people."""
        return "pulumi up" if self._engine is not None else "the program under mocks (no pulumi CLI)"

    def up(self) -> Deployment:
        """Make the region what the program says.  Raises NatPodError."""
        if self._engine is None:
            return self._deploy()
        run = self._engine.up()
        return Deployment(outputs=self._engine.outputs(), warnings=run.warnings)

    def declare(self, plan: PodPlan) -> None:
        """Note the flows of the plan that is deployed now, those that may use the port of the lab's open flows."""
        flows = {
            (flow.sender, flow.destination, flow.receiver): None
            for flow in declared_flows(plan)
            if flow.receiver is not None and plan.access.services(flow.sender, flow.receiver).permits(TCP, PORT)
        }
        (self._folder / _DECLARED).write_text(json.dumps(list(flows)))

    def declared(self) -> list[tuple[str, str, str]]:
        """The flows that were noted: sender, address, receiver."""
        return [
            (sender, address, receiver)
            for sender, address, receiver in json.loads((self._folder / _DECLARED).read_text())
        ]

    def resources(self) -> dict[tuple[str, str], tuple[str, Inputs]]:
        """Everything that somebody asked for: (OCID, inputs) by type and name."""
        return {
            (record.kind, record.name): (record.ocid, record.inputs)
            for record in self.region.all(*registry.RESOURCES)
            if record.inputs
        }

    def _deploy(self) -> Deployment:
        """Mocks know nothing of what the program no longer has: that is deleted here, as an engine does it last."""
        deployment = deploy(self._directory, self._stack, self.region)
        now = {(one.type, one.name) for one in deployment.registrations if one.type in registry.RESOURCES}
        file = self._folder / _REGISTERED
        before = {(kind, name) for kind, name in json.loads(file.read_text())} if file.exists() else set()
        file.write_text(json.dumps(sorted(now | before)))
        delete_all(self.region, [ocid for one in before - now if (ocid := self.region.find(*one)) is not None])
        file.write_text(json.dumps(sorted(now)))
        return deployment


def start_again(stack: str) -> str:
    """What to type where a lab cannot be changed in place."""
    return f"run: python -m nat_pod lab down {stack} && python -m nat_pod lab up {stack}"
