"""Packets as bytes: those that a probe crafts, and those that a capture shows.

A crafted packet can be one that no well-behaved machine sends: with somebody else's source address, an answer to
nothing, a fragment, or an ICMP redirect.  `Probe` in `probe.py` says what each is for.
"""

from __future__ import annotations

import re
import socket
import struct
from dataclasses import dataclass

ICMP, HTTP, UDP = "icmp", "http", "udp"
PORTS = {HTTP: 80, UDP: 9}
NUMBER = {ICMP: 1, HTTP: 6, UDP: 17}

REQUEST, REPLY, FRAGMENTS, TAIL, REDIRECT = "request", "reply", "fragments", "tail", "redirect"
UNREACHABLE, TOO_BIG, EXCEEDED, PARAMETER = "port unreachable", "too big", "time exceeded", "parameter problem"
ERRORS = {UNREACHABLE: (3, 3), TOO_BIG: (3, 4), EXCEEDED: (11, 0), PARAMETER: (12, 0)}
"""ICMP errors by their type and code."""
SHAPES = (REQUEST, REPLY, FRAGMENTS, TAIL, REDIRECT, *ERRORS)

TOKEN = re.compile(rb"natpod-[0-9a-f]{16}")

_NAME = {number: name for name, number in NUMBER.items()}
_SYN, _ACK = 0x02, 0x10
_ECHO_REPLY, _REDIRECT, _ECHO_REQUEST = 0, 5, 8
_MORE_FRAGMENTS = 0x2000
_SMALL_MTU = 500  # what a forged "too big" claims: below 552 the kernel that believes it locks the path
_FIRST_FRAGMENT = 48  # bytes: a multiple of 8 that takes the longest transport header (20) and a token (23)


@dataclass(frozen=True, kw_only=True, slots=True)
class Quoted:
    """The packet that an ICMP error is about, as the error quotes it; for ICMP `sport` is the identifier of an echo."""

    source: str
    destination: str
    protocol: str
    sport: int = 0
    dport: int = 0
    reply: bool = False  # ICMP: an echo reply

    def head(self) -> bytes:
        """Its IP header and the first eight bytes behind it."""
        if self.protocol == ICMP:
            body = struct.pack("!BBHHH", _ECHO_REPLY if self.reply else _ECHO_REQUEST, 0, 0, self.sport, 1)
        else:
            body = struct.pack("!HHHH", self.sport, self.dport, 8 if self.protocol == UDP else 0, 0)
        head = _ip(self.source, self.destination, NUMBER[self.protocol], body)
        return head[:10] + struct.pack("!H", checksum(head[:20])) + head[12:]


@dataclass(frozen=True, kw_only=True, slots=True)
class CapturedPacket:
    """A captured packet.  `token` is "" when its payload has none; the rest is set for TCP only."""

    when: int
    vm: str
    nic: str
    direction: str
    src: str
    dst: str
    protocol: str
    token: str
    request: bool = True  # ICMP: an echo request
    sport: int = 0
    dport: int = 0
    sequence: int = 0
    acknowledged: int = 0
    syn: bool = False


def parse(data: bytes, when: int, vm: str, nic: str, direction: str) -> CapturedPacket | None:
    """An IPv4 packet that may be one of ours; None for any other."""
    if len(data) < 28:
        return None
    protocol = _NAME.get(data[9])
    if protocol is None:
        return None
    body = data[(data[0] & 15) * 4 :]
    found = TOKEN.search(body)
    token = found[0].decode() if found else ""
    src, dst = socket.inet_ntoa(data[12:16]), socket.inet_ntoa(data[16:20])
    later_fragment = bool(struct.unpack("!H", data[6:8])[0] & 0x1FFF)
    if later_fragment or protocol != HTTP or len(body) < 20:
        request = later_fragment or protocol != ICMP or body[0] == _ECHO_REQUEST
        return CapturedPacket(
            when=when, vm=vm, nic=nic, direction=direction, src=src, dst=dst, protocol=protocol, token=token,
            request=request,
        )  # fmt: skip
    sport, dport, sequence, acknowledged, _, flags = struct.unpack("!HHIIBB", body[:14])
    return CapturedPacket(
        when=when, vm=vm, nic=nic, direction=direction, src=src, dst=dst, protocol=protocol, token=token,
        sport=sport, dport=dport, sequence=sequence, acknowledged=acknowledged,
        syn=bool(flags & _SYN) and not flags & _ACK,
    )  # fmt: skip


