import json

import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.json_types import NULL, column, merged, settled, type_of


def column_of(values):
    kind = NULL
    for value in values:
        kind = merged(kind, type_of(value))
    return column(values, settled(kind))


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([1, None, 2], pa.int64()),
        ([1, 2.5], pa.float64()),
        ([2**60, 1], pa.int64()),
        ([True, None], pa.bool_()),
        (["a", "b"], pa.string()),
        ([None, None], pa.string()),
        ([[1], [], [2.5]], pa.list_(pa.float64())),
        ([[], None], pa.list_(pa.string())),
        ([{"a": 1}, {"b": "x"}], pa.struct({"a": pa.int64(), "b": pa.string()})),
        ([{"a": [{"b": 1}]}], pa.struct({"a": pa.list_(pa.struct({"b": pa.int64()}))})),
    ],
)
def test_columns_keep_their_types(values, kind):
    made = column_of(values)
    assert made.type == kind
    if not pa.types.is_struct(kind):
        assert made.to_pylist() == values


@pytest.mark.parametrize(
    ("values", "texts"),
    [
        ([1, "a", None], ["1", "a", None]),
        ([True, 1], ["true", "1"]),
        ([2**70, 1], [str(2**70), "1"]),
        ([2**53 + 1, 0.5], [str(2**53 + 1), "0.5"]),
        ([[1, "a"]], ['[1, "a"]']),
        ([{}, {"a": 1}], ["{}", '{"a": 1}']),
        ([{"a": 1}, {"a": "x"}], ['{"a": 1}', '{"a": "x"}']),
        ([{"": 1}], ['{"": 1}']),
        ([[1], {"a": 1}], ["[1]", '{"a": 1}']),
    ],
)
def test_conflicting_values_become_text(values, texts):
    assert column_of(values).to_pylist() == texts


def test_an_object_used_as_a_dictionary_stays_text():
    value = {f"key{number}": number for number in range(500)}
    assert json.loads(column_of([value])[0].as_py()) == value


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(st.characters(codec="utf-8")),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abc", max_size=2), inner, max_size=3),
    max_leaves=12,
)


@settings(max_examples=80, deadline=None)
@given(st.lists(JSON, max_size=6))
def test_any_json_column_fits_an_arrow_type_that_parquet_can_hold(values):
    made = column_of(values)
    assert [cell is None for cell in made.to_pylist()] == [value is None for value in values]
    sink = pa.BufferOutputStream()
    pa.parquet.write_table(pa.table({"x": made}), sink)
    assert pa.parquet.read_table(pa.BufferReader(sink.getvalue()))["x"].combine_chunks().equals(made)
