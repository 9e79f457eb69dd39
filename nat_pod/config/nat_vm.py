"""What both NAT VMs are made of, and how the stack file says it (`natVm`)."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from nat_pod import limits
from nat_pod.config.reader import Reader

_SSH_KEY = re.compile(r"(ssh-(ed25519|rsa)|ecdsa-sha2-nistp(256|384|521)|sk-\S+@openssh\.com) \S+( .*)?")


@dataclass(frozen=True, kw_only=True, slots=True)
class NatVmConfig:
    """What both NAT VMs are made of.  `ocpus` and `memory_gbs` are set for flex shapes only."""

    shape: str
    ocpus: int | None
    memory_gbs: int | None
    image_id: str
    availability_domain: str | None
    ssh_public_key: str

    @property
    def words(self) -> str:
        """The shape in a sentence."""
        if self.ocpus is None:
            return self.shape
        return f"{self.shape} with {self.ocpus} {'OCPU' if self.ocpus == 1 else 'OCPUs'}"

    @property
    def vnic_limit(self) -> int:
        """VNICs that a VM of this shape can have."""
        return limits.vnic_limit(self.shape, self.ocpus)

    def larger(self, vnics: int) -> NatVmConfig | None:
        """The smallest of its kind with that many VNICs, or with the most that there are; None where none has more."""
        if self.ocpus is None:
            kind = [replace(self, shape=shape) for shape in limits.fixed_shapes()]
        else:
            kind = [replace(self, ocpus=ocpus) for ocpus in range(1, limits.max_ocpus(self.shape) + 1)]
        more = sorted((one for one in kind if one.vnic_limit > self.vnic_limit), key=lambda one: one.vnic_limit)
        most = more[-1].vnic_limit if more else 0
        return next((one for one in more if one.vnic_limit >= min(vnics, most)), None)


def read_nat_vm(reader: Reader, value: object) -> NatVmConfig | None:
    """The section `natVm`."""
    before = len(reader.problems)
    section = reader.section(
        "natVm", value, required=("shape", "imageId", "sshPublicKey"), optional=("availabilityDomain",)
    )
    if not section:
        return None
    shape, ocpus, memory_gbs = _shape(reader, section.get("shape"))
    image_id = reader.ocid("natVm.imageId", section.get("imageId"), ("image",))
    availability_domain = reader.text(
        "natVm.availabilityDomain",
        section.get("availabilityDomain"),
        "must be the name of an availability domain, e.g. Uocm:UK-LONDON-1-AD-1",
        re.compile(r"[a-z0-9:_-]+-AD-[0-9]", re.IGNORECASE | re.ASCII),
    )
    key = reader.text(
        "natVm.sshPublicKey",
        section.get("sshPublicKey"),
        "must be one public key as in authorized_keys, e.g. ssh-ed25519 AAAA... ops",
        _SSH_KEY,
    )
    if len(reader.problems) > before or shape is None or image_id is None or key is None:
        return None
    return NatVmConfig(
        shape=shape,
        ocpus=ocpus,
        memory_gbs=memory_gbs,
        image_id=image_id,
        availability_domain=availability_domain,
        ssh_public_key=key,
    )


def _shape(reader: Reader, value: object) -> tuple[str | None, int | None, int | None]:
    path, ocpus, memory_gbs = "natVm.shape", None, None
    name = value
    if isinstance(value, Mapping):
        flex = ("ocpus", "memoryGbs")
        fixed = value.get("shape") in limits.known_shapes() and not limits.is_flex(str(value["shape"]))
        required, optional = (("shape",), flex) if fixed else (("shape", *flex), ())
        section = reader.section(path, value, required=required, optional=optional)
        name = section.get("shape")
        path = "natVm.shape.shape"
    if name is None:
        return None, None, None
    if not isinstance(name, str) or name not in limits.known_shapes():
        guess = difflib.get_close_matches(str(name), limits.known_shapes(), 1)
        hint = guess[0] if guess else "VM.Standard2.24 or VM.Optimized3.Flex"
        reader.add(path, name, f"is not a shape whose VNIC limit nat-pod knows, e.g. {hint}")
        return None, None, None
    if limits.is_flex(name):
        if not isinstance(value, Mapping):
            reader.add(path, name, f"is a flex shape, e.g. shape: {{shape: {name}, ocpus: 12, memoryGbs: 48}}")
            return None, None, None
        if section.get("ocpus") is not None:
            ocpus = reader.integer("natVm.shape.ocpus", section["ocpus"], 1, limits.max_ocpus(name))
        if section.get("memoryGbs") is not None:
            memory_gbs = reader.integer("natVm.shape.memoryGbs", section["memoryGbs"], 1, 1760)
        if ocpus is None or memory_gbs is None:
            return None, None, None
        if not ocpus <= memory_gbs <= 64 * ocpus:
            reader.add("natVm.shape.memoryGbs", memory_gbs, f"must be 1 to 64 GB per OCPU: {ocpus} to {64 * ocpus}")
            return None, None, None
    elif isinstance(value, Mapping) and len(section) > 1:
        reader.add(path, name, f"is a fixed shape and takes no ocpus or memoryGbs, e.g. shape: {name}")
        return None, None, None
    return name, ocpus, memory_gbs


def vnic_rule(count: int, nat_vm: NatVmConfig) -> str:
    """The sentence that says that a shape has too few VNICs."""
    return f"{count} VNIC pairs need {count} VNICs per VM; {nat_vm.words} has {nat_vm.vnic_limit}"
