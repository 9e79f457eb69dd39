"""A POD that was built by hand, taken over: `iptables-save` of both NAT VMs -> Handbuilt -> a stack file.

saved_rules, rule_words -> saved_table     read other people's rules
saved_walk                                 does to a packet what these rules do
vnic_list                                  reads lists of VNICs
reconstruct                                flows, members, slots and what does not fit, in six steps
draft                                      the stack file, with the names and networks that rules do not say
"""
