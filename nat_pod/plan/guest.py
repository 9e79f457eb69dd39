"""What a NAT VM is given as instance metadata: the bootstrap (`bootstrap`) and the rule document (`document`).

Facts this module rests on
- OCI replaces an instance when `user_data` or `ssh_authorized_keys` changes; every other metadata key changes in
  place (OCI Terraform provider, `core_instance_resource.go`).  So user_data is one constant per release, and the
  rules travel in a key of their own.
- All metadata together may have 32,000 bytes (OCI API, LaunchInstanceDetails).  So both parts are packed; how, and why
  the agent stands last in user_data, is said in their modules.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from nat_pod.limits import METADATA_BYTES, METADATA_OVERHEAD_BYTES
from nat_pod.plan.bootstrap import render_user_data
from nat_pod.plan.document import rule_document

VM_KEY = "nat-pod-vm"
"""The VM's own name, e.g. natVm1, or natVm1a where two VMs play a side."""

SIDE_KEY = "nat-pod-side"
"""The role whose rule document it runs, where that is not the VM's own name."""

RULES_KEY = "nat-pod-rules"


def metadata(
    vm: str,
    side: str,
    ssh_key: str,
    hooks: Sequence[tuple[str, str, str]],
    rules_text: str,
    health: int | None = None,
) -> tuple[dict[str, str], str]:
    """All metadata of a NAT VM, and the generation of the rule document in it: the same for all VMs of a side.

    vm: its own name.  health: see `document.Document`.
    """
    document, generation = rule_document(side, hooks, rules_text, health)
    return {
        "user_data": render_user_data(),
        "ssh_authorized_keys": ssh_key,
        VM_KEY: vm,
        **({} if vm == side else {SIDE_KEY: side}),
        RULES_KEY: document,
    }, generation


def metadata_bytes(values: Mapping[str, str]) -> int:
    """Bytes of all keys and values."""
    return sum(len(key.encode()) + len(value.encode()) for key, value in values.items())


def budget_problem(values: Mapping[str, str]) -> str | None:
    """Why this metadata does not fit an instance, with figures, or None when it fits."""
    used, room = metadata_bytes(values), METADATA_BYTES - METADATA_OVERHEAD_BYTES
    if used <= room:
        return None
    parts = ", ".join(f"{key} {len(value.encode())}" for key, value in values.items())
    return (
        f"{used} bytes ({parts}), {used - room} more than fit: OCI takes {METADATA_BYTES}, of which "
        f"{METADATA_OVERHEAD_BYTES} are kept free; use fewer members, or spread them over two PODs"
    )
