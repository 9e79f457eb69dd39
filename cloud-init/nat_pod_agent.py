#!/usr/bin/env python3
"""The NAT VM's agent: fetches the compiled rules, checks them, loads them, reports.  It decides nothing itself.

    nat-pod-agent guard     the guard that no document can take away, and nothing else (before firewalld goes)
    nat-pod-agent restore   last good rules, then forwarding, without any network (before the network, at boot)
    nat-pod-agent poll      one round: rules, sysctl, forwarding, VNICs, status (the timer's job)
    nat-pod-agent status    what the last round found, with counters, open flows and VNICs as they are now
    nat-pod-agent health    answers the balancer whether this VM is fit to be its next hop, until it is ended

Facts this file rests on
- Python 3.6 (Oracle Linux 8) and the standard library; no package can be installed, the subnet has no way out.
- IMDS v2 wants `Authorization: Bearer Oracle`, lists VNICs primary first, and MACs in upper case.  It does not list
  secondary private IPs, and translating them does not need them on an interface.
- OCI serves no DHCP on secondary VNICs, and interface names differ by image: interfaces are found by MAC.
- `iptables-restore` commits one table at a time and `--test` does not ask the kernel.  So a document is rehearsed
  in an empty network namespace first, and filter comes before nat: guard first, translations second.
- Only a flow's first packet meets the nat table.  A flow that began under other rules, or while rules were missing,
  stays as it began, so after each load every flow that would now be translated differently is deleted.
- Other programs write netfilter too (starting or stopping firewalld wipes everything): each round compares.
- What goes to standard error stands in the journal and on the serial console, which OCI keeps (console history): the
  one way to learn about a VM whose network does not work.  So it says what changed, and all of it now and then.
"""

import base64
import bz2
import calendar
import fcntl
import glob
import hashlib
import http.client
import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import time
from bisect import bisect_left, bisect_right

IMDS = "169.254.169.254"
SETTINGS = "/etc/sysctl.d/90-nat-pod.conf"
FORWARDING = "/etc/nat-pod/forwarding.conf"
PLATFORM = "/etc/nat-pod/platform.rules"  # the image's filter table, saved before firewalld went
STATE = "/var/lib/nat-pod"  # survives a reboot: the last good rules and VNIC list
RUN = "/run/nat-pod"  # dies with the kernel's tables: what is loaded, and the status
GOOD_RULES, GOOD_VNICS = STATE + "/rules", STATE + "/vnics"
LOADED, STATUS = RUN + "/loaded.json", RUN + "/status.json"
DOOR = RUN + "/health"  # the address and port where the balancer asks, if the document wants that

# Where a node_exporter looks for other programs' metrics: Debian's and Ubuntu's package, and EPEL's.  Nobody else makes
# these folders, so a VM without one is spared the work.
TEXTFILES = "/var/lib/prometheus/node-exporter", "/var/lib/node_exporter/textfile_collector"

OWN = "NATPOD-"
CUSTOMER = OWN + "C-"  # the chain of a customer; what its bound refuses meets an ACCEPT there (compiler.py)
# Stands with or without a document, before firewalld goes and after each boot before the network; no document can take
# it away.  A document's chains are entered before NATPOD-CLOSED, so without one nothing is forwarded and the VM is
# open to nobody.  NATPOD-OWN is what the VM itself lives by, all of it from 169.254.0.0/16: DNS, DHCP, metadata, time,
# and the iSCSI boot volume.  These are not tracked: each needs an entry in the connection table, and when a flood has
# filled it, the document that ends the flood could not come in.
GUARD = """*filter
:NATPOD-OWN - [0:0]
:NATPOD-CLOSED - [0:0]
-A INPUT -j NATPOD-OWN
-A INPUT -j NATPOD-CLOSED
-A FORWARD -j NATPOD-CLOSED
-A NATPOD-OWN -i lo -j ACCEPT
-A NATPOD-OWN -s 169.254.0.0/16 -p tcp -m multiport --sports 53,80,3260 -m tcp \
! --tcp-flags FIN,SYN,RST,ACK SYN -j ACCEPT
-A NATPOD-OWN -s 169.254.0.0/16 -p udp -m multiport --sports 53,67,123 -j ACCEPT
-A NATPOD-OWN -m conntrack --ctstate ESTABLISHED -j ACCEPT
-A NATPOD-CLOSED -j DROP
COMMIT
*raw
:NATPOD-UNTRACKED - [0:0]
-A PREROUTING -s 169.254.0.0/16 -j NATPOD-UNTRACKED
-A OUTPUT -d 169.254.0.0/16 -j NATPOD-UNTRACKED
-A NATPOD-UNTRACKED -j CT --notrack
COMMIT
"""
CLOSED = "-j NATPOD-CLOSED"
PLATFORM_CHAINS = ("InstanceServices", "BareMetalInstanceServices")
BUILTINS = {"filter": ("FORWARD", "INPUT", "OUTPUT"), "nat": ("PREROUTING", "POSTROUTING")}
TABLES = ("filter", "nat")  # of a document
# In the order in which they are loaded: what is no longer tracked must be let in before.
LOADED_TABLES = ("filter", "nat", "raw")
HOOKS = ("PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING")
BASE85 = str.maketrans(",./", "<>&")  # what stands in a document for signs that JSON writes at length
FORMAT = "4"  # of a rule document, as nat_pod/plan/document.py writes it
DEPTH = 15  # chains in one another: the kernel takes 16, and the built-in one is the first
DOCUMENT_LIMIT = 4 << 20  # bytes unpacked, and once more unfolded; a full POD has 95 kB, and 270 kB
PATIENCE = 5  # seconds for one answer of IMDS, all of it; three such answers may take three attempts each
UNDER_WAY = 0.2  # seconds in which a packet that is between two VMs arrives
FLOWS = 1 << 20  # the most that conntrack is given room for
CLOCK = "%Y-%m-%dT%H:%M:%SZ"  # a time in a report
STALE = 90  # seconds without a round after which a VM is not fit: six were due, and one without IMDS takes 18 seconds
REPORT_SECONDS = 900  # between reports of a VM on which nothing changes; a console history of 1 MB then goes back hours
MTU = 9000  # what OCI gives the primary VNIC by DHCP; the kernel's 1500 would split or drop what peers send


class AgentError(Exception):
    """Something the operator must know, in one sentence."""


def say(level, text):
    """Write one line for journald: 3 error, 4 warning, 5 notice."""
    print("<%d>nat-pod: %s" % (level, text), file=sys.stderr, flush=True)


