"""A stand-in for the engine that gives peers what they need and holds them to their plans."""

from dataclasses import dataclass, field

import torch

from pruning import PruningConfig, VideoGrid, VideoTokens, make_pruner
from tests.pruning.videos import attention_for, layer_between, scenes

ALL_PEERS = ("cdpruner", "divprune", "evs", "fastv", "fastvid", "framefusion", "vidcom2")


@dataclass
class Run:
    """One video on its way: the original rows alive after each stage, the decisions, and the plan now in force."""

    bound: object
    video: VideoTokens
    rows: list = field(default_factory=list)
    kept: list = field(default_factory=list)

    @property
    def plan(self):
        return self.video.plan


def peer(name):
    return make_pruner(PruningConfig(method=name))


def tokens_of(hidden, grid, plan, seed=0, prompt=None, attention=None, is_traced=True):
    """A video at the input, with a prompt and encoder attention that follow from `seed` unless given."""
    generator = torch.Generator().manual_seed(100 + seed)
    dim = hidden.shape[1]
    given = torch.rand(grid.tokens, generator=generator) if attention is None else attention
    words = torch.randn(3, dim, generator=generator).to(hidden.dtype) if prompt is None else prompt
    device = hidden.device
    return VideoTokens(
        grid, plan, hidden, torch.arange(grid.tokens, device=device), seed,
        encoder_attention=given.to(device), prompt=words.to(device), is_traced=is_traced,
    )  # fmt: skip


def prune_one(name, hidden, grid, retention, layers=8, **given):
    """The input stage of one video, with its `Kept`."""
    pruner = peer(name)
    return pruner.prune_input([tokens_of(hidden, grid, pruner.plan(grid, layers, retention), **given)])[0]


def run_all(name, videos, retentions, layers=8, between=layer_between, attention=attention_for):
    """Take `videos` [(hidden, grid)] through input and layers together, as the engine does.

    Stages at the last layer are left out, and so are those that would drop nothing.
    """
    pruner = peer(name)
    runs = []
    for seed, ((hidden, grid), retention) in enumerate(zip(videos, retentions, strict=True)):
        plan = pruner.plan(grid, layers, retention)
        runs.append(Run(plan, tokens_of(hidden, grid, plan, seed)))
    _note(runs, 0, pruner.prune_input([run.video for run in runs]))
    for layer in range(1, layers - 1):
        for run in runs:
            run.video.hidden = between(run.video.hidden, 0, layer)
            run.video.attention = attention(run.video.index, 0, layer)
        due = [
            run
            for run in runs
            if layer in run.plan.layers and run.plan.counts[run.plan.layers.index(layer)] < len(run.video.hidden)
        ]
        for stage in {run.plan.layers.index(layer) for run in due}:
            group = [run for run in due if run.plan.layers.index(layer) == stage]
            _note(group, stage, pruner.prune_layer(stage, [run.video for run in group]))
    return runs


def _note(runs, stage, decisions):
    for run, kept in zip(runs, decisions, strict=True):
        video = run.video
        live = len(video.hidden)
        if kept.plan is not None:
            video.plan = kept.plan
            assert kept.plan.num_tokens == run.bound.num_tokens
            assert kept.plan.num_layers == run.bound.num_layers
            for now, most in zip(kept.plan.attention_tokens(), run.bound.attention_tokens(), strict=True):
                assert now <= most
        assert len(kept.keep) == video.plan.counts[stage]
        check_keep(kept, live, video.hidden)
        video.hidden = video.hidden[kept.keep] if kept.values is None else kept.values
        video.index = video.index[kept.keep]
        video.state = kept.state
        run.rows.append(video.index)
        run.kept.append(kept)


def check_keep(kept, live, hidden):
    """Rows are ascending, unique and in range, values finite, and merges lead to rows that stay."""
    rows = kept.keep.tolist()
    assert kept.keep.dtype == torch.int64
    assert rows == sorted(set(rows))
    assert rows[0] >= 0
    assert rows[-1] < live
    if kept.values is not None:
        assert kept.values.shape == (len(rows), hidden.shape[1])
        assert kept.values.dtype == hidden.dtype
        assert kept.values.isfinite().all()
    if kept.merged_into is not None:
        into = kept.merged_into.tolist()
        assert len(into) == live
        assert all(into[row] == row for row in rows)
        assert set(into) <= {-1, *rows}


DEGENERATE = {
    "scenes": lambda t, p, d: scenes([t], p, d)[0],
    "cuts": lambda t, p, d: scenes([1] * t, p, d)[0],
    "all equal": lambda t, p, d: torch.ones(t * p, d),
    "zeros": lambda t, p, d: torch.zeros(t * p, d),
    "still": lambda t, p, d: scenes([1], p, d)[0].repeat(t, 1),
    "one zero frame": lambda t, p, d: scenes([t], p, d)[0].index_fill(0, torch.arange(p), 0.0),
    "rank one": lambda t, p, d: torch.linspace(-1, 2, t * p)[:, None] * torch.ones(1, d),
    "huge": lambda t, p, d: scenes([t], p, d)[0] * 1e4,
    "tiny": lambda t, p, d: scenes([t], p, d)[0] * 1e-6,
}


def degenerate(kind, frames, positions, dim=12, dtype=torch.float32):
    """[N, d] tokens of a kind and their grid."""
    return DEGENERATE[kind](frames, positions, dim).to(dtype), VideoGrid(frames, positions)
