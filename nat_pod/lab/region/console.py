"""Console histories: what an instance's serial console held when somebody captured it.

No machine runs in a region.  A console holds what somebody says who sees it (`Region.report_console`).
"""

from __future__ import annotations

from collections.abc import Mapping

from nat_pod.lab.region.inputs import InputRules, Inputs
from nat_pod.lab.region.kinds import CONSOLE_HISTORY, INSTANCE
from nat_pod.lab.region.refusals import invalid
from nat_pod.lab.region.resource import ObjectKind, Query, Resource
from nat_pod.lab.region.store import Record, Store
from nat_pod.limits import CONSOLE_BYTES

_LEAST = 10_240  # of `length` (terraform-provider-oci, data source oci_core_console_history_data)


class _ConsoleHistory(Resource):
    kind = CONSOLE_HISTORY
    ocid_type = "consolehistory"
    rules = InputRules(source="core_console_history_resource.go", replace=frozenset({"instanceId"}))

    def create(self, store: Store, inputs: Inputs, name: str, ocid: str | None) -> Record:
        instance = store.get(inputs["instanceId"], INSTANCE)
        held = store.consoles.get(instance.ocid, "").encode()[-CONSOLE_BYTES:].decode(errors="ignore")
        facts = {"displayName": inputs.get("displayName", ""), "state": "SUCCEEDED", "content": held}
        return store.add(CONSOLE_HISTORY, name, facts, ocid)

    def update(self, store: Store, record: Record, inputs: Inputs) -> None:  # noqa: ARG002
        record.facts["displayName"] = inputs.get("displayName", "")

    def delete(self, store: Store, record: Record) -> None:
        store.drop(record)

    def view(self, store: Store, record: Record) -> Inputs:  # noqa: ARG002
        return {name: fact for name, fact in record.facts.items() if name != "content"}

    def queries(self) -> Mapping[str, Query]:
        return {"oci:Core/getConsoleHistoryData:getConsoleHistoryData": _content}


def take_console(store: Store, instance: str, text: str) -> None:
    """What somebody who sees an instance's serial console reads there, from its boot until now."""
    store.consoles[store.get(instance, INSTANCE).ocid] = text


def _content(store: Store, args: Inputs) -> Inputs:
    """The text of one capture (GetConsoleHistoryContent)."""
    record = store.get(args["consoleHistoryId"], CONSOLE_HISTORY)
    offset, length = int(args.get("offset") or 0), int(args.get("length") or _LEAST)
    if length < _LEAST:
        raise invalid(
            f"length {length} is less than {_LEAST}",
            "terraform-provider-oci, data source oci_core_console_history_data",
        )
    text = record.facts["content"].encode()[offset : offset + length].decode(errors="ignore")
    return {**args, "id": f"{record.ocid}/content", "data": text}


KINDS: tuple[ObjectKind, ...] = (_ConsoleHistory(),)
