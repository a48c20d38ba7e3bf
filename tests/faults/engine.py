"""A model that takes a known time for each answer, always gives the same one, and writes down what it was asked."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, replace

from tests.jobs.engines import FakeEngine, answer_to


@dataclass
class JournalEngine(FakeEngine):
    """Appends the prompt of each answer that it gives to the file `journal`, one a line, after `seconds`."""

    journal: str = ""
    seconds: float = 0.0

    def answer_one(self, place, request):
        time.sleep(self.seconds)
        line = os.open(self.journal, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        try:
            os.write(line, f"{request.prompt}\n".encode())  # one write: several engines share the file
        finally:
            os.close(line)
        return replace(answer_to(request), number=place)
