"""Boots a NAT VM of the lab from the user_data that was deployed; nothing else configures it.

    python -m nat_pod.lab.wire.boot boot DISK         power on
    python -m nat_pod.lab.wire.boot start DISK UNIT   what `systemctl start UNIT` does: waits, gives its exit status
    python -m nat_pod.lab.wire.boot timers DISK       runs enabled timers' services, and those that stay, until killed
    python -m nat_pod.lab.wire.boot rounds DISK       runs the agent once per line of standard input, see `rounds`
    python -m nat_pod.lab.wire.boot run DISK COMMAND  runs what somebody who is logged in would run

Run it inside the VM's network namespace, as root there (of the machine or of a user namespace).  DISK is an existing
directory, the VM's disk: what the VM writes to /etc, /var, /root and /usr/local survives reboots.  It also holds
`dhcp.json`, which is what OCI's DHCP offers the primary VNIC: {"mac", "address", "prefix", "gateway", "mtu"}.

What stands in for what
- the image: this machine's /usr, read-only where the kernel allows it, under a root of its own; no firewalld, no
  NetworkManager.
- cloud-init: `user_data` from the instance metadata service, base64, gzip, `#cloud-config` with `write_files` and
  `runcmd`, at the first boot only.  Anything else in it is refused by name, never skipped: a lab that ignores what OCI
  would do proves nothing.
- systemd: a `systemctl` with the verbs in `VERBS`, for unit files on the VM's disk.  Units with a setting that is not
  in `SETTINGS` are refused too.  Order at boot: enabled services before network-pre.target, DHCP, cloud-init (first
  boot) or the other enabled services, then the service of each enabled timer once.
- DHCP: `ip` commands.
- the serial console: the file /var/log/console, with what cloud-init and services with `journal+console` print.  It
  stays over reboots, as OCI's console history does.

What it does not show: SELinux, sandboxing of services, ordering cycles, timing of a real boot, udev and interface
names, or any kernel or iptables other than this machine's.  `make test-vm` shows the ordering and the timers.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

# A verb imports what only it needs: a VM starts this program dozens of times, and loading takes most of the time.

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
ENVIRONMENT = {"PATH": PATH, "HOME": "/root", "LANG": "C.UTF-8"}
MOUNTED = "NAT_POD_LAB_MOUNTED"
UNITS = Path("/etc/systemd/system")
AGENT = Path("/usr/local/sbin/nat-pod-agent")
CONSOLE = Path("/var/log/console")
FIRST_BOOT_DONE = Path("/var/lib/cloud/instance/boot-finished")
IMDS = "169.254.169.254"

# What programs of the image look up in /etc; everything else there is the VM's own.
ETC = (
    "ld.so.cache", "ld.so.conf", "ld.so.conf.d", "alternatives", "passwd", "group", "nsswitch.conf", "hosts",
    "protocols", "services", "ethertypes", "iproute2", "xtables.conf", "localtime",
)  # fmt: skip
OWN = ("etc", "var", "root", "tmp", "run", "usr/local")

STARTED = Path("/run/lab-started")  # services that stay, by name: when each was last told to begin

VERBS = (
    "enable", "disable", "mask", "unmask", "start", "restart", "stop", "reload", "is-enabled", "daemon-reload",
)  # fmt: skip

# Settings of units: those this module acts on, and those that make no difference here.
ACTED_ON = {
    ("Unit", "Before"), ("Unit", "ConditionPathExists"), ("Service", "Type"), ("Service", "ExecStart"),
    ("Service", "TimeoutStartSec"), ("Service", "StandardOutput"), ("Service", "Restart"), ("Service", "RestartSec"),
    ("Timer", "OnUnitActiveSec"), ("Install", "WantedBy"),
}  # fmt: skip
NO_DIFFERENCE = {
    ("Unit", "Description"), ("Unit", "DefaultDependencies"), ("Unit", "RequiresMountsFor"), ("Unit", "After"),
    ("Unit", "Wants"), ("Unit", "Conflicts"), ("Service", "RemainAfterExit"), ("Service", "PrivateTmp"),
    ("Service", "ProtectHome"), ("Service", "ProtectSystem"), ("Service", "NoNewPrivileges"),
    ("Service", "CapabilityBoundingSet"), ("Unit", "StartLimitIntervalSec"),
    ("Timer", "OnBootSec"), ("Timer", "AccuracySec"),
}  # fmt: skip
SETTINGS = ACTED_ON | NO_DIFFERENCE


class BootError(Exception):
    """The lab VM cannot do what it was told; the text says what and why."""


# --- the machine -----------------------------------------------------------------------------------------------------


def enter(disk: Path) -> None:
    """Make DISK/root the root directory of this process.  Mounts are this process's own and end with it."""
    root = disk / "root"
    for name in ("usr", "proc", "dev", "sys", "etc", "var", "root", "tmp", "run"):
        (root / name).mkdir(parents=True, exist_ok=True)
    (root / "tmp").chmod(0o1777)
    for name in ETC:
        _copy(Path("/etc") / name, root / "etc" / name)
    local = disk / "local"
    for name in ("sbin", "bin", "lib"):
        (local / name).mkdir(parents=True, exist_ok=True)
    for name in ("bin", "sbin", "lib", "lib32", "lib64", "libx32"):
        host, here = Path("/") / name, root / name
        if host.is_symlink():
            if not here.is_symlink():
                here.symlink_to(host.readlink())
        elif host.is_dir():
            _bind(host, here)
    _bind(Path("/usr"), root / "usr")
    # Where a user namespace may not do this, the file permissions of the real root protect /usr.
    subprocess.run(["mount", "-o", "remount,bind,ro", str(root / "usr")], stderr=subprocess.DEVNULL, check=False)
    _bind(local, root / "usr/local")
    for name in ("proc", "dev", "sys"):
        _bind(Path("/") / name, root / name)
    _install_python(root, disk / "empty")
    _install_systemctl(root)
    os.chroot(root)
    os.chdir("/")
    os.umask(0o022)


