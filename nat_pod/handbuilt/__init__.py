"""A POD that was built by hand, taken over: `iptables-save` of both NAT VMs -> Handbuilt -> a stack file.

saved_rules, rule_words -> saved_table     other people's rules, read
saved_walk                                 does to a packet what they do
vnic_list                                  lists of VNICs, read
reconstruct                                flows, members, slots and what does not fit, in six steps
draft                                      the stack file, with names and networks that rules do not say
"""
