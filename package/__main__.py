"""NatPod as a Pulumi package: `pulumi package add <this directory>` from a program in any language."""

import sys

from pulumi import InputPropertiesError, Inputs, ResourceOptions
from pulumi.provider import ConstructResult, main
from pulumi.provider.experimental.analyzer import ComponentDefinition
from pulumi.provider.experimental.component import ComponentProvider
from pulumi.provider.server import ComponentInitError

from nat_pod import __version__
from nat_pod.component import NatPod
from nat_pod.errors import ConfigError


class Package(ComponentProvider):
    """Pulumi's own host of components; what is wrong with the arguments is said by nat-pod, in one go."""

    def map_inputs(self, inputs: Inputs, component_def: ComponentDefinition) -> Inputs:  # noqa: ARG002 as it is called
        """As they came: the schema's names are nat-pod's.  Pulumi's way drops names that it does not know."""
        return inputs

    def construct(
        self, name: str, resource_type: str, inputs: Inputs, options: ResourceOptions | None = None
    ) -> ConstructResult:
        """Make a NatPod, or refuse without a traceback."""
        try:
            return super().construct(name, resource_type, inputs, options)
        except ComponentInitError as error:
            if not isinstance(error.inner, ConfigError):
                raise
            # There may be no stack file: what is wrong stands in the program.
            refusal = ConfigError(f"arguments of {name}", list(error.inner.problems))
            raise InputPropertiesError(str(refusal), errors=[]) from None


if __name__ == "__main__":
    main(Package([NatPod], "nat-pod", version=__version__), sys.argv[1:])
