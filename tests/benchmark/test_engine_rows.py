"""What the engine's benchmark writes: complete rows that agree with the exact cost model, and a verdict on each aim."""

from dataclasses import fields, replace

import pytest
import torch

from pipeline.benchmark.engine.batch_search import best_batch
from pipeline.benchmark.engine.ceilings import Ceilings, measure_ceilings
from pipeline.benchmark.engine.checks import check_growth, check_rows
from pipeline.benchmark.engine.measurement import Measurement, Row, make_row, unpruned_plan
from pipeline.benchmark.engine.run import Bench, Options, OptionsError
from pruning.cost import DecoderShape, flops_ratio
from pruning.schedule import author_shape, plan_stages
from tests.benchmark.micro_shapes import micro_subject

CPU = torch.device("cpu")
SHAPE = DecoderShape(hidden=64, heads=4, kv_heads=2, head_size=16, ffn=96, layers=8)
COLUMNS = (
    "system, retention, segments, batch, new_tokens, vision_ms, prune_ms, prefill_ms, decode_ms, total_ms, "
    "decode_tokens_per_s, flops_ratio, achieved_tflops, achieved_gbs, peak_mb"
)


def test_the_columns_are_those_that_readers_expect():
    assert ", ".join(field.name for field in fields(Row)) == COLUMNS


@pytest.fixture(scope="module")
def bench_rows():
    subject = micro_subject("llava-onevision")
    options = Options.for_subject(
        subject,
        frames=None,
        segments=(1, 4),
        repeats=2,
        retentions=(1.0, 0.3),
        new_tokens=(3,),
        batch=2,
        dense_batch=2,
    )
    return Bench(subject, options, lambda text: None).rows()


def test_there_is_a_row_for_every_case(bench_rows):
    found = [(row.system, row.retention, row.segments, row.batch, row.new_tokens) for row in bench_rows]
    grid = [("engine", retention, segments, 1, 3) for retention in (1.0, 0.3) for segments in (1, 4)]
    dense = [("transformers", 1.0, None, batch, 3) for batch in (1, 2)]
    assert found == [*dense, *grid, ("engine", 0.3, 4, 2, 3)]


def test_rows_agree_with_the_cost_model(bench_rows):
    for row in bench_rows:
        plan = plan_stages(8 * 16, 8, row.retention, author_shape(row.retention))
        assert row.flops_ratio == pytest.approx(flops_ratio(SHAPE, plan, 41), rel=1e-12)
        assert (row.prune_ms is None) == (row.system == "transformers")
        phases = row.vision_ms + (row.prune_ms or 0) + row.prefill_ms + row.decode_ms
        assert 0.2 * row.total_ms < phases <= 1.001 * row.total_ms  # medians of two runs are means, and add up
        assert row.decode_tokens_per_s == pytest.approx(row.batch * 2 / row.decode_ms * 1000)
        assert row.peak_mb > 100


def run(plans, prefill_ms=10.0, decode_ms=20.0, new_tokens=3):
    ids = [[1] * new_tokens for _ in plans]
    return Measurement(ids, plans, [None] * len(plans), 5, 1.0, None, prefill_ms, decode_ms, 40.0, None)


def test_flops_and_bytes_are_counted_by_hand():
    plan = unpruned_plan(10, 8)
    row = make_row("engine", 1.0, [run([plan]), run([plan], 30.0), run([plan], 11.0)], SHAPE, 1000, 2)
    n, d = 15, 64
    layer = n * (4 * d * 64 + 4 * d * 32) + 2 * 64 * n * (n + 1) + 6 * n * d * 96
    assert row.prefill_ms == 11.0
    assert row.achieved_tflops == pytest.approx(8 * layer / 0.011 / 1e12)
    # two steps read 16 and 17 entries of 2 · 2 · 16 numbers in 8 layers, and the weights
    read = 2 * 1000 + 8 * (16 + 17) * 64 * 2
    assert row.achieved_gbs == pytest.approx(read / 0.020 / 1e9)
    assert (row.prune_ms, row.peak_mb) == (None, None)


def test_what_nothing_reads_of_the_last_layer_does_not_count_as_done():
    plan = unpruned_plan(10, 8)
    n, d = 15, 64
    layer = n * (4 * d * 64 + 4 * d * 32) + 2 * 64 * n * (n + 1) + 6 * n * d * 96
    last = n * 4 * d * 32 + 4 * d * 64 + 4 * 64 * n + 6 * d * 96  # all keys and values, the rest for one token
    row = make_row("engine", 1.0, [run([plan])], SHAPE, 1000, 2, is_last_layer_cut=True)
    assert row.achieved_tflops == pytest.approx((7 * layer + last) / 0.010 / 1e12)
    assert row.flops_ratio == 1


def test_a_batch_reads_the_weights_once_a_step_and_every_cache():
    plan = unpruned_plan(10, 8)
    alone = make_row("engine", 1.0, [run([plan])], SHAPE, 1000, 2)
    both = make_row("engine", 1.0, [run([plan, plan])], SHAPE, 1000, 2)
    weights = 2 * 1000 / 0.020 / 1e9
    assert both.achieved_gbs == pytest.approx(2 * alone.achieved_gbs - weights)
    assert both.achieved_tflops == pytest.approx(2 * alone.achieved_tflops)
    assert both.decode_tokens_per_s == pytest.approx(200)


