// A program that knows nothing of nat-pod but its package.  `run` beside this file deploys it.
import { NatPod } from "@pulumi/nat-pod";

const pod = new NatPod("ts", {
    compartmentId: "ocid1.compartment.oc1..example",
    cidr: "198.18.0.0/22",
    natVm: {
        shape: { shape: "VM.Optimized3.Flex", ocpus: 12, memoryGbs: 48 },
        imageId: "ocid1.image.oc1.uk-london-1.exampleoraclelinux9",
        sshPublicKey: "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ1lNZ8dvHqYbJ0yQm3m0x8sVt8o5n1s4m3y9r0P2aQd ops@example",
    },
    management: { cidr: ["10.0.0.0/16"], vrouter: "198.18.0.167", servers: { mgmt: "10.0.0.100" } },
    customers: { customer1: { cidr: ["10.0.0.0/24"], hosts: { vm1: "10.0.0.100" }, servers: ["mgmt"] } },
    subnets: { natVm1: ["198.18.0.0/27"], natVm2: ["198.18.0.128/27"], vrouter: "198.18.0.160/28" },
    addresses: {
        "management/mgmt": { natVm1: "198.18.0.2", natVm2: "198.18.0.130" },
        "customer1/vm1": { natVm1: "198.18.0.2", natVm2: "198.18.0.130" },
    },
});

export const vcn = pod.vcnId;
export const lpg = pod.routesToAdd.apply(routes => routes["customer1"].lpgId);
