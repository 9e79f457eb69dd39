"""NatPod as a Pulumi package (package/): its schema, and a program that knows nothing of nat-pod but that package."""

import functools
import json
import operator
import os
import subprocess
import sys
import threading
import tomllib
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml
from conftest import REPOSITORY, stack_mapping
from pulumi.runtime.proto import provider_pb2, provider_pb2_grpc
from routed_pods import small

import nat_pod
from nat_pod.config import any_config
from nat_pod.lab.engine.engine import Engine, EngineError, find_cli
from nat_pod.lab.region.file import RegionFile
from nat_pod.lab.region.kinds import BACKEND, BALANCER, INSTANCE, PRIVATE_IP
from nat_pod.lab.region.region import Region

PACKAGE = REPOSITORY / "package"
TOKEN = "nat-pod:index:NatPod"

# What the generated SDKs do, in any language: register a resource of the package as a remote component.
CONSUMER = f"""
import json, pathlib, pulumi

class NatPod(pulumi.ComponentResource):
    def __init__(self, name, args, opts):
        outputs = dict.fromkeys(["vcnId", "natVmIds", "lpgIds", "routesToAdd", "addressBook", "generations"])
        super().__init__("{TOKEN}", name, {{**outputs, **args}}, opts, remote=True)

args = json.loads(pathlib.Path(__file__).with_name("args.json").read_text())
if args.pop("late", None):
    args["management"]["cidr"] = pulumi.Output.secret("10.0.0.0/16")
opts = None
if args.pop("lateProvider", None):
    import pulumi_oci as oci
    first = oci.core.Vcn("first", compartment_id=args["compartmentId"], cidr_blocks=["10.9.0.0/16"])
    provider = oci.Provider("late", region=first.id.apply(lambda _: "uk-london-1"))
    opts = pulumi.ResourceOptions(providers=[provider])
pod = NatPod("mine", args, opts)
pulumi.export("vcn", pod.vcnId)
pulumi.export("vms", pod.natVmIds)
pulumi.export("routes", pod.routesToAdd)
"""


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    """As an engine asks for it."""
    with subprocess.Popen(
        [sys.executable, PACKAGE, "127.0.0.1:1"],  # the engine's address, which a schema needs not
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.PIPE,
        text=True,
    ) as plugin:
        assert plugin.stdout is not None
        port = plugin.stdout.readline().strip()
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            stub = provider_pb2_grpc.ResourceProviderStub(channel)
            answer = stub.GetSchema(provider_pb2.GetSchemaRequest(), timeout=20, wait_for_ready=True)
        plugin.terminate()
    return json.loads(answer.schema)


def shown(prop: dict[str, Any], *, optional: bool) -> str:
    """A property in a line, e.g. `map(Customer)?`."""
    if "$ref" in prop:
        text = prop["$ref"].rsplit(":", 1)[-1]
    elif prop["type"] == "array":
        text = f"list({shown(prop['items'], optional=False)})"
    elif prop["type"] == "object":
        text = f"map({shown(prop['additionalProperties'], optional=False)})"
    else:
        text = prop["type"]
    return text + "?" * optional


def members(properties: dict[str, Any], required: list[str]) -> dict[str, str]:
    return {name: shown(prop, optional=name not in required) for name, prop in properties.items()}


pytestmark = pytest.mark.runs_commands


def test_inputs_are_the_stack_files_keys(schema: dict[str, Any]) -> None:
    pod = schema["resources"][TOKEN]
    assert members(pod["inputProperties"], pod["requiredInputs"]) == {
        "compartmentId": "string",
        "cidr": "string",
        "natVm": "NatVm",
        "management": "Management",
        "customers": "map(Customer)",
        "delivery": "string?",
        "sourceNat": "string?",
        "lpgLimit": "integer?",
        "subnets": "Layout?",
        "standby": "boolean?",
        "vcnCidr": "string?",
        "balancerLimit": "integer?",
        "movesFrom": "string?",
        "gateways": "map(integer)?",
        "names": "Names?",
        "protect": "string?",
        "policy": "list(PolicyEntry)?",
        "tags": "Tags?",
        "addresses": "map(Slot)?",
    }
    declared = yaml.safe_load((REPOSITORY / "Pulumi.yaml").read_text(encoding="utf-8"))["config"]
    assert list(pod["inputProperties"]) == list(declared)
    assert pod["requiredInputs"] == sorted(key for key, entry in declared.items() if "default" not in entry)


