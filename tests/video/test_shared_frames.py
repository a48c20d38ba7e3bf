import os

import numpy as np
import pytest

from pipeline.video.shared_frames import MappedFrames, SharedFrames

SHAPE = (3, 4, 5, 3)


@pytest.fixture
def shared():
    frames = SharedFrames(most_bytes=1 << 20)
    yield frames
    frames.close()


def map_frames(fd, offset, shape) -> np.ndarray:
    return MappedFrames().map(fd, offset, shape)


def numbers(shape=SHAPE) -> np.ndarray:
    return np.arange(np.prod(shape)).astype(np.uint8).reshape(shape)


def test_the_other_side_sees_the_same_memory(shared):
    written = shared.allocate(SHAPE)
    written[...] = numbers()
    fd, offset = shared.locate(written)
    seen = map_frames(fd, offset, SHAPE)
    assert np.array_equal(seen, numbers())
    written[0] = 9
    assert (seen[0] == 9).all()


def test_frames_outlive_who_wrote_them(shared):
    written = shared.allocate(SHAPE)
    written[...] = numbers()
    seen = map_frames(*shared.locate(written), SHAPE)
    del written
    shared.close()
    assert np.array_equal(seen, numbers())


def test_a_part_of_the_memory_needs_no_copy(shared):
    written = shared.allocate(SHAPE)
    written[...] = numbers()
    fd, offset = shared.locate(written[1:])
    assert offset == written[0].nbytes
    assert np.array_equal(map_frames(fd, offset, (2, 4, 5, 3)), numbers()[1:])


@pytest.mark.parametrize("view", ["elsewhere", "mirrored"])
def test_frames_that_are_not_one_block_of_it_are_copied(shared, view):
    written = shared.allocate(SHAPE)
    written[...] = numbers()
    frames = numbers() if view == "elsewhere" else written[:, :, ::-1]
    assert np.array_equal(map_frames(*shared.locate(frames), SHAPE), frames)


def test_too_many_frames_are_refused(shared):
    with pytest.raises(MemoryError, match="3 frames of 4000x4000"):
        shared.allocate((3, 4000, 4000, 3))


@pytest.mark.parametrize(
    ("offset", "shape"),
    [
        (0, (4, 4, 5, 3)),
        (1, SHAPE),
        (-1, SHAPE),
        (0, (0, 4, 5, 3)),
        (0, (-1, -4, 5, 3)),
        (0, (3, 4, 5)),
        (0, (4, 5, 3, 3, 1)),
        (0, (3, 4, 3, 5)),
    ],
)
def test_frames_that_are_not_there_are_not_mapped(shared, offset, shape):
    fd, _ = shared.locate(shared.allocate(SHAPE))
    with pytest.raises(ValueError):
        map_frames(fd, offset, shape)


def test_memory_that_is_mapped_cannot_be_taken_away(shared):
    fd, offset = shared.locate(shared.allocate(SHAPE))
    map_frames(fd, offset, SHAPE)
    with pytest.raises(PermissionError):
        os.ftruncate(fd, 1)


def test_a_file_on_a_disk_is_no_such_memory(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(bytes(1000))
    with path.open("r+b") as file, pytest.raises(ValueError, match="no shared memory"):
        map_frames(file.fileno(), 0, SHAPE)


def test_memory_serves_again_when_nobody_looks_at_it_any_more(shared):
    mapped = MappedFrames()
    assert not mapped.in_use
    first = mapped.map(*shared.locate(shared.allocate(SHAPE)), SHAPE)
    part = first[1:, ::2]
    del first
    assert mapped.in_use  # by a part of it
    shared.begin(free=not mapped.in_use)
    shared.allocate(SHAPE)[...] = 1
    assert not part.any()
    del part
    assert not mapped.in_use
    address = shared.allocate(SHAPE).ctypes.data
    shared.begin(free=True)
    assert shared.allocate((2, 4, 5, 3)).ctypes.data == address


def test_memory_that_is_much_too_large_is_given_back(shared):
    shared.allocate((100, 40, 50, 3))
    shared.begin(free=True)
    fd, _ = shared.locate(shared.allocate(SHAPE))
    assert os.fstat(fd).st_size == np.prod(SHAPE)


def test_frames_that_lie_in_used_memory_are_not_copied_onto_themselves(shared):
    shared.allocate(SHAPE)
    shared.begin(free=True)
    written = shared.allocate(SHAPE)
    written[...] = numbers()
    mirrored = written[:, ::-1]
    assert np.array_equal(map_frames(*shared.locate(mirrored), SHAPE), numbers()[:, ::-1])
