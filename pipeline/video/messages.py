"""What a reader and its decoding process say to each other: JSON over a Unix socket, open files beside it.

Reader to process: `prepare` (import what jobs need, ahead of the first), `read` (a job), `have` (ranges that are at
hand now), `lost` (they cannot be fetched), `go` (decoding may begin). Process to reader: `begun` (all is imported:
the clock starts), `need` (byte ranges), `planned` (the frames are chosen, may decoding begin?), `decoder` (which one
is at work now), `done` (with a file of the frames) and `error`. A message is its length in 4 bytes, the most
significant first, then the JSON.
"""

from __future__ import annotations

import array
import json
import os
import select
import socket
import time
from collections import deque
from collections.abc import Sequence
from typing import Any

Message = dict[str, Any]

_LENGTH = 4  # bytes
_MOST_BYTES = 16 * 1024 * 1024  # of one message: a process that was taken over cannot fill the reader's memory
_ROOM_FOR_FILES = socket.CMSG_LEN(4 * array.array("i").itemsize)  # that arrive at once; more are dropped


class Channel:
    """One end of the socket. Files that were received and never taken are closed with it."""

    def __init__(self, connection: socket.socket) -> None:
        """Own `connection`, a Unix stream socket; its timeout bounds `send`."""
        self._socket = connection
        self._poll = select.poll()
        self._poll.register(connection, select.POLLIN)
        self._bytes = bytearray()
        self._files: deque[int] = deque()

    def send(self, message: Message, files: Sequence[int] = ()) -> None:
        """Send a message and copies of open files. Raises OSError when the other side is gone or does not read."""
        text = json.dumps(message).encode()
        data = len(text).to_bytes(_LENGTH, "big") + text
        sent = socket.send_fds(self._socket, [data], list(files)) if files else 0
        self._socket.sendall(data[sent:])

    def receive(self, timeout_s: float | None = None) -> Message:
        """The next message. Raises TimeoutError when it is not complete in time, EOFError at the end, ValueError."""
        until = None if timeout_s is None else time.monotonic() + timeout_s
        while (message := self._complete()) is None:
            if not self._poll.poll(None if until is None else max(0.0, until - time.monotonic()) * 1e3):
                raise TimeoutError("no message yet")
            try:
                # Not recv_fds: in Python 3.11 it takes flags and ignores them, and the files would be inherited.
                data, ancillary, _, _ = self._socket.recvmsg(65536, _ROOM_FOR_FILES, socket.MSG_CMSG_CLOEXEC)
            except ConnectionError as error:
                raise EOFError("the other side is gone") from error
            for _, _, numbers in ancillary:
                self._files.extend(array.array("i", numbers))
            if not data:
                raise EOFError("the other side is gone")
            self._bytes += data
        return message

    def _complete(self) -> Message | None:
        if len(self._bytes) < _LENGTH:
            return None
        length = int.from_bytes(self._bytes[:_LENGTH], "big")
        if not 0 < length <= _MOST_BYTES:
            raise ValueError(f"a message of {length} bytes")
        end = _LENGTH + length
        if len(self._bytes) < end:
            return None
        message = json.loads(self._bytes[_LENGTH:end])
        del self._bytes[:end]
        if not isinstance(message, dict):
            raise ValueError("a message that is no object")
        return message

    def take_file(self) -> int:
        """The descriptor that came with the last message; the caller closes it. Raises ValueError without one."""
        if not self._files:
            raise ValueError("a message without its file")
        return self._files.popleft()

    def close(self) -> None:
        """Close the socket and what nobody took."""
        self._socket.close()
        while self._files:
            os.close(self._files.popleft())