def _copy(host: Path, here: Path) -> None:
    """Copy a file or folder of the host's /etc once; what the VM changes in it later stays."""
    if here.exists() or here.is_symlink() or not (host.exists() or host.is_symlink()):
        return
    if host.is_dir() and not host.is_symlink():
        shutil.copytree(host, here, symlinks=True)
    else:
        shutil.copy2(host, here, follow_symlinks=host.name == "localtime")


def _bind(host: Path, here: Path) -> None:
    """Show a folder of the host in the VM, with everything mounted below it."""
    here.mkdir(parents=True, exist_ok=True)
    _run("mount", "--rbind", str(host), str(here))


def _install_python(root: Path, empty: Path) -> None:
    """Give the VM a `python3`: this interpreter, wherever it lives, with the standard library alone.

    What else this machine has for it, no NAT VM has; and each start of the agent would look at all of it.
    """
    prefix, python = Path(sys.base_prefix).resolve(), Path(getattr(sys, "_base_executable", sys.executable)).resolve()
    if prefix == Path("/usr/local"):  # /usr/local is the VM's own here
        for name in ("bin", "lib"):
            _bind(prefix / name, root / "usr/local" / name)
    elif not prefix.is_relative_to("/usr"):
        _bind(prefix, root / prefix.relative_to("/"))
    empty.mkdir(exist_ok=True)
    for name in (f"python{sys.version_info[0]}.{sys.version_info[1]}/site-packages", "python3/dist-packages"):
        if (packages := root / prefix.relative_to("/") / "lib" / name).is_dir():
            _bind(empty, packages)
    link = root / "usr/local/sbin/python3"
    link.unlink(missing_ok=True)
    link.symlink_to(python)


def _install_systemctl(root: Path) -> None:
    """Put this file into the VM as its `systemctl`."""
    program = root / "usr/local/sbin/systemctl"
    program.write_text('#!/bin/sh\nexec python3 -I -S /usr/local/sbin/lab-systemd.py systemctl "$@"\n')
    program.chmod(0o755)
    shutil.copyfile(__file__, root / "usr/local/sbin/lab-systemd.py")


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BootError(f"{shlex.join(command)}: {done.stderr.strip()}")
    return done.stdout


def _empty(folder: Path) -> None:
    """Remove everything in a folder."""
    for entry in folder.iterdir() if folder.is_dir() else ():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()


# --- systemd ---------------------------------------------------------------------------------------------------------


class Unit(NamedTuple):
    """A unit file."""

    name: str
    settings: dict[tuple[str, str], list[str]]

    def get(self, section: str, key: str) -> list[str]:
        """All values of a setting, in order."""
        return self.settings.get((section, key), [])

    def words(self, section: str, key: str) -> list[str]:
        """The values of a setting that holds a list of words."""
        return " ".join(self.get(section, key)).split()


