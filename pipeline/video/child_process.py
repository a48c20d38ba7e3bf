"""A decoding process as the process that started it holds it: start it, watch it, kill it.

It dies with the process that started it, at once and whatever it does: it holds the reading end of a pipe
whose closing makes the kernel send it SIGKILL, and only its starter holds the writing end. (The signal that
Linux sends at a parent's death comes when the *thread* ends that started the child, too early where threads
come and go.)
"""

from __future__ import annotations

import os
import resource
import signal
import socket
import subprocess
import sys
import time
import weakref
from collections.abc import Sequence
from pathlib import Path

from pipeline.video.messages import Channel, Message
from pipeline.video.shared_frames import MappedFrames

_INHERITED = ("PATH", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "TZ", "TMPDIR")  # no credentials cross over
_SEND_S = 30.0  # a message is small: a process that takes none for so long will never
_DYING_S = 10.0  # how long a killed process may hang in the kernel before nobody waits for it any more

_alive: weakref.WeakSet[ChildProcess] = weakref.WeakSet()


class ChildProcess:
    """One running decoding process. Call `kill` in the end."""

    def __init__(self, module: str, memory_mb: int) -> None:
        """Start `python -m module`, `pipeline.video.child` or one of its kind. Raises OSError."""
        ours, theirs = socket.socketpair()
        ours.settimeout(_SEND_S)
        watched, held = os.pipe()
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", module, str(theirs.fileno()), str(watched), str(memory_mb)],
                # It prints to nobody: a flood fills no pipe and no log.
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(), watched),
                env=_environment(),
                cwd="/",
                start_new_session=True,  # an interrupt from the keyboard is its starter's matter
            )
        except BaseException:
            ours.close()
            os.close(held)
            raise
        finally:
            theirs.close()
            os.close(watched)
        self._channel = Channel(ours)
        self._held = os.fdopen(held, "wb", 0)  # an object: it is closed also when nobody calls `kill`
        self.frames = MappedFrames()
        self._has_ended = False
        self.usage: resource.struct_rusage | None = None
        """What it used in its life: known when it is dead, if at all."""
        self.peak_mb = 0.0
        """The most memory, in MiB, that it was seen to occupy or to have been given by the kernel."""
        _alive.add(self)

    def send(self, message: Message, files: Sequence[int] = ()) -> None:
        """As `Channel.send`."""
        self._channel.send(message, files)

    def receive(self, timeout_s: float) -> Message:
        """As `Channel.receive`."""
        return self._channel.receive(timeout_s)

    def take_file(self) -> int:
        """As `Channel.take_file`."""
        return self._channel.take_file()

    def memory_mb(self) -> float:
        """What it occupies in MiB, shared frames included and mapped program files not; 0 when it is dead."""
        if self._has_ended:
            return 0.0
        try:
            lines = Path(f"/proc/{self._process.pid}/status").read_text().splitlines()
        except OSError:
            return 0.0
        fields = dict(line.split(":", 1) for line in lines)
        kilobytes = {name: int(fields[name].split()[0]) for name in ("RssAnon", "RssShmem", "VmData") if name in fields}
        given_mb = kilobytes.pop("VmData", 0) / 1024
        memory_mb = sum(kilobytes.values()) / 1024
        self.peak_mb = max(self.peak_mb, memory_mb, given_mb)
        return memory_mb

    def has_ended(self) -> bool:
        """Whether it is dead, of whatever."""
        if not self._has_ended:
            try:
                # Popen's own ways to look would lose what it used.
                pid, status, usage = os.wait4(self._process.pid, os.WNOHANG)
            except ChildProcessError:  # somebody who waits for any child was faster
                self._has_ended = True
            else:
                if pid:
                    self._process.returncode, self.usage = os.waitstatus_to_exitcode(status), usage
                    self._has_ended = True
        return self._has_ended

    def kill(self) -> str:
        """End it, if it still runs; returns how it ended, as "SIGSEGV" or "status 1". Can be called again."""
        if not self.has_ended():
            os.kill(self._process.pid, signal.SIGKILL)
            until = time.monotonic() + _DYING_S
            while not self.has_ended() and time.monotonic() < until:
                time.sleep(0.002)
        self._close()
        return _ending(self._process.returncode)

    def forget(self) -> None:
        """In a fork of the starter: close this copy of the files, or the process would outlive its starter."""
        self._has_ended = True  # as far as the fork is concerned, whose child it is not
        self._process.returncode = 0
        self._close()

    def _close(self) -> None:
        self._channel.close()
        self._held.close()
        _alive.discard(self)


def _ending(status: int | None) -> str:
    if status is None:
        return "an unknown status"
    if status >= 0:
        return f"status {status}"
    known = {number.value: number.name for number in signal.Signals}
    return known.get(-status, f"signal {-status}")


def _environment() -> dict[str, str]:
    environment = {name: os.environ[name] for name in _INHERITED if name in os.environ}
    # One decoder a core: threads of its own would fight for it, those of the libraries with arrays too.
    environment |= {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "OPENBLAS_NUM_THREADS": "1"}
    return environment | {"PYTHONPATH": os.pathsep.join(str(Path(place).absolute()) for place in sys.path)}


def _forget_all() -> None:
    for process in list(_alive):
        process.forget()


os.register_at_fork(after_in_child=_forget_all)
