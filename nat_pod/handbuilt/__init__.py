"""A POD that was built by hand, taken over: `iptables-save` of both NAT VMs -> Handbuilt -> a stack file.

saved_rules reads other people's rules, saved_walk does to a packet what they do, vnic_list reads lists of VNICs,
reconstruct finds flows, members and slots and what does not fit the design, draft writes the stack file.
"""