def read_unit(name: str) -> Unit:
    """Read a unit from the VM's disk.  Raises BootError for settings that this stand-in does not know."""
    settings: dict[tuple[str, str], list[str]] = {}
    section = ""
    for line in (UNITS / name).read_text().splitlines():
        text = line.strip()
        if not text or text[0] in "#;":
            continue
        if text.startswith("[") and text.endswith("]"):
            section = text[1:-1]
            continue
        key, equals, value = text.partition("=")
        if not equals or (section, key.strip()) not in SETTINGS:
            raise BootError(f"{name}: [{section}] {text}: the lab's systemd does not know this setting")
        settings.setdefault((section, key.strip()), []).append(value.strip())
    return Unit(name, settings)


def exists(name: str) -> bool:
    """Whether there is such a unit file; a masked unit has none."""
    return (UNITS / name).is_file()


def is_masked(name: str) -> bool:
    """Whether a unit is masked: linked to /dev/null, as systemd does it."""
    return (UNITS / name).is_symlink() and (UNITS / name).readlink() == Path("/dev/null")


def enabled(suffix: str) -> list[Unit]:
    """The enabled units of a kind, by name."""
    names = sorted({link.name for link in UNITS.glob(f"*.wants/*{suffix}")})
    return [read_unit(name) for name in names if exists(name)]


def start(name: str) -> int:
    """Run a service and return its exit status; starting a timer is what `timers` is for."""
    if is_masked(name):
        print(f"Failed to start {name}: Unit {name} is masked.", file=sys.stderr)
        return 1
    if not exists(name):
        return _not_found("start", name)
    if name.endswith(".timer"):
        return 0
    unit = read_unit(name)
    for path in unit.get("Unit", "ConditionPathExists"):
        if Path(path.removeprefix("!")).exists() == path.startswith("!"):
            print(f"{name}: condition ConditionPathExists={path} does not hold, not started", file=sys.stderr)
            return 0
    if unit.get("Service", "Type") in ([], ["simple"]):
        return _begin(unit, again=False)
    if unit.get("Service", "Type") != ["oneshot"]:
        raise BootError(f"{name}: the lab runs services of Type=oneshot and Type=simple only")
    output = _on_console(unit)
    seconds = int(unit.get("Service", "TimeoutStartSec")[0]) if unit.get("Service", "TimeoutStartSec") else 90
    for command in _commands(unit):
        try:
            status = _run_service(command, seconds, on_console=output)
        except subprocess.TimeoutExpired:
            print(f"{name}: killed after {seconds} seconds", file=sys.stderr)
            return 1
        if status:
            print(f"{name}: failed with exit status {status}", file=sys.stderr)
            return status
    return 0


def _on_console(unit: Unit) -> bool:
    """Whether what a service prints goes to the serial console, too."""
    output = unit.get("Service", "StandardOutput")
    if output not in ([], ["journal+console"]):
        raise BootError(f"{unit.name}: StandardOutput={output[-1]}: the lab knows journal+console only")
    return bool(output)


def _commands(unit: Unit) -> list[list[str]]:
    """The command lines of a service."""
    for command in unit.get("Service", "ExecStart"):
        if command[:1] in "-@:+!|" or "$" in command or "%" in command:
            raise BootError(
                f"{unit.name}: ExecStart={command}: the lab supports neither prefixes nor variables in a command line"
            )
    return [shlex.split(command) for command in unit.get("Service", "ExecStart")]


def _begin(unit: Unit, *, again: bool) -> int:
    """Note that a service that stays shall run, or begin anew: `Staying` sees to it, as systemd's own process would."""
    if unit.get("Service", "Restart") != ["always"] or len(_commands(unit)) != 1:
        raise BootError(f"{unit.name}: the lab runs a service that stays with one ExecStart and Restart=always only")
    STARTED.mkdir(exist_ok=True)
    mark = STARTED / unit.name
    if again or not mark.exists():
        mark.write_text(str(time.monotonic_ns()))
    return 0


