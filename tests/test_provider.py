"""The provider plugin over gRPC, as the engine calls it, without an engine; and the region's file beneath it."""

import json
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import empty_pb2
from pulumi.runtime.proto import provider_pb2, provider_pb2_grpc
from pulumi.runtime.proto.provider_pb2 import DiffResponse, PropertyDiff

from nat_pod.lab.engine import provider
from nat_pod.lab.engine.plugin import decode, encode, new_server
from nat_pod.lab.region.file import RegionFile, RegionFileError
from nat_pod.lab.region.inputs import UNKNOWN
from nat_pod.lab.region.kinds import (
    INSTANCE,
    LPG,
    PRIVATE_IP,
    ROUTE_TABLE,
    SUBNET,
    VCN,
    VNIC_ATTACHMENT,
)
from nat_pod.lab.region.refusals import OciError
from nat_pod.lab.region.region import Region
from nat_pod.lab.region.store import Limits

COMPARTMENT = "ocid1.compartment.oc1..example"
PRIMARY = {"subnetId": "ocid1.subnet", "privateIp": "198.18.0.2", "nsgIds": ["a", "b"]}


@pytest.fixture
def region(tmp_path: Path) -> Iterator[RegionFile]:
    made = RegionFile.make(tmp_path / "region", Region("uk-london-1"))
    yield made
    made.close()


