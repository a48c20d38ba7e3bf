"""Continuous batching: sequences are prefilled in packs, decode together, and leave and join at any step."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from collections.abc import Sequence as Several
from dataclasses import dataclass
from itertools import chain

import torch

from pipeline.engine.decode import DecodeStep, next_tokens
from pipeline.engine.encoded import EncodedVideo
from pipeline.engine.encoding import VideoEncoder
from pipeline.engine.failures import Failed, failed_alone
from pipeline.engine.families import Family
from pipeline.engine.kv_cache import KVCache
from pipeline.engine.memory import MemoryPlan, PeakMemory, is_out_of_memory, release
from pipeline.engine.packing import Room, in_line, next_pack
from pipeline.engine.prefill import Prefill
from pipeline.engine.prefix import PrefixStore
from pipeline.engine.sequence import Sequence
from pipeline.engine.stopwatch import Stopwatch
from pipeline.engine.window import Window
from pruning import Pruner

_MAX_ROWS = 64  # of a decode step
_MAX_SLABS = 8  # beyond, only packs that are worth it join: each slab costs every step some calls
_IDLE_S = 0.002


@dataclass(eq=False)
class Slab:
    """Sequences that were prefilled together, in the order of their cache's rows."""

    cache: KVCache
    sequences: list[Sequence]

    def drop(self, row: int) -> None:
        """Take a sequence out; the last one moves into its row."""
        self.cache.drop(row)
        self.sequences[row] = self.sequences[-1]
        self.sequences.pop()

    def halves(self) -> tuple[list[Slab], list[Slab]]:
        """Two slabs over the same memory."""
        first, second = self.cache.halves()
        return [Slab(first, self.sequences[: first.rows])], [Slab(second, self.sequences[first.rows :])]


