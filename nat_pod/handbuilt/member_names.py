"""What members are called: by the names in comments, or by names made of addresses."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from nat_pod.config.neighbours import is_member_name
from nat_pod.handbuilt.numeric import dotted
from nat_pod.handbuilt.reconstruct import Handbuilt
from nat_pod.names import Side


def comment_name(pod: Handbuilt, vm: Side, address: int) -> tuple[str, str]:
    """(realm, member) from a comment such as `customer1/vm1` or `vm1`; "" for what it does not say."""
    realm, slash, member = pod.names.get((vm, address), "").rpartition("/")
    return (realm, member) if is_member_name(member) and (realm or not slash) else ("", "")


def named(pod: Handbuilt, vm: Side, addresses: Iterable[int], word: str) -> dict[int, str]:
    """A name for each address: the one in its comment unless another has it too, otherwise one made of the address."""
    made = {address: f"{word}-{dotted(address).replace('.', '-')}" for address in sorted(addresses)}
    wanted = {address: comment_name(pod, vm, address)[1] or name for address, name in made.items()}
    used = Counter(wanted.values()) + Counter(name for address, name in made.items() if wanted[address] != name)
    return {address: name if used[name] == 1 else made[address] for address, name in wanted.items()}
