"""The resource provider `oci` over a simulated region: what the real Pulumi engine talks to in the lab.

It speaks the engine's protocol (https://github.com/pulumi/pulumi, proto/pulumi/provider.proto).  The region is in the
file that NAT_POD_REGION names, because the engine starts a new provider for every command.

As with the real provider, Check, Diff and previews look at inputs only; Create, Read, Update, Delete and data sources
ask the region.  One thing differs on purpose.  The real provider repeats a refused call for minutes; here a refusal is
final, so that a program which depends on repetition is found out.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from collections import defaultdict
from contextlib import AbstractContextManager, nullcontext
from importlib.metadata import version
from pathlib import Path

import grpc
from google.protobuf import empty_pb2
from pulumi.runtime.proto import plugin_pb2, provider_pb2, provider_pb2_grpc
from pulumi.runtime.proto.provider_pb2 import DiffResponse, PropertyDiff

from nat_pod.errors import NatPodError
from nat_pod.lab.engine.plugin import (
    decode,
    encode,
    new_server,
    serve,
    urn_name,
    urn_type,
    write_executable,
    write_whole,
)
from nat_pod.lab.region import registry
from nat_pod.lab.region.file import RegionFile
from nat_pod.lab.region.inputs import Inputs, InputSpec, Value, in_shape, read_specs, specs_text
from nat_pod.lab.region.kinds import BALANCER
from nat_pod.lab.region.refusals import OciError
from nat_pod.lab.region.region import Region

REGION_VARIABLE = "NAT_POD_REGION"
_SPECS = "inputs.json"


class Provider(provider_pb2_grpc.ResourceProviderServicer):
    """Pulumi's ResourceProvider service over a region; methods are documented in its protocol."""

    def __init__(self, region: Region) -> None:
        self._region = region
        self._turns: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)
        # pulumi_oci imports modules at first use, and in Python 3.11 a second thread may see such a module half loaded.
        for token in registry.RESOURCES:
            InputSpec.of(token)

    # The plugin itself

    def Handshake(
        self, request: provider_pb2.ProviderHandshakeRequest, context: grpc.ServicerContext
    ) -> provider_pb2.ProviderHandshakeResponse:
        return provider_pb2.ProviderHandshakeResponse()

    def Attach(self, request: plugin_pb2.PluginAttach, context: grpc.ServicerContext) -> empty_pb2.Empty:
        return empty_pb2.Empty()

    def GetPluginInfo(self, request: empty_pb2.Empty, context: grpc.ServicerContext) -> plugin_pb2.PluginInfo:
        return plugin_pb2.PluginInfo(version=version("pulumi-oci"))

    def GetSchema(
        self, request: provider_pb2.GetSchemaRequest, context: grpc.ServicerContext
    ) -> provider_pb2.GetSchemaResponse:
        return provider_pb2.GetSchemaResponse(schema=json.dumps(schema()))

    def Cancel(self, request: empty_pb2.Empty, context: grpc.ServicerContext) -> empty_pb2.Empty:
        # Every call ends by itself in a fraction of a second.
        return empty_pb2.Empty()

    # Its configuration

    def CheckConfig(
        self, request: provider_pb2.CheckRequest, context: grpc.ServicerContext
    ) -> provider_pb2.CheckResponse:
        return provider_pb2.CheckResponse(inputs=request.news)

    def DiffConfig(self, request: provider_pb2.DiffRequest, context: grpc.ServicerContext) -> DiffResponse:
        # No change of the provider's settings replaces the resources that were made with it.
        changed = decode(request.olds) != decode(request.news)
        return DiffResponse(changes=DiffResponse.DIFF_SOME if changed else DiffResponse.DIFF_NONE)

    def Configure(
        self, request: provider_pb2.ConfigureRequest, context: grpc.ServicerContext
    ) -> provider_pb2.ConfigureResponse:
        wanted = request.variables.get("oci:config:region", self._region.name)
        if wanted != self._region.name:
            text = f"the stack says oci:region {wanted}, the simulated region is {self._region.name}"
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, text)
        return provider_pb2.ConfigureResponse(supportsPreview=True)

    # Resources

    def Check(self, request: provider_pb2.CheckRequest, context: grpc.ServicerContext) -> provider_pb2.CheckResponse:
        try:
            problems = self._region.check(urn_type(request.urn), decode(request.news))
        except OciError as error:
            problems = [("", str(error))]
        failures = [provider_pb2.CheckFailure(property=path, reason=reason) for path, reason in problems]
        return provider_pb2.CheckResponse(inputs=request.news, failures=failures)

    def Diff(self, request: provider_pb2.DiffRequest, context: grpc.ServicerContext) -> DiffResponse:
        # Compare inputs with inputs: the old state also has what the server filled in and the program never wrote.
        old, new = decode(request.old_inputs), decode(request.news)
        diff = self._region.diff(urn_type(request.urn), old, new)
        paths = {path: PropertyDiff(kind=_kind(path, old, new, replace=True), inputDiff=True) for path in diff.replace}
        paths |= {path: PropertyDiff(kind=_kind(path, old, new), inputDiff=True) for path in diff.update}
        return DiffResponse(
            changes=DiffResponse.DIFF_SOME if diff else DiffResponse.DIFF_NONE,
            replaces=sorted({path.split(".")[0] for path in diff.replace}),
            diffs=sorted({path.split(".")[0] for path in paths}),
            detailedDiff=paths,
            hasDetailedDiff=True,
        )

    def Create(self, request: provider_pb2.CreateRequest, context: grpc.ServicerContext) -> provider_pb2.CreateResponse:
        type_token, inputs = urn_type(request.urn), decode(request.properties)
        if request.preview:
            # What is not among the inputs stays unknown to the program until the resource exists.
            return provider_pb2.CreateResponse(properties=encode(registry.resource(type_token).with_defaults(inputs)))
        try:
            with self._turn(inputs.get("networkLoadBalancerId")):
                ocid, state = self._region.create(type_token, inputs, urn_name(request.urn))
        except (OciError, NatPodError) as error:
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, str(error))
        return provider_pb2.CreateResponse(id=ocid, properties=encode(state))

    def Read(self, request: provider_pb2.ReadRequest, context: grpc.ServicerContext) -> provider_pb2.ReadResponse:
        try:
            state = self._region.read(request.id)
        except OciError:
            return provider_pb2.ReadResponse()  # it is gone: an empty id says so
        # A refresh compares with what the program wrote: any other key would show as drift.  An import wants all keys.
        wanted = decode(request.inputs) or InputSpec.of(urn_type(request.urn)).members
        return provider_pb2.ReadResponse(
            id=request.id, properties=encode(state), inputs=encode(in_shape(state, wanted))
        )

    def Update(self, request: provider_pb2.UpdateRequest, context: grpc.ServicerContext) -> provider_pb2.UpdateResponse:
        inputs = decode(request.news)
        if request.preview:
            known = {**decode(request.olds), **registry.resource(urn_type(request.urn)).with_defaults(inputs)}
            return provider_pb2.UpdateResponse(properties=encode(known))
        try:
            with self._turn(_balancer(request, inputs)):
                state = self._region.update(request.id, inputs)
        except (OciError, NatPodError) as error:
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, str(error))
        return provider_pb2.UpdateResponse(properties=encode(state))

    def Delete(self, request: provider_pb2.DeleteRequest, context: grpc.ServicerContext) -> empty_pb2.Empty:
        try:
            with self._turn(_balancer(request, decode(request.properties))):
                self._region.delete(request.id)
        except OciError as error:
            # What is already gone needs no deletion (handleMissingResourceError of the real provider).
            if error.status != 404:
                context.abort(grpc.StatusCode.FAILED_PRECONDITION, str(error))
        return empty_pb2.Empty()

    def Invoke(self, request: provider_pb2.InvokeRequest, context: grpc.ServicerContext) -> provider_pb2.InvokeResponse:
        try:
            found = self._region.invoke(request.tok, decode(request.args))
        except (OciError, NatPodError) as error:
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, str(error))
        response = provider_pb2.InvokeResponse()
        getattr(response, "return").CopyFrom(encode(found))  # the field's name is a keyword
        return response

    def _turn(self, balancer: str | None) -> AbstractContextManager[object]:
        """A change of a load balancer waits for the one under way (the real provider's mutex, since 8.13.0)."""
        return nullcontext() if balancer is None else self._turns[balancer]


