"""NatPod where programs import it from: `from nat_pod.component import NatPod`."""

from nat_pod.oci.component import NatPod

__all__ = ["NatPod"]
