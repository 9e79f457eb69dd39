"""What `check` says of region, OCIDs and availability domain without a tenancy.  The POD is in uk-london-1."""

import json

import pytest
import yaml
from conftest import REPOSITORY

from nat_pod.commands.cli import main
from nat_pod.config.placement import placement_problems

LPG = "ocid1.localpeeringgateway.oc1"
HERE = {
    "as it is": {},
    "a region of four words": {
        "oci:region": "us-gov-ashburn-1",
        "nat-pod:compartmentId": "ocid1.compartment.oc3..aaaa",
        "image": "ocid1.image.oc3.us-gov-ashburn-1.aaaa",
    },
    "Ashburn's OCIDs are older than its name": {"oci:region": "us-ashburn-1", "image": "ocid1.image.oc1.iad.aaaa"},
    "Phoenix' too": {"oci:region": "us-phoenix-1", "image": "ocid1.image.oc1.phx.aaaa", "domain": "Uocm:PHX-AD-1"},
    "Ashburn's availability domains have no number": {
        "oci:region": "us-ashburn-1",
        "image": "ocid1.image.oc1.iad.aaaa",
        "domain": "Uocm:US-ASHBURN-AD-3",
    },
    "an OCID without a region": {"image": "ocid1.image.oc1..aaaa"},
    "a short code that nobody knows": {"image": "ocid1.image.oc1.xyz.aaaa"},
    "no region: the provider has one": {"oci:region": None},
    "an encrypted one": {"oci:region": {"secure": "AAAB"}},
    "the region's own availability domain": {"domain": "Uocm:uk-london-1-ad-2"},
    "an LPG of the region": {"peer": f"{LPG}.uk-london-1.aaaa"},
}
ELSEWHERE = {
    "a city": (
        {"oci:region": "london"},
        ['oci:region: "london": is not the name of a region, e.g. oci:region: uk-london-1'],
    ),
    "a region without its number": (
        {"oci:region": "eu-frankfurt"},
        ['oci:region: "eu-frankfurt": is not the name of a region, e.g. oci:region: uk-london-1'],
    ),
    "a number": ({"oci:region": 1}, ["oci:region: 1: is not the name of a region, e.g. oci:region: uk-london-1"]),
    "nothing": ({"oci:region": ""}, ["oci:region: is empty; write a region, e.g. oci:region: uk-london-1"]),
    "left by import": (
        {"oci:region": "FILL-IN"},
        ['oci:region: "FILL-IN": is still to be filled in, e.g. oci:region: uk-london-1'],
    ),
    "left elsewhere": ({"oci:tenancyOcid": "FILL-IN"}, ['oci:tenancyOcid: "FILL-IN": is still to be filled in']),
    "an image of another region": (
        {"image": "ocid1.image.oc1.eu-frankfurt-1.aaaa"},
        [
            'nat-pod:natVm.imageId: "ocid1.image.oc1.eu-frankfurt-1.aaaa": is in region eu-frankfurt-1; '
            "oci:region is uk-london-1"
        ],
    ),
    "an image of Ashburn": (
        {"image": "ocid1.image.oc1.iad.aaaa"},
        ['nat-pod:natVm.imageId: "ocid1.image.oc1.iad.aaaa": is in region us-ashburn-1; oci:region is uk-london-1'],
    ),
    "an image of another realm": (
        {"image": "ocid1.image.oc4..aaaa"},
        ['nat-pod:natVm.imageId: "ocid1.image.oc4..aaaa": is in realm oc4; nat-pod:compartmentId is in oc1'],
    ),
    "an availability domain of another region": (
        {"domain": "Uocm:EU-FRANKFURT-1-AD-1"},
        [
            'nat-pod:natVm.availabilityDomain: "Uocm:EU-FRANKFURT-1-AD-1": is in region eu-frankfurt-1; '
            "oci:region is uk-london-1"
        ],
    ),
    "a customer's LPG in another region": (
        {"peer": f"{LPG}.eu-zurich-1.aaaa"},
        [
            f'nat-pod:customers.customer1.peerId: "{LPG}.eu-zurich-1.aaaa": is in region eu-zurich-1; '
            "oci:region is uk-london-1"
        ],
    ),
    "all at once": (
        {"oci:region": "eu-zurich-1", "domain": "Uocm:PHX-AD-1", "peer": f"{LPG}.oc9.aaaa".replace("oc1.oc9", "oc9.")},
        [
            'nat-pod:natVm.availabilityDomain: "Uocm:PHX-AD-1": is in region us-phoenix-1; oci:region is eu-zurich-1',
            'nat-pod:natVm.imageId: "ocid1.image.oc1.uk-london-1.exampleoraclelinux9": is in region uk-london-1; '
            "oci:region is eu-zurich-1",
            'nat-pod:customers.customer1.peerId: "ocid1.localpeeringgateway.oc9..aaaa": is in realm oc9; '
            "nat-pod:compartmentId is in oc1",
        ],
    ),
}


def config(change: dict) -> dict:
    """Pulumi.dev.yaml's, with a change; image, domain and peer stand for the places of these."""
    found = yaml.safe_load((REPOSITORY / "Pulumi.dev.yaml").read_text(encoding="utf-8"))["config"]
    change = dict(change)
    found["nat-pod:natVm"] |= {"imageId": change.pop("image", found["nat-pod:natVm"]["imageId"])}
    if "domain" in change:
        found["nat-pod:natVm"]["availabilityDomain"] = change.pop("domain")
    if "peer" in change:
        found["nat-pod:customers"]["customer1"]["peerId"] = change.pop("peer")
    return {key: value for key, value in (found | change).items() if value is not None}


@pytest.mark.parametrize("name", HERE)
def test_what_may_be_the_same_place_is_left_alone(name):
    assert placement_problems(config(HERE[name])) == []


@pytest.mark.parametrize("name", ELSEWHERE)
def test_what_cannot_be_the_same_place_is_said(name):
    change, said = ELSEWHERE[name]
    assert [str(problem) for problem in placement_problems(config(change))] == said


@pytest.mark.parametrize("value", [None, "", 5, [], {}, "FILL-IN", {"imageId": 5}, {"customer1": {"peerId": []}}])
@pytest.mark.parametrize("key", ["oci:region", "nat-pod:compartmentId", "nat-pod:natVm", "nat-pod:customers"])
def test_values_of_any_form_are_looked_at(key, value):
    """What is wrong with their form is said by the others."""
    placement_problems(config({key: value} if value is not None else {}) | {key: value})


def test_check_says_it(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    change = {"oci:region": "eu-frankfurt", "domain": "Uocm:UK-LONDON-1-AD-1"}
    (tmp_path / "Pulumi.dev.yaml").write_text(yaml.safe_dump({"config": config(change)}), encoding="utf-8")
    assert main(["check", "dev", "--json"]) == 1
    (problem,) = json.loads(capsys.readouterr().out)["dev"]["problems"]
    assert (problem["path"], problem["value"]) == ("oci:region", "eu-frankfurt")
