"""Console histories of the simulated region: what was on an instance's serial console when it was captured."""

from pathlib import Path

import pytest
from region_world import INVALID, NOWHERE, UNKNOWN, World

from nat_pod.lab.region import kinds as oci
from nat_pod.lab.region.file import RegionFile
from nat_pod.lab.region.refusals import OciError
from nat_pod.lab.region.region import Region
from nat_pod.limits import CONSOLE_BYTES

DATA = "oci:Core/getConsoleHistoryData:getConsoleHistoryData"


def capture(region: Region, instance: str, name: str = "one") -> str:
    return region.create(oci.CONSOLE_HISTORY, {"instanceId": instance}, name)[0]


def held(region: Region, history: str, **arguments: int) -> str:
    return str(region.invoke(DATA, {"consoleHistoryId": history, **arguments})["data"])


def test_a_capture_holds_what_was_there_then():
    world = World()
    world.region.report_console(world.vm, "booted\n")
    history = capture(world.region, world.vm)
    world.region.report_console(world.vm, "booted\nready\n")
    assert held(world.region, history) == "booted\n"
    assert held(world.region, capture(world.region, world.vm, "two")) == "booted\nready\n"
    assert world.region.read(history)["state"] == "SUCCEEDED"
    assert "content" not in world.region.read(history)
    world.region.delete(history)
    with pytest.raises(OciError, match=UNKNOWN):
        held(world.region, history)


def test_a_console_of_which_nobody_said_anything_is_empty():
    world = World()
    assert held(world.region, capture(world.region, world.vm)) == ""


def test_it_holds_the_last_megabyte_and_is_read_in_parts():
    world = World()
    world.region.report_console(world.vm, "x" * CONSOLE_BYTES + "the end")
    history = capture(world.region, world.vm)
    assert len(held(world.region, history)) == 10_240, "unless more is asked for"
    whole = held(world.region, history, length=2 * CONSOLE_BYTES)
    assert (len(whole), whole[-8:]) == (CONSOLE_BYTES, "xthe end")
    assert held(world.region, history, offset=CONSOLE_BYTES - 7, length=20_000) == "the end"


def test_less_than_the_least_length_and_nobodys_console_are_refused():
    world = World()
    history = capture(world.region, world.vm)
    with pytest.raises(OciError, match=f"{INVALID}.*length 100 is less than 10240"):
        held(world.region, history, length=100)
    assert held(world.region, history, length=10_240) == ""
    for ask in (lambda: capture(world.region, NOWHERE), lambda: world.region.report_console(NOWHERE, "x")):
        with pytest.raises(OciError, match=UNKNOWN):
            ask()


def test_another_instance_is_another_capture():
    world = World()
    other = world.instance(world.a)
    diff = world.region.diff(oci.CONSOLE_HISTORY, {"instanceId": world.vm}, {"instanceId": other})
    assert diff.replace == ("instanceId",)
    renamed = world.region.diff(
        oci.CONSOLE_HISTORY, {"instanceId": world.vm}, {"instanceId": world.vm, "displayName": "x"}
    )
    assert (renamed.replace, renamed.update) == ((), ("displayName",))


def test_it_is_in_the_journal_and_in_a_copy(tmp_path: Path):
    shared = RegionFile.make(tmp_path / "region", Region())
    vm = World(shared).vm
    shared.report_console(vm, "booted\n")
    for other in (RegionFile(tmp_path / "region"), Region.from_json(shared.to_json())):
        assert held(other, capture(other, vm, f"of {type(other).__name__}")) == "booted\n"
