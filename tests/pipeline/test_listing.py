import pytest

from pipeline import listing
from pipeline.errors import UserError
from pipeline.listing import file_stamp, is_glob, list_below, list_files, list_folders, list_stamped
from pipeline.storage import filesystem_for, join, write_atomic

NAMES = ["a.mp4", "b.mp4", "b.txt", "day/c.mp4", "day/night/d.mp4", ".hidden.mp4", ".cache/e.mp4", "day/.f.mp4"]


@pytest.fixture
def archive(place):
    for name in NAMES:
        write_atomic(join(place, "archive", name), b"")
    return join(place, "archive")


def found(uri, archive):
    return [name.removeprefix(archive + "/") for name in list_files(uri)]


def test_a_folder_gives_all_its_visible_files_in_a_fixed_order(archive):
    assert found(archive, archive) == ["a.mp4", "b.mp4", "b.txt", "day/c.mp4", "day/night/d.mp4"]
    assert found(archive + "/", archive) == found(archive, archive)


@pytest.mark.parametrize(
    ("pattern", "matched"),
    [
        ("*.mp4", ["a.mp4", "b.mp4"]),
        ("[b-z].*", ["b.mp4", "b.txt"]),
        ("?ay/*", ["day/c.mp4"]),
        ("day/**/*.mp4", ["day/c.mp4", "day/night/d.mp4"]),
        ("**/*.mp4", ["a.mp4", "b.mp4", "day/c.mp4", "day/night/d.mp4"]),
        ("none/*.mp4", []),
    ],
)
def test_a_glob_gives_what_it_matches(archive, pattern, matched):
    assert found(join(archive, pattern), archive) == matched


def test_a_long_listing_comes_in_pages(bucket, monkeypatch):
    monkeypatch.setattr(listing, "_PAGE", 10)
    filesystem, path = filesystem_for(bucket)
    filesystem.pipe({f"{path}/clips/{number:03d}.mp4": b"x" for number in range(35)})
    assert list(list_files(join(bucket, "clips"))) == [f"{bucket}/clips/{number:03d}.mp4" for number in range(35)]


def test_a_relative_glob_gives_absolute_paths(monkeypatch, tmp_path):
    (tmp_path / "archive").mkdir()
    (tmp_path / "archive" / "a.mp4").touch()
    monkeypatch.chdir(tmp_path)
    for pattern in ("archive/*.mp4", "./archive/*.mp4", f"file://{tmp_path}/archive/*.mp4"):
        assert list(list_files(pattern)) == [f"{tmp_path}/archive/a.mp4"]


def test_a_dot_in_the_folder_s_own_path_hides_nothing(place):
    write_atomic(join(place, ".store", "a.mp4"), b"")
    assert list(list_files(join(place, ".store"))) == [join(place, ".store", "a.mp4")]


def test_a_folder_whose_name_holds_wildcards_is_listed_as_it_is(place):
    name = join(place, "it's [a] *name", "a.mp4")
    write_atomic(name, b"")
    assert list(list_below(join(place, "it's [a] *name"))) == [name]


def test_a_missing_bucket_is_the_user_s_to_mend(bucket):
    with pytest.raises(UserError, match="not found"):
        list(list_files("s3://no-such-bucket-here/clips"))


def test_wildcards_are_recognised():
    assert [is_glob(uri) for uri in ("s3://b/*.mp4", "a/[b]", "a?", "plain/folder")] == [True, True, True, False]


def test_a_bucket_is_named_not_matched():
    with pytest.raises(UserError, match="wildcard"):
        list(list_files("s3://archive-*/clips"))


def test_a_stamp_changes_with_the_content(archive):
    before = dict(list_stamped(archive))
    assert list(before) == list(list_files(archive))
    write_atomic(join(archive, "b.txt"), b"new")
    after = dict(list_stamped(archive))
    assert [name for name in before if before[name] != after[name]] == [join(archive, "b.txt")]
    assert file_stamp(join(archive, "b.txt")) == after[join(archive, "b.txt")]


@pytest.mark.parametrize("name", ["none", "none/a.mp4", "a.mp4/b", "day"])
def test_what_is_no_file_has_no_stamp(archive, name):
    assert file_stamp(join(archive, name)) is None


def test_folders_are_listed_one_level_deep(archive):
    assert [name for name in list_folders(archive) if name != ".cache"] == ["day"]
    assert list_folders(join(archive, "day/")) == ["night"]
    assert list_folders(join(archive, "none")) == []
