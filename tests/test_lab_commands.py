"""The lab's commands from a terminal: where a shell is, and what a killed command leaves."""

import os
import pty
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
from conftest import REPOSITORY, eventually
from small_networks import needs_lab

from nat_pod.commands.cli import main
from nat_pod.lab.observe import observe
from nat_pod.lab.scratch import remove_leftovers, scratch_folder
from nat_pod.lab.surroundings import stand_up
from nat_pod.lab.wire import sandbox

pytestmark = pytest.mark.runs_commands


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A /tmp of this test's own, for this process and those it starts."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    return tmp_path


@contextmanager
def program(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Another program, which is killed at the end of the block at the latest."""
    with subprocess.Popen(
        [sys.executable, *arguments],
        cwd=REPOSITORY,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def holds_a_folder() -> AbstractContextManager[subprocess.Popen[str]]:
    """Another program that has a scratch folder, which it names, and then does not end."""
    script = (
        "import time; from nat_pod.lab.scratch import scratch_folder\n"
        "with scratch_folder() as folder:\n (folder / 'x').touch(); print(folder, flush=True); time.sleep(1000)"
    )
    return program("-c", script)


# --- what a killed command leaves ------------------------------------------------------------------------------------


def test_a_scratch_folder_goes_with_the_command_also_with_one_that_fails(temporary):
    def fail() -> None:
        with scratch_folder() as folder:
            (folder / "region").touch()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert list(temporary.iterdir()) == []


def test_the_folder_of_a_killed_command_goes_with_the_next_one_and_that_of_a_living_one_stays(temporary, monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    (temporary / "nat-pod-something-else").mkdir()
    with holds_a_folder() as dead, holds_a_folder() as living:
        assert dead.stdout is not None
        assert living.stdout is not None
        left, used = Path(dead.stdout.readline().strip()), Path(living.stdout.readline().strip())
        dead.kill()
        dead.wait()
        assert left.exists(), "a SIGKILL leaves the folder: otherwise this test says nothing"
        with scratch_folder() as own:
            assert main(["lab", "down", "ten"]) == 0
            assert sorted(temporary.iterdir()) == sorted([temporary / "nat-pod-something-else", own, used])
    remove_leftovers()
    assert list(temporary.iterdir()) == [temporary / "nat-pod-something-else"]


def test_a_link_under_the_name_of_a_leftover_is_not_followed(temporary):
    precious = temporary / "precious"
    precious.mkdir()
    link = temporary / f"nat-pod-lab-{os.geteuid()}-link"
    link.symlink_to(precious)
    remove_leftovers()
    assert precious.exists()
    assert link.is_symlink()


@pytest.mark.lab
@needs_lab
def test_after_sigkill_of_lab_up_the_next_command_leaves_nothing(temporary, monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    with program("-m", "nat_pod", "lab", "demo", "dev") as killed:
        assert eventually(lambda: list(temporary.glob("nat-pod-lab-*/*")), 20)
        killed.kill()
    assert list(temporary.glob("nat-pod-lab-*"))
    assert eventually(lambda: main(["lab", "down", "dev"]) == 0 and not list(temporary.glob("nat-pod-lab-*")), 20)


# --- lab shell -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def up() -> Iterator[None]:
    """The lab of dev, under the key by which `lab shell` finds it."""
    region, _, _ = stand_up(REPOSITORY, "dev")
    key = sandbox.lab_key("dev", REPOSITORY)
    sandbox.stop(key)
    holder = sandbox.start(key, observe(region))
    yield
    holder.stop()


def typed(member: str, *lines: str) -> str:
    """What a terminal shows of `lab shell dev MEMBER` in which `lines` are typed."""
    pid, terminal = pty.fork()
    if not pid:
        os.chdir(REPOSITORY)
        os.environ.update(SHELL="/bin/false", PS1="mine ")
        os.execv(sys.executable, [sys.executable, "-m", "nat_pod", "lab", "shell", "dev", member])
    shown = b""
    try:
        for line in [*lines, "exit"]:
            while not shown.endswith(b"# "):  # the prompt
                shown += os.read(terminal, 4096)
            os.write(terminal, f"{line}\n".encode())
            shown += os.read(terminal, 4096)
        while True:
            try:
                shown += os.read(terminal, 4096)
            except OSError:  # EIO: nobody is at the other end any more
                break
    finally:
        os.close(terminal)
        os.kill(pid, signal.SIGHUP)
        os.waitpid(pid, 0)
    return re.sub(r"\x1b\[\?2004[hl]\r?", "", shown.decode()).replace("\r\n", "\n")


@pytest.mark.lab
@needs_lab
@pytest.mark.usefixtures("up")
class TestShell:
    def test_of_a_nat_vm_is_in_its_root_directory_where_the_agent_is(self):
        shown = typed("natVm1", "command -v nat-pod-agent", "cat /etc/hosts >/etc/x")
        assert "\n/usr/local/sbin/nat-pod-agent\n" in shown
        assert "No such file" not in shown
        assert not Path("/etc/x").exists(), "/etc is the VM's own"
        assert sandbox.call(sandbox.lab_key("dev", REPOSITORY), "read", vm="natVm1", path="/etc/x")

    def test_the_agent_s_status_is_that_of_this_vm(self):
        for vm in ("natVm1", "natVm2"):
            assert f'"vm": "{vm}"' in typed(vm, "nat-pod-agent status")

    @pytest.mark.parametrize("member", ["natVm1", "customer1/vm1", "vrouter"])
    def test_the_prompt_says_which_machine_it_is(self, member):
        shown = typed(member, "cd /proc")
        assert f"\n[lab dev] {member}:/" in shown
        assert f"\n[lab dev] {member}:/proc# exit" in shown
        assert "mine" not in shown

    def test_of_a_host_is_in_its_network(self):
        assert "10.0.0.130" in typed("customer1/vm2", "ip -4 address")

    def test_a_machine_that_is_not_there_is_answered_with_those_that_are(self, monkeypatch, capsys):
        monkeypatch.chdir(REPOSITORY)
        assert main(["lab", "shell", "dev", "natVm3"]) == 1
        assert capsys.readouterr().err.startswith(
            "natVm3 is not a machine of this lab; its machines are customer1/stranger, customer1/vm1, "
        )


# --- lab fail, lab recover -------------------------------------------------------------------------------------------


@pytest.mark.lab
@needs_lab
@pytest.mark.usefixtures("up")
class TestFail:
    def rules(self, vm: str) -> str:
        return str(sandbox.call(sandbox.lab_key("dev", REPOSITORY), "rules", vm=vm))

    @pytest.mark.parametrize(
        ("options", "how", "keeps_rules"), [([], "is off", False), (["--hang"], "hangs", True)], ids=["off", "hang"]
    )
    def test_without_a_standby_everything_stops_and_the_same_vm_comes_back(
        self, monkeypatch, capsys, options, how, keeps_rules
    ):
        monkeypatch.chdir(REPOSITORY)
        assert main(["lab", "fail", "dev", "natVm1", *options]) == 0
        assert capsys.readouterr().out.startswith("natVm1 is cut off and its ")
        assert ("NATPOD-SERVERS" in self.rules("natVm1")) == keeps_rules
        assert "NATPOD-" in self.rules("natVm2")

        assert main(["lab", "check", "dev"]) == 1
        said = capsys.readouterr().out
        assert said.startswith(f"natVm1 {how}, by `lab fail`.\n")
        assert " pass " not in said
        for refused in (["lab", "shell", "dev", "natVm1"], ["lab", "fail", "dev", "natVm1"]):
            assert main(refused) == 1
            assert capsys.readouterr().err == f"natVm1 {how}; `lab recover` brings it back\n"

        assert main(["lab", "recover", "dev", "natVm1"]) == 0
        assert main(["lab", "check", "dev"]) == 0
        assert "lab fail" not in capsys.readouterr().out
        assert main(["lab", "recover", "dev", "natVm1"]) == 1
        assert capsys.readouterr().err == "natVm1 has not failed\n"

    @pytest.mark.parametrize("action", ["fail", "recover"])
    def test_only_a_nat_vm_fails(self, monkeypatch, capsys, action):
        monkeypatch.chdir(REPOSITORY)
        assert main(["lab", action, "dev", "customer1/vm1"]) == 1
        assert capsys.readouterr().err == (
            "customer1/vm1 is not a NAT VM of this lab; its NAT VMs are natVm1, natVm2\n"
        )
