"""What several prompts on one video have in common, computed once: their sequences up to the end of the video."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from collections.abc import Sequence as Several
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch

from pipeline.engine.decisions import Decision
from pipeline.engine.decoder import Rope
from pipeline.engine.sequence import Sequence
from pruning import Pruner, StagePlan


class PrefixKey(NamedTuple):
    """Sequences of equal keys are the same up to the end of the video, and so is what a pruner decides there."""

    video: str
    plan: StagePlan  # of the admission
    seed: int
    before: tuple[int, ...]
    is_traced: bool


class Live(NamedTuple):
    """The live tokens of a prefix where the sequences part: after a layer's attention, before the stage in it.

    `hidden` [before + video, d] with its rotary tables; `index` int64 [video], the places of the video
    tokens among the original N; `state`, what the pruner remembers.
    """

    hidden: torch.Tensor
    rope: Rope
    index: torch.Tensor
    state: Any


@dataclass(eq=False)
class Prefix:
    """A text of `before` tokens and the video behind it, prefilled as far as no prompt has a say in it.

    That is to the layer of the first stage that looks at the prompt's attention, this attention
    included, or through all layers if there is no such stage. `keys` and `values` hold
    [before + video, KV heads, head size] for each of these layers, the video as long as it is there.
    `end` is None behind the last layer. `decisions` are those of the stages so far.
    """

    before: int
    keys: list[torch.Tensor] = field(default_factory=list)
    values: list[torch.Tensor] = field(default_factory=list)
    decisions: list[Decision] = field(default_factory=list)
    end: Live | None = None

    def note(self, decision: Decision) -> None:
        """Remember a decision for those who come later; they need neither values nor state."""
        self.decisions.append(decision._replace(kept=replace(decision.kept, values=None, state=None)))

    def cache(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Add the next layer's."""
        self.keys.append(keys)
        self.values.append(values)

    def ends_in(self, layer: int) -> bool:
        """Whether the sequences part after this layer's attention."""
        return self.end is not None and layer == len(self.keys) - 1

    @property
    def bytes(self) -> int:
        """Memory that it holds, but for indices."""
        tensors = [*self.keys, *self.values]
        if self.end is not None:
            tensors += [self.end.hidden, *self.end.rope]
        return sum(tensor.nbytes for tensor in tensors)


class PrefixStore:
    """The prefixes of one call, each as long as sequences wait for it.

    Whoever schedules says before each prefill which sequences will still wait after it (`retain`);
    prefill takes from here what it can use, and leaves what is worth keeping.
    """

    def __init__(self, pruner: Pruner) -> None:
        """`pruner` is the one of the call: it says whether prompts can share anything."""
        self._can_share = not pruner.needs.prompt
        self._wanted: set[PrefixKey] = set()
        self._prefixes: dict[PrefixKey, Prefix] = {}

    def retain(self, waiting: Iterable[Sequence]) -> None:
        """From the next prefill on, keep only prefixes that one of the `waiting` sequences can use."""
        self._wanted = {key for sequence in waiting if (key := self._key(sequence)) is not None}

    def clear(self) -> None:
        """Free all prefixes, for want of memory; they are computed anew where they are needed."""
        self._prefixes = {}

    @property
    def bytes(self) -> int:
        """Memory that the stored prefixes hold."""
        return sum(prefix.bytes for prefix in self._prefixes.values())

    def take(self, pack: Several[Sequence]) -> tuple[list[PrefixKey | None], dict[PrefixKey, Prefix]]:
        """Which prefix each sequence of a pack shares with another, here, before or after, and those that are stored.

        A sequence that shares nothing has None. What nobody waits for any more is freed here.
        """
        keys = [self._key(sequence) for sequence in pack]
        users = Counter(keys)
        known = self._wanted | self._prefixes.keys()
        stored = {key: prefix for key, prefix in self._prefixes.items() if key in users}
        self._prefixes = {key: prefix for key, prefix in self._prefixes.items() if key in self._wanted}
        return [key if users[key] > 1 or key in known else None for key in keys], stored

    def keep(self, key: PrefixKey, prefix: Prefix) -> None:
        """Store a prefix if one of the waiting sequences can use it."""
        if key in self._wanted:
            self._prefixes[key] = prefix

    def _key(self, sequence: Sequence) -> PrefixKey | None:
        if not self._can_share:
            return None
        before = tuple(sequence.prompt.before)
        return PrefixKey(sequence.video, sequence.plan, sequence.request.seed, before, sequence.tracer is not None)
