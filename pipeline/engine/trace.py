"""What became of each video token on its way through the pruning stages."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from pruning import Kept, VideoGrid


@dataclass(frozen=True, eq=False)
class TokenTrace:
    """The fate of a video's N tokens; all arrays are int64 [N], in the tokens' original order.

    `frame`, `row` and `column` say where a token lies (row 0 where the positions form no rectangle),
    `segment` in which of the method's segments, −1 if it has none. `alive_until` is the first layer
    whose MLP the token does not enter, `num_layers` if it survives. `merged_into` is the token in
    which a merged one lives on, at the end of its chain, and the token itself if it never merged: a
    token with `alive_until` below `num_layers` that points at itself was dropped. `stage_layers` are
    the layers at which the plan's stages start.
    """

    grid: VideoGrid
    num_layers: int
    stage_layers: tuple[int, ...]
    frame: np.ndarray
    row: np.ndarray
    column: np.ndarray
    segment: np.ndarray
    alive_until: np.ndarray
    merged_into: np.ndarray


class Tracer:
    """Writes a trace while one sequence is prefilled, stage by stage."""

    def __init__(self, grid: VideoGrid, num_layers: int) -> None:
        """At first every token survives."""
        self._grid = grid
        self._num_layers = num_layers
        self._alive_until = np.full(grid.tokens, num_layers, dtype=np.int64)
        self._merged_into = np.arange(grid.tokens, dtype=np.int64)
        self._segment_starts: tuple[int, ...] | None = None

    def note(self, layer: int, index: torch.Tensor, decision: Kept) -> None:
        """A stage at `layer` met the tokens `index` (int64 [n], places among the N) and decided.

        Raises RuntimeError if a row merges into one that does not stay, or a kept one into another.
        """
        places = index.cpu().numpy()
        keep = decision.keep.cpu().numpy()
        is_gone = np.ones(len(places), dtype=bool)
        is_gone[keep] = False
        self._alive_until[places[is_gone]] = layer
        if decision.segment_starts is not None:
            self._segment_starts = tuple(decision.segment_starts)
        if decision.merged_into is None:
            return
        into = decision.merged_into.cpu().numpy()
        merges = (into >= 0) & is_gone
        if len(into) != len(places) or (into[keep] != keep).any() or is_gone[into[merges]].any():
            raise RuntimeError(
                f"merged_into at layer {layer} must lead from each row that left to one that stays, or to −1"
            )
        target = np.arange(self._grid.tokens)
        target[places[merges]] = places[into[merges]]
        self._merged_into = target[self._merged_into]

    def finish(self, stage_layers: tuple[int, ...]) -> TokenTrace:
        """The trace, once the plan's last stage has decided."""
        grid = self._grid
        frame, position = np.divmod(np.arange(grid.tokens), grid.positions)
        row, column = np.divmod(position, grid.columns or grid.positions)
        segment = np.full(grid.tokens, -1, dtype=np.int64)
        if self._segment_starts is not None:
            segment = np.searchsorted(np.array(self._segment_starts), frame, side="right") - 1
        return TokenTrace(
            grid=grid,
            num_layers=self._num_layers,
            stage_layers=stage_layers,
            frame=frame,
            row=row,
            column=column,
            segment=segment,
            alive_until=self._alive_until,
            merged_into=self._merged_into,
        )
