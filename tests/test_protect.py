"""`protect`: which resources of a POD the engine is told not to delete, and who writes and who leaves out the key."""

from pathlib import Path

import pytest
import yaml
from conftest import REPOSITORY, real_stack, stack_mapping

from nat_pod.commands.new_pod import new_pod
from nat_pod.config import any_config
from nat_pod.config.move import moved
from nat_pod.config.protect import Protect
from nat_pod.deployed.trial import Trial
from nat_pod.lab.engine.program import deploy
from nat_pod.lab.region.kinds import BALANCER, INSTANCE, LPG, VCN
from nat_pod.lab.region.region import Region
from nat_pod.names import NAMESPACE
from nat_pod.plan.planner import plan_pod
from nat_pod.trace.diff import compare
from nat_pod.trace.effects import account

NETWORK = {"dev": {VCN, LPG}, "routed": {VCN, LPG, BALANCER}}


def project(directory: Path, stack: str, protect: str | None) -> Path:
    text = yaml.safe_load(real_stack(stack))
    if protect is not None:
        text["config"][f"{NAMESPACE}:protect"] = protect
    for name in ("Pulumi.yaml", "__main__.py", "nat_pod", "cloud-init"):
        (directory / name).symlink_to(REPOSITORY / name)
    (directory / f"Pulumi.{stack}.yaml").write_text(yaml.safe_dump(text), encoding="utf-8")
    return directory


@pytest.mark.slow
@pytest.mark.parametrize("stack", NETWORK)
@pytest.mark.parametrize("protect", [None, "nothing", "network", "all"])
def test_exactly_what_carries_traffic_is_protected(tmp_path, stack, protect):
    wanted = {None: set(), "nothing": set(), "network": NETWORK[stack], "all": NETWORK[stack] | {INSTANCE}}[protect]
    registered = deploy(project(tmp_path, stack, protect), stack, Region()).registrations
    guarded = {(one.type, one.name) for one in registered if one.request.protect}
    assert guarded == {(one.type, one.name) for one in registered if one.type in wanted}
    assert {kind for kind, _ in guarded} == wanted
    # What everyday work takes away is not among it.
    assert len(guarded) < len(registered) / 2


@pytest.mark.parametrize("routed", [False, True])
def test_a_new_pods_file_protects_it_all(tmp_path, routed):
    text = new_pod(tmp_path, "prod", 22, routed=routed).text
    assert yaml.safe_load(text)["config"][f"{NAMESPACE}:protect"] == Protect.ALL


def test_a_pod_that_takes_anothers_place_is_a_new_one():
    config = any_config.read(stack_mapping("dev"), "dev")
    made = moved(config, stack_mapping("dev"), "dev").config
    assert made["protect"] == Protect.ALL
    assert any_config.read({**made, "movesFrom": "dev"}, "new").protect is Protect.ALL


@pytest.mark.parametrize("stack", NETWORK)
def test_a_trial_can_always_be_taken_down(tmp_path, stack):
    """Its POD is made to be thrown away, whatever the file of the stack says that it tries."""
    trial = Trial(project(tmp_path, stack, "all"), stack, lambda _: None)
    assert trial.plan.protect is Protect.NOTHING
    assert f"{NAMESPACE}:protect" not in trial._pod_config()


def judged(before: dict, after: dict) -> list[str]:
    old, new = (plan_pod(any_config.read(mapping, "x"), "x") for mapping in (before, after))
    paths = {("natVm", "sshPublicKey"): "ssh-ed25519 AAAA", ("customers", "customer2", "cidr"): "10.0.1.0/24"}
    values = [
        {path: mapping.get(path[0], {}).get(path[1], was) if len(path) == 2 else was for path, was in paths.items()}
        for mapping in (before, after)
    ]
    if "customer2" not in after["customers"]:
        del values[1][("customers", "customer2", "cidr")]
    return [change.judgement.why for change in account(compare(old, new), old, new, *values).changes]


@pytest.mark.parametrize(
    ("before", "after", "refused"),
    [("all", "all", True), ("all", "network", False), ("network", "all", False), (None, None, False)],
)
def test_diff_says_what_the_engine_will_refuse_to_replace(before, after, refused):
    old, new = stack_mapping("dev"), stack_mapping("dev")
    new["natVm"]["sshPublicKey"] = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIEother ops"
    for mapping, protect in ((old, before), (new, after)):
        if protect is not None:
            mapping["protect"] = protect
    (why,) = judged(old, new)
    words = "; `pulumi up` refuses it until the stack file says protect: network (docs/operate.md)"
    assert why.endswith(words) == refused
    assert ("protect" in why) == refused


@pytest.mark.parametrize(("before", "after", "refused"), [("network", "nothing", True), (None, "all", False)])
def test_diff_says_that_a_customers_lpg_is_kept(before, after, refused):
    """Whatever the new file says: only the state knows of an LPG that the program no longer has."""
    old, new = stack_mapping("dev"), stack_mapping("dev")
    del new["customers"]["customer2"], new["addresses"]["customer2/vm2"]
    if before is not None:
        old["protect"] = before
    new["protect"] = after
    (why,) = judged(old, new)
    words = "; `pulumi up` refuses it until `pulumi state unprotect` was run for that LPG (docs/operate.md)"
    assert why.endswith(words) == refused
    assert ("protect" in why) == refused
