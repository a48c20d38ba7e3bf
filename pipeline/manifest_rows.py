"""One manifest row checked: what is to be done for it, or why it is refused."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from pipeline.config import MAX_FRAMES, Task
from pipeline.errors import RowError, one_line
from pipeline.manifest_batches import is_unicode
from pipeline.prompts import MAX_OPTIONS, with_options
from pipeline.uris import resolve, without_query, without_secrets

MAX_PROMPT = 100_000  # characters, options included: far beyond any model's context
_MAX_ID = 1024
_OVERRIDES = ("start_s", "end_s", "retention", "frames", "max_new_tokens")
_READ = {"caption": ("uri", "video_id", "prompt", *_OVERRIDES)}
_READ["qa"] = (*_READ["caption"], "question", "options")


class Unreadable:
    """Stands for a cell that Arrow holds but Python cannot (a date in the year 20000, say)."""

    def __repr__(self) -> str:
        """Always the same: it goes into the hashes that tell refused rows apart."""
        return "unreadable"


def read_columns(task: Task, schema: pa.Schema) -> list[str]:
    """The manifest's columns that a job of this task uses; all others are carried through."""
    return [name for name in schema.names if name in _READ[task]]


@dataclass(frozen=True)
class PlannedRow:
    """What a manifest row asks for. With an `error` nothing is done, and only what could be read is set."""

    video_id: str | None = None
    uri: str | None = None
    prompt: str | None = None
    options: list[str] | None = None
    start_s: float | None = None
    end_s: float | None = None
    retention: float | None = None
    frames: int | None = None
    max_new_tokens: int | None = None
    error: RowError | None = None
    refused_digest: str | None = None  # tells refused rows apart, of which little else is stored

    def identity(self, fingerprint: str) -> str:
        """A hash of all that the item_id covers but the count of identical earlier rows."""
        asked = (self.video_id, self.uri, self.start_s or 0.0, self.end_s, self.prompt, self.options)
        overrides = (self.retention, self.frames, self.max_new_tokens)
        return _digest([*asked, *overrides, self.refused_digest, fingerprint])

    def group(self, identity: str) -> str:
        """Equal for rows that share fetching and decoding. A refused row shares only with its own like."""
        if self.error is not None:
            return identity
        return _digest([self.uri, self.start_s or 0.0, self.end_s, self.frames])


def plan_row(values: Mapping[str, Any], folder: str, task: Task, default_prompt: str | None) -> PlannedRow:
    """Check one row. `folder` is where relative paths start, `default_prompt` is asked where the row asks nothing."""
    known: dict[str, Any] = {}
    try:
        _check(values, folder, task, default_prompt, known)
    except RowError as error:
        stored = known.setdefault("uri", _storable(values.get("uri")))
        known.setdefault("video_id", _default_id(stored) if stored else None)
        told = {**{name: repr(value) for name, value in values.items()}, "uri": stored, "code": error.code}
        return PlannedRow(**known, error=error, refused_digest=_digest(told))
    return PlannedRow(**known)


def unreadable_row(message: str, digest: str) -> PlannedRow:
    """A row whose text could not be parsed."""
    return PlannedRow(error=RowError("manifest", "bad_row", message), refused_digest=digest)


