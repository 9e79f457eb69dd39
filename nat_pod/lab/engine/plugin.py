"""What Pulumi's plugins have in common: a gRPC server on its own port, and URNs and property values on the wire.

A plugin is an executable that the engine starts; the first line it prints is its port
(https://github.com/pulumi/pulumi, sdk/go/common/resource/plugin/plugin.go).
"""

from __future__ import annotations

import os
import shlex
import signal
import sys
import threading
from concurrent import futures
from pathlib import Path

import grpc
from google.protobuf import json_format, struct_pb2

from nat_pod.lab.region.inputs import UNKNOWN, Inputs, Value

# The protocol's stand-ins for unknown values, one per type of value.  The region does not tell them apart.
_UNKNOWNS = frozenset(
    {
        UNKNOWN,
        "1c4a061d-8072-4f0a-a4cb-0ff528b18fe7",  # bool
        "3eeb2bf0-c639-47a8-9e75-3b44932eb421",  # number
        "6a19a0b0-7e62-4c92-b797-7f8e31da9cc2",  # array
        "dd056dcd-154b-4c76-9bd3-c8f88648b5ff",  # object
    }
)


def new_server(workers: int = 32) -> grpc.Server:
    """A gRPC server with the engine's own message limit: gRPC's default of 4 MB is less than a full POD's state."""
    limits = [("grpc.max_receive_message_length", 400 << 20), ("grpc.max_send_message_length", 400 << 20)]
    return grpc.server(futures.ThreadPoolExecutor(workers), options=limits)


def serve(server: grpc.Server) -> None:
    """Tell the engine the port and serve until it is gone."""
    stopped = threading.Event()
    # The engine ends its plugins with SIGINT.  ^C does not reach them: they are in a process group of their own.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopped.set())
    engine = os.getppid()
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    print(port, flush=True)
    # The engine kills its plugins when it ends, but not when it is killed itself.
    while not stopped.wait(1) and os.getppid() == engine:
        pass
    server.stop(grace=None).wait()


def write_executable(path: Path, module: str) -> None:
    """A shell script that runs a plugin's module with this interpreter, from any directory."""
    root = shlex.quote(str(Path(__file__).resolve().parents[3]))
    script = f'#!/bin/sh\ncd {root} && exec {shlex.quote(sys.executable)} -m nat_pod.lab.engine.bare {module} "$@"\n'
    write_whole(path, script, 0o755)


def write_whole(path: Path, text: str, mode: int = 0o644) -> None:
    """Write a file of a plugin.  Several engines may share a home, so it appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(f".{os.getpid()}")
    part.write_text(text, encoding="utf-8")
    part.chmod(mode)
    part.replace(path)


def urn_type(urn: str) -> str:
    """The type of a resource: from urn:pulumi:stack::project::parentType$type::name."""
    return urn.split("::")[2].split("$")[-1]


def urn_name(urn: str) -> str:
    """Its name, in which there may be `::`."""
    return urn.split("::", 3)[3]


def decode(struct: struct_pb2.Struct) -> Inputs:
    """Properties as the region takes them: whole numbers as int, and one stand-in for all unknown values."""
    decoded: Inputs = _plain(json_format.MessageToDict(struct))
    return decoded


def encode(state: Inputs) -> struct_pb2.Struct:
    """Properties for the wire, without the resource's id, which travels beside them."""
    struct = struct_pb2.Struct()
    struct.update({key: value for key, value in state.items() if key != "id"})
    return struct


def _plain(value: Value) -> Value:
    if isinstance(value, dict):
        return {key: _plain(member) for key, member in value.items()}
    if isinstance(value, list):
        return [_plain(member) for member in value]
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return UNKNOWN if isinstance(value, str) and value in _UNKNOWNS else value