def test_the_best_batch_is_the_last_that_gained():
    times = {1: 10.0, 2: 15.0, 4: 25.0, 8: 49.9}
    tried = []

    def measure(batch):
        tried.append(batch)
        return replace(run([unpruned_plan(10, 8)]), total_ms=times[batch])

    assert best_batch(measure, CPU) == 4
    assert tried == [1, 2, 4, 8]


@pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory")])
def test_the_best_batch_ends_with_memory(error):
    def measure(batch):
        if batch == 4:
            raise error
        return replace(run([unpruned_plan(10, 8)]), total_ms=10.0)

    assert best_batch(measure, CPU) == 2


def test_another_error_is_not_the_end_of_memory():
    def measure(batch):
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes"):
        best_batch(measure, CPU)


def test_on_the_cpu_a_batch_that_would_not_fit_is_not_tried():
    def measure(batch):
        assert batch == 1
        return replace(run([unpruned_plan(10, 8)]), peak_mb=1e9)

    assert best_batch(measure, CPU) == 1


def row(system, retention, batch=1, segments=4, prefill=100.0, prune=2.0, decode=50.0, tflops=1.0, gbs=1.0, ratio=1.0):
    total = 10 + prune + prefill + decode
    tokens = batch * 15 / decode * 1000
    is_dense = system != "engine"
    return Row(
        system=system,
        retention=retention,
        segments=None if is_dense else segments,
        batch=batch,
        new_tokens=16,
        vision_ms=10.0,
        prune_ms=None if is_dense else prune,
        prefill_ms=prefill,
        decode_ms=decode,
        total_ms=total,
        decode_tokens_per_s=tokens,
        flops_ratio=ratio,
        achieved_tflops=tflops,
        achieved_gbs=gbs,
        peak_mb=None,
    )


ROWS = [
    row("transformers", 1.0, prune=0.0),
    row("transformers", 1.0, batch=2, prune=0.0, prefill=180.0),
    row("engine", 1.0, prune=0.0),
    row("engine", 0.3, prefill=28.0, decode=30.0, ratio=0.25),
    row("engine", 0.3, batch=8, prefill=240.0, prune=16.0, decode=80.0, gbs=7.0),
]
CEILINGS = Ceilings(matmul_tflops=1.5, copy_gbs=10.0)


def test_aims_on_a_cpu():
    checks = check_rows(ROWS, CEILINGS, is_cuda=False)
    assert [(round(check.value, 3), check.bound, check.passed) for check in checks] == [
        (1.0, 1.05, True),  # 160 / 160
        (0.833, 0.9, False),  # 100 / 30 · 0.25
        (0.933, 0.9, True),  # 100 / 30 · 28 / 100: done at the same TFLOP/s
        (3.0, 3.0, True),  # 8 · 15 / 80 over 15 / 30
        (0.029, 0.05, True),  # 2 / 70
    ]
    assert str(checks[1]).startswith("FAIL  prefill at 30%")
    assert str(checks[4]).endswith("4 segments: 2.9% (≤ 5.0%)")


def test_aims_on_a_gpu():
    checks = check_rows(ROWS, CEILINGS, is_cuda=True)
    assert [(round(check.value, 3), check.bound, check.passed) for check in checks] == [
        (0.667, 0.5, True),
        (0.7, 0.6, True),
        (0.067, 0.05, False),  # 2 / 30
        (3.333, 3.0, True),  # 100 / 30
        (2.286, 4.0, False),  # 160 / 70
        (2.775, 2.2, True),  # 240 / 2 over 346 / 8
    ]


def test_aims_that_nothing_was_measured_for_are_left_out():
    assert check_rows(ROWS[:1], CEILINGS, is_cuda=False) == []
    assert check_rows(ROWS[:1], CEILINGS, is_cuda=True) == []
    assert check_growth({64: 100.0}) == []


def test_growth_is_judged_by_how_many_times_the_frames_were_shown():
    (check,) = check_growth({64: 100.0, 256: 440.0})
    assert (check.value, check.bound, check.passed) == (4.4, 4.5, True)


def test_ceilings_are_measured():
    ceilings = measure_ceilings(CPU, torch.float32, scale=0.05)
    assert ceilings.matmul_tflops > 0
    assert ceilings.copy_gbs > 0


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"segments": (5,)}, "8 frames of this model show 1 to 4 segments"),
        ({"frames": 1}, "1 frames of this model show 1 to 0 segments"),
        ({"retentions": (0.0,)}, "above 0 and at most 1"),
        ({"new_tokens": (0,)}, "at least 1 new token"),
    ],
)
def test_options_out_of_range_are_refused(option, message):
    subject = micro_subject("qwen2-vl")
    known = {"frames": 8, "segments": None, "repeats": 1, "retentions": (1.0,), "new_tokens": (2,)}
    with pytest.raises(OptionsError, match=message):
        Options.for_subject(subject, **(known | option))


def test_options_name_each_value_once_and_as_many_segments_as_frames_show():
    subject = micro_subject("qwen2-vl")
    options = Options.for_subject(subject, None, None, repeats=1, retentions=(0.3, 1.0, 0.3), new_tokens=(2, 2))
    assert (options.frames, options.segments) == (8, (1, 4))
    assert (options.retentions, options.new_tokens) == ((0.3, 1.0), (2,))
