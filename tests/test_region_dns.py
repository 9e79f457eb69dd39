"""Private DNS of the simulated region: what is refused, and what is not."""

import pytest
from region_world import CONFLICT, INVALID, UNKNOWN, World

from nat_pod.lab.region import dns
from nat_pod.lab.region import kinds as oci
from nat_pod.lab.region.refusals import OciError

ZONE = "pod1.example.internal"


class Dns(World):
    """A world with a view, its zone, and the resolver of the VCN."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.view = self.a_view()
        self.zone = self.a_zone(self.view)
        self.resolver = self.region.invoke(
            "oci:Core/getCnvDnsResolverAssociation:getCnvDnsResolverAssociation", {"vcnId": self.pod}
        )["dnsResolverId"]

    def a_view(self, **inputs: object) -> str:
        return self.make(oci.DNS_VIEW, {"scope": "PRIVATE", **inputs})

    def a_zone(self, view: str, **inputs: object) -> str:
        given = {"name": ZONE, "zoneType": "PRIMARY", "scope": "PRIVATE", "viewId": view, **inputs}
        return self.make(oci.DNS_ZONE, {key: value for key, value in given.items() if value is not None})

    def record(self, host: str = "vm1.customer1", zone: str | None = None, **inputs: object) -> str:
        domain = f"{host}.{ZONE}"
        item = {"domain": domain, "rtype": "A", "rdata": "198.18.0.2", "ttl": 300, **inputs.pop("item", {})}
        given = {"zoneNameOrId": zone or self.zone, "domain": domain, "rtype": "A", "items": [item], **inputs}
        return self.region.create(oci.DNS_RRSET, given, str(given["domain"]))[0]

    def attach(self, *views: str) -> str:
        given = {"resolverId": self.resolver, "attachedViews": [{"viewId": view} for view in views]}
        return self.region.create(oci.DNS_RESOLVER, given, "resolver")[0]


@pytest.fixture
def world() -> Dns:
    return Dns()


ROWS = [
    # refused, how, and the nearest that is accepted
    (lambda w: w.a_view(scope="GLOBAL"), f"{INVALID}.*not PRIVATE", lambda w: w.a_view()),
    (lambda w: w.a_zone(w.a_view(), scope="GLOBAL"), f"{INVALID}.*not PRIVATE", lambda w: w.a_zone(w.a_view())),
    (lambda w: w.a_zone(w.a_view(), viewId=None), "needs the viewId", lambda w: w.a_zone(w.a_view())),
    (lambda w: w.a_zone(w.pod), UNKNOWN, lambda w: w.a_zone(w.a_view())),
    (lambda w: w.a_zone(w.a_view(), zoneType="SECONDARY"), "must be PRIMARY", lambda w: w.a_zone(w.a_view())),
    (lambda w: w.a_zone(w.view), f"{CONFLICT}.*unique within a view", lambda w: w.a_zone(w.view, name="b.internal")),
    (lambda w: w.a_zone(w.view, name="B..c"), "is not a domain name", lambda w: w.a_zone(w.view, name="B.c.")),
    (lambda w: w.a_zone(w.view, name="-b.c"), "is not a domain name", lambda w: w.a_zone(w.view, name="b-b.c")),
    (lambda w: w.record(zone=w.view), UNKNOWN, lambda w: w.record()),
    (lambda w: w.record(zone=ZONE), "needs viewId", lambda w: w.record(zone=ZONE, viewId=w.view)),
    (lambda w: w.record(viewId=w.a_view()), "is in view", lambda w: w.record(viewId=w.view)),
    (lambda w: w.record(scope="GLOBAL"), "not PRIVATE", lambda w: w.record(scope="PRIVATE")),
    (
        lambda w: w.record(domain="vm1.example.com", item={"domain": "vm1.example.com"}),
        "is not in zone",
        lambda w: w.record(domain=f"vm1.{ZONE}", item={"domain": f"vm1.{ZONE}"}),
    ),
    (lambda w: w.record(item={"domain": f"b.{ZONE}"}), "is not of vm1.customer1", lambda w: w.record()),
    (lambda w: w.record(items=[]), "has no items", lambda w: w.record()),
    (lambda w: w.record(item={"ttl": 0}), "ttl 0", lambda w: w.record(item={"ttl": 1})),
    (lambda w: w.record(item={"rdata": "198.18.2"}), "is no IPv4 address", lambda w: w.record()),
    (lambda w: w.record("a" * 64), "is not a domain name", lambda w: w.record("a" * 63)),
    (lambda w: (w.record(), w.record()), f"{CONFLICT}.*is managed as", lambda w: (w.record(), w.record("vm2"))),
    (lambda w: w.attach(w.zone), UNKNOWN, lambda w: w.attach(w.view)),
    (lambda w: w.attach(w.view, w.view), "attached twice", lambda w: w.attach(w.view, w.a_view())),
    (lambda w: w.region.delete(w.view), f"{CONFLICT}.*is referenced by", lambda w: w.region.delete(w.a_view())),
    (lambda w: attached_and_deleted(w), f"{CONFLICT}.*is referenced by", lambda w: attached_and_deleted(w, again=())),
]


def attached_and_deleted(w: Dns, again: tuple[str, ...] | None = None) -> None:
    """Attach a view without a zone, attach something else instead, and delete it."""
    view = w.a_view()
    resolver = w.attach(view)
    if again is not None:
        w.region.update(resolver, {"resolverId": resolver, "attachedViews": [{"viewId": one} for one in again]})
    w.region.delete(view)


@pytest.mark.parametrize("row", range(len(ROWS)))
def test_refused_beside_what_is_accepted(row):
    refused, how, accepted = ROWS[row]
    with pytest.raises(OciError, match=how) as error:
        refused(Dns())
    assert error.value.source
    accepted(Dns())


def test_a_resolver_answers_from_the_views_that_are_attached_in_their_order(world):
    world.record(item={"rdata": "198.18.0.2"})
    other = world.a_view()
    world.record("vm1.customer1", zone=world.a_zone(other), item={"rdata": "198.18.0.9"})
    assert (dns.answers(world.region, world.pod), dns.zones(world.region, world.pod)) == ({}, [])
    resolver = world.attach(world.view, other)
    assert dns.answers(world.region, world.pod) == {f"vm1.customer1.{ZONE}": ["198.18.0.2"]}
    world.region.update(resolver, {"resolverId": resolver, "attachedViews": [{"viewId": other}]})
    assert dns.answers(world.region, world.pod) == {f"vm1.customer1.{ZONE}": ["198.18.0.9"]}
    assert dns.zones(world.region, world.pod) == [ZONE]


def test_a_resolver_comes_and_goes_with_its_vcn_and_frees_its_views(world):
    vcn = world.vcn("10.7.0.0/16")
    world.resolver = world.region.invoke(
        "oci:Core/getCnvDnsResolverAssociation:getCnvDnsResolverAssociation", {"vcnId": vcn}
    )["dnsResolverId"]
    view = world.a_view()
    world.attach(view)
    world.region.delete(vcn)
    world.region.delete(view)
    with pytest.raises(OciError, match=UNKNOWN):
        world.region.read(world.resolver)


def test_records_go_with_their_zone_and_an_address_changes_in_place(world):
    record = world.record()
    old = world.region.get(record).inputs
    new = {**old, "items": [{**old["items"][0], "rdata": "198.18.0.7"}]}
    diff = world.region.diff(oci.DNS_RRSET, old, new)
    assert (diff.replace, bool(diff.update)) == ((), True)
    world.region.update(record, new)
    world.attach(world.view)
    assert dns.answers(world.region, world.pod) == {f"vm1.customer1.{ZONE}": ["198.18.0.7"]}
    world.region.delete(world.zone)
    assert dns.answers(world.region, world.pod) == {}
    with pytest.raises(OciError, match=UNKNOWN):
        world.region.read(record)
