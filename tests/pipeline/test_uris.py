import pytest

from pipeline.errors import RowError
from pipeline.uris import resolve, without_query, without_secret_urls, without_secrets


@pytest.mark.parametrize(
    ("uri", "folder", "resolved"),
    [
        ("clip.mp4", "/data/m", "/data/m/clip.mp4"),
        ("./x/../clip.mp4", "/data/m", "/data/m/clip.mp4"),
        ("../clip.mp4", "/data/m", "/data/clip.mp4"),
        ("/abs/clip.mp4", "/data/m", "/abs/clip.mp4"),
        ("/abs/clip.mp4", "s3://bucket/m", "/abs/clip.mp4"),
        ("file:///abs/a%20b.mp4", "/data/m", "/abs/a b.mp4"),
        ("file://localhost/abs/a.mp4", "/data/m", "/abs/a.mp4"),
        ("clip.mp4", "s3://bucket/m/n", "s3://bucket/m/n/clip.mp4"),
        ("../clip.mp4", "s3://bucket/m/n", "s3://bucket/m/clip.mp4"),
        ("clip.mp4", "s3://bucket", "s3://bucket/clip.mp4"),
        ("S3://bucket/clip.mp4", "/data", "s3://bucket/clip.mp4"),
        ("s3://bucket/a@2x#1.mp4", "/data", "s3://bucket/a@2x#1.mp4"),
        ("s3://bucket/a.mp4?versionId=3", "/data", "s3://bucket/a.mp4?versionId=3"),
        ("s3://bucket/..clip.mp4", "/data", "s3://bucket/..clip.mp4"),
        ("..clip.mp4", "s3://bucket", "s3://bucket/..clip.mp4"),
        ("s3://bucket/a:1/b@2x.mp4", "/data", "s3://bucket/a:1/b@2x.mp4"),
        (" s3://bucket/clip.mp4 ", "/data", "s3://bucket/clip.mp4"),
        ("//abs/clip.mp4", "/data", "/abs/clip.mp4"),
        ("what now?.mp4", "/data", "/data/what now?.mp4"),
        ("Où?.mp4", "/data", "/data/Où?.mp4"),
    ],
)
def test_one_video_has_one_spelling(uri, folder, resolved):
    assert resolve(uri, folder) == resolved


@pytest.mark.parametrize(
    ("uri", "code"),
    [
        ("https://host/clip.mp4", "uri_scheme"),
        ("gs://bucket/clip.mp4", "uri_scheme"),
        ("s3a://bucket/clip.mp4", "uri_scheme"),
        ("s3://user:pw@bucket/clip.mp4", "uri_credentials"),
        ("s3://user:a/pw+b@bucket/clip.mp4", "uri_credentials"),
        (" https://user:pw@host/clip.mp4", "uri_credentials"),
        ("https%3A%2F%2Fuser:pw@host/clip.mp4", "uri_credentials"),
        ("//user:pw@host/clip.mp4", "uri_credentials"),
        ("https://host/clip.mp4?a=1&amp;sig=abc", "uri_credentials"),
        ("https://host/clip.mp4?a=1;sig=abc", "uri_credentials"),
        ("clip.mp4&sig=abc", "uri_credentials"),
        ("file:///clip.mp4%3Fsig=abc", "uri_credentials"),
        ("https://user@host/clip.mp4", "uri_credentials"),
        ("s3://bucket/clip.mp4?X-Amz-Signature=abc", "uri_credentials"),
        ("https://host/clip.mp4?Expires=1&Signature=abc", "uri_credentials"),
        ("https://host/clip.mp4?sv=1&sig=abc", "uri_credentials"),
        ("https://host/clip.mp4?X%2DAmz%2DSignature=abc", "uri_credentials"),
        ("https://host/clip.mp4#access_token=abc", "uri_credentials"),
        ("clip.mp4?token=abc", "uri_credentials"),
        ("s3://bucket", "bad_row"),
        ("s3://bucket/folder/", "bad_row"),
        ("s3:/bucket/clip.mp4", "bad_row"),
        ("clip\n.mp4", "bad_row"),
        ("clip\0.mp4", "bad_row"),
        ("file:///clip%00.mp4", "bad_row"),
        ("s3://bucket/../other/clip.mp4", "bad_row"),
        ("x" * 5000, "row_too_large"),
    ],
)
def test_a_uri_that_cannot_be_used_is_refused_with_its_code(uri, code):
    with pytest.raises(RowError) as caught:
        resolve(uri, "/data")
    assert (caught.value.stage, caught.value.code) == ("manifest", code)
    assert "abc" not in caught.value.message
    assert "pw" not in caught.value.message


def test_a_relative_path_cannot_leave_the_bucket():
    with pytest.raises(RowError, match="out of the bucket"):
        resolve("../../other/clip.mp4", "s3://bucket/m")


@pytest.mark.parametrize(
    ("uri", "stored"),
    [
        ("https://user:pw@host/clip.mp4?x=1", "https://host/clip.mp4"),
        ("s3://bucket/clip.mp4?versionId=3&X-Amz-Security-Token=abc", "s3://bucket/clip.mp4"),
        ("s3://bucket/clip.mp4?versionId=3", "s3://bucket/clip.mp4?versionId=3"),
        ("/data/what?.mp4", "/data/what?.mp4"),
    ],
)
def test_only_what_is_secret_is_taken_out(uri, stored):
    assert without_secrets(uri) == stored


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("see https://user:pw@host/a.mp4, please", "see https://host/a.mp4, please"),
        ('["s3://b/a?sig=abc", "s3://b/c?v=1"]', '["s3://b/a", "s3://b/c?v=1"]'),
        ("at 12:30, is a/b@c = x?sig=abc", "at 12:30, is a/b@c = x?sig=abc"),
    ],
)
def test_only_urls_in_a_text_lose_their_secrets(text, left):
    assert without_secret_urls(text) == left


def test_a_plain_path_has_no_query():
    assert without_query("/data/what?.mp4") == "/data/what?.mp4"
    assert without_query("s3://bucket/a.mp4?versionId=3") == "s3://bucket/a.mp4"
