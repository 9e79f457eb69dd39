"""What is known of one flow that stays open: what each end sent, what arrived of it, and when.

Both ends belong to the lab, so each direction is held against itself: every record that arrives must be one that the
other end sent, byte for byte; with TCP it must be the next one.
"""

from __future__ import annotations

import socket
import struct
import sys
import termios
from collections import deque
from dataclasses import dataclass, field
from enum import StrEnum
from fcntl import ioctl
from hashlib import blake2b

_HEAD = struct.Struct("!III4s")  # flow, sequence number, number of the server, the source that the server saw
_FILLER = 48
RECORD = _HEAD.size + _FILLER
_NOBODY = bytes(4)


class Kind(StrEnum):
    """Who sends on a flow, after the first record, which the server always answers."""

    ECHO = "echo"  # the client by its period, and the server answers each record
    PUSH = "push"  # the client by its period, and nobody answers
    PULL = "pull"  # the server by the flow's period, and nobody answers
    IDLE = "idle"  # the client one record whenever it is woken, and the server answers


@dataclass(frozen=True, slots=True)
class Record:
    """What is in a record.  A client knows neither `server` nor `seen`: 0 and 0.0.0.0."""

    flow: int
    sequence: int
    server: int = 0
    seen: str = "0.0.0.0"

    def packed(self) -> bytes:
        """On the wire.  The filler is another one for each record: a byte that is wrong shows."""
        head = _HEAD.pack(self.flow, self.sequence, self.server, socket.inet_aton(self.seen))
        return head + blake2b(head, digest_size=_FILLER).digest()

    @classmethod
    def unpacked(cls, data: bytes) -> Record | None:
        """A record off the wire; None for anything that no end has sent."""
        if len(data) != RECORD:
            return None
        flow, sequence, server, seen = _HEAD.unpack(data[: _HEAD.size])
        record = cls(flow, sequence, server, socket.inet_ntoa(seen))
        return record if record.packed() == data else None


@dataclass(kw_only=True, slots=True)
class Direction:
    """One way of a flow.  pause: seconds, the longest that a record, or a later one in its place, was on its way."""

    reliable: bool
    sent: int = 0
    lost: int = 0  # of those before the last one that arrived
    pause: float = 0.0
    waiting: deque[tuple[int, float]] = field(default_factory=deque)  # sequence number, when it was sent

    def send(self, sequence: int, now: float) -> None:
        """Note a record that was sent."""
        self.sent += 1
        self.waiting.append((sequence, now))

    def arrive(self, sequence: int, now: float) -> bool:
        """Note one that arrived; False when it cannot be right."""
        if self.reliable:
            if not self.waiting or self.waiting[0][0] != sequence:
                return False
        elif not any(one == sequence for one, _ in self.waiting):
            self.lost -= 1  # late: a later one was faster; or a second time, which a network may do
            return True
        first = self.waiting[0][1]
        while self.waiting.popleft()[0] != sequence:
            self.lost += 1
        self.pause = max(self.pause, now - first)
        return True

    def silent(self, now: float) -> float:
        """Seconds that the oldest record which has not arrived has been on its way."""
        return now - self.waiting[0][1] if self.waiting else 0.0


@dataclass(kw_only=True)
class HeldFlow:
    """A flow and its two ends.

    near: the client's socket.  far: the server's connection, or by UDP its socket; None until the first record came.
    peer: by UDP, the address that the server answers to.
    ended: how the other end learned that one end was closed; None while it has not.
    """

    number: int
    protocol: str
    kind: Kind
    near: socket.socket
    period: float
    forth: Direction
    back: Direction
    far: socket.socket | None = None
    peer: tuple[str, int] | None = None
    server: int = 0
    seen: str = ""
    open: bool = False
    due: float = 0.0
    marked: int = 0  # first sequence number after the mark: the server's of a PULL, otherwise the client's
    answers: set[tuple[int, str]] = field(default_factory=set)  # since the mark: who, and the source it saw
    by_then: tuple[int, int] = (0, 0)  # records that client and server had sent when the first of the answers came
    error: str | None = None
    closed: bool = False
    ended: str | None = None
    pending: dict[bool, bytes] = field(default_factory=lambda: {True: b"", False: b""})  # at the server's end, or not

    def mark(self) -> None:
        """Forget who answered; only what is sent from now on counts."""
        self.marked = self.back.sent if self.kind is Kind.PULL else self.forth.sent
        self.answers.clear()

    def answer(self, server: int, seen: str) -> None:
        """Note who answered, and the source that it saw."""
        if not self.answers:
            self.by_then = self.forth.sent, self.back.sent
        self.answers.add((server, seen))

    def answered(self) -> set[tuple[int, str]]:
        """Who answered since the mark, once by TCP all was acknowledged that either end had sent by then.

        A record that arrives shows one way only.  Where the other way leads to somebody else by now, it is the
        acknowledgement that is answered with a reset, a moment after the record.  What was sent later is not asked
        for: a busy flow has something on its way whenever one looks.  A flow that went wrong has no answers.
        """
        if self.error is not None or not self.answers:
            return set()
        if self.protocol == "tcp":
            for end, way, by_then in zip((self.near, self.far), (self.forth, self.back), self.by_then, strict=True):
                if _outstanding(end) > (way.sent - by_then) * RECORD:
                    return set()
        return self.answers

    def report(self, hosts: list[str], now: float) -> dict[str, object]:
        """What callers are told; see `load.Load.report`."""
        return {
            "error": self.error,
            "sent": self.forth.sent,
            "lost": self.forth.lost + self.back.lost,
            "answers": sorted((hosts[server], seen) for server, seen in self.answered()),
            "pause": max(self.forth.pause, self.back.pause),
            "silent": max(self.forth.silent(now), self.back.silent(now)),
            "ended": self.ended,
        }


def _outstanding(end: socket.socket | None) -> int:
    """Bytes that an end has sent and that were not acknowledged (tcp(7), SIOCOUTQ)."""
    if end is None or end.fileno() < 0:
        return 0
    return int.from_bytes(ioctl(end, termios.TIOCOUTQ, bytes(4)), sys.byteorder)
