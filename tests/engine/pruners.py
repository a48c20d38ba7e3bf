"""Pruners of the tests' own, each with one habit that a real method may have."""

from pruning import Kept, Needs, StagePlan


class EvenPruner:
    """Keeps evenly spaced tokens at the layers and counts of a plan that the test chose."""

    name = "even"

    def __init__(self, layers=(0, 2, 3), shares=(0.8, 0.5, 0.2), needs=None):
        self.needs = needs or Needs()
        self.layers, self.shares = layers, shares
        self.seen = []  # all that was shown, in order

    def plan(self, grid, num_layers, retention):
        counts = tuple(max(1, int(grid.tokens * share)) for share in self.shares)
        return StagePlan(grid.tokens, num_layers, self.layers, counts)

    def prune_input(self, videos):
        return self.prune_layer(0, videos)

    def prune_layer(self, stage, videos):
        self.seen += videos
        return [self.decide(stage, video) for video in videos]

    def decide(self, stage, video):
        return Kept(self.spread(video, video.plan.counts[stage]))

    def spread(self, video, count):
        """Every n/count-th row."""
        rows = video.index.new_tensor([i * len(video.index) // count for i in range(count)])
        assert len(rows.unique()) == count
        return rows
