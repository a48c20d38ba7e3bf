"""H.264 streams that are refreshed a strip at a time (ITU-T H.264, D.2.8).

FFmpeg and the indices of files call the frames at which such a refresh begins keyframes, but pictures decoded
from there are damaged until it is complete.
"""

from __future__ import annotations

from collections.abc import Iterator

HEAD = 4096  # bytes of a packet that hold its parameter sets and messages, and the begin of its first slice
_SLICE, _IDR_SLICE, _MESSAGES = 1, 5, 6
_RECOVERY_POINT = 6


def length_bytes(extradata: bytes | None) -> int:
    """How many bytes before each unit of a packet hold its length; 0 where start codes part them (Annex B)."""
    return (extradata[4] & 3) + 1 if extradata and len(extradata) > 4 and extradata[0] == 1 else 0


def begins_refresh(packet: bytes, length_bytes: int) -> bool:
    """Whether frames after this packet, of which the first HEAD bytes do, are needed to complete the picture."""
    units = _parted_by_lengths(packet, length_bytes) if length_bytes else _parted_by_start_codes(packet)
    for unit in units:
        kind = unit[0] & 31
        if kind == _MESSAGES:
            frames = _frames_to_recover(unit[1:].replace(b"\0\0\3", b"\0\0"))
            if frames is not None:
                return frames > 0
        elif kind in (_SLICE, _IDR_SLICE):
            return False
    return False


def _parted_by_lengths(packet: bytes, length_bytes: int) -> Iterator[bytes]:
    at = 0
    while at + length_bytes < len(packet):
        length = int.from_bytes(packet[at : at + length_bytes], "big")
        at += length_bytes
        if length:
            yield packet[at : at + length]
        at += length


def _parted_by_start_codes(packet: bytes) -> Iterator[bytes]:
    return (unit for unit in packet.split(b"\0\0\1")[1:] if unit)


def _frames_to_recover(messages: bytes) -> int | None:
    """`recovery_frame_cnt` of the recovery point among the messages of a unit; None where there is none."""
    at = 0
    while at + 2 < len(messages):
        numbers = []
        for _ in range(2):  # the kind of a message, and its length: each a run of 255s and a rest
            number = 0
            while at < len(messages) and messages[at] == 255:
                number, at = number + 255, at + 1
            numbers.append(number + messages[at] if at < len(messages) else 0)
            at += 1
        kind, length = numbers
        if kind == _RECOVERY_POINT:
            return _exp_golomb(messages[at : at + length])
        at += length
    return None


def _exp_golomb(data: bytes) -> int:
    bits = "".join(f"{byte:08b}" for byte in data[:8])
    zeros = len(bits) - len(bits.lstrip("0"))
    return int(bits[zeros : 2 * zeros + 1] or "1", 2) - 1
