"""HieraVid in plain Python numbers, token by token: slow, and written from the definitions alone."""

import math


def cosine(a, b):
    norms = math.sqrt(math.fsum(x * x for x in a)) * math.sqrt(math.fsum(x * x for x in b))
    return math.fsum(x * y for x, y in zip(a, b, strict=True)) / norms if norms > 0 else 0.0


def mean(vectors):
    return [math.fsum(column) / len(vectors) for column in zip(*vectors, strict=True)]


def segment_starts(tokens, frames, positions, constants=(), tau=0.6, beta=0.4, segments=None):
    picture = [p for p in range(positions) if p not in constants]
    ratios = {}
    for t in range(1, frames):
        alike = [p for p in picture if cosine(tokens[t * positions + p], tokens[(t - 1) * positions + p]) > tau]
        ratios[t] = len(alike) / len(picture)
    if segments is not None:
        return sorted([0, *sorted(ratios, key=lambda t: (ratios[t], t))[: segments - 1]])
    return [0, *(t for t in ratios if ratios[t] < beta)]


def segment_of_frame(starts, frames):
    return [sum(start <= t for start in starts) - 1 for t in range(frames)]


def marginal_values(tokens, frames, positions, constants, starts):
    owner = segment_of_frame(starts, frames)
    f = [
        mean(
            [
                tokens[t * positions + p]
                for t in range(frames)
                if owner[t] == i
                for p in range(positions)
                if p not in constants
            ]
        )
        for i in range(len(starts))
    ]
    values = []
    for i in range(len(f)):
        first = 0.5 * cosine(f[i], mean(f[:i])) if i > 0 else 0.0
        second = 0.5 * (1 - cosine(f[i], mean(f[i + 1 :]))) if i < len(f) - 1 else 0.0
        values.append(first + second)
    return values


def z_scores(values):
    centre = sum(values) / len(values)
    std = math.sqrt(sum((v - centre) ** 2 for v in values) / len(values))
    return [0.0 if std < 1e-4 else (v - centre) / std for v in values]


def merge(tokens, frames, positions, starts, keep, across=False):
    """Kept rows and their values once repeats are merged; more than `keep` where repeats run out."""
    candidates = []
    for t in range(1, frames):
        for p in range(positions):
            row = t * positions + p
            if across or t not in starts:
                candidates.append((-cosine(tokens[row], tokens[row - positions]), row))
    folded = {row for _, row in sorted(candidates)[: len(tokens) - keep]}
    rows, values = [], []
    for row in range(len(tokens)):
        if row in folded:
            continue
        run = [tokens[row]]
        while row + len(run) * positions in folded:
            run.append(tokens[row + len(run) * positions])
        rows.append(row)
        values.append(mean(run))
    return rows, values


def budgets(lengths, total, values, scores, exact=True):
    live = [i for i in range(len(lengths)) if lengths[i]]
    counts = [0] * len(lengths)
    if total <= len(live):
        for i in sorted(live, key=lambda i: (-values[i], i))[:total]:
            counts[i] = 1
        return counts
    kappa = total / sum(lengths)
    low, high = min(0.05, kappa), max(0.95, kappa)

    def wanted(base):
        return {i: lengths[i] * min(max(base + 0.1 * scores[i], low), high) for i in live}

    if exact:
        a, b = -10.0, 10.0
        for _ in range(200):
            middle = (a + b) / 2
            a, b = (middle, b) if sum(wanted(middle).values()) < total else (a, middle)
        want = wanted(b)
    else:
        want = wanted(kappa)
        scale = total / sum(want.values())
        want = {i: w * scale for i, w in want.items()}
    for i in live:
        counts[i] = min(max(math.floor(want[i] + 1e-9), 1), lengths[i])
    while sum(counts) < total:
        i = max((i for i in live if counts[i] < lengths[i]), key=lambda i: (round(want[i] - counts[i], 9), -i))
        counts[i] += 1
    while sum(counts) > total:
        i = min((i for i in live if counts[i] > 1), key=lambda i: (round(want[i] - counts[i], 9), -i))
        counts[i] -= 1
    return counts


def relevance(attention, sign="negative", transform="minmax"):
    a = [-x if sign == "negative" else x for x in attention]
    n = len(a)
    if max(a) == min(a):
        return [1.0] * n
    if transform == "minmax":
        return [(x - min(a)) / (max(a) - min(a)) for x in a]
    if transform == "rank":
        return [(sum(y < x for y in a) + (sum(y == x for y in a) - 1) / 2 + 0.5) / n for x in a]
    centre = sum(a) / n
    std = math.sqrt(sum((x - centre) ** 2 for x in a) / n)
    return [math.exp((x - centre) / std) for x in a]


