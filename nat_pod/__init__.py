"""NAT POD on Oracle Cloud Infrastructure.

Data flows one way; each arrow is a package, named after what a network engineer would look for:

    Pulumi.<stack>.yaml
      -> PodConfig                 config/      every problem at once, or a frozen value
      -> PodPlan                   plan/        pure values, no Outputs, no I/O; rules/ compiles the mappings
           -> OCI resources        oci/         the only place with OCIDs
           -> trace, proof, diff   trace/       what happens to a packet, without sending one
           -> lab                  lab/         simulated region -> Linux namespaces
      commands/                    what the engineer types; pages/ what others read; status/ what the VMs say
      handbuilt/                   a POD built by hand -> Pulumi.<stack>.yaml
"""

__version__ = "0.1.0"
