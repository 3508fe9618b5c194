"""The shared volume: shared indeed, of a sensible size, and kept."""

import dataclasses

import pytest

from procedures import volume
from runbook import adoption
from runbook.errors import WrongUse
from runbook.instance import load
from runbook.plan import Apply, Object
from tests.procedures.conftest import ROOT

CLAIM = Object("PersistentVolumeClaim", "shared")


def wanting(instance, **changes):
    return dataclasses.replace(instance, volume=dataclasses.replace(instance.volume, mount="/shared", **changes))


@pytest.mark.fault(14, 15)
def test_the_claim_is_shared_and_has_a_size_with_a_unit(plan, instance, named):
    spec = named(plan(volume.share, wanting(instance, size="1024Mi")), "PersistentVolumeClaim")["spec"]
    assert spec == {"accessModes": ["ReadWriteMany"], "storageClassName": "cephfs-no-backup",
                    "resources": {"requests": {"storage": "1Gi"}}}


@pytest.mark.parametrize(("now", "wanted", "applied"), [
    ("1Gi", "2Gi", "2Gi"), ("1", "1Gi", "1Gi"), ("1G", "1Gi", "1Gi"),
    ("2Gi", "1Gi", "2Gi"), ("1Gi", "1Gi", "1Gi"), ("1024Mi", "1Gi", "1024Mi")])
def test_a_claim_grows_and_never_shrinks(now, wanted, applied):
    def claim(size, **spec):
        return {"kind": "PersistentVolumeClaim", "spec": {"resources": {"requests": {"storage": size}}} | spec}

    kept = adoption.kept(claim(wanted, accessModes=["ReadWriteMany"]), claim(now, accessModes=["ReadWriteOnce"]))["spec"]
    assert kept["resources"]["requests"]["storage"] == applied
    assert kept["accessModes"] == ["ReadWriteOnce"]


def test_the_claim_holds_data(plan, instance):
    (claim, _) = [v for v in plan(volume.share, wanting(instance)) if isinstance(v, Apply)]
    assert claim.data


def test_a_claim_for_one_node_cannot_be_shared(plan, instance, unmet):
    there = {CLAIM: {"metadata": {}, "spec": {"accessModes": ["ReadWriteOnce"]}}}
    assert unmet(plan(volume.share, wanting(instance), there)) == ["it is ReadWriteOnce, and that cannot be changed"]


def test_a_class_that_is_not_offered_is_refused_with_those_that_are(plan, instance, unmet):
    known = {"storage classes": ["cephfs", "standard"]}
    assert unmet(plan(volume.share, wanting(instance), known)) == ["the cluster offers cephfs, standard"]


def test_it_is_off_unless_a_place_is_named(instance):
    assert not volume.share.wanted(instance)
    assert volume.share.wanted(wanting(instance))


@pytest.fixture
def file(tmp_path):
    def write(table):
        path = tmp_path / "dev.toml"
        path.write_text((ROOT / "instances" / "dev.toml").read_text().partition("\n[eos]")[0] + "\n" + table)
        return path
    return write


@pytest.mark.fault(14)
@pytest.mark.parametrize("size", ["1", "100", "1Ki", "0Gi", "1GB", "lots", "-1Gi"])
def test_a_size_that_means_next_to_nothing_is_refused_with_its_line(file, size):
    path = file(f'[volume]\nmount = "/shared"\nsize = "{size}"\n')
    line = path.read_text().splitlines().index(f'size = "{size}"') + 1
    with pytest.raises(WrongUse, match=rf"dev\.toml:{line}: volume\.size must be at least 1Mi") as error:
        load(path)
    assert "1Gi" in error.value.cure


@pytest.mark.parametrize("size", ["1Mi", "1Gi", "2G", "1024Ki"])
def test_a_sensible_size_is_taken(file, size):
    assert load(file(f'[volume]\nsize = "{size}"\n')).volume.size == size


@pytest.mark.parametrize(("table", "said"), [
    ('[eos]\npath = "/afs/x"\n', r"eos\.path must lie below /eos"),
    ('[eos]\npath = "/eosx"\n', r"eos\.path must lie below /eos"),
    ('[eos]\npatience = 0\n', r"eos\.patience must be at least 1"),
    ('[volume]\nmount = "shared"\n', r"volume\.mount must be a path"),
    ('[eos]\nkeys = "other"\n', r"eos\.keys must be one of"),
])
def test_what_can_mean_nothing_is_refused(file, table, said):
    with pytest.raises(WrongUse, match=said):
        load(file(table))
