import pickle

import pytest

from pipeline.errors import ERROR_CODES, ClusterError, RowError, UserError, is_secret_name, one_line, scrub

STAGES = {"manifest", "fetch", "decode", "encode", "generate"}


def test_every_documented_code_names_a_stage_and_says_what_it_means():
    assert {stage for stage, _ in ERROR_CODES.values()} == STAGES
    assert all(meaning for _, meaning in ERROR_CODES.values())


@pytest.mark.parametrize(
    "text",
    [
        "GET https://alice:hunter2secret@host/clip.mp4 failed",
        "s3://bucket/clip.mp4?X-Amz-Credential=AK/1&X-Amz-Signature=hunter2secret: 403",
        "open('https://host/a.mp4?sig=hunter2secret')",
        "https://host/a.mp4#access_token=hunter2secret",
        "the server said Authorization: Bearer hunter2secret",
        "aws_secret_access_key = hunter2secret",
        '{"token": "hunter2secret"}',
        "password=hunter2secret&user=alice",
        "X-Amz-Security-Token%3Dhunter2secret",
    ],
)
def test_scrub_takes_out_what_is_secret(text):
    assert "hunter2secret" not in scrub(text)


def test_scrub_knows_the_form_of_access_keys():
    assert scrub("key AKIAIOSFODNN7EXAMPLE was refused") == "key *** was refused"


def test_scrub_takes_out_secrets_of_the_environment(monkeypatch):
    monkeypatch.setenv("MY_SERVICE_TOKEN", "correct-horse-battery")
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    assert scrub("got correct-horse-battery, parallelism false") == "got ***, parallelism false"


@pytest.mark.parametrize(
    "text",
    [
        "s3://bucket/folder/clip@2x.mp4: not found",
        "/data/what now?.mp4 has no frames",
        "max_new_tokens = 0 is not allowed",
        "model.signature_layer is no key",
        "first line\nsecond line",
    ],
)
def test_scrub_leaves_ordinary_messages_alone(text):
    assert scrub(text) == text


def test_one_line_folds_and_cuts():
    assert one_line("a\n  b\tc") == "a b c"
    assert one_line("x" * 1000, limit=10) == "x" * 9 + "…"


def test_errors_scrub_their_own_messages():
    for kind in (UserError, ClusterError):
        assert "pw" not in str(kind("cannot read https://u:pw@host/x"))
    assert RowError("fetch", "forbidden", "https://h/x?sig=abc\n denied").message == "https://h/x denied"


def test_a_row_error_crosses_process_borders():
    error = pickle.loads(pickle.dumps(RowError("decode", "truncated", "moov atom not found")))
    assert (error.stage, error.code, error.message) == ("decode", "truncated", "moov atom not found")


def test_an_undocumented_code_is_refused():
    with pytest.raises(ValueError, match="documented"):
        RowError("decode", "gremlins", "")


@pytest.mark.parametrize(("name", "secret"), [("Signature", True), ("X-Amz-Signature", True), ("versionId", False)])
def test_secret_parameters_are_known_by_name(name, secret):
    assert is_secret_name(name) is secret
