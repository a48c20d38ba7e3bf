import pytest

from pipeline.manifest_identity import manifest_identity
from pipeline.storage import join, write_atomic


@pytest.fixture
def archive(place):
    for name in ("m.jsonl", "m[1].csv", "parts/0.csv", "videos/a.mp4", "videos/b.mp4", "videos/notes.txt"):
        write_atomic(join(place, name), b"first")
    return place


FORMS = ["m.jsonl", "m[1].csv", "parts", "videos", "videos/*.mp4"]


@pytest.mark.parametrize("form", FORMS)
def test_a_manifest_that_nobody_touched_is_the_same(archive, form):
    assert manifest_identity(join(archive, form)) == manifest_identity(join(archive, form))


@pytest.mark.parametrize(
    ("form", "changed"), zip(FORMS, ["m.jsonl", "m[1].csv", "parts/1.csv", "videos/b.mp4", "videos/c.mp4"], strict=True)
)
def test_a_manifest_that_was_changed_is_another(archive, form, changed):
    before = manifest_identity(join(archive, form))
    write_atomic(join(archive, changed), b"other")
    assert manifest_identity(join(archive, form)) != before


def test_only_the_videos_of_a_folder_count(archive):
    before = manifest_identity(join(archive, "videos"))
    write_atomic(join(archive, "videos/notes.txt"), b"other")
    write_atomic(join(archive, "videos/out/results/run_date=2026-11-22/run-1-shard-00000.parquet"), b"other")
    assert manifest_identity(join(archive, "videos")) == before


def test_equal_manifests_in_two_places_are_two(archive):
    write_atomic(join(archive, "other/m.jsonl"), b"first")
    assert manifest_identity(join(archive, "other/m.jsonl")) != manifest_identity(join(archive, "m.jsonl"))


def test_a_relative_path_names_the_same_manifest(archive, monkeypatch):
    if "://" in archive:
        pytest.skip("objects have no working directory")
    monkeypatch.chdir(archive)
    assert manifest_identity("m.jsonl") == manifest_identity(join(archive, "m.jsonl"))