def test_types(schema: dict[str, Any]) -> None:
    types = {token.rsplit(":", 1)[1]: entry for token, entry in schema["types"].items()}
    assert {name: members(entry["properties"], entry.get("required", [])) for name, entry in types.items()} == {
        "Names": {"zone": "string"},
        "PolicyEntry": {"from": "string", "to": "string", "allow": "list(string)"},
        "Tags": {"freeform": "map(string)?", "defined": "map(string)?"},
        "NatVm": {"shape": "Shape", "imageId": "string", "sshPublicKey": "string", "availabilityDomain": "string?"},
        "Shape": {"shape": "string", "ocpus": "integer?", "memoryGbs": "integer?"},
        "Management": {
            "cidr": "list(string)",
            "vrouter": "string",
            "servers": "map(string)",
            "serversFormerly": "map(string)?",
        },
        "Customer": {
            "cidr": "list(string)",
            "hosts": "map(string)",
            "servers": "list(string)?",
            "peerId": "string?",
            "formerly": "string?",
            "hostsFormerly": "map(string)?",
            "gateway": "string?",
        },
        "Layout": {"natVm1": "list(string)", "natVm2": "list(string)", "vrouter": "string"},
        "Slot": {"natVm1": "string?", "natVm2": "string?", "address": "string?", "released": "boolean?"},
        "Routes": {"destinations": "list(string)", "target": "string", "lpgId": "string?"},
    }


def test_outputs(schema: dict[str, Any]) -> None:
    pod = schema["resources"][TOKEN]
    assert members(pod["properties"], pod["required"]) == {
        "vcnId": "string",
        "natVmIds": "map(string)",
        "lpgIds": "map(string)",
        "vrouterSubnetId": "string",
        "addressBook": "map(map(string))",
        "routesToAdd": "map(Routes)",
        "generations": "map(string)",
        "balancerIds": "map(string)?",  # these two with delivery: routes
        "nextHops": "map(string)?",
        "nameViews": "map(string)?",  # with names
    }


def test_each_input_is_plain_and_everything_is_described(schema: dict[str, Any]) -> None:
    pod = schema["resources"][TOKEN]
    inputs = {name: entry for name, entry in schema["types"].items() if not name.endswith(":Routes")}
    for properties in [pod["inputProperties"], *(entry["properties"] for entry in inputs.values())]:
        assert all(prop["plain"] for prop in properties.values())
    for entry in [pod, *schema["types"].values()]:
        assert entry["description"]
        assert "\n" not in entry["description"]  # an indented paragraph would be shown as code
        for prop in [*entry["properties"].values(), *entry.get("inputProperties", {}).values()]:
            assert len(prop["description"]) > 10


def test_the_types_name_each_setting_that_the_configuration_knows(schema: dict[str, Any]) -> None:
    """The code's own lists: what it names as known where it meets a key that it does not know."""
    places = {
        ("natVm",): "NatVm",
        ("management",): "Management",
        ("customers", "customer1"): "Customer",
        ("subnets",): "Layout",
        ("addresses", "management/mgmt"): "Slot",
    }
    for path, name in places.items():
        known = known_at(path, {})
        if name == "Slot":  # a routed POD has another form of it
            known |= known_at(path, {"delivery": "routes"})
        assert known == set(schema["types"][f"nat-pod:index:{name}"]["properties"])