@pytest.fixture
def engine(region: RegionFile) -> Iterator["Caller"]:
    server = new_server()
    provider_pb2_grpc.add_ResourceProviderServicer_to_server(provider.Provider(region), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield Caller(provider_pb2_grpc.ResourceProviderStub(channel))
    server.stop(None).wait()


class Caller:
    """The engine's side of the protocol."""

    def __init__(self, stub: Any) -> None:
        self.stub = stub

    def check(self, type_token: str, inputs: dict[str, Any]) -> dict[str, str]:
        response = self.stub.Check(provider_pb2.CheckRequest(urn=urn(type_token), news=encode(inputs)))
        return {failure.property: failure.reason for failure in response.failures}

    def create(self, type_token: str, name: str, inputs: dict[str, Any], preview: bool = False) -> Any:
        inputs = {"compartmentId": COMPARTMENT, **inputs}
        return self.stub.Create(
            provider_pb2.CreateRequest(urn=urn(type_token, name), properties=encode(inputs), preview=preview)
        )

    def diff(self, type_token: str, old: dict[str, Any], new: dict[str, Any]) -> DiffResponse:
        return self.stub.Diff(
            provider_pb2.DiffRequest(urn=urn(type_token), old_inputs=encode(old), olds=encode({}), news=encode(new))
        )

    def vcn(self, name: str = "pod", cidr: str = "198.18.0.0/22") -> str:
        return self.create(VCN, name, {"cidrBlocks": [cidr]}).id


def urn(type_token: str, name: str = "thing") -> str:
    return f"urn:pulumi:dev::nat-pod::nat-pod:index:NatPod${type_token}::{name}"


def refused(call: Callable[[], Any]) -> str:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return str(caught.value.details())


def test_it_says_which_release_of_the_provider_it_stands_in_for(engine: Caller) -> None:
    assert engine.stub.GetPluginInfo(empty_pb2.Empty()).version == version("pulumi-oci")
    schema = json.loads(engine.stub.GetSchema(provider_pb2.GetSchemaRequest()).schema)
    assert schema["resources"][VCN]["requiredInputs"] == ["compartmentId"]
    assert schema["resources"][VCN]["inputProperties"]["cidrBlocks"] == {"type": "array", "items": {"type": "string"}}


def test_a_stack_of_another_region_is_refused(engine: Caller) -> None:
    configure = provider_pb2.ConfigureRequest(variables={"oci:config:region": "eu-frankfurt-1"})
    assert "the simulated region is uk-london-1" in refused(lambda: engine.stub.Configure(configure))
    here = provider_pb2.ConfigureRequest(variables={"oci:config:region": "uk-london-1"})
    assert engine.stub.Configure(here).supportsPreview


def test_check_finds_missing_and_unknown_inputs_at_every_depth(engine: Caller) -> None:
    assert set(engine.check(VCN, {"cidrBlock": "198.18.0.0/22", "cidrs": []})) == {"compartmentId", "cidrs"}
    rules = [{"networkEntityId": UNKNOWN}, {"destination": "10.0.0.0/24", "target": "x", "networkEntityId": "y"}]
    inputs = {"compartmentId": COMPARTMENT, "vcnId": UNKNOWN, "routeRules": rules}
    assert engine.check(ROUTE_TABLE, {**inputs, "routeRules": rules[:1]}) == {}
    assert list(engine.check(ROUTE_TABLE, inputs)) == ["routeRules[1].target"]


@pytest.mark.parametrize(
    ("type_token", "old", "new", "expected"),
    [
        (VNIC_ATTACHMENT, {"createVnicDetails": PRIMARY}, {"createVnicDetails": PRIMARY}, {}),
        # The order of a set means nothing.
        (
            VNIC_ATTACHMENT,
            {"createVnicDetails": PRIMARY},
            {"createVnicDetails": {**PRIMARY, "nsgIds": ["b", "a"]}},
            {},
        ),
        (
            VNIC_ATTACHMENT,
            {"createVnicDetails": PRIMARY},
            {"createVnicDetails": {**PRIMARY, "subnetId": UNKNOWN}},
            {"createVnicDetails.subnetId": PropertyDiff.UPDATE_REPLACE},
        ),
        (
            INSTANCE,
            {"metadata": {"user_data": "a", "nat-pod-rules": "1:a"}},
            {"metadata": {"user_data": "a", "nat-pod-rules": "1:b", "nat-pod-vm": "natVm1"}},
            {"metadata.nat-pod-rules": PropertyDiff.UPDATE, "metadata.nat-pod-vm": PropertyDiff.ADD},
        ),
        (
            INSTANCE,
            {"metadata": {"user_data": "a", "ssh_authorized_keys": "k"}},
            {"metadata": {"user_data": "b"}},
            {
                "metadata.user_data": PropertyDiff.UPDATE_REPLACE,
                "metadata.ssh_authorized_keys": PropertyDiff.DELETE_REPLACE,
            },
        ),
        (PRIVATE_IP, {"vnicId": "a"}, {"vnicId": UNKNOWN}, {"vnicId": PropertyDiff.UPDATE}),
    ],
)
def test_diff_says_what_updates_and_what_replaces(
    engine: Caller, type_token: str, old: dict[str, Any], new: dict[str, Any], expected: dict[str, int]
) -> None:
    diff = engine.diff(type_token, old, new)
    assert diff.changes == (DiffResponse.DIFF_SOME if expected else DiffResponse.DIFF_NONE)
    assert {path: entry.kind for path, entry in diff.detailedDiff.items()} == expected
    assert sorted(diff.diffs) == sorted({path.split(".")[0] for path in expected})


def test_diff_takes_every_stand_in_for_an_unknown_value(engine: Caller) -> None:
    unknown_bool = "1c4a061d-8072-4f0a-a4cb-0ff528b18fe7"
    assert decode(encode({"a": [unknown_bool]})) == {"a": [UNKNOWN]}


def test_preview_asks_nothing_of_the_region(engine: Caller, region: RegionFile) -> None:
    planned = engine.create(SUBNET, "subnet", {"vcnId": UNKNOWN, "cidrBlock": "198.18.0.0/27"}, preview=True)
    assert planned.id == ""
    assert decode(planned.properties) == {
        "compartmentId": COMPARTMENT,
        "vcnId": UNKNOWN,
        "cidrBlock": "198.18.0.0/27",
    }
    vcn = engine.vcn()
    before = region.to_json()
    changed = provider_pb2.UpdateRequest(
        id=vcn,
        urn=urn(VCN),
        olds=encode(region.read(vcn)),
        news=encode({"compartmentId": COMPARTMENT, "displayName": UNKNOWN}),
        preview=True,
    )
    state = decode(engine.stub.Update(changed).properties)
    assert state["displayName"] == UNKNOWN
    assert state["cidrBlocks"] == ["198.18.0.0/22"]
    assert region.to_json() == before


def test_life_of_a_resource(engine: Caller, region: RegionFile) -> None:
    vcn = engine.vcn()
    assert region.find(VCN, "pod") == vcn
    inputs = {"compartmentId": COMPARTMENT, "cidrBlocks": ["198.18.0.0/22"], "displayName": "renamed"}
    update = provider_pb2.UpdateRequest(id=vcn, urn=urn(VCN), news=encode(inputs))
    assert decode(engine.stub.Update(update).properties)["displayName"] == "renamed"

    # A refresh sends the inputs it knows and gets those, with the values of now; without any it is an import.
    read = provider_pb2.ReadRequest(id=vcn, urn=urn(VCN), inputs=encode({"displayName": "before"}))
    assert decode(engine.stub.Read(read).inputs) == {"displayName": "renamed"}
    everything = decode(engine.stub.Read(provider_pb2.ReadRequest(id=vcn, urn=urn(VCN))).inputs)
    assert everything["cidrBlocks"] == ["198.18.0.0/22"]
    assert "defaultSecurityListId" not in everything

    delete = provider_pb2.DeleteRequest(id=vcn, urn=urn(VCN))
    engine.stub.Delete(delete)
    engine.stub.Delete(delete)  # gone is gone
    assert engine.stub.Read(read).id == ""
    assert region.kinds() == []


def test_refusals_are_the_regions_own_words(engine: Caller) -> None:
    vcn = engine.vcn()
    engine.create(SUBNET, "one", {"vcnId": vcn, "cidrBlock": "198.18.0.0/27"})
    words = refused(lambda: engine.create(SUBNET, "two", {"vcnId": vcn, "cidrBlock": "198.18.0.0/28"}))
    assert words.startswith("400-InvalidParameter")
    assert "overlap" in words
    delete = provider_pb2.DeleteRequest(id=vcn, urn=urn(VCN))
    assert refused(lambda: engine.stub.Delete(delete)).startswith("409-Conflict")


def test_data_sources_answer_from_the_region(engine: Caller) -> None:
    token = "oci:Identity/getAvailabilityDomains:getAvailabilityDomains"
    answer = engine.stub.Invoke(provider_pb2.InvokeRequest(tok=token, args=encode({"compartmentId": COMPARTMENT})))
    domains = decode(getattr(answer, "return"))["availabilityDomains"]
    assert [domain["name"].split(":")[1] for domain in domains] == [f"UK-LONDON-1-AD-{n}" for n in (1, 2, 3)]
    unknown = provider_pb2.InvokeRequest(tok="oci:Core/getNothing:getNothing", args=encode({}))
    assert "501-NotImplemented" in refused(lambda: engine.stub.Invoke(unknown))


def test_many_calls_at_once(engine: Caller, region: RegionFile) -> None:
    vcn = engine.vcn()
    failures: list[str] = []

    def subnets(third: int) -> None:
        for part in range(8):
            try:
                name = f"{third}.{part}"
                engine.create(SUBNET, name, {"vcnId": vcn, "cidrBlock": f"198.18.{third}.{part * 32}/27"})
            except grpc.RpcError as error:
                failures.append(error.details())

    threads = [threading.Thread(target=subnets, args=(third,)) for third in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert len(region.all(SUBNET)) == 32


# The region's file


def test_a_region_in_a_file_is_one_region_for_all_who_open_it(region: RegionFile) -> None:
    other = RegionFile(region.path)
    vcn, _ = region.create(VCN, {"compartmentId": COMPARTMENT, "cidrBlock": "198.18.0.0/22"}, "pod")
    subnet, _ = other.create(SUBNET, {"compartmentId": COMPARTMENT, "vcnId": vcn, "cidrBlock": "198.18.0.0/27"}, "s")
    region.update(subnet, {"compartmentId": COMPARTMENT, "vcnId": vcn, "cidrBlock": "198.18.0.0/28"})
    assert other.read(subnet)["cidrBlock"] == "198.18.0.0/28"
    other.delete(subnet)
    assert region.find(SUBNET, "s") is None
    assert region.to_json() == other.to_json() == RegionFile(region.path).to_json()
    assert [change["do"] for change in other.changes()] == ["create", "create", "update", "delete"]


def test_limits_that_are_raised_hold_for_all_who_open_the_file(region: RegionFile) -> None:
    other = RegionFile(region.path)
    region.set_limits(Limits(lpgs=1))
    vcn, _ = region.create(VCN, {"compartmentId": COMPARTMENT, "cidrBlock": "198.18.0.0/22"}, "pod")
    other.create(LPG, {"compartmentId": COMPARTMENT, "vcnId": vcn}, "one")
    with pytest.raises(OciError, match="LimitExceeded"):
        other.create(LPG, {"compartmentId": COMPARTMENT, "vcnId": vcn}, "two")
    region.set_limits(Limits(lpgs=2))
    other.create(LPG, {"compartmentId": COMPARTMENT, "vcnId": vcn}, "two")
    assert RegionFile(region.path).to_json() == region.to_json()


def test_a_refused_call_is_not_written_down(region: RegionFile) -> None:
    with pytest.raises(OciError):
        region.create(VCN, {"compartmentId": COMPARTMENT, "cidrBlock": "198.18.0.1/22"}, "pod")
    assert region.changes() == []


def test_a_line_that_was_cut_short_never_was_a_change(region: RegionFile) -> None:
    region.create(VCN, {"compartmentId": COMPARTMENT, "cidrBlock": "198.18.0.0/22"}, "pod")
    whole = region.to_json()
    with region.path.open("a", encoding="utf-8") as file:
        file.write('{"do": "delete", "oc')
    again = RegionFile(region.path)
    assert again.to_json() == whole
    again.create(VCN, {"compartmentId": COMPARTMENT, "cidrBlock": "198.18.4.0/22"}, "second")
    assert RegionFile(region.path).to_json() == again.to_json() == region.to_json()


@pytest.mark.parametrize("text", ["", "config:\n", "[1]\n", '{"name": "x"}\n'])
def test_a_file_that_is_no_region_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "region"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(RegionFileError, match="not a simulated region"):
        RegionFile(path)
    with pytest.raises(RegionFileError, match="no simulated region here: No such file"):
        RegionFile(tmp_path / "nothing")


# The executable


def start(home: Path, cwd: Path, **environment: str) -> "subprocess.Popen[str]":
    provider.write_plugin(home)
    (executable,) = home.glob("plugins/resource-oci-v*/pulumi-resource-oci")
    own = {key: value for key, value in os.environ.items() if key != provider.REGION_VARIABLE}
    return subprocess.Popen(
        [executable, "127.0.0.1:1"],
        cwd=cwd,
        env=own | {"PULUMI_HOME": str(home)} | environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


@pytest.mark.slow
@pytest.mark.runs_commands
def test_the_plugin_prints_its_port_serves_and_ends_at_the_engines_signal(tmp_path: Path, region: RegionFile) -> None:
    with start(tmp_path / "home", tmp_path, NAT_POD_REGION=str(region.path)) as process:
        assert process.stdout is not None
        with grpc.insecure_channel(f"127.0.0.1:{int(process.stdout.readline())}") as channel:
            vcn = Caller(provider_pb2_grpc.ResourceProviderStub(channel)).vcn()
        assert region.read(vcn)["cidrBlocks"] == ["198.18.0.0/22"]
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=10)
    assert (process.returncode, errors) == (0, "")


@pytest.mark.slow
@pytest.mark.runs_commands
def test_the_plugin_says_what_it_lacks(tmp_path: Path) -> None:
    with start(tmp_path / "home", tmp_path) as process:
        _, errors = process.communicate(timeout=10)
    assert (process.returncode, errors) == (2, "NAT_POD_REGION must name the file of a simulated region\n")
    with start(tmp_path / "home", tmp_path, NAT_POD_REGION=str(tmp_path / "x")) as process:
        _, errors = process.communicate(timeout=10)
    assert process.returncode == 1
    assert "no simulated region here" in errors
