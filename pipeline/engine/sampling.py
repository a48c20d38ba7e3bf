"""The next token from logits: the most likely one, or drawn with a sequence's own random numbers."""

from __future__ import annotations

from collections.abc import Sequence

import torch

_NUMBERS_AT_ONCE = 2**22  # of the sorted distributions, float64: some 32 MiB for each of a handful of tensors


class Sampler:
    """How one sequence picks its tokens; `temperature` 0 is greedy."""

    def __init__(self, temperature: float, top_p: float, seed: int) -> None:
        """Random numbers come from the host, one stream a sequence: neither device nor batch change them."""
        self.temperature = temperature
        self.top_p = top_p
        self._generator = torch.Generator().manual_seed(seed)
        self._drawn: float | None = None

    def draw(self) -> float:
        """A uniform number in [0, 1), the same one until it is spent: a choice that fails may be made again."""
        if self._drawn is None:
            self._drawn = float(torch.rand((), generator=self._generator, dtype=torch.float64))
        return self._drawn

    def spend(self) -> None:
        """The number has chosen a token."""
        self._drawn = None


def choose_tokens(logits: torch.Tensor, samplers: Sequence[Sampler]) -> list[int]:
    """One token id a row of `logits`, float32 [B, vocabulary]; if it fails, no random number is spent.

    Raises ValueError if a row is not made of numbers.
    """
    largest, tokens = logits.max(dim=-1)
    drawn = [row for row, sampler in enumerate(samplers) if sampler.temperature > 0]
    at_once = max(1, _NUMBERS_AT_ONCE // logits.shape[1])
    for first in range(0, len(drawn), at_once):
        rows = drawn[first : first + at_once]
        where = torch.tensor(rows, device=logits.device)
        tokens[where] = _sample(logits[where], [samplers[row] for row in rows])
    chosen = tokens.masked_fill_(largest.isnan(), -1).tolist()
    if chosen and min(chosen) < 0:
        raise ValueError("the model's logits are not numbers: an input or an overflow has spoilt them")
    for row in drawn:
        samplers[row].spend()
    return chosen


def _sample(logits: torch.Tensor, samplers: Sequence[Sampler]) -> torch.Tensor:
    """Draw from the top-p part of each row's distribution by inverting its cumulated probabilities."""

    def column(values: list[float]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.float64, device=logits.device)[:, None]

    # Below its largest each row is finite or minus infinity, however small the temperature.
    below = logits.double() - logits.amax(dim=-1, keepdim=True)
    scaled = below / column([s.temperature for s in samplers])
    probabilities, order = scaled.softmax(dim=-1).sort(dim=-1, descending=True, stable=True)
    reached = probabilities.cumsum(dim=-1)
    # A token belongs to the top-p set if those before it do not reach top_p yet; the first always does.
    inside = (reached - probabilities) < column([s.top_p for s in samplers])
    reached = torch.where(inside, reached, 1.0)
    mass = torch.where(inside, probabilities, 0.0).sum(dim=-1, keepdim=True)
    target = column([s.draw() for s in samplers]) * mass
    index = torch.searchsorted(reached, target, right=True)
    # logits that are no numbers leave nothing inside
    index = torch.minimum(index, inside.sum(dim=-1, keepdim=True) - 1).clamp_(min=0)
    return order.gather(1, index)[:, 0]
