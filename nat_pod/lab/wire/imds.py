"""The instance metadata service of one NAT VM in the lab: `python -m nat_pod.lab.wire.imds STATE.json`.

Runs inside the VM's network namespace and answers there on 169.254.169.254:80, as OCI's IMDS v2 does for that VM
only.  STATE.json is read again for each request, so a changed document shows as it does on OCI, only sooner:

    {"instance": {"metadata": {...}, ...}, "vnics": [{"macAddr": "02:00:17:...", "privateIp": ..., ...}]}

What it does as OCI does (docs, "Getting Instance Metadata"; captured answers in cloud-init's test_oracle.py)
- Without `Authorization: Bearer Oracle` the answer is 401.  Only /opc/v2 exists, because the POD switches v1 off.
- A path walks keys and list indexes.  A string comes as it is, an object or list as JSON; an unknown path is 404.
"""

from __future__ import annotations

import json
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socketserver import TCPServer

from nat_pod.lab.wire.space import IMDS_ADDRESS


def find(state: object, path: str) -> object:
    """What a path like `/opc/v2/instance/metadata/nat-pod-vm` names.  Raises KeyError when there is no such thing."""
    prefix = "/opc/v2/"
    if not path.startswith(prefix):
        raise KeyError(path)
    found = state
    for part in filter(None, path.removeprefix(prefix).split("?")[0].split("/")):
        if isinstance(found, dict) and part in found:
            found = found[part]
        elif isinstance(found, list) and part.isdecimal() and int(part) < len(found):
            found = found[int(part)]
        else:
            raise KeyError(path)
    return found


class Server(ThreadingHTTPServer):
    """Serves the state file at `state` until it is killed."""

    daemon_threads = True

    def __init__(self, address: tuple[str, int], state: Path) -> None:
        super().__init__(address, Handler)
        self.state = state

    def server_bind(self) -> None:
        """Bind without HTTPServer's look-up of the host's name: in a namespace without DNS it takes many seconds."""
        TCPServer.server_bind(self)

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing about a client that hung up."""


class Handler(BaseHTTPRequestHandler):
    """One request."""

    server: Server
    timeout = 10  # a client that connects and says nothing must not hold a thread for ever

    def do_GET(self) -> None:
        """Answer a GET; there is nothing else to ask an IMDS."""
        if self.headers.get("Authorization") != "Bearer Oracle":
            return self.answer(401, "text/plain", "Unauthorized")
        try:
            found = find(json.loads(self.server.state.read_bytes()), self.path)
        except KeyError:
            return self.answer(404, "text/plain", "Not Found")
        except (OSError, ValueError) as error:
            return self.answer(503, "text/plain", str(error))
        if isinstance(found, str):
            return self.answer(200, "text/plain", found)
        return self.answer(200, "application/json", json.dumps(found))

    def answer(self, status: int, kind: str, text: str) -> None:
        """Send one complete answer."""
        body = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Keep quiet: the agent asks every few seconds."""


def main() -> None:
    """Put the address on `lo` and serve."""
    if len(sys.argv) != 2:
        sys.exit("usage: python -m nat_pod.lab.wire.imds STATE.json")
    subprocess.run(["ip", "link", "set", "dev", "lo", "up"], check=True)
    subprocess.run(["ip", "address", "replace", f"{IMDS_ADDRESS}/32", "dev", "lo"], check=True)
    Server((IMDS_ADDRESS, 80), Path(sys.argv[1])).serve_forever()


if __name__ == "__main__":
    main()