def schema() -> Inputs:
    """The simulated types as a Pulumi package schema, made from the table that Check uses."""
    return {
        "name": "oci",
        "version": version("pulumi-oci"),
        "description": "The resource types of Oracle Cloud Infrastructure that a NAT POD uses, simulated",
        "resources": {
            token: {
                "inputProperties": {name: _schema_type(spec) for name, spec in resource.spec.members.items()},
                "requiredInputs": sorted(resource.spec.required),
            }
            for token, resource in registry.RESOURCES.items()
        },
    }


def write_plugin(home: Path) -> None:
    """Put the plugin into a PULUMI_HOME, where the engine looks before it would download the real one.

    No other place works as quietly.  An entry in Pulumi.yaml would have to be taken out for a real tenancy, and the CLI
    warns about a plugin on PATH at every command.
    """
    directory = _directory(home)
    write_executable(directory / "pulumi-resource-oci", "nat_pod.lab.engine.provider")
    # The engine starts a provider for each command, and each would read pulumi_oci for it.
    write_whole(directory / _SPECS, specs_text(registry.RESOURCES))


def _directory(home: Path) -> Path:
    return home / "plugins" / f"resource-oci-v{version('pulumi-oci')}"


def _balancer(request: provider_pb2.UpdateRequest | provider_pb2.DeleteRequest, properties: Inputs) -> str | None:
    """The network load balancer that a resource is, or is a part of."""
    found: str | None = request.id if urn_type(request.urn) == BALANCER else properties.get("networkLoadBalancerId")
    return found


