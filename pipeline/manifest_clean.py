"""Texts of manifest columns, at any depth of lists and structs, made fit for the results."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.manifest_batches import Batch, BatchSource
from pipeline.uris import without_secret_urls

Change = Callable[[pa.Array], pa.Array | None]
_CHECKED = ("uri", "video_id")  # refused where they carry a secret: cleaned, they would name another video


def without_secrets_in_texts(source: BatchSource) -> BatchSource:
    """The same rows, the urls in their texts without credentials and signatures: results must not hold any."""

    def cleaned() -> Iterator[Batch]:
        for batch in source.batches():
            columns = list(batch.rows.columns)
            for place, name in enumerate(source.schema.names):
                if name not in _CHECKED and (clean := changed_texts(columns[place], _without_secret_urls)) is not None:
                    columns[place] = clean
            yield Batch(pa.RecordBatch.from_arrays(columns, schema=source.schema), batch.problems)

    return BatchSource(source.schema, cleaned)


def changed_texts(array: pa.Array, change: Change) -> pa.Array | None:
    """`array` with `change` applied to every array of texts in it; None where nothing changed, as nearly always."""
    kind = array.type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return change(array)
    if not kind.num_fields:
        return None
    if pa.types.is_struct(kind):
        return _changed_struct(array, change)
    if array.offset:
        array = array.take(pa.array(range(len(array))))  # from_arrays takes no slices
    if pa.types.is_map(kind):
        keys, items = changed_texts(array.keys, change), changed_texts(array.items, change)
        if keys is None and items is None:
            return None
        inner = (array.keys if keys is None else keys, array.items if items is None else items)
        return pa.MapArray.from_arrays(array.offsets, *inner, kind, mask=array.is_null())
    values = changed_texts(array.values, change)
    made = pa.ListArray if pa.types.is_list(kind) else pa.LargeListArray
    return None if values is None else made.from_arrays(array.offsets, values, kind, mask=array.is_null())


def _changed_struct(array: pa.StructArray, change: Change) -> pa.Array | None:
    children = [array.field(place) for place in range(array.type.num_fields)]
    changed = [changed_texts(child, change) for child in children]
    if not any(child is not None for child in changed):
        return None
    merged = [old if new is None else new for old, new in zip(children, changed, strict=True)]
    return pa.StructArray.from_arrays(merged, fields=list(array.type), mask=array.is_null())


def mended(texts: pa.Array) -> pa.Array | None:
    """Bytes that are not UTF-8 replaced; None where there are none."""
    try:
        texts.validate(full=True)
    except pa.ArrowInvalid:
        raw = texts.cast(pa.binary() if pa.types.is_string(texts.type) else pa.large_binary()).to_pylist()
        return pa.array([None if text is None else text.decode("utf-8", "replace") for text in raw], texts.type)
    return None


def _without_secret_urls(texts: pa.Array) -> pa.Array | None:
    if not pc.any(pc.match_substring(texts, ":/")).as_py():
        return None
    old = texts.to_pylist()
    new = [text if text is None else without_secret_urls(text) for text in old]
    return None if new == old else pa.array(new, texts.type)
