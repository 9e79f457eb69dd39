"""A capture on all NICs of one VM."""

from __future__ import annotations

import ctypes
import socket
import struct
from collections.abc import Iterator

from nat_pod.lab.wire.netns import LabError, open_socket
from nat_pod.lab.wire.packets import CapturedPacket, parse
from nat_pod.lab.wire.space import vm_namespace

# Numbers that Python's socket module does not have (linux/if_packet.h, asm-generic/socket.h, linux/in.h).
_ETH_P_ALL = 0x0003  # ETH_P_IP would show what comes in, but not what goes out
_SOL_PACKET = 263
_PACKET_STATISTICS = 6
_PACKET_HOST, _PACKET_OUTGOING = 0, 4
_SO_ATTACH_FILTER = 26
_SO_RCVBUFFORCE = 33
_SO_TIMESTAMPNS = 35


class Tap:
    """A capture on all NICs of one VM.

    It stays open as long as the lab, because closing one takes the kernel 13 ms.  Between probes a filter that accepts
    nothing keeps it empty.
    """

    def __init__(self, vm: str) -> None:
        self.vm = vm
        self._socket = open_socket(vm_namespace(vm), socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(_ETH_P_ALL))
        self._filter(0)
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 8 << 20)
        except PermissionError:
            # Rootless: as large as an ordinary user may have it.
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
        # An open socket with time stamps makes the kernel stamp packets when they cross, not when they are read.
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)

    def fileno(self) -> int:
        """For selectors."""
        return self._socket.fileno()

    def start(self) -> None:
        """Begin to take packets."""
        self._socket.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, 8)  # reading resets
        self._filter(0xFFFF)

    def stop(self) -> Iterator[CapturedPacket]:
        """Take no more and return the rest.  Raises LabError when packets were lost: the record has gaps."""
        self._filter(0)
        yield from self.packets()
        _, lost = struct.unpack("II", self._socket.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, 8))
        if lost:
            raise LabError(f"the capture on {self.vm} lost {lost} packets; probe fewer flows at a time")

    def packets(self) -> Iterator[CapturedPacket]:
        """The packets that are waiting, if any."""
        while True:
            try:
                data, ancillary, _, address = self._socket.recvmsg(2048, 64)
            except BlockingIOError:
                return
            nic, ethertype, kind = address[:3]
            if ethertype != 0x0800 or nic == "lo" or kind not in (_PACKET_HOST, _PACKET_OUTGOING):
                continue
            seconds, nanoseconds = struct.unpack("@ll", ancillary[0][2])
            when = seconds * 1_000_000_000 + nanoseconds
            packet = parse(data, when, self.vm, nic, "in" if kind == _PACKET_HOST else "out")
            if packet is not None:
                yield packet

    def _filter(self, length: int) -> None:
        """A one-line BPF program: take the first `length` bytes of each packet; 0 takes none."""
        program = ctypes.create_string_buffer(struct.pack("HBBI", 0x06, 0, 0, length), 8)
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("@HP", 1, ctypes.addressof(program)))
