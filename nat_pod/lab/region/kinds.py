"""The names of the kinds of objects that the region keeps; whoever refers to a kind uses them.

A resource's kind is its type token at the provider.  What a kind *is* is one class in the file of its subject
(`vcn.py`, `routes.py`, `lpg.py`, `security.py`, `instance.py`, `console.py`, `vnic.py`, `private_ip.py`,
`balancer.py`, `dns.py`).
"""

VCN = "oci:Core/vcn:Vcn"
SUBNET = "oci:Core/subnet:Subnet"
ROUTE_TABLE = "oci:Core/routeTable:RouteTable"
ROUTE_TABLE_ATTACHMENT = "oci:Core/routeTableAttachment:RouteTableAttachment"
LPG = "oci:Core/localPeeringGateway:LocalPeeringGateway"
INSTANCE = "oci:Core/instance:Instance"
CONSOLE_HISTORY = "oci:Core/consoleHistory:ConsoleHistory"
VNIC_ATTACHMENT = "oci:Core/vnicAttachment:VnicAttachment"
PRIVATE_IP = "oci:Core/privateIp:PrivateIp"
NSG = "oci:Core/networkSecurityGroup:NetworkSecurityGroup"
NSG_RULE = "oci:Core/networkSecurityGroupSecurityRule:NetworkSecurityGroupSecurityRule"
SECURITY_LIST = "oci:Core/securityList:SecurityList"
DEFAULT_SECURITY_LIST = "oci:Core/defaultSecurityList:DefaultSecurityList"
BALANCER = "oci:NetworkLoadBalancer/networkLoadBalancer:NetworkLoadBalancer"
BACKEND_SET = "oci:NetworkLoadBalancer/backendSet:BackendSet"
BACKEND = "oci:NetworkLoadBalancer/backend:Backend"
LISTENER = "oci:NetworkLoadBalancer/listener:Listener"
DNS_VIEW = "oci:Dns/view:View"
DNS_ZONE = "oci:Dns/zone:Zone"
DNS_RRSET = "oci:Dns/rrset:Rrset"
DNS_RESOLVER = "oci:Dns/resolver:Resolver"

# Objects of OCI that come into being with others and are not resources of the program.
VNIC = "vnic"
DEFAULT_ROUTE_TABLE = "default route table"
