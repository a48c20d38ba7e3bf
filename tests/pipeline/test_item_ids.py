import hashlib
import secrets

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pipeline.item_ids import ID_ARRAY, KnownItems, as_texts, from_texts, item_ids

# Zeros at either end and inside: what numpy strips of texts must not make two ids one.
ID = st.sampled_from([b"\0" * 16, b"a" + b"\0" * 15, b"\0" * 15 + b"a", b"a\0" * 8, b"b" * 16]) | st.binary(
    min_size=16, max_size=16
)
IDS = st.lists(ID.map(bytes.hex), max_size=30)


@given(IDS)
def test_ids_are_the_same_as_texts_and_as_an_array(texts):
    assert as_texts(from_texts(texts)) == texts


@given(IDS)
def test_a_row_is_named_by_its_identity_and_the_identical_rows_before_it(identities):
    seen = {}
    expected = []
    for identity in identities:
        count = seen[identity] = seen.get(identity, -1) + 1
        expected.append(hashlib.sha256(f"{identity}/{count}".encode()).hexdigest()[:32])
    assert as_texts(item_ids(from_texts(identities))) == expected
    assert len(set(expected)) == len(identities)


@given(IDS, IDS)
def test_known_items_are_a_set(known, asked):
    assert KnownItems(from_texts(known)).contains(from_texts(asked)).tolist() == [item in known for item in asked]


def test_known_items_take_sixteen_bytes_each():
    ids = np.frombuffer(bytearray(secrets.token_bytes(16 * 1000)), ID_ARRAY)
    assert ids.nbytes == 16_000
    known = KnownItems(ids)
    assert len(known) == 1000
    assert ids.tolist() == sorted(ids.tolist())  # sorted where they lie: no second copy