class Scheduler:
    """One call's sequences on their way through the engine.

    The loop: let in what has come, prefill if somebody waits and there is room, then one decode step
    over all that run; whoever finishes leaves.
    """

    def __init__(
        self,
        family: Family,
        pruner: Pruner,
        memory: MemoryPlan,
        step: DecodeStep,
        source: Iterator[Sequence | Failed | None] | None = None,
    ) -> None:
        """`source`, if there is one, gives sequences, refusals to pass on, and None where it has nothing just now."""
        self._family = family
        self._pruner = pruner
        self._memory = memory
        self._step = step
        self._window = Window(iter(()) if source is None else source, memory.prefill_tokens)
        self._encoder = VideoEncoder(family, pruner.needs.encoder_attention, memory.patches)
        self._prefixes = PrefixStore(pruner)
        self._watch = Stopwatch(family.decoder.device)
        self._peak = PeakMemory(family.decoder.device)
        self._waiting: list[Sequence] = []  # in line
        self._slabs: list[Slab] = []  # running
        self._logits: torch.Tensor | None = None  # float32 [B, vocabulary] of the running rows, slab by slab
        self._may_join = False  # something has changed since nobody could
        self._rows_at_once = _MAX_ROWS  # of one decode step, fewer once memory was short

    def enter(self, sequences: Iterable[Sequence]) -> None:
        """Put sequences in line."""
        self._waiting = in_line([*self._waiting, *sequences])
        self._may_join = True

    @torch.inference_mode()
    def run(self) -> Iterator[Sequence | Failed]:
        """Yield sequences as they finish, and failures."""
        while True:
            if arrived := self._window.pull(self._waiting):
                yield from (failed for failed in arrived if isinstance(failed, Failed))
                self.enter(sequence for sequence in arrived if isinstance(sequence, Sequence))
            if pack := self._next_pack():
                yield from self._prefill(pack)
            if self._slabs:
                yield from self._decode()
            elif not self._waiting:
                if not self._window.is_open:
                    return
                time.sleep(_IDLE_S)

    def _next_pack(self) -> list[Sequence]:
        """Those who join now, none if they had better wait for more room or more company."""
        if not self._waiting or not self._may_join:
            return []
        self._may_join = False
        decoder = self._family.decoder
        running = sum(slab.cache.rows for slab in self._slabs)
        in_use = sum(slab.cache.bytes for slab in self._slabs) + self._prefixes.bytes
        room = Room(_MAX_ROWS - running, self._memory.prefill_tokens, self._memory.kv_bytes - in_use)
        pack = next_pack(self._waiting, room, decoder.shape, decoder.dtype.itemsize)
        if not running:
            return pack or self._waiting[:1]
        if not pack or pack[0].is_to_run_alone:
            return []
        is_large = 4 * len(pack) >= running or 2 * sum(s.packed_tokens for s in pack) >= room.tokens
        are_all = len(pack) == len(self._waiting) and len(self._slabs) < _MAX_SLABS
        return pack if is_large or are_all else []

    def _prefill(self, pack: list[Sequence]) -> Iterator[Failed]:
        """Let a pack run; one that fails is tried again in halves, so that a sequence fails by itself."""
        self._waiting = self._waiting[len(pack) :]
        packs = [pack]
        while packs:
            pack = packs.pop(0)
            behind = [*chain.from_iterable(packs), *self._waiting]
            error = self._try_prefill(pack, behind)
            self._may_join = True
            if error is None:
                continue
            for sequence in pack:
                sequence.restart()
            is_memory = is_out_of_memory(error)
            is_final = len(pack) == 1 and not (is_memory and self._slabs)
            if is_final:
                yield failed_alone(pack[0], error)
                self._encoder.retain(behind)
            error = None  # its traceback holds what the attempt had in memory
            if is_memory:
                self._prefixes.clear()
                release(self._family.decoder.device)
            if len(pack) > 1:
                middle = (len(pack) + 1) // 2
                packs[:0] = [pack[:middle], pack[middle:]]
            elif not is_final:
                pack[0].is_to_run_alone = True
                self.enter(pack)

    def _try_prefill(self, pack: list[Sequence], behind: list[Sequence]) -> Exception | None:
        """Encode and prefill a pack, `behind` which others wait; returns what went wrong."""
        try:
            videos = self._encoder.encode(pack, behind)
            self._prefixes.retain(sequence for sequence in behind if sequence.video in self._encoder)
            self._encoder.retain(behind)  # its pack's own are in `videos` alone now
            cache, logits = prefill(self._family, self._pruner, pack, videos, self._prefixes)
            self._logits = logits if self._logits is None else torch.cat((self._logits, logits))
        except Exception as error:
            return error
        self._slabs.append(Slab(cache, list(pack)))
        for sequence in pack:
            sequence.release_frames()
        return None

    def _decode(self) -> Iterator[Sequence | Failed]:
        """Give each running sequence its next token, and let go of those that it finishes."""
        self._watch.lap()
        sequences = [sequence for slab in self._slabs for sequence in slab.sequences]
        tokens = iter(self._choose(sequences, self._logits))
        leaving: list[Sequence | Failed] = []
        for slab in self._slabs:
            left = {row: self._append(sequence, next(tokens)) for row, sequence in enumerate(slab.sequences)}
            for row in reversed([row for row, outcome in left.items() if outcome is not None]):
                leaving.append(left[row])
                slab.drop(row)
        self._slabs, logits, failed = self._advance([slab for slab in self._slabs if slab.sequences])
        self._logits = logits
        elapsed = self._watch.lap() / len(sequences)
        for sequence in sequences:
            sequence.generate_ms += elapsed
        leaving += failed
        if leaving:
            self._may_join = True
            peak = self._peak.peak_bytes()
            for sequence in leaving:
                if isinstance(sequence, Sequence):
                    sequence.peak_memory_mb = None if peak is None else peak / 2**20
        yield from sorted(leaving, key=lambda left: left.number)

    def _choose(self, sequences: list[Sequence], logits: torch.Tensor) -> list[int | Failed]:
        """Everybody's next token; a choice that fails is made in halves, so that a sequence fails by itself."""
        try:
            return [*next_tokens(sequences, logits)]
        except Exception as error:
            if len(sequences) == 1:
                return [failed_alone(sequences[0], error)]
            is_memory = is_out_of_memory(error)
        if is_memory:
            release(self._family.decoder.device)
        middle = len(sequences) // 2
        halves = (slice(0, middle), slice(middle, None))
        return [token for half in halves for token in self._choose(sequences[half], logits[half])]

    def _append(self, sequence: Sequence, token: int | Failed) -> Sequence | Failed | None:
        """Append a token; returns the sequence if that finishes it, or its failure."""
        if isinstance(token, Failed):
            return token
        try:
            sequence.append(token, self._family.is_end(token))
        except Exception as error:
            return Failed(sequence.number, error)
        return sequence if sequence.is_finished else None

    def _advance(self, slabs: list[Slab]) -> tuple[list[Slab], torch.Tensor | None, list[Failed]]:
        """One decode step; one that fails is done in halves. Returns who goes on, their logits, who does not."""
        sequences = [sequence for slab in slabs for sequence in slab.sequences]
        if not sequences:
            return [], None, []
        if len(sequences) <= self._rows_at_once:
            try:
                return slabs, self._take_step(slabs, sequences), []
            except Exception as error:
                if len(sequences) == 1:
                    return [], None, [failed_alone(sequences[0], error)]
                is_memory = is_out_of_memory(error)
            if is_memory:
                self._rows_at_once = (len(sequences) + 1) // 2
                release(self._family.decoder.device)
        middle = len(slabs) // 2
        halves = (slabs[:middle], slabs[middle:]) if middle else slabs[0].halves()
        going, rows, failed = [], [], []
        for half in halves:
            alive, logits, lost = self._advance(half)
            going += alive
            failed += lost
            if logits is not None:
                rows.append(logits)
        return going, torch.cat(rows) if rows else None, failed

    def _take_step(self, slabs: list[Slab], sequences: list[Sequence]) -> torch.Tensor:
        logits = self._step(
            [slab.cache for slab in slabs],
            [sequence.token_ids[-1] for sequence in sequences],
            [sequence.next_position for sequence in sequences],
        )
        for sequence in sequences:
            sequence.next_position += 1
        return logits


def prefill(
    family: Family, pruner: Pruner, pack: Several[Sequence], videos: list[EncodedVideo], prefixes: PrefixStore
) -> tuple[KVCache, torch.Tensor]:
    """Run a pack's prompts; returns their cache and the logits float32 [B, vocabulary] of their first tokens."""
    decoder = family.decoder
    lengths = [sequence.cached_tokens for sequence in pack]
    rooms = [sequence.request.max_new_tokens for sequence in pack]
    cache = KVCache(decoder.shape, lengths, rooms, decoder.dtype, decoder.device)
    logits = Prefill(family, pruner, list(pack), cache, 0, prefixes).run(videos)
    if any(sequence.is_revised for sequence in pack):
        cache.shorten([sequence.cached_tokens for sequence in pack])
    return cache, logits