class Staying:
    """The services that stay: those that were started run, and one that ends begins anew after RestartSec."""

    def __init__(self) -> None:
        self._running: dict[str, tuple[str, float, subprocess.Popen[bytes] | None]] = {}

    def look(self) -> None:
        """Start, end and restart what is to be."""
        wanted = {mark.name: mark.read_text() for mark in STARTED.iterdir()} if STARTED.is_dir() else {}
        for name, (began, _, process) in list(self._running.items()):
            if wanted.get(name) != began:
                self._end(process)
                del self._running[name]
        for name, began in wanted.items():
            unit = read_unit(name)
            pause = float((unit.get("Service", "RestartSec") or ["0.1"])[0])
            _, ended, process = self._running.get(name, (began, 0.0, None))
            if process is not None and process.poll() is not None:
                print(f"{name}: ended with exit status {process.returncode}", file=sys.stderr)
                ended, process = time.monotonic(), None
            if process is None and time.monotonic() >= ended + pause:
                process = _stay(unit)
            self._running[name] = (began, ended, process)

    def end(self) -> None:
        """End them all."""
        for _, _, process in self._running.values():
            self._end(process)
        self._running.clear()

    @staticmethod
    def _end(process: subprocess.Popen[bytes] | None) -> None:
        if process is not None:
            process.kill()
            process.wait()


def _stay(unit: Unit) -> subprocess.Popen[bytes]:
    """Begin a service that stays; what it prints goes to the console if so set, and otherwise to our own output."""
    command = _commands(unit)[0]
    if not _on_console(unit):
        return subprocess.Popen(command, env=ENVIRONMENT, stdin=subprocess.DEVNULL)
    CONSOLE.parent.mkdir(parents=True, exist_ok=True)
    with CONSOLE.open("ab") as console:
        return subprocess.Popen(command, env=ENVIRONMENT, stdin=subprocess.DEVNULL, stdout=console)


