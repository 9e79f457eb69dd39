"""The DNS resolver of a VCN in the lab: a dnsmasq that answers a host at 169.254.169.254, port 53.

OCI's VCN resolver answers there, from the private views that the owner of the VCN has attached.  Here every host has
one of its own, as it has its own metadata service there: the address is link-local, and no packet to it is routed.
Names outside the attached zones are refused: there is no Internet behind the lab.
"""

from __future__ import annotations

import shutil

from nat_pod.lab.wire.netns import LabError
from nat_pod.lab.wire.space import IMDS_ADDRESS
from nat_pod.trace.topology import Vcn

PROGRAM, PACKAGE = "dnsmasq", "dnsmasq-base"
PORT = 53


def commands(vcn: Vcn) -> list[list[str]]:
    """What makes the resolver of a VCN answer in a host's namespace: its address, and the program, which stays there.

    Raises LabError where the program is not installed.
    """
    if shutil.which(PROGRAM) is None:
        raise LabError(f"VCN {vcn.name} has names, and the lab needs {PROGRAM} for them: apt-get install {PACKAGE}")
    records = [f"--host-record={name},{address}" for name, address in vcn.names]
    return [
        ["ip", "address", "replace", f"{IMDS_ADDRESS}/32", "dev", "lo"],
        [
            PROGRAM,
            "--keep-in-foreground",
            "--conf-file=/dev/null",
            "--no-resolv",
            "--no-hosts",
            "--bind-interfaces",
            f"--listen-address={IMDS_ADDRESS}",
            f"--port={PORT}",
            "--pid-file=",
            "--user=root",
            # A zone that is attached answers for all of its names: one that it does not have does not exist.
            *(f"--local=/{zone}/" for zone in vcn.zones),
            *records,
        ],
    ]
