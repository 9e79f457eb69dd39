"""What holds for all types of the simulated region: one place per type, identity, state, no change by a refusal."""

import importlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from region_world import UNKNOWN, Request, Row, World, assert_refused, table

from nat_pod.lab.engine import provider
from nat_pod.lab.region import kinds as oci
from nat_pod.lab.region import registry, security
from nat_pod.lab.region.inputs import InputRules, Inputs, InputSpec
from nat_pod.lab.region.refusals import OciError
from nat_pod.lab.region.region import Region
from nat_pod.lab.region.resource import Query, Resource
from nat_pod.lab.region.store import Record, Store

REFUSALS: list[Row] = [
    (
        "delete: gone already",
        lambda w: (w.region.delete(w.b), w.region.delete(w.b)),
        UNKNOWN,
        "",
        lambda w: w.region.delete(w.b),
    ),
    (
        "unknown type",
        lambda w: w.make("oci:Core/drg:Drg", {}),
        "501-NotImplemented",
        "no oci:Core/drg:Drg",
        lambda w: w.nsg(w.pod),
    ),
]


@table(REFUSALS)
def test_refused_and_its_twin_accepted(refused: Request, code: str, text: str, accepted: Request) -> None:
    assert_refused(refused, code, text, accepted)


def test_a_refused_request_changes_nothing(world: World) -> None:
    before = world.region.to_json()
    for request in (
        lambda: world.subnet(world.pod, "198.18.0.0/26"),
        lambda: world.update(world.vm, shape="VM.Huge"),
        lambda: world.attach(world.vm, world.a, "198.18.0.2"),
        lambda: world.instance(world.a, "198.18.0.31"),
        lambda: world.region.delete(world.pod),
    ):
        with pytest.raises(OciError):
            request()
    assert world.region.to_json() == before


def test_state_has_the_outputs_that_programs_use(world: World) -> None:
    vcn, vm = world.region.read(world.pod), world.region.read(world.vm)
    attachment = world.region.read(world.attach(world.vm, world.b))
    assert vcn["defaultRouteTableId"].startswith("ocid1.routetable.")
    assert (vm["privateIp"], vm["createVnicDetails"]["privateIp"]) == ("198.18.0.2", "198.18.0.2")
    assert attachment["vnicId"].startswith("ocid1.vnic.")
    assert world.region.read(attachment["vnicId"])["macAddress"].startswith("02:00:17:")


def test_json_holds_everything(world: World) -> None:
    world.peer()
    text = world.region.to_json()
    again = Region.from_json(text)
    assert again.to_json() == text
    assert again.read(world.vm) == world.region.read(world.vm)
    copy = World.__new__(World)
    copy.__dict__.update(world.__dict__, region=again)
    assert copy.ip(world.vnic) == world.ip(world.vnic), "OCIDs go on where they were"


def test_ocids_and_macs_depend_on_names_and_not_on_order() -> None:
    def made(order: list[str]) -> dict[str, str]:
        region = Region()
        for cidr in order:
            region.create(oci.VCN, {"compartmentId": "c", "cidrBlocks": [cidr]}, cidr)
        return {cidr: str(region.find(oci.VCN, cidr)) for cidr in sorted(order)}

    assert made(["10.0.0.0/16", "10.1.0.0/16"]) == made(["10.1.0.0/16", "10.0.0.0/16"])


def test_a_name_used_again_gives_a_new_ocid(world: World) -> None:
    first = world.make(oci.VCN, {"cidrBlocks": ["10.0.0.0/16"]}, "same")
    world.region.delete(first)
    assert world.region.find(oci.VCN, "same") is None
    assert world.make(oci.VCN, {"cidrBlocks": ["10.0.0.0/16"]}, "same") != first


def test_read_inputs_has_the_owners_shape_and_the_real_values(world: World) -> None:
    written = world.region.get(world.vm).inputs
    assert world.region.read_inputs(world.vm) == written
    world.update(world.vm, displayName="renamed in the console")
    read = world.region.read_inputs(world.vm)
    assert read["displayName"] == "renamed in the console"
    assert set(read) == {*written, "displayName"}


def test_every_state_property_is_one_that_the_sdk_knows(world: World) -> None:
    """An output under a wrong name would reach programs as None."""
    import pulumi_oci

    ocids = [record.ocid for record in world.region.all(*registry.RESOURCES)]
    for ocid in ocids:
        record = world.region.get(ocid)
        _, module, name = record.kind.split(":")
        resource = getattr(getattr(pulumi_oci, module.split("/")[0].lower()), name)
        known = {
            getattr(member.fget, "_pulumi_name", name)
            for name, member in vars(resource).items()
            if isinstance(member, property)
        }
        unknown = set(world.region.read(ocid)) - known - {"id"}
        assert not unknown, f"{record.kind}: {unknown}"


# One place per type


class InternetGateway(Resource):
    """A type that the region does not have."""

    kind = "oci:Core/internetGateway:InternetGateway"
    ocid_type = "internetgateway"
    rules = InputRules(source="core_internet_gateway_resource.go", replace=frozenset({"vcnId"}))

    def create(self, store: Store, inputs: Inputs, name: str, ocid: str | None) -> Record:
        return store.add(self.kind, name, {"vcnId": store.get(inputs["vcnId"], oci.VCN).ocid}, ocid)

    def update(self, store: Store, record: Record, inputs: Inputs) -> None:
        record.facts["displayName"] = inputs.get("displayName")

    def delete(self, store: Store, record: Record) -> None:
        store.drop(record)

    def queries(self) -> dict[str, Query]:
        return {"oci:Core/getInternetGateways:getInternetGateways": lambda store, _: {"n": len(store.all(self.kind))}}


@pytest.fixture
def with_internet_gateway(monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """A region that has one type more: its class, and its file in the list."""
    with monkeypatch.context() as patch:
        patch.setattr(security, "KINDS", (*security.KINDS, InternetGateway()))
        importlib.reload(registry)
        yield World()
    importlib.reload(registry)


def test_a_new_type_is_one_class(with_internet_gateway: World) -> None:
    w = with_internet_gateway
    token = InternetGateway.kind
    inputs = {"compartmentId": "c", "vcnId": w.pod}
    assert w.region.check(token, {"compartmentId": "c"}) == [("vcnId", "Missing required property")]
    ocid, _ = w.region.create(token, inputs, "way out")
    assert ocid.startswith("ocid1.internetgateway.oc1.")
    assert w.update(ocid, displayName="a way out")["displayName"] == "a way out"
    assert w.region.diff(token, {"vcnId": "a"}, {"vcnId": "b"}).replace == ("vcnId",)
    assert w.region.invoke("oci:Core/getInternetGateways:getInternetGateways", {}) == {"n": 1}
    assert token in provider.schema()["resources"]
    w.region.delete(ocid)
    assert w.region.find(token, "way out") is None


def test_each_file_with_a_type_is_in_the_list() -> None:
    folder = Path(str(registry.__file__)).parent
    files = {path.stem for path in folder.glob("*.py") if "\nKINDS: tuple" in path.read_text(encoding="utf-8")}
    assert files == {subject.__name__.rpartition(".")[2] for subject in registry._SUBJECTS}


@pytest.mark.parametrize(
    ("token", "required"),
    [
        ("oci:Dns/zone:Zone", "zoneType"),
        ("oci:NetworkLoadBalancer/networkLoadBalancer:NetworkLoadBalancer", "subnetId"),
    ],
)
def test_types_of_other_services_are_read_from_their_part_of_the_sdk(token: str, required: str) -> None:
    assert required in InputSpec.of(token).required
