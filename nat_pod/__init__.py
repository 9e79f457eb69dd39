"""NAT POD on Oracle Cloud Infrastructure.

Data flows one way; each arrow is a module or two, named after what a network engineer would look for:

    Pulumi.<stack>.yaml          stack.py
      -> PodConfig               config.py, addressing.py   every problem at once, or a frozen value
      -> PodPlan                 pod.py: rules.py, plan.py  pure values, no Outputs, no I/O
           -> OCI resources      component.py               the only place with OCIDs
           -> guest text         iptables.py, guest.py      rule document and bootstrap
           -> trace, plan, ...   expected.py, trace.py, cli.py
           -> lab                lab/                       simulated region -> Linux namespaces
"""