def _run_service(command: list[str], seconds: float, *, on_console: bool) -> int:
    """Run a program of a service.  Its output goes to the journal (here our own output), and to the console if so set.

    Raises subprocess.TimeoutExpired.
    """
    if not on_console:
        return subprocess.run(command, env=ENVIRONMENT, timeout=seconds, check=False).returncode
    done = subprocess.run(
        command, env=ENVIRONMENT, timeout=seconds, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    sys.stderr.buffer.write(done.stdout)
    sys.stderr.flush()
    _show_on_console(done.stdout)
    return done.returncode


def _show_on_console(output: bytes) -> None:
    CONSOLE.parent.mkdir(parents=True, exist_ok=True)
    with CONSOLE.open("ab") as console:
        console.write(output.replace(b"\n", b"\r\n"))


def _not_found(verb: str, name: str) -> int:
    print(f"Failed to {verb} {name}: Unit {name} not found.", file=sys.stderr)
    return 5


def systemctl(arguments: list[str]) -> int:
    """What the VM's `systemctl` does."""
    now = "--now" in arguments
    verb, *names = [argument for argument in arguments if argument != "--now"] or [""]
    if verb not in VERBS or any(name.startswith("-") for name in names) or (now and verb not in ("enable", "disable")):
        raise BootError(f"systemctl {shlex.join(arguments)}: the lab's systemctl does {', '.join(VERBS)}")
    if verb == "daemon-reload":
        return 0  # units are read from the disk each time
    worst = 0
    for given in names:
        name = given if "." in given else f"{given}.service"
        worst = max(worst, _systemctl_one(verb, name, now))
    return worst


def _systemctl_one(verb: str, name: str, now: bool) -> int:
    file = UNITS / name
    links = list(UNITS.glob(f"*.wants/{name}"))
    if verb == "start":
        return start(name)
    if verb == "stop":
        (STARTED / name).unlink(missing_ok=True)
        return 0
    if verb == "is-enabled":
        state = "masked" if is_masked(name) else "enabled" if links else "disabled" if exists(name) else "not-found"
        print(state)
        return 0 if state == "enabled" else 1
    if verb == "mask":
        if exists(name):
            print(f"Failed to mask unit: File '{file}' already exists.", file=sys.stderr)
            return 1
        UNITS.mkdir(parents=True, exist_ok=True)
        if not is_masked(name):
            file.symlink_to("/dev/null")
        return 0
    if verb == "unmask":
        if is_masked(name):
            file.unlink()
        return 0
    if not exists(name):
        return _not_found(verb, name)
    if verb == "enable":
        targets = read_unit(name).words("Install", "WantedBy")
        if not targets:
            print(f"{name}: no WantedBy, nothing to enable", file=sys.stderr)
        for target in targets:
            folder = UNITS / f"{target}.wants"
            folder.mkdir(exist_ok=True)
            if not (folder / name).is_symlink():
                (folder / name).symlink_to(file)
        return start(name) if now else 0
    if verb == "disable":
        for link in links:
            link.unlink()
        return 0
    if verb == "restart":
        return _begin(read_unit(name), again=True)
    raise BootError(f"systemctl {verb} {name}: there is nothing in the lab that reloads")


def run_timers() -> int:
    """Run the services of enabled timers, each every `OnUnitActiveSec`, and those that stay, until killed."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # also ends a service that is just running
    last: dict[str, float] = {}
    staying = Staying()
    try:
        while True:
            staying.look()
            for timer in enabled(".timer"):
                due = last.setdefault(timer.name, time.monotonic()) + _period(timer)
                if time.monotonic() >= due:
                    last[timer.name] = time.monotonic()
                    start(_service_of(timer))
            time.sleep(0.2)
    finally:
        staying.end()


def _period(timer: Unit) -> int:
    values = timer.get("Timer", "OnUnitActiveSec")
    if len(values) != 1 or not values[0].isdecimal():
        raise BootError(f"{timer.name}: needs one OnUnitActiveSec in whole seconds, has {values}")
    return int(values[0])


def _service_of(timer: Unit) -> str:
    return timer.name.removesuffix(".timer") + ".service"


# --- the network and cloud-init --------------------------------------------------------------------------------------


def dhcp(offer: dict[str, object]) -> None:
    """Configure the primary VNIC as a DHCP client would."""
    mac = str(offer["mac"]).lower()
    names = [link["ifname"] for link in json.loads(_run("ip", "-json", "link", "show")) if link.get("address") == mac]
    if len(names) != 1:
        raise BootError(f"dhcp.json: interfaces with MAC {mac}: {names or 'none'}, expected one")
    name = names[0]
    _run("ip", "link", "set", "dev", "lo", "up")
    _run("ip", "link", "set", "dev", name, "mtu", str(offer["mtu"]), "up")
    _run("ip", "address", "replace", f"{offer['address']}/{offer['prefix']}", "dev", name)
    _run("ip", "route", "replace", "default", "via", str(offer["gateway"]), "dev", name)


def fetch_user_data() -> str:
    """The cloud-config in the instance metadata service, unpacked.  Waits some seconds for the service to answer."""
    import base64
    import gzip
    import http.client

    deadline = time.monotonic() + 10
    while True:
        connection = http.client.HTTPConnection(IMDS, timeout=5)
        try:
            path = "/opc/v2/instance/metadata/user_data"
            connection.request("GET", path, headers={"Authorization": "Bearer Oracle"})
            answer = connection.getresponse()
            body = answer.read()
            if answer.status != 200:
                raise BootError(f"user_data: http://{IMDS}{path} answers {answer.status}")
            break
        except OSError as error:
            if time.monotonic() > deadline:
                raise BootError(f"user_data: http://{IMDS}{path}: {error}") from None
            time.sleep(0.1)
        finally:
            connection.close()
    data = base64.b64decode(body, validate=True)
    return (gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data).decode()


def cloud_init(text: str, parse: Callable[[str], object]) -> int:
    """Do what a cloud-config says and return runcmd's exit status.

    Raises BootError for anything in it that this stand-in would not do.
    """
    if text.partition("\n")[0].strip() != "#cloud-config":
        raise BootError(f"user_data starts with {text[:40]!r}; the lab knows #cloud-config only")
    config = parse(text)
    if not isinstance(config, dict) or set(config) - {"write_files", "runcmd"}:
        raise BootError(f"user_data: the lab knows write_files and runcmd only, not {_other(config)}")
    for entry in config.get("write_files", ()):
        _write_file(entry)
    # As cloud-init's `shellify`: a list is one command with its words, a text is shell.
    commands = [shlex.join(item) if isinstance(item, list) else str(item) for item in config.get("runcmd", ())]
    script = Path("/var/lib/cloud/instance/scripts/runcmd")
    script.parent.mkdir(parents=True, exist_ok=True)
    script.write_text("\n".join(["#!/bin/sh", *commands, ""]))
    script.chmod(0o700)
    # Standard output only: on standard error there is also the journal of the services that it starts.
    done = subprocess.run(["/bin/sh", str(script)], env=ENVIRONMENT, stdout=subprocess.PIPE, check=False)
    sys.stdout.buffer.write(done.stdout)
    sys.stdout.flush()
    _show_on_console(done.stdout)
    return done.returncode


def _other(config: object) -> str:
    return ", ".join(sorted(set(config) - {"write_files", "runcmd"})) if isinstance(config, dict) else repr(config)


def _write_file(entry: dict[str, str]) -> None:
    unknown = set(entry) - {"path", "content", "permissions"}
    if unknown:
        raise BootError(f"user_data: write_files {entry.get('path')}: the lab does not know {', '.join(unknown)}")
    path = Path(entry["path"])
    if not any(path.is_relative_to(Path("/") / own) for own in OWN) or ".." in path.parts:
        raise BootError(f"user_data: write_files {path}: only borrowed from the host in the lab, not written to")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(entry["content"])
    path.chmod(int(entry.get("permissions", "0644"), 8))


# --- the verbs -------------------------------------------------------------------------------------------------------


def boot(disk: Path) -> int:
    """Power on.  The exit status is cloud-init's; a failed service is only reported, as systemd does."""
    import yaml  # the VM's own copy of this file runs without it, and after `enter` it could not be found

    offer = json.loads((disk / "dhcp.json").read_text())
    for name in ("run", "tmp"):
        _empty(disk / "root" / name)
    enter(disk)
    early = [unit for unit in enabled(".service") if "network-pre.target" in unit.words("Unit", "Before")]
    for unit in early:
        start(unit.name)
    dhcp(offer)
    status = 0
    if FIRST_BOOT_DONE.exists():
        for unit in enabled(".service"):
            if unit not in early:
                start(unit.name)
    else:
        status = cloud_init(fetch_user_data(), yaml.safe_load)
        FIRST_BOOT_DONE.write_text("")
        if status:
            print(f"cloud-init: runcmd failed with exit status {status}", file=sys.stderr)
    for timer in enabled(".timer"):
        start(_service_of(timer))
    return status


def rounds() -> int:
    """Run the VM's agent once per line of standard input, and answer each with a line that says what came of it.

    Request: {"verb": "poll", "prelude": Python that runs first, with `agent` in scope}.  With a prelude a test makes a
    step fail, or the agent die at it.  Answer: {"status": exit status, negative for a signal, "stderr", "seconds"}.
    Python and the agent are loaded once, and each run is a fork, so the time measured is that of the round itself.
    """
    import traceback

    os.environ.clear()
    os.environ.update(ENVIRONMENT)
    agent = ModuleType("nat_pod_agent")
    agent.__file__ = str(AGENT)
    SourceFileLoader("nat_pod_agent", str(AGENT)).exec_module(agent)
    for line in sys.stdin:
        request = json.loads(line)
        began = time.monotonic()
        reading, writing = os.pipe()
        child = os.fork()
        if not child:
            os.dup2(writing, 1)
            os.dup2(writing, 2)
            try:
                exec(request.get("prelude", ""), {"agent": agent})
                os._exit(agent.main([request["verb"]]))
            except BaseException:
                traceback.print_exc()
                os._exit(70)
        os.close(writing)
        with os.fdopen(reading, errors="replace") as output:
            said = output.read()  # until the last program that the round started is gone, too
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        print(json.dumps({"status": status, "stderr": said, "seconds": time.monotonic() - began}), flush=True)
    return 0


def with_own_mounts(verb: str, *arguments: str) -> list[str]:
    """The command that runs a verb with mounts of its own."""
    own_mounts = ["unshare", "--mount", "--propagation", "private", "env", f"{MOUNTED}=1"]
    bare = [] if verb == "boot" else ["-S"]  # only cloud-init needs a package, for YAML
    return [*own_mounts, sys.executable, "-P", *bare, __file__, verb, *arguments]


def main(arguments: list[str]) -> int:
    """Run one verb."""
    try:
        match arguments:
            case ["systemctl", *rest]:
                return systemctl(rest)
            case [("boot" | "start" | "timers" | "rounds" | "run") as verb, disk, *rest] if _complete(verb, rest):
                if MOUNTED not in os.environ:
                    command = with_own_mounts(*arguments)
                    os.execvp(command[0], command)
                folder = Path(disk).resolve(strict=True)
                if verb == "boot":
                    return boot(folder)
                enter(folder)
                if verb == "run":
                    os.execvpe(rest[0], rest, ENVIRONMENT)
                return start(rest[0]) if verb == "start" else rounds() if verb == "rounds" else run_timers()
    except (BootError, OSError) as error:
        print(f"boot: {error}", file=sys.stderr)
        return 1
    usage = "boot DISK | start DISK UNIT | timers DISK | rounds DISK | run DISK COMMAND"
    print(f"usage: python -m nat_pod.lab.wire.boot {usage}", file=sys.stderr)
    return 2


def _complete(verb: str, rest: list[str]) -> bool:
    return bool(rest) if verb == "run" else len(rest) == (verb == "start")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