def _check(
    values: Mapping[str, Any], folder: str, task: Task, default_prompt: str | None, known: dict[str, Any]
) -> None:
    """Fill `known` as far as the row is sound; raise RowError at the first mistake."""
    given = _text("uri", values.get("uri"))
    if given is None:
        raise RowError("manifest", "uri_missing", "the row has no uri")
    known["uri"] = resolve(given, folder)
    known["video_id"] = _video_id(values.get("video_id")) or _default_id(known["uri"])
    known["start_s"] = _number("start_s", values.get("start_s"), "a number of seconds from 0", lambda at: at >= 0)
    after = known["start_s"] or 0.0
    known["end_s"] = _number(
        "end_s", values.get("end_s"), f"a number of seconds above {after:g}", lambda at: at > after
    )
    known["retention"] = _number(
        "retention", values.get("retention"), "a number above 0 and at most 1", lambda share: 0 < share <= 1
    )
    known["frames"] = _count("frames", values.get("frames"), MAX_FRAMES)
    known["max_new_tokens"] = _count("max_new_tokens", values.get("max_new_tokens"), 2**31)
    if task == "caption":
        prompt = _text("prompt", values.get("prompt")) or default_prompt
    else:
        known["options"] = _options(values.get("options"))
        asked = _text("question", values.get("question")) or _text("prompt", values.get("prompt"))
        prompt = asked or default_prompt
    if prompt is None:
        raise RowError("manifest", "bad_row", "the row asks nothing: it has neither a question nor a prompt")
    prompt = with_options(prompt, known.get("options") or ())
    if len(prompt) > MAX_PROMPT:
        known["options"] = None
        raise _too_large("prompt", len(prompt), MAX_PROMPT)
    known["prompt"] = prompt


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:32]


def _default_id(uri: str) -> str:
    return _digest(without_query(uri))[:16]


def _storable(uri: Any) -> str | None:
    """What may be stored of a uri that was refused: no user name, no query, no megabytes."""
    if not isinstance(uri, str) or not uri.strip():
        return None
    # Cut before it is scrubbed: the time for that grows with the square of the length.
    return one_line(without_query(without_secrets(uri))[:2000], 1000)


def _bad(name: str, value: Any, allowed: str) -> RowError:
    bare = without_secrets(repr(value))[:200]
    shown = "a value that cannot be read" if isinstance(value, Unreadable) else one_line(bare, 80)
    return RowError("manifest", "bad_row", f"{name} = {shown}: {allowed} is needed")


def _too_large(name: str, length: int, most: int) -> RowError:
    return RowError("manifest", "row_too_large", f"{name} has {length} characters; at most {most} are allowed")


def _text(name: str, value: Any) -> str | None:
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    if not isinstance(value, str):
        raise _bad(name, value, "a text")
    return value


def _video_id(value: Any) -> str | None:
    # Archives number their videos: an integer is a fine id.
    name = _text("video_id", str(value) if isinstance(value, int) and not isinstance(value, bool) else value)
    if name is None:
        return None
    if len(name) > _MAX_ID:
        raise _too_large("video_id", len(name), _MAX_ID)
    if without_secrets(name) != name:
        raise RowError("manifest", "uri_credentials", "the video_id carries credentials or a signature")
    return name


def _number(name: str, value: Any, allowed: str, is_allowed: Callable[[float], bool]) -> float | None:
    """A finite number; text formats deliver it as text."""
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number) or not is_allowed(number):
        raise _bad(name, value, allowed)
    return number


def _count(name: str, value: Any, most: int) -> int | None:
    allowed = f"a whole number from 1 to {most}"
    number = _number(name, value, allowed, lambda count: 1 <= count <= most and count == int(count))
    return None if number is None else int(number)


def _options(value: Any) -> list[str] | None:
    """The options as texts: a list, or in text formats a JSON list or texts with `|` between them."""
    allowed = f"a list of 2 to {MAX_OPTIONS} different texts"
    if isinstance(value, str):
        if not value.strip():
            return None
        try:
            value = json.loads(value) if value.lstrip().startswith("[") else value.split("|")
        except (ValueError, RecursionError):
            raise _bad("options", value, allowed) from None
    if value is None or value == []:
        return None
    if not isinstance(value, list):
        raise _bad("options", value, allowed)
    texts = [str(item).strip() for item in value if isinstance(item, str | int | float) and not isinstance(item, bool)]
    if len(texts) < len(value) or not all(texts) or not 2 <= len(set(texts)) == len(texts) <= MAX_OPTIONS:
        raise _bad("options", value, allowed)
    if not is_unicode(texts):  # JSON inside a text can spell half of a surrogate pair
        raise _bad("options", value, allowed)
    return texts