def known_at(path: tuple[str, ...], more: dict[str, Any]) -> set[str]:
    config: Any = stack_mapping("dev") | more
    functools.reduce(operator.getitem, path, config)["flavour"] = 1
    with pytest.raises(Exception, match="known are") as refused:
        any_config.read(config, "dev")
    rule = next(problem.rule for problem in refused.value.problems if "known are" in problem.rule)
    return set(rule.split("known are ")[1].split(", "))


def test_the_version_is_the_projects(schema: dict[str, Any]) -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert (schema["name"], schema["version"]) == (project["name"], nat_pod.__version__)
    assert yaml.safe_load((PACKAGE / "PulumiPlugin.yaml").read_text(encoding="utf-8"))["name"] == project["name"]


# A program that uses it


class Consumer:
    """A project of somebody else's, in a directory of its own, with the package and a region."""

    def __init__(self, directory: Path, cli: Path) -> None:
        project = directory / "project"
        project.mkdir(parents=True)
        (project / "__main__.py").write_text(CONSUMER, encoding="utf-8")
        document = {"name": "other", "runtime": "python"}
        document["plugins"] = {"providers": [{"name": "nat-pod", "path": str(PACKAGE)}]}
        (project / "Pulumi.yaml").write_text(yaml.safe_dump(document), encoding="utf-8")
        (project / "Pulumi.test.yaml").write_text("config: {oci:region: uk-london-1}\n", encoding="utf-8")
        self.project = project
        self.region = RegionFile.make(directory / "region", Region("uk-london-1"))
        self.engine = Engine(project, "test", self.region.path, cli)
        self.args = stack_mapping("dev")
        # The typed form; a stack file may write the name alone.
        self.args["natVm"]["shape"] = {"shape": "VM.Standard2.24"}

    def save(self) -> None:
        (self.project / "args.json").write_text(json.dumps(self.args), encoding="utf-8")


@pytest.fixture
def consumer(tmp_path: Path) -> Consumer:
    cli = find_cli()
    if cli is None:
        pytest.skip("no Pulumi CLI: .ci/pulumi/install makes sure there is one")
    return Consumer(tmp_path, cli)


@pytest.mark.engine
def test_a_program_in_a_project_of_its_own_makes_a_pod(consumer: Consumer) -> None:
    consumer.save()
    consumer.engine.up()
    outputs = consumer.engine.outputs()
    assert consumer.region.get(outputs["vcn"]).inputs["displayName"] == "mine"
    assert outputs["vms"] == {vm: consumer.region.find(INSTANCE, f"mine-{vm}") for vm in ("natVm1", "natVm2")}
    assert outputs["routes"]["customer1"]["destinations"] == ["198.18.0.0/27"]
    assert outputs["routes"]["customer1"]["lpgId"].startswith("ocid1.localpeeringgateway.")
    consumer.engine.expect_no_changes()

    # A new host costs its addresses; what stands stays.
    consumer.args["customers"]["customer2"]["hosts"]["vm9"] = "10.0.1.9"
    consumer.args["addresses"]["customer2/vm9"] = {"natVm1": "198.18.0.4", "natVm2": "198.18.0.132"}
    consumer.save()
    run = consumer.engine.up()
    assert sorted(run.ops(PRIVATE_IP)["create"]) == ["mine-198.18.0.132", "mine-198.18.0.4"]
    assert run.ops(INSTANCE) == {"update": ["mine-natVm1"]}
    assert set(run.ops()) == {"create", "update"}
    consumer.engine.destroy()
    assert consumer.engine.resources() == []


@pytest.mark.engine
def test_a_routed_pod_waits_and_goes_as_a_remote_component_too(consumer: Consumer) -> None:
    """What waits for a healthy NAT VM runs in the package's process, also after the program has ended."""
    consumer.args = small()
    consumer.args["addresses"] = {member: {"address": alias} for member, alias in consumer.args["addresses"].items()}
    consumer.save()
    consumer.engine.up()
    consumer.args["natVm"]["sshPublicKey"] += "2"
    consumer.save()

    def report(*down: str) -> None:
        for balancer in consumer.region.all(BALANCER):
            seen = {str(one.facts["targetId"]): one.facts["name"] not in down for one in consumer.region.all(BACKEND)}
            consumer.region.report_health(balancer.ocid, seen)

    report("natVm1a")
    before, over = len(consumer.region.changes()), threading.Event()

    def look() -> None:
        over.wait(12)  # natVm1b must not go as long as natVm1a is down
        while not over.wait(0.5):
            report()

    looker = threading.Thread(target=look)
    looker.start()
    try:
        consumer.engine.up()
    finally:
        over.set()
        looker.join()
    assert consumer.region.changes()[before]["do"] == "health"
    report("natVm1a")
    consumer.engine.destroy()
    assert consumer.engine.resources() == []


