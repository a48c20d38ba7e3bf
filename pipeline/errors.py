"""The answers to bad input, and the one place that keeps secrets out of messages.

`UserError`: the user must change something (exit status 2). `ClusterError`: the cluster or the
storage could not be reached after retries (exit status 3). `RowError`: one video failed; it
becomes an error row and the job goes on.
"""

from __future__ import annotations

import os
import re

ERROR_CODES: dict[str, tuple[str, str]] = {
    "bad_row": ("manifest", "a value of the manifest row cannot be used, or its line cannot be read"),
    "uri_missing": ("manifest", "the row has no uri"),
    "uri_scheme": ("manifest", "the uri is neither a path nor file:// nor s3://"),
    "uri_credentials": ("manifest", "the uri carries credentials or a signature; it is stored without them"),
    "row_too_large": ("manifest", "a text of the row is longer than the limit"),
    "not_found": ("fetch", "the storage has no such file"),
    "forbidden": ("fetch", "the storage refused to hand the file out"),
    "fetch_failed": ("fetch", "the file could not be read after retries"),
    "empty_file": ("decode", "the file has no bytes"),
    "not_a_video": ("decode", "no decoder recognises the file"),
    "truncated": ("decode", "the file ends before its index or its frames do"),
    "no_video_stream": ("decode", "the file has no video stream"),
    "no_frames": ("decode", "no frame lies in the asked range"),
    "frame_too_large": ("decode", "the frames have more pixels than the decoders take on"),
    "decode_failed": ("decode", "the decoder gave up"),
    "decode_timeout": ("decode", "the video was not decoded within its time, and its decoder was killed"),
    "decoder_crashed": ("decode", "the decoding process died of the video"),
    "decoder_out_of_memory": ("decode", "the video needs more memory than a decoding process may take"),
    "encode_failed": ("encode", "the vision encoder failed"),
    "invalid_request": ("generate", "the model cannot be asked this: a prompt or setting that it has no use for"),
    "generate_failed": ("generate", "the language model failed"),
    "prompt_too_long": ("generate", "prompt and video do not fit into the model's context"),
    "retention_unreachable": ("generate", "the pruning method cannot keep so little of this video on this model"),
    "out_of_memory": ("generate", "the device has too little memory for this video alone"),
    "worker_died": ("generate", "the process that worked on the video died each time; error_stage says which one"),
    "lost": ("generate", "no answer came back from the workers"),
}
"""Every `error_code` of a result row: the stage that sets it, and what it means."""

_REDACTED = "***"
# Names of query parameters, headers and variables that hold a secret, in any spelling of - and _.
_SENSITIVE = (
    r"x-amz-signature|x-amz-credential|x-amz-security-token|x-goog-signature|x-goog-credential|signature|sig"
    r"|awsaccesskeyid|key-pair-id|aws[_-]access[_-]key[_-]id|aws[_-]secret[_-]access[_-]key|aws[_-]session[_-]token"
    r"|access[_-]?token|auth[_-]?token|id[_-]?token|security[_-]?token|token|api[_-]?key|secret[_-]?key|secret"
    r"|credentials?|password|passwd|pwd|authorization"
)
_WHOLE_NAME = re.compile(rf"(?:{_SENSITIVE})\Z", re.IGNORECASE)
_USERINFO = re.compile(r"([A-Za-z][A-Za-z0-9+.-]{0,30}://)[^/\s?#@]*(?:@[^/\s?#@]*)*@")
_URL_QUERY = re.compile(r"([A-Za-z][A-Za-z0-9+.-]{0,30}://[^\s?#'\"<>]*)[?#][^\s'\"<>]*")
_ASSIGNMENT = re.compile(
    rf"(?<![A-Za-z0-9_])((?:{_SENSITIVE})['\"]?\s*(?:=|:|%3D)\s*)(?:(?:bearer|basic)\s+)?['\"]?[^\s'\"&;,]+",
    re.IGNORECASE,
)
_KNOWN_KEY_FORMS = re.compile(r"\b(?:A[KS]IA[A-Z0-9]{16}|hf_[A-Za-z0-9]{20,}|gh[pousr]_[A-Za-z0-9]{30,})\b")
_SECRET_VARIABLE = re.compile(r"SECRET|TOKEN|PASSWORD|PASSWD|CREDENTIAL|API_?KEY|ACCESS_KEY|PRIVATE_KEY")
_SHORTEST_SECRET = 8  # shorter values of such variables ("true", "1") are flags, and would mangle every message


class UserError(Exception):
    """The user must change something. The message is scrubbed; one line for each mistake."""

    def __init__(self, message: str) -> None:
        """Scrub the message before anything can print it."""
        super().__init__(scrub(message))


class ClusterError(Exception):
    """The cluster or the storage could not be reached after retries. The message is scrubbed."""

    def __init__(self, message: str) -> None:
        """Scrub the message before anything can print it."""
        super().__init__(scrub(message))


class RowError(Exception):
    """One video failed at `stage` with a `code` of `ERROR_CODES`; `message` is one scrubbed line."""

    def __init__(self, stage: str, code: str, message: str) -> None:
        """Refuse an undocumented code (ValueError): queries rely on the list."""
        if code not in ERROR_CODES:
            raise ValueError(f"{code!r} is not one of the documented error codes")
        self.stage = stage
        self.code = code
        self.message = one_line(message)
        super().__init__(stage, code, self.message)  # these args let it cross process borders

    def __str__(self) -> str:
        """The form that logs show."""
        return f"{self.stage}/{self.code}: {self.message}"


def is_secret_name(name: str) -> bool:
    """Whether a query parameter of this name holds a credential or a signature."""
    return _WHOLE_NAME.match(name) is not None


def scrub(text: str) -> str:
    """`text` without credentials: user names in urls, url queries, secret parameters, secrets of the environment."""
    for name, value in os.environ.items():
        if len(value) >= _SHORTEST_SECRET and _SECRET_VARIABLE.search(name.upper()):
            text = text.replace(value, _REDACTED)
    text = _USERINFO.sub(rf"\1{_REDACTED}@", text)
    text = _URL_QUERY.sub(r"\1", text)
    text = _ASSIGNMENT.sub(rf"\1{_REDACTED}", text)
    return _KNOWN_KEY_FORMS.sub(_REDACTED, text)


def one_line(text: str, limit: int = 300) -> str:
    """`text` scrubbed, as a single line of at most `limit` characters."""
    line = " ".join(scrub(text).split())
    return line if len(line) <= limit else line[: limit - 1] + "…"