def kernel(vectors, rel):
    return [
        [
            rel[i] * rel[j] * (float(any(vectors[i])) if i == j else cosine(vectors[i], vectors[j]))
            for j in range(len(rel))
        ]
        for i in range(len(rel))
    ]


def greedy_map(matrix, count, rel=None, epsilon=1e-6):
    """The sequential recursion; items in the order in which they are chosen."""
    n = len(matrix)
    gains = [matrix[i][i] for i in range(n)]
    rel = gains[:] if rel is None else rel
    largest = max(gains)
    c = [[] for _ in range(n)]
    chosen = []
    while len(chosen) < count:
        j = max((i for i in range(n) if i not in chosen), key=lambda i: (gains[i], -i))
        if gains[j] <= 0 or gains[j] < epsilon * largest:
            rest = sorted((i for i in range(n) if i not in chosen), key=lambda i: (-rel[i], i))
            return chosen + rest[: count - len(chosen)]
        chosen.append(j)
        for i in range(n):
            if i not in chosen:
                e = (matrix[j][i] - sum(x * y for x, y in zip(c[j], c[i], strict=True))) / math.sqrt(gains[j])
                c[i].append(e)
                gains[i] -= e * e
    return chosen


def select(vectors, rel, lengths, counts, max_block=1024, epsilon=1e-6, selection="dpp"):
    """Kept rows of one video, segments one after the other."""
    rows, start = [], 0
    for length, count in zip(lengths, counts, strict=True):
        if selection == "uniform":
            rows += [start + (2 * i + 1) * length // (2 * count) for i in range(count)]
            start += length
            continue
        if selection == "relevance":
            segment = range(start, start + length)
            rows += sorted(sorted(segment, key=lambda i: (-rel[i], i))[:count])
            start += length
            continue
        pieces = max(1, math.ceil(length / max_block)) if max_block else 1
        for piece in range(pieces):
            size = length // pieces + (1 if piece < length % pieces else 0)
            keep = count // pieces + (1 if piece < count % pieces else 0)
            if keep:
                r = rel[start : start + size]
                chosen = greedy_map(kernel(vectors[start : start + size], r), keep, r, epsilon)
                rows += sorted(start + i for i in chosen)
            start += size
    return rows


class Video:
    """One video through all stages: `input_stage`, then `layer_stage` once for each later count."""

    def __init__(
        self,
        tokens,
        frames,
        positions,
        constants=(),
        across=False,
        exact=True,
        max_block=1024,
        levels=("segment", "frame", "layer"),
        selection="dpp",
        tau=0.6,
        beta=0.4,
        segments=None,
        merge_share=1.0,
        **relevance,
    ):
        self.tokens, self.frames, self.positions = tokens, frames, positions
        self.across, self.exact, self.max_block, self.relevance = across, exact, max_block, relevance
        self.merge_share = merge_share if "segment" in levels else 0.0
        self.has_frame_level = "frame" in levels
        self.selection = selection if self.has_frame_level else "uniform"
        self.starts = [0]
        if "segment" in levels:
            self.starts = segment_starts(tokens, frames, positions, constants, tau, beta, segments)
        self.values = marginal_values(tokens, frames, positions, constants, self.starts)
        self.scores = z_scores(self.values)

    def _lengths(self):
        return [self.segments.count(i) for i in range(len(self.starts))]

    def _reduce(self, vectors, rel, total, selection):
        lengths = self._lengths()
        scores = self.scores if self.has_frame_level else [0.0] * len(self.scores)
        counts = budgets(lengths, total, self.values, scores, self.exact)
        keep = select(vectors, rel, lengths, counts, self.max_block, selection=selection)
        self.segments = [self.segments[i] for i in keep]
        return keep

    def input_stage(self, total):
        least = len(self.tokens) - math.floor(self.merge_share * (len(self.tokens) - total))
        rows, values = merge(self.tokens, self.frames, self.positions, self.starts, least, self.across)
        owner = segment_of_frame(self.starts, self.frames)
        self.segments = [owner[row // self.positions] for row in rows]
        if len(rows) > total:
            # Equal relevance ranks nothing.
            selection = "uniform" if self.selection == "relevance" else self.selection
            keep = self._reduce(values, [1.0] * len(rows), total, selection)
            rows, values = [rows[i] for i in keep], [values[i] for i in keep]
        return rows, values

    def layer_stage(self, vectors, attention, total):
        return self._reduce(vectors, relevance(attention, **self.relevance), total, self.selection)