def _kind(path: str, old: Inputs, new: Inputs, *, replace: bool = False) -> PropertyDiff.Kind.ValueType:
    if not _has(path, old):
        return PropertyDiff.ADD_REPLACE if replace else PropertyDiff.ADD
    if not _has(path, new):
        return PropertyDiff.DELETE_REPLACE if replace else PropertyDiff.DELETE
    return PropertyDiff.UPDATE_REPLACE if replace else PropertyDiff.UPDATE


def _has(path: str, value: Value) -> bool:
    for step in path.split("."):
        if not isinstance(value, dict) or step not in value:
            return False
        value = value[step]
    return True


def _schema_type(spec: InputSpec) -> Inputs:
    if spec.kind == "list" and spec.element is not None:
        return {"type": "array", "items": _schema_type(spec.element)}
    if spec.kind in ("object", "map"):
        return {"type": "object", "additionalProperties": {"$ref": "pulumi.json#/Any"}}
    return {"type": spec.kind}


def main() -> int:
    """Serve the region in the file that NAT_POD_REGION names."""
    path = os.environ.get(REGION_VARIABLE)
    if path is None:
        print(f"{REGION_VARIABLE} must name the file of a simulated region", file=sys.stderr)
        return 2
    specs = _directory(Path(os.environ.get("PULUMI_HOME", ""))) / _SPECS
    if not specs.exists():
        print(f"{specs} is missing; PULUMI_HOME must name where this plugin was written to", file=sys.stderr)
        return 2
    read_specs(specs.read_text(encoding="utf-8"))
    try:
        region = RegionFile(Path(path))
    except NatPodError as error:
        print(error, file=sys.stderr)
        return 1
    server = new_server()
    provider_pb2_grpc.add_ResourceProviderServicer_to_server(Provider(region), server)
    serve(server)
    return 0


if __name__ == "__main__":
    sys.exit(main())