@pytest.mark.engine
def test_it_says_everything_that_is_wrong_and_nothing_else(consumer: Consumer) -> None:
    consumer.args["cidr"] = "198.18.0.0/33"
    consumer.args["customers"]["customer1"]["peerID"] = "x"
    del consumer.args["compartmentId"]
    consumer.save()
    with pytest.raises(EngineError) as caught:
        consumer.engine.preview()
    # Beside it the program may say, before the engine ends it, that its call failed: that is the consumer's SDK.
    said = next(error for error in caught.value.run.errors if "resource 'mine' has a problem" in error)
    assert "arguments of mine: 3 problems" in said
    assert "nat-pod:compartmentId: is missing" in said
    assert "nat-pod:customers.customer1.peerID: is not a setting of nat-pod; did you mean peerId?" in said
    assert "Traceback" not in said
    assert "File " not in said


@pytest.mark.engine
def test_a_value_that_is_not_known_yet_is_refused(consumer: Consumer) -> None:
    consumer.args["late"] = True
    consumer.save()
    with pytest.raises(EngineError, match=r"nat-pod:management\S*: is an output, whose value may not be known yet"):
        consumer.engine.preview()


@pytest.mark.engine
@pytest.mark.parametrize("domain", [None, "nPod:UK-LONDON-1-AD-2"])
def test_a_provider_that_is_not_known_yet_answers_nothing_in_a_preview(consumer: Consumer, domain: str | None) -> None:
    consumer.args["lateProvider"] = True
    if domain is not None:
        consumer.args["natVm"]["availabilityDomain"] = domain
    consumer.save()
    assert "mine-natVm2" in consumer.engine.preview().ops(INSTANCE)["create"]
    consumer.engine.up()
    (one, other) = consumer.region.all(INSTANCE)
    expected = domain or "nPod:UK-LONDON-1-AD-1"
    assert (one.facts["availabilityDomain"], other.facts["availabilityDomain"]) == (expected, expected)
    consumer.engine.expect_no_changes()


@pytest.mark.engine
def test_a_domain_that_the_region_does_not_have_is_refused_in_a_preview(consumer: Consumer) -> None:
    consumer.args["natVm"]["availabilityDomain"] = "nPod:US-ASHBURN-AD-1"
    consumer.save()
    with pytest.raises(EngineError) as caught:
        consumer.engine.preview()
    assert (
        'arguments of mine: 1 problem\n  nat-pod:natVm.availabilityDomain: "nPod:US-ASHBURN-AD-1": is not an '
        "availability domain of this region; your tenancy names them: nPod:UK-LONDON-1-AD-1, " in str(caught.value)
    )


@pytest.mark.engine
def test_the_cli_gets_the_same_schema(consumer: Consumer, schema: dict[str, Any]) -> None:
    """`pulumi package get-schema package`: what `package add` and `package gen-sdk` begin with."""
    consumer.save()
    consumer.engine.preview()  # lays out what the CLI finds
    environment = {**consumer.engine._environment(), "NO_COLOR": "1"}
    command = [str(consumer.engine._cli), "package", "get-schema", str(PACKAGE)]
    got = json.loads(subprocess.run(command, env=environment, capture_output=True, check=True).stdout)
    assert got["resources"][TOKEN]["requiredInputs"] == schema["resources"][TOKEN]["requiredInputs"]
    assert set(got["types"]) == set(schema["types"])