def echo_request(number: int, payload: bytes) -> bytes:
    """An ICMP packet with its own identifier: two flows between the same two addresses must not share one."""
    return _icmp(_ECHO_REQUEST, 0, struct.pack("!HH", number & 0xFFFF, 1), payload)


def crafted(
    shape: str,
    source: str,
    destination: str,
    protocol: str,
    port: int,
    number: int,
    payload: bytes,
    *,
    source_port: int | None = None,
    about: Quoted | None = None,
    ttl: int = 64,
) -> list[bytes]:
    """Whole IP packets; the kernel fills in length, checksum and, where it is 0, the identifier.

    shape: one of SHAPES.  port: the destination port; of a reply, the source port, where it claims to come from.
    source_port: another than the one that `number` gives (ICMP: the identifier).  about: what an ICMP error quotes.
    """
    if shape in ERRORS:
        assert about is not None
        rest = struct.pack("!HH", 0, _SMALL_MTU if shape == TOO_BIG else 0)
        body = _icmp(*ERRORS[shape], rest, about.head() + payload)
        return [_ip(source, destination, NUMBER[ICMP], body, ttl=ttl)]
    if shape == REDIRECT:
        # "Send me what you have for that network", with the header of a packet that the receiver may have sent.
        told = _ip(destination, source, NUMBER[UDP], bytes(8))
        body = _icmp(_REDIRECT, 1, socket.inet_aton(source), told + bytes(8) + payload)
        return [_ip(source, destination, NUMBER[ICMP], body)]
    if shape in (FRAGMENTS, TAIL):
        payload = payload.ljust(_FIRST_FRAGMENT, b".") + payload  # each fragment shows the token
    body = _body(shape, source, destination, protocol, port, number, payload, source_port)
    if shape not in (FRAGMENTS, TAIL):
        return [_ip(source, destination, NUMBER[protocol], body, ttl=ttl)]
    identifier = number & 0xFFFF or 1
    first = _ip(
        source, destination, NUMBER[protocol], body[:_FIRST_FRAGMENT], identifier=identifier, fragment=_MORE_FRAGMENTS
    )
    tail = _ip(
        source,
        destination,
        NUMBER[protocol],
        body[_FIRST_FRAGMENT:],
        identifier=identifier,
        fragment=_FIRST_FRAGMENT // 8,
    )
    return [tail] if shape == TAIL else [first, tail]


def _body(
    shape: str,
    source: str,
    destination: str,
    protocol: str,
    port: int,
    number: int,
    payload: bytes,
    source_port: int | None,
) -> bytes:
    ports = (20000 + number % 40000 if source_port is None else source_port, port)
    sport, dport = ports[::-1] if shape == REPLY else ports
    if protocol == ICMP:
        kind = _ECHO_REPLY if shape == REPLY else _ECHO_REQUEST
        identifier = number & 0xFFFF if source_port is None else source_port
        return _icmp(kind, 0, struct.pack("!HH", identifier, 1), payload)
    if protocol == UDP:
        return struct.pack("!HHHH", sport, dport, 8 + len(payload), 0) + payload  # 0: no checksum
    flags = _SYN | _ACK if shape == REPLY else _SYN
    head = struct.pack("!HHIIBBHHH", sport, dport, number & 0xFFFFFFFF, 0, 5 << 4, flags, 65535, 0, 0)
    ends = socket.inet_aton(source) + socket.inet_aton(destination)
    pseudo = ends + struct.pack("!BBH", 0, NUMBER[HTTP], len(head) + len(payload))
    return head[:16] + struct.pack("!H", checksum(pseudo + head + payload)) + head[18:] + payload


def _ip(
    source: str,
    destination: str,
    protocol: int,
    body: bytes,
    *,
    identifier: int = 0,
    fragment: int = 0,
    ttl: int = 64,
) -> bytes:
    ends = socket.inet_aton(source) + socket.inet_aton(destination)
    return struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(body), identifier, fragment, ttl, protocol, 0) + ends + body


def _icmp(kind: int, code: int, rest: bytes, payload: bytes) -> bytes:
    check = checksum(struct.pack("!BBH", kind, code, 0) + rest + payload)
    return struct.pack("!BBH", kind, code, check) + rest + payload


def checksum(data: bytes) -> int:
    """The Internet checksum (RFC 1071)."""
    padded = data + b"\0" * (len(data) % 2)
    total: int = sum(struct.unpack(f"!{len(padded) // 2}H", padded))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
