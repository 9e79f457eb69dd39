"""Tags: every resource that can have some gets them, and none where the stack file says none."""

import copy
from pathlib import Path

import pytest
import yaml
from conftest import REPOSITORY, real_stack

from nat_pod.config import any_config
from nat_pod.errors import ConfigError
from nat_pod.lab.region import registry
from nat_pod.lab.region.region import Region
from nat_pod.lab.surroundings import stand_up
from nat_pod.names import NAMESPACE
from nat_pod.trial.neighbours import TAG, neighbours_of

FREEFORM = {"owner": "network-team", "stage": "test"}
DEFINED = {"Operations.CostCenter": "42", "Operations.Mail": "net@example.com"}


def project(directory: Path, stack: str, tags: object) -> Path:
    """The stack with tags; None for a stack without."""
    text = yaml.safe_load(real_stack(stack))
    if tags is not None:
        text["config"][f"{NAMESPACE}:tags"] = tags
    text["config"][f"{NAMESPACE}:names"] = {"zone": "pod1.example.internal"}
    for name in ("Pulumi.yaml", "__main__.py", "nat_pod", "cloud-init"):
        (directory / name).symlink_to(REPOSITORY / name)
    (directory / f"Pulumi.{stack}.yaml").write_text(yaml.safe_dump(text), encoding="utf-8")
    return directory


def of_the_pod(region: Region) -> list[tuple[str, dict]]:
    """The POD's resources that can have tags, and the VNICs that come with them: name and inputs."""
    found = []
    for record in region.all(*registry.RESOURCES):
        if not record.name.startswith("nat-pod-"):
            continue
        if "freeformTags" in registry.RESOURCES[record.kind].spec.members:
            found.append((f"{record.kind} {record.name}", record.inputs))
        if "createVnicDetails" in record.inputs:
            found.append((f"VNIC of {record.kind} {record.name}", record.inputs["createVnicDetails"]))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("stack", ["dev", pytest.param("routed", marks=pytest.mark.sweep)])
def test_whatever_can_have_tags_has_them(tmp_path, stack):
    region, plan, _ = stand_up(project(tmp_path, stack, {"freeform": FREEFORM, "defined": DEFINED}), stack)
    resources = of_the_pod(region)
    assert len({name.split()[0] for name, _ in resources}) >= 8
    bare = [
        name
        for name, inputs in resources
        if (inputs.get("freeformTags"), inputs.get("definedTags")) != (FREEFORM, DEFINED)
    ]
    assert bare == []
    # A tenancy that takes nothing without defined tags takes no neighbours without them either.
    document = neighbours_of(plan, "trial").document()
    assert (document["tags"], document["definedTags"]) == ({TAG: "trial"}, DEFINED)
    others = [record for record in region.all(*registry.RESOURCES) if TAG in (record.inputs.get("freeformTags") or {})]
    assert len(others) > 10
    assert [record.name for record in others if record.inputs.get("definedTags") != DEFINED] == []


@pytest.mark.slow
@pytest.mark.parametrize("stack", ["dev", pytest.param("routed", marks=pytest.mark.sweep)])
def test_without_tags_nothing_is_said_of_them_so_that_those_of_the_tenancy_stay(tmp_path, stack):
    region, _, _ = stand_up(project(tmp_path, stack, None), stack)
    said = [name for name, inputs in of_the_pod(region) if "freeformTags" in inputs or "definedTags" in inputs]
    assert said == []


@pytest.mark.slow
def test_another_tag_is_a_change_in_place_of_each_resource(tmp_path):
    old, _, _ = stand_up(project(tmp_path, "dev", {"freeform": FREEFORM, "defined": DEFINED}), "dev")
    for record in old.all(*registry.RESOURCES):
        if "freeformTags" not in record.inputs or not record.name.startswith("nat-pod-"):
            continue
        new = copy.deepcopy(record.inputs)
        new["definedTags"] = {**DEFINED, "Operations.CostCenter": "43"}
        diff = old.diff(record.kind, record.inputs, new)
        assert (diff.replace, bool(diff.update)) == ((), True), record.name


@pytest.mark.parametrize("stack", ["dev", "routed"])
@pytest.mark.parametrize(
    ("tags", "path", "said"),
    [
        ("x", "tags", "must be a mapping with freeform, defined"),
        ({"free": {}}, "tags.free", "did you mean freeform?"),
        ({"freeform": ["x"]}, "tags.freeform", "must be a mapping of tags, e.g. {owner: network-team}"),
        ({"freeform": {"a b": "x"}}, "tags.freeform.a b", "is not the key of a tag; e.g. owner, without spaces"),
        ({"freeform": {"a.b": "x"}}, "tags.freeform.a.b", "is not the key of a tag"),
        ({"freeform": {"": "x"}}, "tags.freeform", "is not the key of a tag"),
        ({"freeform": {"a": 42}}, "tags.freeform.a", 'quote numbers, e.g. "42"'),
        ({"freeform": {"a": "x" * 257}}, "tags.freeform.a", "at most 256 characters"),
        ({"freeform": {"a": "x\ny"}}, "tags.freeform.a", "at most 256 characters"),
        (
            {"freeform": {"a": "x", "A": "y"}},
            "tags.freeform",
            "are one key to OCI, which ignores case in the keys of tags; leave one",
        ),
        (
            {"freeform": {f"k{n}": "x" for n in range(11)}},
            "tags.freeform",
            "OCI takes at most 10 on a resource",
        ),
        ({"defined": {"CostCenter": "42"}}, "tags.defined.CostCenter", "e.g. Ops.CostCenter"),
        ({"defined": {"A.b.c": "42"}}, "tags.defined.A.b.c", "e.g. Ops.CostCenter"),
    ],
)
def test_what_oci_would_refuse_is_refused_before(stack, tags, path, said):
    config = yaml.safe_load(real_stack(stack))["config"]
    mapping = {key.removeprefix(f"{NAMESPACE}:"): value for key, value in config.items() if key.startswith(NAMESPACE)}
    with pytest.raises(ConfigError) as refused:
        any_config.read({**mapping, "tags": tags}, stack)
    (problem,) = refused.value.problems
    assert problem.path.startswith(f"nat-pod:{path}")
    assert said in problem.rule


@pytest.mark.parametrize("tags", [{}, {"freeform": {}}, {"freeform": None, "defined": {"N-1.k_2": ""}}])
def test_what_oci_takes_is_taken(dev, tags):
    assert any_config.read({**dev, "tags": tags}, "dev").tags.freeform == {}
