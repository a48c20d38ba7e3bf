"""Random videos, and a stand-in for the engine that takes them through all stages."""

import torch

from pruning import VideoGrid, VideoTokens


def scenes(lengths, positions, dim=16, noise=0.3, seed=0, constants=()):
    """[N, d] tokens of a video of still scenes of `lengths` frames with noise, and its grid."""
    generator = torch.Generator().manual_seed(seed)
    frames = []
    for length in lengths:
        scene = torch.randn(1, positions, dim, generator=generator)
        frames.append(scene + noise * torch.randn(length, positions, dim, generator=generator))
    tokens = torch.cat(frames)
    newline = torch.randn(dim, generator=generator)
    tokens[:, list(constants)] = newline
    return tokens.reshape(-1, dim), VideoGrid(sum(lengths), positions, tuple(constants))


def attention_for(index, seed, stage):
    """Attention that depends on a token's place only, so that it is the same in any batch."""
    generator = torch.Generator().manual_seed(1000 * seed + stage)
    return torch.rand(int(index.max()) + 1, generator=generator).square().to(index.device)[index]


def layer_between(hidden, seed, stage):
    """What decoder layers do to tokens: a fixed smooth map, token by token."""
    generator = torch.Generator().manual_seed(1000 * seed + stage)
    weight = torch.randn(hidden.shape[1], hidden.shape[1], generator=generator) / hidden.shape[1] ** 0.5
    return (hidden.float() + torch.tanh(hidden.float() @ weight.to(hidden.device))).to(hidden.dtype)


def run_stages(pruner, videos, retentions, num_layers=8, attention=attention_for, is_traced=False):
    """Take `videos` [(hidden, grid)] through all stages together.

    Returns for each video the original rows that live after each stage, and the `Kept` of each stage.
    """
    live = []
    for seed, ((hidden, grid), retention) in enumerate(zip(videos, retentions, strict=True)):
        plan = pruner.plan(grid, num_layers, retention)
        index = torch.arange(grid.tokens, device=hidden.device)
        live.append(VideoTokens(grid, plan, hidden, index, seed=seed, is_traced=is_traced))
    rows, history = [[] for _ in live], [[] for _ in live]
    for stage in range(len(live[0].plan.layers)):
        if stage:
            for video in live:
                video.hidden = layer_between(video.hidden, 0, stage)
                video.attention = attention(video.index, 0, stage)
        kept = pruner.prune_layer(stage, live) if stage else pruner.prune_input(live)
        for i, (video, decision) in enumerate(zip(live, kept, strict=True)):
            video.hidden = video.hidden[decision.keep] if decision.values is None else decision.values
            video.index = video.index[decision.keep]
            video.state = decision.state
            rows[i].append(video.index)
            history[i].append(decision)
    return rows, history