def run(command, text=None):
    """Run a program and return what it printed.  Raises AgentError with its own words when it fails."""
    try:
        done = subprocess.run(
            command,
            input=text and text.encode("utf-8", "surrogateescape"),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            timeout=60,
            env=dict(os.environ, LC_ALL="C"),
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise AgentError("%s: %s" % (" ".join(command), error)) from None
    if done.returncode:
        words = done.stderr.decode("utf-8", "replace").split()
        raise AgentError("%s: status %d: %s" % (" ".join(command), done.returncode, " ".join(words)))
    # Somebody's rule may have any bytes in its comment.
    return done.stdout.decode("utf-8", "surrogateescape")


def save(path, text, mode=0o600):
    """Replace a file at once: a crash leaves the old one or the new one, never half of one."""
    # The folder may be another user's, who must not lead us elsewhere.
    with open(path + ".new", "w", opener=lambda name, flags: os.open(name, flags | os.O_NOFOLLOW, mode)) as out:
        os.fchmod(out.fileno(), mode)
        out.write(text)
        out.flush()
        os.fsync(out.fileno())
    os.rename(path + ".new", path)
    folder = os.open(os.path.dirname(path), os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def load(path):
    """Text of a file, None where there is none."""
    try:
        with open(path, encoding="utf-8", errors="replace") as source:
            return source.read()
    except FileNotFoundError:
        return None


def keep(path, text, problems):
    """Save what the next boot or round goes by.  This round works without it: a full disk is reported, no more."""
    try:
        if load(path) != text:
            save(path, text)
    except OSError as error:
        problems.append("%s cannot be saved, next round tries again: %s" % (path, error))


def load_json(path):
    """A JSON object from our own run folder, {} where there is none or it cannot be read."""
    try:
        found = json.loads(load(path) or "{}")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


# --- IMDS ------------------------------------------------------------------------------------------------------------


def too_slow(*_):
    """End an answer of IMDS that trickles: the socket's own timeout starts anew with each byte."""
    raise OSError("no whole answer in %d seconds" % PATIENCE)


def imds(path):
    """Text that IMDS v2 has at `path`, None for 404.  Raises AgentError when IMDS does not answer sensibly."""
    reason = ""
    signal.signal(signal.SIGALRM, too_slow)
    for pause in (1, 2, 0):
        connection = http.client.HTTPConnection(IMDS, timeout=3)
        try:
            signal.alarm(PATIENCE)
            connection.request("GET", "/opc/v2/" + path, headers={"Authorization": "Bearer Oracle"})
            answer = connection.getresponse()
            body = answer.read(DOCUMENT_LIMIT)
            if answer.status == 200:
                return body.decode()
            if answer.status == 404:
                return None
            reason = "status %d" % answer.status
        except (OSError, http.client.HTTPException, UnicodeDecodeError) as error:
            reason = str(error) or type(error).__name__
        finally:
            signal.alarm(0)
            connection.close()
        time.sleep(pause)
    raise AgentError("IMDS http://%s/opc/v2/%s: %s" % (IMDS, path, reason))


# --- the rule document -----------------------------------------------------------------------------------------------


def number(address):
    """An IPv4 address as a number.  Raises AgentError for anything but four plain decimal parts."""
    parts = address.split(".")
    if len(parts) != 4 or not all(re.match(r"(0|[1-9][0-9]{0,2})\Z", part) and int(part) < 256 for part in parts):
        raise AgentError("%r is not an IPv4 address" % address)
    return struct.unpack("!I", bytes(int(part) for part in parts))[0]


def network(text):
    """`10.0.0.0/16` as (address, mask).  A plain address is a /32.  Raises AgentError when host bits are set."""
    address, slash, prefix = text.partition("/")
    if slash and not (re.match(r"(0|[1-9][0-9]?)\Z", prefix) and int(prefix) <= 32):
        raise AgentError("%r has no prefix length from 0 to 32" % text)
    mask = 0xFFFFFFFF & (0xFFFFFFFF << 32 - (int(prefix) if slash else 32))
    if number(address) & ~mask:
        raise AgentError("%r has host bits set" % text)
    return number(address), mask


# A mapping to 169.254.169.254 hands this VM's metadata, with the keys of its instance principal, to a remote peer.
FORBIDDEN = [network(text) for text in ("0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/4", "240.0.0.0/4")]


def target(text):
    """A network that packets may be sent to or appear to come from."""
    address, mask = network(text)
    for bad, bad_mask in FORBIDDEN:
        if not (address ^ bad) & mask & bad_mask:
            raise AgentError("%s is not an address to translate to" % text)
    return address, mask


def word(pattern):
    """A check that the whole text matches, returning the text."""
    compiled = re.compile("(?:%s)\\Z" % pattern)

    def check(text):
        if not compiled.match(text):
            raise AgentError("%r does not match %s" % (text, pattern))
        return text

    return check


CHAIN = word(r"NATPOD-[A-Za-z0-9._/-]{1,21}")  # iptables takes 28 characters
STATES = word(r"(NEW|ESTABLISHED|RELATED|INVALID|DNAT|SNAT)(,(NEW|ESTABLISHED|RELATED|INVALID|DNAT|SNAT))*")
PORT = word(r"[0-9]{1,5}(:[0-9]{1,5})?")
COMMON = {
    "-A": CHAIN,
    "-g": CHAIN,
    "-s": network,
    "-d": network,
    "--ctstate": STATES,
    "--comment": word(r'"[ !#-\[\]-~]{1,255}"|[A-Za-z0-9._:/][A-Za-z0-9._:/-]{0,254}'),
}
# How many flows are too many; whether it makes sense is for the rehearsal.
for option in (
    "mode",
    "probability",
    "connlimit-above",
    "connlimit-mask",
    "set --name",
    "rcheck --seconds",
    "name",
    "mask",
):
    # No dash in front: `--probability -g` would be read as two options where iptables reads one.
    COMMON["--" + option] = word(r"[A-Za-z0-9._][A-Za-z0-9._-]{0,27}( --[a-z-]+)?")
OPENING = "FIN,SYN,RST,ACK SYN"  # a segment that opens a connection: of these four flags SYN alone
# What a rule may say, by table.  nat rules do not look at interfaces, so that `translate` can repeat their decision for
# a flow of which conntrack no longer knows it; and at a bound, which no flow that exists was above.
OPTIONS = {
    "filter": dict(
        COMMON,
        **{
            "-j": word("ACCEPT|DROP"),
            "--ctorigsrc": network,
            "--ctreplsrc": network,
            "-i": word(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,14}"),
            "-p": word("tcp|udp|icmp"),
            "--sport": PORT,
            "--dport": PORT,
            "--icmp-type": word("[0-9]{1,3}"),
            "--tcp-flags": word(OPENING),
        },
    ),
    "nat": dict(
        COMMON,
        **{
            "-j": word("ACCEPT|DNAT|SNAT|NETMAP"),
            "-p": word("tcp|udp|icmp"),
            "--dport": PORT,
            "--to-destination": target,
            "--to-source": target,
            "--to": target,
        },
    ),
}
MODULES = ("conntrack", "comment", "tcp", "udp", "icmp", "statistic", "connlimit", "recent")
# An option, its negation, or a whole value.  An option without one belongs to the option behind it, or to the value
# before it.
FLAGS = r"[^ \"]+ --(?:rsource|rdest|connlimit-[sd]addr)"
WORDS = re.compile(r'"[^"]*"|! -\S+|--(?:set|rcheck) --\w+|%s|%s|[^ "]+' % (OPENING, FLAGS))
TRANSLATES_TO = {"DNAT": "--to-destination", "SNAT": "--to-source", "NETMAP": "--to"}


def pairs(words):
    """Words two by two: a rule's options, each with its value."""
    return [words[at : at + 2] for at in range(0, len(words) - 1, 2)]


def parse_rule(table, line):
    """One `-A` line as {option: checked value}.  Raises AgentError for whatever is not in OPTIONS."""
    words = WORDS.findall(line)
    if " ".join(words) != line or len(words) % 2:
        raise AgentError("not a list of options and values")
    rule = {}
    for option, value in pairs(words):
        if option == "-m":
            if value not in MODULES:
                raise AgentError("match %r is not one of %s" % (value, ", ".join(MODULES)))
        elif option in rule:
            raise AgentError("%s is there twice" % option)
        elif option not in OPTIONS[table]:
            raise AgentError("%r does not belong in table %s" % (option, table))
        else:
            rule[option] = OPTIONS[table][option](value)
    if ("-j" in rule) == ("-g" in rule):
        raise AgentError("needs exactly one of -j and -g")
    given = sorted(set(rule) & set(TRANSLATES_TO.values()))
    needed = TRANSLATES_TO.get(rule.get("-j"))
    if given != ([needed] if needed else []):
        raise AgentError("-j %s with %s" % (rule.get("-j"), " ".join(given) or "no address"))
    if needed in ("--to-destination", "--to-source") and rule[needed][1] != 0xFFFFFFFF:
        raise AgentError("%s takes one address" % needed)
    return rule


def unfold(text):
    """The rules as iptables-restore takes them, from the short form that a document carries (`fold` in document.py)."""
    lines, last = [], 0
    for line in text.split("\n"):
        found = re.match(r"-d (?:\+([0-9]?)|(\S{1,15})/32) (.*)", line)
        if found:  # `+`: the address behind that of the last such rule
            last = number(found.group(2)) if found.group(2) else last + int(found.group(1) or 1)
            line = "-d %s/32 %s" % (dotted(last & 0xFFFFFFFF), found.group(3))
        lines.append(line)
    text = "\n".join(lines)
    said = r'-d (\S{1,15})/32 (-m comment --comment "[^"]{1,99}") -j DNAT --to-destination (\S{1,15})'
    known = {number(real): (address, comment) for address, comment, real in re.findall(said, text)}
    order = sorted(known)
    # Bounded: a document must not fill the memory by saying a long thing many times.
    out, rules, chain, room = [], [], "", DOCUMENT_LIMIT
    for line in text.split("\n"):
        if line.startswith("-") and not line.startswith("-A "):
            made, found = [], re.match(r"-s (\S{1,18}) % (.*)", line)
            if found:
                first, mask = network(found.group(1))
                for real in order[bisect_left(order, first) : bisect_right(order, first | 0xFFFFFFFF & ~mask)]:
                    address, comment = known[real]
                    made.append("-s %s/32 %s %s" % (dotted(real), comment, found.group(2).replace("%", address, 1)))
            for rule in made or [re.sub(r"^(-[sd] (\S{1,18})) >(\S+)$", r"\1 -g \3\2", line)]:
                rules.append("-A %s %s" % (chain, rule.replace("--name %", "--name " + chain)))
                room -= len(rules[-1]) + 1
                if room < 0:
                    raise AgentError("its rules have more than %d bytes" % DOCUMENT_LIMIT)
            continue
        if line.startswith(":") and " " not in line:
            chain = CHAIN(line[1:])
            line += " - [0:0]"
        elif line == "COMMIT":
            out += rules
            rules = []
        out.append(line)
    return "\n".join(out + rules)


class Document:
    """A checked document: `lines` and `rules` are {table: {chain: [...]}}, as text and as parsed."""

    def __init__(self, value, vm=None):
        """Read a document, for `vm` unless that is None.  Raises AgentError at the least doubt."""
        self.value, self.known = value, {}
        head, _, packed = value.partition(":")
        if head != FORMAT:
            raise AgentError("format %r: this agent reads format %s" % (head[:20], FORMAT))
        try:
            unpacker = bz2.BZ2Decompressor()
            text = unpacker.decompress(base64.b85decode(packed.translate(BASE85)), DOCUMENT_LIMIT)
            if not unpacker.eof or unpacker.unused_data:
                raise AgentError("it is cut short, too long, or followed by something")
            body = json.loads(text.decode())
        except (ValueError, OSError, RecursionError) as error:
            raise AgentError("it cannot be unpacked: %s" % error) from None
        if not isinstance(body, dict) or set(body) | {"health"} != {"vm", "generation", "health", "hooks", "rules"}:
            raise AgentError("its keys are not vm, generation, hooks, rules and perhaps health")
        self.generation = body.pop("generation")
        plain = json.dumps(body, sort_keys=True, separators=(",", ":"))
        if self.generation != hashlib.sha256(plain.encode()).hexdigest()[:16]:
            raise AgentError("its contents do not match its generation %r" % (self.generation,))
        if vm is not None and body["vm"] != vm:
            raise AgentError("it is for %r and this is %r" % (body["vm"], vm))
        if not isinstance(body["rules"], str) or not isinstance(body["hooks"], list):
            raise AgentError("rules must be a text and hooks a list")
        self.health = body.get("health")
        if not (self.health is None or (type(self.health) is int and 1024 <= self.health < 65536)):
            raise AgentError("health %r is not a port from 1024 to 65535" % (self.health,))
        self.lines = {table: {} for table in TABLES}
        self.rules = {table: {} for table in TABLES}
        self._read_rules(unfold(body["rules"]))
        self.hooks = {table: {} for table in TABLES}
        for hook in body["hooks"]:
            self._read_hook(hook)
        for table in TABLES:
            self._refuse_depth(self.rules[table])
        # A rule with ports that leads into another chain is a policy's; the rules of INPUT with ports accept or drop.
        rules = [rule for chains in self.rules.values() for rules in chains.values() for rule in rules]
        self.asks_ports = any("-g" in rule and {"--sport", "--dport"} & set(rule) for rule in rules)

    def _read_rules(self, text):
        """Read both blocks, each `*table`, chains, rules, COMMIT."""
        waiting, table = list(TABLES), None
        for count, line in enumerate(text.split("\n")[:-1], 1):
            try:
                if table is None:
                    if not waiting or line != "*" + waiting[0]:
                        raise AgentError(
                            "expected *%s here" % waiting[0] if waiting else "no further table is expected"
                        )
                    table = waiting.pop(0)
                elif line == "COMMIT":
                    table = None
                elif line.startswith(":"):
                    chain = CHAIN(line[1:].partition(" ")[0])
                    if line != ":%s - [0:0]" % chain or chain in self.lines[table]:
                        raise AgentError("a chain is declared once, as `:%s - [0:0]`" % chain)
                    if any(chain in chains for chains in GUARD_RULES.values()):
                        raise AgentError("chain %s is the agent's own" % chain)
                    self.lines[table][chain], self.rules[table][chain] = [], []
                elif line.startswith("-A "):
                    rule = parse_rule(table, line)
                    for name in (rule["-A"], rule.get("-g")):
                        if name and name not in self.lines[table]:
                            raise AgentError("chain %s is not declared above" % name)
                    self.lines[table][rule["-A"]].append(line)
                    self.rules[table][rule["-A"]].append(rule)
                else:
                    raise AgentError("neither a chain, nor a rule, nor COMMIT")
            except AgentError as problem:
                raise AgentError("rules, line %d, %r: %s" % (count, line[:200], problem)) from None
        if waiting or table or not text.endswith("\n"):
            raise AgentError("the rules end before the last COMMIT")

    def _read_hook(self, hook):
        """Read one [table, builtin chain, own chain]."""
        strings = isinstance(hook, list) and len(hook) == 3 and all(isinstance(part, str) for part in hook)
        table, builtin, chain = hook if strings else (None, None, None)
        if builtin not in BUILTINS.get(table, ()) or chain not in self.lines[table] or builtin in self.hooks[table]:
            raise AgentError("hook %r: needs a table, a built-in chain hooked once, and a declared chain" % (hook,))
        # The VM's own requests leave by OUTPUT: a rule on anything but ICMP could cut it off from IMDS, and so from the
        # document that would mend it.
        if builtin == "OUTPUT" and any("-g" in rule or rule.get("-p") != "icmp" for rule in self.rules[table][chain]):
            raise AgentError("hook %r: a chain entered from OUTPUT may match ICMP only, and jump nowhere" % (hook,))
        self.hooks[table][builtin] = chain

    @staticmethod
    def _refuse_depth(chains):
        """Refuse chains that lead back to themselves, and deeper ones than the kernel takes."""
        leads = {chain: {rule["-g"] for rule in rules if "-g" in rule} for chain, rules in chains.items()}
        for _ in range(DEPTH):
            left = set(leads)
            leads = {chain: to for chain, to in leads.items() if to & left}
        if leads:
            raise AgentError(
                "chains form a loop, or are nested more than %d deep: %s" % (DEPTH, ", ".join(sorted(leads)[:9]))
            )

    def count(self):
        """Number of rules, hooks apart."""
        return sum(len(lines) for chains in self.lines.values() for lines in chains.values())

    def _decide(self, table, builtin, packet, states):
        """The rule that decides a new flow's packet, None when ours leave it alone.

        packet: source, destination, protocol and both ports.  Of TCP it is a segment that opens nothing, which belongs
        to any flow that is still let pass.
        """
        source, destination, protocol, ports = packet
        chain = self.hooks[table].get(builtin)
        while chain:
            last, chain = chain, None
            for rule in self.rules[table][last]:
                if (
                    within(source, rule.get("-s"))
                    and within(destination, rule.get("-d"))
                    and not {"--mask", "--tcp-flags", "-i", "--icmp-type", "--ctorigsrc", "--ctreplsrc"} & set(rule)
                    and rule.get("-p", protocol) == protocol
                    and among(ports[0], rule.get("--sport"))
                    and among(ports[1], rule.get("--dport"))
                    and ("--ctstate" not in rule or states & set(rule["--ctstate"].split(",")))
                ):
                    if "-j" in rule:
                        return rule
                    chain = rule["-g"]
                    break
        return None

    def translate(self, source, destination, own, kind=("tcp", (0, 0))):
        """(source, destination) of a new flow after these rules, None for one that they drop.

        own: the VM's addresses.  kind: the flow's protocol, and its ports.
        """
        states = {"NEW"}
        rule = self._decide("nat", "PREROUTING", (source, destination, *kind), states) or {}
        before = destination
        if rule.get("-j") == "DNAT":
            destination = rule["--to-destination"][0]
        elif rule.get("-j") == "NETMAP":
            destination = mapped(destination, rule["--to"])
        if destination != before:
            states.add("DNAT")
        if destination in own:
            return source, destination  # it ends here and never meets POSTROUTING
        if (self._decide("filter", "FORWARD", (source, destination, *kind), states) or {}).get("-j") == "DROP":
            return None
        rule = self._decide("nat", "POSTROUTING", (source, destination, *kind), states) or {}
        if rule.get("-j") == "SNAT":
            source = rule["--to-source"][0]
        elif rule.get("-j") == "NETMAP":
            source = mapped(source, rule["--to"])
        return source, destination

    def gives(self, original, reply, own, kind=("tcp", (0, 0))):
        """Whether a new flow between the `original` addresses would pass, and get these `reply` addresses."""
        if not self.asks_ports:
            kind = kind[0], (0, 0)
        flow = (*original, *kind)
        if flow not in self.known:
            self.known[flow] = self.translate(original[0], original[1], own, kind)
        return original[0] in own or self.known[flow] == (reply[1], reply[0])


def within(address, net):
    """Whether an address lies in a network; everything lies in None."""
    return net is None or not (address ^ net[0]) & net[1]


def among(port, said):
    """Whether a port is among those that a rule says, `22` or `5000:5010`; every port is among None."""
    ends = [int(end) for end in (said or "0:65535").split(":")]
    return ends[0] <= port <= ends[-1]


def mapped(address, net):
    """NETMAP: the network's prefix, the address's own host bits."""
    return net[0] | address & ~net[1]


# --- netfilter -------------------------------------------------------------------------------------------------------


# A line of iptables-save.  What stands in quotes may hold anything, a newline included.
LINES = re.compile(r'(?:[^"\n]|"(?:[^"\\]|\\.)*")+', re.DOTALL)
RULE = re.compile(r"(\[[0-9:]+\])? ?-A (\S+) ?(.*)", re.DOTALL)


def read_saved(text):
    """{table: {chain: [(rule without "-A CHAIN ", counters)]}} of what iptables-save prints.

    A policy that is not ACCEPT stands behind the chain's rules, as `-P DROP`.
    """
    tables, chains, last = {}, {}, []
    for line in LINES.findall(text):
        rule = RULE.match(line)
        if line.startswith("*"):
            chains = tables.setdefault(line[1:], {})
        elif line.startswith(":"):
            name, policy = line[1:].split()[:2]
            chains[name] = []
            if policy not in ("ACCEPT", "-"):
                last.append((chains[name], "-P " + policy))
        elif rule:
            chains.setdefault(rule.group(2), []).append((rule.group(3).strip(), rule.group(1) or "[0:0]"))
    for rules, policy in last:
        rules.append((policy, "[0:0]"))
    return tables


GUARD_RULES = read_saved(GUARD)


def live_rules():
    """What the kernel has, as `read_saved` gives it."""
    return read_saved(run(["iptables-save", "--counters"]))


def enters_own(rule):
    """Whether a live rule leads into one of our chains."""
    found = re.search(r"-[jg] (\S+)\Z", rule)
    return bool(found) and found.group(1).startswith(OWN)


def hooked(document, table, builtin, now):
    """The rules by which a built-in chain enters ours, in order; without a document, those that are there stay."""
    fixed = [rule for rule, _ in GUARD_RULES.get(table, {}).get(builtin, ())]
    if document is None:
        entries = [rule for rule, _ in now.get(builtin, ()) if enters_own(rule) and rule not in fixed]
    else:
        entries = ["-j " + chain for at, chain in document.hooks.get(table, {}).items() if at == builtin]
    return [rule for rule in fixed if rule != CLOSED] + entries + [rule for rule in fixed if rule == CLOSED]


def fingerprint(live):
    """All that is ours in the kernel: {"TABLE CHAIN": what}, compared with the plan by nat_pod/plan/fingerprint.py.

    For a chain of ours, a hash of its rules in the form of `canonical`.  For a chain that enters ours, the rules that
    do so, each behind its place: `1 -j NATPOD-FORWARD, 2 -j NATPOD-CLOSED`.
    """
    ours = {}
    for table, chains in live.items():
        for chain, rules in chains.items():
            name = "%s %s" % (table, chain)
            if chain.startswith(OWN):
                text = "\n".join(canonical(rule) for rule, _ in rules)
                ours[name] = hashlib.sha256(text.encode()).hexdigest()[:12]
            else:
                entries = ["%d %s" % (place, rule) for place, (rule, _) in enumerate(rules, 1) if enters_own(rule)]
                if entries:
                    ours[name] = ", ".join(entries)
    return ours


def canonical(rule):
    """A rule in a form that does not depend on who wrote it: its options with their values, sorted, without quotes."""
    words = [word.strip('"') for word in WORDS.findall(rule)]
    return json.dumps(sorted(pair for pair in pairs(words + [""] * (len(words) % 2)) if pair[0] != "-m"))


def differences(old, new):
    """The names under which two fingerprints differ."""
    return sorted(name for name in set(old) | set(new) if old.get(name) != new.get(name))


def foreign(live):
    """Rules of others that a packet may meet, as `TABLE CHAIN: rule`.  Nothing gets past NATPOD-CLOSED."""
    found = []
    for table, chains in live.items():
        for chain in HOOKS:
            for rule, _ in chains.get(chain, ()):
                if rule == CLOSED:
                    break
                if not enters_own(rule) and not (chain == "OUTPUT" and rule.endswith(PLATFORM_CHAINS)):
                    found.append("%s %s: %s" % (table, chain, ascii(rule)[1:-1][:200]))
    return found


def wanted_chains(document, table):
    """Our chains in a table, {chain: rules}: the guard's, and the document's unless it is None."""
    chains = {chain: [rule for rule, _ in rules] for chain, rules in GUARD_RULES.get(table, {}).items()}
    if document is not None:
        for chain, lines in document.lines.get(table, {}).items():
            chains[chain] = [line.split(" ", 2)[2] for line in lines]
    return {chain: rules for chain, rules in chains.items() if chain.startswith(OWN)}


def transaction(document, live):
    """Input for iptables-restore that makes our part of `live` what the document says, and touches nothing else.

    Without a document it puts the guard right, and leaves our other chains as they are.
    """
    out = []
    for table in LOADED_TABLES:
        wanted, now = wanted_chains(document, table), live.get(table, {})
        # A rule that stays keeps its counters: they are the operator's flow counts by mapping.
        counters = {(chain, canonical(rule)): count for chain, rules in now.items() for rule, count in rules}
        out.append("*" + table)
        out.extend(":%s - [0:0]" % chain for chain in wanted)
        for chain, rules in wanted.items():
            out.extend("%s -A %s %s" % (counters.get((chain, canonical(rule)), "[0:0]"), chain, rule) for rule in rules)
        for builtin in sorted(chain for chain in set(now) | set(HOOKS) if not chain.startswith(OWN)):
            rules, entries = [rule for rule, _ in now.get(builtin, ())], hooked(document, table, builtin, now)
            places = [place for place, rule in enumerate(rules, 1) if enters_own(rule)]
            # First, or an image's own `-A FORWARD -j REJECT` decides before us.
            if rules[: len(entries)] == entries and len(places) == len(entries):
                continue
            # By text: if the chain has just changed, a number would hit another rule.  But a rule with a newline cannot
            # be written as text.
            text = all(rules[place - 1].isprintable() for place in places)
            out.extend("-D %s %s" % (builtin, rules[place - 1] if text else place) for place in reversed(places))
            out.extend("-I %s %d %s" % (builtin, place, rule) for place, rule in enumerate(entries, 1))
        if document is not None:
            stale = [chain for chain in now if chain.startswith(OWN) and chain not in wanted]
            out.extend("-F " + chain for chain in stale)
            out.extend("-X " + chain for chain in stale)
        out.append("COMMIT")
    return "\n".join(out) + "\n"


def check_loaded(document, live):
    """Raise AgentError unless the kernel has every rule of the document, its hooks first, and nothing older of ours."""
    for table in LOADED_TABLES:
        now = live.get(table, {})
        ours = {chain: len(rules) for chain, rules in now.items() if chain.startswith(OWN)}
        wanted = {chain: len(rules) for chain, rules in wanted_chains(document, table).items()}
        if ours != wanted:
            raise AgentError("table %s reads back as %s, wanted %s" % (table, ours, wanted))
        for builtin in HOOKS:
            entries = hooked(document, table, builtin, now)
            if [rule for rule, _ in now.get(builtin, ())][: len(entries)] != entries:
                raise AgentError("table %s: %s does not begin with %s" % (table, builtin, ", ".join(entries)))


RESTORE = ["iptables-restore", "-w", "10", "--noflush", "--counters"]


def rehearse(document):
    """Let the kernel itself take the whole document, in a network namespace that is gone afterwards.

    Without it a document that the kernel refuses in nat would already have replaced filter.
    """
    run(["unshare", "--net", *RESTORE], transaction(document, {}))


def apply(document):
    """Load a document into the kernel and return the fingerprint of what then is there."""
    text = transaction(document, live_rules())
    run([*RESTORE, "--test"], text)
    run(RESTORE, text)
    live = live_rules()
    check_loaded(document, live)
    return fingerprint(live)


def stand_guard():
    """Put the guard where it belongs, if it is not there; what a document has loaded stays."""
    live = live_rules()
    text = transaction(None, live)
    right = all(
        list(map(canonical, rules)) == [canonical(rule) for rule, _ in live.get(table, {}).get(chain, ())]
        for table in LOADED_TABLES
        for chain, rules in wanted_chains(None, table).items()
    )
    if not right or "\n-I " in text:
        run(RESTORE, text)


def keep_platform_chains():
    """Put the platform's own chains back where they have gone, exactly as the image had them.

    Oracle Linux images load them through firewalld, so they go with it; without them every local user reaches the
    iSCSI boot volume.  If the chain exists, whoever maintains it, it is left alone.
    """
    saved, now = (load(PLATFORM) or "").splitlines(), live_rules().get("filter", {})
    for chain in PLATFORM_CHAINS:
        rules = [line for line in saved if line.startswith("-A %s " % chain)]
        entries = [line for line in saved if line.startswith("-A OUTPUT ") and line.endswith(" -j " + chain)]
        if rules and chain not in now:
            run(RESTORE, "\n".join(["*filter", ":%s - [0:0]" % chain, *rules, *entries, "COMMIT", ""]))
            say(5, "chain %s is back" % chain)


# --- flows (ctnetlink) -----------------------------------------------------------------------------------------------

CT_GET, CT_DELETE = 0x101, 0x102
NFT_CHAINS, NFT_HOOK = 0xA04, 4
IPTABLES = ("filter", "nat", "mangle", "raw", "security")
REQUEST, ACK, DUMP = 0x1, 0x4, 0x300
ERROR, DONE = 2, 3
TUPLE_ORIG, TUPLE_REPLY, TUPLE_IP, IP_SRC, IP_DST, CT_ID, CT_ZONE = 1, 2, 1, 1, 2, 12, 18
COUNTERS = 9, 10  # of both directions; there with nf_conntrack_acct
TUPLE_PROTO, PROTOCOL, SOURCE_PORT = 2, 1, 2


def attributes(data):
    """Netlink attributes as {type: payload}."""
    found, at = {}, 0
    while at + 4 <= len(data):
        length, kind = struct.unpack_from("=HH", data, at)
        if length < 4:
            break
        found[kind & 0x3FFF] = data[at + 4 : at + length]
        at += length + 3 & ~3
    return found


def attribute(kind, payload):
    """One netlink attribute, padded."""
    return struct.pack("=HH", 4 + len(payload), kind) + payload + b"\0" * (-len(payload) % 4)


def ask(channel, kind, flags, payload=b"", family=socket.AF_INET):
    """Send one request to netfilter and yield the payload of each answer.  Raises OSError with its errno."""
    body = struct.pack("=BBH", family, 0, 0) + payload
    channel.send(struct.pack("=IHHII", 16 + len(body), kind, REQUEST | flags, 1, 0) + body)
    while True:
        data, at = channel.recv(1 << 17), 0
        while at + 16 <= len(data):
            length, answer = struct.unpack_from("=IH", data, at)
            if answer == ERROR:
                code = struct.unpack_from("=i", data, at + 16)[0]
                if code:
                    raise OSError(-code, os.strerror(-code))
                return
            if answer == DONE:
                return
            yield data[at + 20 : at + length]
            at += length + 3 & ~3


def addresses(flow, direction):
    """(source, destination) of a flow's original or reply direction."""
    pair = attributes(attributes(flow[direction])[TUPLE_IP])
    return struct.unpack("!I", pair[IP_SRC])[0], struct.unpack("!I", pair[IP_DST])[0]


def protocol_and_ports(flow):
    """A flow's protocol, if rules have a name for it, and both ports."""
    proto = attributes(attributes(flow[TUPLE_ORIG])[TUPLE_PROTO])
    ports = [int.from_bytes(proto.get(port, b""), "big") for port in (SOURCE_PORT, SOURCE_PORT + 1)]
    return {1: "icmp", 6: "tcp", 17: "udp"}.get(proto[PROTOCOL][0]), tuple(ports)


def forget(channel, ends, others):
    """Delete the flow with these addresses and ports, unless there is none."""
    payload = attribute(TUPLE_ORIG | 0x8000, ends) + b"".join(attribute(kind, others[kind]) for kind in sorted(others))
    try:
        for _ in ask(channel, CT_DELETE, ACK, payload):
            pass
    except FileNotFoundError:
        pass  # it ended by itself


def conntrack():
    """A channel to conntrack."""
    channel = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12)  # NETLINK_NETFILTER
    channel.settimeout(30)
    channel.bind((0, 0))
    return channel


def flows():
    """All flows, as (attributes, original addresses, reply addresses)."""
    with conntrack() as channel:
        for data in ask(channel, CT_GET, DUMP):
            flow = attributes(data)
            yield flow, addresses(flow, TUPLE_ORIG), addresses(flow, TUPLE_REPLY)


def delete_stale_flows(document, own):
    """Delete the flows whose translation is not what the document would give them now; returns how many.

    This covers removed, changed and added mappings, and flows that began while rules were missing.  Flows that
    would be translated just the same live on.  `own` has the VM's own addresses: what it sends itself never met
    PREROUTING.
    """
    stale = [
        flow for flow, original, reply in flows() if not document.gives(original, reply, own, protocol_and_ports(flow))
    ]
    with conntrack() as channel:
        # With its id: a new flow with the same addresses and ports is not the one that was judged.
        for flow in stale:
            forget(channel, flow[TUPLE_ORIG], {kind: flow[kind] for kind in (CT_ID, CT_ZONE) if kind in flow})
        # An answer that was on its way begins the flow anew from the far end, if that end may open one, and packets of
        # the deleted flow go on as its answers.  By now nothing else can have these addresses and ports.
        if stale:
            time.sleep(UNDER_WAY)
        for flow in stale:
            forget(channel, flow[TUPLE_REPLY], {kind: flow[kind] for kind in (CT_ZONE,) if kind in flow})
    return len(stale)


# --- interfaces and settings -----------------------------------------------------------------------------------------

# There if NetworkManager runs; where it is only installed, nmcli fails.
NETWORK_MANAGER = "/run/NetworkManager"


def interfaces():
    """All interfaces, as `ip -json` describes them."""
    return [link for link in json.loads(run(["ip", "-json", "address", "show"])) if link.get("ifname")]


def ipv4(link):
    """The IPv4 addresses of an interface, as address/prefix."""
    return [
        "%s/%s" % (info["local"], info["prefixlen"])
        for info in link.get("addr_info", ())
        if info.get("family") == "inet"
    ]


def own_addresses(links):
    """The VM's own addresses, as numbers."""
    return {number(address.partition("/")[0]) for link in links for address in ipv4(link)}


def read_vnics(text):
    """IMDS's list as [(mac, address/prefix)], the primary VNIC first.  Raises AgentError when it is not such a list."""
    try:
        vnics = []
        for vnic in json.loads(text):
            address, prefix = vnic["privateIp"], vnic["subnetCidrBlock"].partition("/")[2]
            number(address)
            network("0.0.0.0/" + prefix)
            vnics.append((vnic["macAddr"].lower(), "%s/%s" % (address, prefix)))
        if not vnics:
            raise AgentError("it is empty")
        return vnics
    except (ValueError, KeyError, TypeError, AttributeError, AgentError) as error:
        raise AgentError("VNIC list of IMDS: %s: %s" % (type(error).__name__, error)) from None


def bring_up(vnics, problems, mended):
    """Configure the secondary VNICs; the primary is DHCP's.  Returns what the status shows."""
    shown = []
    try:
        by_mac = {link["address"].lower(): link for link in interfaces() if link.get("link_type") == "ether"}
    except AgentError as problem:
        problems.append(str(problem))
        return shown
    for place, (mac, address) in enumerate(vnics):
        link = by_mac.get(mac)
        name = link and link["ifname"]
        shown.append({"mac": mac, "address": address, "interface": name})
        if link is None:
            problems.append("VNIC %s (%s): no interface has this MAC yet" % (address, mac))
        elif place:
            commands = []
            if link.get("mtu") != MTU:
                commands.append(["ip", "link", "set", "dev", name, "mtu", str(MTU)])
            if "UP" not in link.get("flags", ()):
                commands.append(["ip", "link", "set", "dev", name, "up"])
            if address not in ipv4(link):
                # NetworkManager tries DHCP on what it manages, fails after 45 s, and removes our address.
                if os.path.isdir(NETWORK_MANAGER):
                    commands.append(["nmcli", "device", "set", name, "managed", "no"])
                commands.append(["ip", "address", "replace", address, "dev", name])
                say(5, "VNIC %s comes up on %s" % (address, name))
            for command in commands:
                try:
                    run(command)
                    mended.append((name, " ".join(command)))
                except AgentError as problem:
                    problems.append(str(problem))
    return shown


def settings(path):
    """(file in /proc/sys, value) for each setting of a sysctl file, `*` standing for every interface there is."""
    for line in (load(path) or "").splitlines():
        key, _, value = (part.strip() for part in line.partition("="))
        if value and not key.startswith("#"):
            names = "/proc/sys/" + key.replace(".", "/")
            for name in sorted(glob.glob(names)) or [names]:
                yield name, value


def dotted_name(name):
    """A file of /proc/sys as sysctl calls it."""
    return name[len("/proc/sys/") :].replace("/", ".")


def wrong_settings(path):
    """Settings of a sysctl file that the kernel does not have so, in words."""
    wrong = set()
    for name, value in settings(path):
        now = load(name)
        if now is not None and now.split() != value.split():
            wrong.add("%s is %s, not %s" % (dotted_name(name), now.strip(), value))
    return sorted(wrong)


def apply_settings(path, notes, mended):
    """Bring the kernel in line with a sysctl file."""
    for name, value in settings(path):
        if not os.path.exists(name):
            notes.append("%s: this kernel has no such setting" % dotted_name(name))
        elif set_kernel(name, value, notes):
            # Of an interface, or of all; forwarding may be off because we have stopped it.
            whose = name.split("/")[6] if "/ipv4/conf/" in name else dotted_name(name)
            mended.append((whose, "%s set to %s" % (dotted_name(name), value)))


def set_kernel(name, value, notes):
    """Write one file of /proc/sys, unless it says so already; returns whether that was needed and done."""
    try:
        if (load(name) or "").split() != value.split():
            with open(name, "w") as out:
                out.write(value + "\n")
            return True
    except OSError as error:
        notes.append("%s = %s: %s" % (dotted_name(name), value, error))
    return False


def size_conntrack(notes):
    """Give conntrack the room that the VM's memory allows.

    A full table drops every new flow; a flow takes up to 512 bytes (256 measured, and the extension for NAT), and one
    for each 8 kB of memory is a sixteenth of it.  As many buckets as flows: long buckets cost half as much again per
    new flow, and overflow in the end.  The kernel makes buckets in steps of 512; any other number would read back
    differently, and the whole table would be hashed anew in each round.
    """
    memory = re.search(r"MemTotal: +([0-9]+) kB", load("/proc/meminfo") or "")
    most = min(int(memory.group(1)) // 8 & ~511, FLOWS) if memory else 1 << 17
    for name in ("max", "buckets"):
        set_kernel("/proc/sys/net/netfilter/nf_conntrack_" + name, str(most), notes)


# --- the rounds ------------------------------------------------------------------------------------------------------


def settle_rules(document, problems, mended):
    """Load a document unless exactly it is loaded already.

    Until it is rehearsed nothing is touched.  Then LOADED goes first and comes back last.  Whatever happens in
    between (a crash, a kernel that refuses), the next round finds no LOADED and does everything again, the deletion
    of stale flows included.
    """
    loaded = load_json(LOADED)
    changed = []
    if loaded.get("generation") == document.generation:
        changed = differences(loaded.get("fingerprint", {}), fingerprint(live_rules()))
        if not changed:
            keep(GOOD_RULES, document.value, problems)
            return
    rehearse(document)
    own = own_addresses(interfaces())
    if os.path.exists(LOADED):
        os.remove(LOADED)
    found = apply(document)
    try:
        deleted = delete_stale_flows(document, own)
    except OSError as error:
        problems.append("flows of other rules could not be deleted, next round tries again: %s" % error)
        deleted = None
    keep(GOOD_RULES, document.value, problems)
    if deleted is None:
        return
    keep(LOADED, json.dumps({"generation": document.generation, "fingerprint": found}), problems)
    why = "again, they had been changed" if changed else "now"
    if changed:
        mended.append((None, "rules: " + ", ".join(changed)))
    say(
        5,
        "%d rules of generation %s loaded %s; %d flows deleted, because these rules translate them differently"
        % (document.count(), document.generation, why, deleted),
    )


def good_rules(problems):
    """The last good document, None where there is none."""
    value = load(GOOD_RULES)
    try:
        return Document(value) if value is not None else None
    except AgentError as problem:
        problems.append("saved rules: %s" % problem)
        return None


def good_vnics(problems):
    """The last good VNIC list, empty where there is none."""
    listed = load(GOOD_VNICS)
    try:
        return read_vnics(listed) if listed is not None else []
    except AgentError as problem:
        problems.append("saved: %s" % problem)
        return []


def settle(candidates, problems, notes, mended):
    """Load the first document that works, then settings, then forwarding: never forward unguarded."""
    try:
        keep_platform_chains()
    except AgentError as problem:
        problems.append(str(problem))
    guarded = False
    for document in candidates:
        try:
            settle_rules(document, problems, mended)
            guarded = True
            break
        except AgentError as problem:
            problems.append("generation %s: %s" % (document.generation, problem))
    apply_settings(SETTINGS, notes, mended)
    size_conntrack(notes)
    if guarded:
        apply_settings(FORWARDING, notes, mended)
    else:
        stop_forwarding(problems)


def stop_forwarding(problems):
    """Nothing of the candidates works: forward only if rules of ours are there from before, whatever the image set."""
    try:
        stand_guard()
        first = live_rules().get("filter", {}).get("FORWARD", [])[:1]
        if not first or first[0][0] == CLOSED:
            set_kernel("/proc/sys/net/ipv4/ip_forward", "0", problems)
            problems.append("no rules are loaded: nothing is forwarded")
    except AgentError as problem:
        # Once a round has been, what runs goes on running.
        if not os.path.exists(STATUS):
            set_kernel("/proc/sys/net/ipv4/ip_forward", "0", problems)
        problems.append(str(problem))


def repairs(old, mended):
    """Repairs since boot: how often, when last, and what was repaired of all that an earlier round had set.

    mended: (interface or setting, what was done).  An interface that comes late, and forwarding that was off with
    reason, are no repairs.
    """
    known = {None, "all", "default"} | {vnic["interface"] for vnic in old.get("vnics", ())}
    done = [what for whose, what in mended if whose in known or (whose.startswith("net.") and old.get("forwarding"))]
    before = old.get("repairs") or {"count": 0}
    if not old.get("vm") or not done:
        return before
    for what in done:
        say(4, "had been changed, and is put right: %s" % what)
    return {"count": before["count"] + len(done), "last": utc(), "what": "; ".join(done)[:1000]}


def finish(vm, wanted, behind, vnics, problems, notes, mended):
    """Write the status, tell journal and console what changed, and return the exit status.

    behind: whether the kernel would take what is wanted, and yet it is not loaded.
    """
    old, now = load_json(STATUS), utc()
    for problem in problems:
        if problem not in (old.get("error") or ""):
            say(3, problem)
    state = {
        "vm": vm,
        "wanted": wanted,
        "applied": load_json(LOADED).get("generation"),
        "behind": behind,
        "error": "; ".join(problems) or None,
        "vnics": vnics,
        "repairs": repairs(old, mended),
        "forwarding": load("/proc/sys/net/ipv4/ip_forward") == "1\n",
    }
    changed = [key for key in state if state[key] != old.get(key)]
    since = dict(old.get("since", {}), **dict.fromkeys(changed, now))
    state.update(time=now, since=since, uptime=time.monotonic(), passed=passed(old, now))
    publish(state, notes)
    # What repeats in every round is said once, and then in the reports.
    state["notes"] = list(dict.fromkeys(notes))
    for note in state["notes"]:
        if note not in old.get("notes", ()):
            say(4, note)
    due = (
        changed or state["notes"] != old.get("notes") or not 0 <= time.time() - old.get("reported", 0) < REPORT_SECONDS
    )
    state["reported"] = time.time() if due else old["reported"]
    text = json.dumps(state, sort_keys=True)
    save(STATUS, text)
    if due:
        say(5, "%s report %s" % (text, base64.b64encode(bz2.compress(json.dumps(report()).encode())).decode()))
    return 1 if problems else 0


def utc():
    """The time, as text."""
    return time.strftime(CLOCK, time.gmtime())


def passed(old, now):
    """Packets forwarded since boot, and when a round last found more.  Only the active VM of a role forwards any."""
    count = ip_counter("ForwDatagrams")
    before = old.get("passed") or {"count": count, "last": None}
    return before if count == before["count"] else {"count": count, "last": now}


def publish(state, notes):
    """Write the metrics for a node_exporter, where there is one's folder; it reads files that end in `.prom`."""
    for folder in TEXTFILES:
        if os.path.isdir(folder):
            try:
                save(folder + "/nat-pod.prom", metrics(state), 0o644)
            except (AgentError, OSError) as error:
                notes.append("metrics: %s" % error)


def metrics(state):
    """What a round found, and what the kernel has counted, in Prometheus's text format.

    nat_pod/status/metrics.py says the same of a report, word for word.  Which VM it is the scraper knows.
    """
    use, mappings, dropped, refused = conntrack_use(), {}, {}, {}
    packets = counted(live_rules())
    for member, uses in packets["members"].items():
        for action in uses:
            mappings[labels(member=member, target=action)] = uses[action]
    for chain, uses in packets["chains"].items():
        if "DROP" in uses:
            dropped[labels(chain=chain)] = uses["DROP"]
        if chain.startswith(CUSTOMER) and "ACCEPT" in uses:
            refused[labels(customer=chain[len(CUSTOMER) :])] = uses["ACCEPT"]
    applied, wanted, lost = state["applied"], state["wanted"], ("insert_failed", "drop", "early_drop")
    text = ""
    for name, said, samples in (
        ("last_round_timestamp_seconds", "Last round of the agent", moment(state["time"])),
        ("last_round_success", "Whether the last round had no complaint", {"": not state["error"]}),
        (
            "generation_info",
            "Rules wanted, and loaded",
            {labels(applied=applied or "", wanted=wanted or ""): 1},
        ),
        (
            "generation_applied",
            "Whether the wanted rules are loaded",
            {"": applied is not None and wanted in (None, applied)},
        ),
        (
            "generation_applied_timestamp_seconds",
            "When the loaded rules last changed",
            moment(state["since"].get("applied")),
        ),
        ("forwarding", "Whether it forwards packets", {"": state["forwarding"]}),
        ("fit", "Whether its balancer is told that it is fit", {"": not unfit(state)} if load(DOOR) else {}),
        ("forwarded_packets_total", "Packets forwarded", {"": state["passed"]["count"]}),
        (
            "last_forwarded_timestamp_seconds",
            "When a round last saw more packets forwarded",
            moment(state["passed"]["last"]),
        ),
        ("conntrack_entries", "Connections", {"": use["count"]}),
        ("conntrack_entries_limit", "Connections that the table has room for", {"": use["max"]}),
        (
            "conntrack_lost_total",
            "Connections and packets lost",
            {labels(reason=key): use[key] for key in lost},
        ),
        (
            "mapping_packets_total",
            "Packets that met rules of a member; in table nat only the first packets of flows",
            mappings,
        ),
        ("dropped_packets_total", "Packets dropped", dropped),
        ("customer_refused_packets_total", "Packets of new flows above the bound of a customer", refused),
        ("reassembly_failures_total", "Packets with fragments missing", {"": ip_counter("ReasmFails")}),
        ("repairs_total", "Changes by others that the agent has undone", {"": state["repairs"]["count"]}),
    ):
        kind = "counter" if name.endswith("_total") else "gauge"
        name = "nat_pod_" + name
        if samples:
            text += "# HELP %s %s.\n# TYPE %s %s\n" % (name, said, name, kind)
        for key in sorted(samples):
            text += "%s%s %d\n" % (name, key, samples[key])
    return text


def labels(**named):
    """Labels of a metric; whatever somebody's rule has in its comment, in ASCII."""
    quoted = [(key, ascii(named[key])[1:-1].replace("\\", r"\\").replace('"', r"\"")) for key in sorted(named)]
    return "{%s}" % ",".join('%s="%s"' % pair for pair in quoted)


def moment(text):
    """A time as a metric's only sample, in seconds since 1970; none where there is none."""
    return {"": calendar.timegm(time.strptime(text, CLOCK))} if text else {}


def report():
    """The last round's status with what is read only when somebody wants to know it.

    agent    which program this is, by a hash: one per release of the bootstrap at most, so no version is written here
    counted  packets by target (`goto`, `DNAT`, ...) of the rules for each of the `members`, and of the other rules in
             each of the `chains`; in nat they are first packets of flows
    open     flows, packets and bytes of what passes now, by sender (`from`, its address before the translation) and by
             receiver (`to`, its address behind it)
    fullest  the translated source, address, protocol and port with most flows; a source has 64,512 ports for them
    stale    flows that the rules would translate differently now
    rules    our rules as they are in the kernel, see `fingerprint`
    foreign  others' rules that a packet may meet, the first 50
    unread   what could not be looked at
    settings sysctl values that are not ours
    fragments  packets since boot of which not all fragments came, or for which there was no room
    health   what its balancer is answered (`unfit`), and `by` whom it was asked within two minutes; None without one
    """
    links = interfaces()
    up = {address: link["mtu"] for link in links if "LOWER_UP" in link["flags"] for address in ipv4(link)}
    found = load_json(STATUS)
    for vnic in found.get("vnics", ()):
        vnic.update(up=vnic["address"] in up, mtu=up.get(vnic["address"]))
    found.update(passing(good_rules([]), own_addresses(links)))
    unread = []
    try:
        live = live_rules()
    except AgentError as problem:
        live = {}
        unread.append(str(problem))
    others = foreign(live) + other_rules(unread)
    found.update(now=utc(), conntrack=conntrack_use(), counted=counted(live), rules=fingerprint(live), unread=unread)
    found.update(foreign=others[:50] + ["and %d more" % (len(others) - 50)] * (len(others) > 50))
    found.update(agent=hashlib.sha256((load(__file__) or "").encode()).hexdigest()[:12])
    found.update(fragments=ip_counter("ReasmFails"), settings=wrong_settings(SETTINGS) + wrong_settings(FORWARDING))
    return found


def other_rules(unread):
    """Rules and chains that iptables-save does not show: those of iptables-legacy, and of nft itself."""
    found = []
    if (load("/proc/net/ip_tables_names") or "").split():
        try:
            found += ["legacy " + rule for rule in foreign(read_saved(run(["iptables-legacy-save"])))]
        except AgentError as problem:
            unread.append(str(problem))
    try:
        with conntrack() as channel:
            for name, family in (("inet", 1), ("ip", 2), ("netdev", 5)):
                for data in ask(channel, NFT_CHAINS, DUMP, family=family):
                    chain = attributes(data)
                    table, own = (chain[kind].rstrip(b"\0").decode("ascii", "replace") for kind in (1, 3))
                    # Those of iptables itself are called like its built-in ones.
                    if NFT_HOOK in chain and not (name == "ip" and own in HOOKS and table in IPTABLES):
                        found.append("nft %s %s: chain %s" % (name, table, ascii(own)[1:-1]))
    except OSError as error:
        unread.append("chains of nft: %s" % error)
    return found


def ip_counter(name):
    """One of the kernel's counters of IPv4 packets since boot."""
    rows = [line.split() for line in (load("/proc/net/snmp") or "").splitlines() if line.startswith("Ip: ")]
    return sum(int(row[rows[0].index(name)]) for row in rows[1:])


def passing(document, own):
    """The part of a report that comes from the flows through the VM."""
    ends, ports, stale, door, asking = {"from": {}, "to": {}}, {}, 0, load(DOOR), set()
    for flow, original, reply in flows():
        proto = attributes(attributes(flow[TUPLE_REPLY])[TUPLE_PROTO])
        port = int.from_bytes(proto.get(SOURCE_PORT, b""), "big")
        if door == "%s %d" % (dotted(reply[0]), port):
            asking.add(dotted(original[0]))  # the kernel remembers a connection that has ended for two minutes
        if original[0] in own or reply[0] in own:
            continue
        stale += bool(document) and not document.gives(original, reply, own, protocol_and_ports(flow))
        full = (reply[1], reply[0], proto[PROTOCOL][0], port)
        ports[full] = ports.get(full, 0) + 1
        carried = [attributes(flow.get(way, b"")) for way in COUNTERS]
        for side, address in (("from", original[0]), ("to", reply[0])):
            use = ends[side].setdefault(dotted(address), {"flows": 0, "packets": 0, "bytes": 0})
            use["flows"] += 1
            for kind, name in ((1, "packets"), (2, "bytes")):
                use[name] += sum(int.from_bytes(way.get(kind, b""), "big") for way in carried)
    fullest = None
    if ports:
        source, server, protocol, port = full = max(ports, key=ports.get)
        fullest = {"source": dotted(source), "destination": dotted(server), "protocol": protocol, "port": port}
        fullest["flows"] = ports[full]
    health = door and {"unfit": unfit(), "by": sorted(asking)}
    return {"open": ends, "fullest": fullest, "stale": stale, "health": health}


def conntrack_use():
    """How full the connection table is, and what it has lost since boot."""
    use = {}
    for name in ("count", "max"):
        use[name] = int(load("/proc/sys/net/netfilter/nf_conntrack_" + name) or 0)
    rows = [line.split() for line in (load("/proc/net/stat/nf_conntrack") or "").splitlines()]
    for name in ("insert_failed", "drop", "early_drop"):
        use[name] = sum(int(row[rows[0].index(name)], 16) for row in rows[1:])
    return use


def counted(live):
    """Packets that our rules have counted, by member or chain and by target."""
    found = {"members": {}, "chains": {}}
    for chains in live.values():
        for chain, rules in chains.items():
            for rule, counters in rules if chain.startswith(OWN) else ():
                said = dict(pairs(WORDS.findall(rule)))
                # A comment with a slash is the name of the member that the rule is for (nat_pod/rules/iptables.py).
                comment = said.get("--comment", "").strip('"')
                where, name = ("members", comment) if "/" in comment else ("chains", chain)
                uses = found[where].setdefault(name, {})
                action = said.get("-j", "goto")
                uses[action] = uses.get(action, 0) + int(counters[1:].partition(":")[0])
    return found


def dotted(address):
    """A number as an IPv4 address."""
    return socket.inet_ntoa(struct.pack("!I", address))


def poll():
    """One round: the last good state again where it has been changed, then what IMDS wants."""
    problems, before, notes, mended, wanted, vnics = [], [], [], [], None, None
    good = good_rules(problems)
    if good:
        # IMDS may take 15 seconds to fail, and may be cut off by what is put right here.
        bring_up(good_vnics([]), [], mended)
        settle([good], before, notes, mended)
    try:
        listed, vm, side, value = [
            imds(path) for path in ["vnics/"] + ["instance/metadata/nat-pod-" + key for key in ("vm", "side", "rules")]
        ]
        for name, text in (("VNIC list", listed), ("key nat-pod-vm", vm), ("key nat-pod-rules", value)):
            if text is None:
                problems.append("IMDS has no %s; the last good one stays" % name)
    except AgentError as problem:
        listed = vm = side = value = None
        problems.append("%s; the last good rules and VNICs stay" % problem)
    fresh = None
    if vm is not None and value is not None:
        try:
            # A role with only one VM has the VM's name, and then the key nat-pod-side is missing.
            document = Document(value, side or vm)
            wanted = document.generation
            if not good or good.value != value:
                rehearse(document)
                fresh = document
        except AgentError as problem:
            problems.append("document refused, what is loaded stays: %s" % problem)
    if fresh or not good:
        settle([document for document in (fresh, good) if document], problems, notes, mended)
    else:
        problems += before
    if listed is not None:
        try:
            vnics = read_vnics(listed)
            keep(GOOD_VNICS, listed, problems)
        except AgentError as problem:
            problems.append(str(problem))
    vnics = vnics or good_vnics(problems)
    shown = bring_up(vnics, problems, mended)
    open_door(fresh or good, vnics, problems)
    behind = bool(fresh) and load_json(LOADED).get("generation") != fresh.generation
    return finish(vm, wanted, behind, shown, problems, notes, mended)


def guard():
    """Put up only the guard: at first boot, before and after firewalld goes, which forwards and lets in as it likes."""
    problems = []
    stop_forwarding(problems)
    for problem in problems:
        say(4, problem)
    return 0


def restore():
    """At boot, before the network: the guard, the last good rules, then forwarding."""
    problems, notes = [], []
    good = good_rules(problems)
    settle([good] if good else [], problems, notes, [])
    return finish(None, good and good.generation, False, [], problems, notes, [])


def open_door(document, vnics, problems):
    """Where the document says so, have the balancer's question answered at the primary VNIC's own address.

    A program of its own answers: it tells of a round that hangs, and of a timer that nobody starts.
    """
    if not document or not vnics:
        return
    here = "%s %d" % (vnics[0][1].partition("/")[0], document.health) if document.health else None
    there = load(DOOR)
    if here == there is None:
        return
    try:
        if here is None:
            os.remove(DOOR)
        elif here != there:
            save(DOOR, here)
        run(
            ["systemctl", "stop" if here is None else "start" if here == there else "restart", "nat-pod-health.service"]
        )
    except (AgentError, OSError) as problem:
        problems.append("answering the balancer's health checks: %s" % problem)


def unfit(found=None):
    """Why this VM must not be its balancer's next hop, None if it may; by what the last round found, or `found`.

    One that cannot ask IMDS, or has refused a document, runs its last good rules and may: the other VM of its side may
    be no better off, and the balancer sends nothing on when neither is fit.
    """
    try:
        found = found or load_json(STATUS)
        if not found.get("applied"):
            return "no rules are loaded"
        if found["behind"]:
            return "generation %s could not be loaded" % found["wanted"]
        if load("/proc/sys/net/ipv4/ip_forward") != "1\n":
            return "it does not forward"
        age = time.monotonic() - found["uptime"]
        return None if age < STALE else "the last round was %d seconds ago" % age
    except (OSError, KeyError, TypeError) as error:
        return "%s: %s" % (type(error).__name__, error)


def health():
    """Answer the balancer's question over HTTP until ended: 200, or 503 with the reason."""
    address, port = load(DOOR).split()
    with socket.socket() as door:
        door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        door.bind((address, int(port)))
        door.listen(16)
        while True:
            caller = door.accept()[0]
            with caller:
                try:
                    caller.settimeout(1)  # or one that says nothing keeps the others waiting
                    caller.recv(4096)
                    why = unfit()
                    answer = "%s\r\nConnection: close\r\n\r\n%s\n" % ("503 Unfit" if why else "200 OK", why or "fit")
                    caller.sendall(("HTTP/1.1 " + answer).encode())
                except OSError:
                    pass


def status():
    """Print the report; 1 unless what is wanted is loaded."""
    found = report()
    print(json.dumps(found, indent=1, sort_keys=True))
    return 1 if found.get("error", True) or found["applied"] != found["wanted"] else 0


def main(arguments):
    """Run one subcommand, alone: a round by hand and the timer's must not mix."""
    commands = {"guard": guard, "restore": restore, "poll": poll, "status": status, "health": health}
    if len(arguments) != 1 or arguments[0] not in commands:
        print("usage: nat-pod-agent %s" % " | ".join(commands), file=sys.stderr)
        return 2
    os.umask(0o077)
    try:
        if arguments == ["health"]:
            return health()  # beside the rounds
        for folder in (STATE, RUN):
            os.makedirs(folder, exist_ok=True)
        with open(RUN + "/lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            return commands[arguments[0]]()
    except (AgentError, OSError) as error:
        say(3, str(error))
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
