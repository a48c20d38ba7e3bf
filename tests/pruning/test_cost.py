import pytest

from pruning import StagePlan
from pruning.cost import (
    DecoderShape,
    flops_ratio,
    kv_ratio,
    literature_flops_ratio,
    prefill_flops,
)
from pruning.schedule import author_shape, plan_stages

QWEN_7B = DecoderShape(hidden=3584, heads=28, kv_heads=4, head_size=128, ffn=18944, layers=28)
SMALL = DecoderShape(hidden=8, heads=4, kv_heads=2, head_size=3, ffn=20, layers=2)


def test_author_table_costs_a_quarter_in_the_literature_form():
    plan = StagePlan(13_440, 28, (0, 7, 14, 21), tuple(round(13_440 * s) for s in (0.5, 0.35, 0.245, 0.105)))
    assert literature_flops_ratio(plan, 100, hidden=3584, ffn=18944) == pytest.approx(0.240, abs=5e-4)
    planned = plan_stages(13_440, 28, 0.3, author_shape(0.3))
    assert literature_flops_ratio(planned, 100, hidden=3584, ffn=18944) == pytest.approx(0.240, abs=5e-4)


def matmul(rows, inner, columns):
    return 2 * rows * inner * columns


def test_prefill_flops_add_up_the_matrix_products():
    expected = 0
    for attention, mlp in ((10, 10), (10, 6)):
        expected += matmul(attention, 8, 12) + matmul(attention, 12, 8)  # queries, output
        expected += 2 * matmul(attention, 8, 6)  # keys, values
        for query in range(1, attention + 1):  # causal: scores and weighted sum
            expected += 2 * matmul(1, 12, query)
        expected += 3 * matmul(mlp, 8, 20)  # gate, up, down
    assert prefill_flops(SMALL, [10, 10], [10, 6]) == expected


def test_unpruned_costs_one():
    plan = StagePlan(500, 28, (0, 7, 14, 21), (500,) * 4)
    assert flops_ratio(QWEN_7B, plan, 40) == 1
    assert kv_ratio(plan, 40) == 1
    assert literature_flops_ratio(plan, 40, 3584, 18944) == 1


def test_a_stage_layer_attends_and_caches_at_the_old_length():
    plan = StagePlan(10, 2, (0, 1), (10, 4))
    assert kv_ratio(plan, 3) == 1
    assert flops_ratio(SMALL, plan, 3) == prefill_flops(SMALL, [13, 13], [13, 7]) / prefill_flops(
        SMALL, [13, 13], [13, 13]
    )


def test_text_is_counted():
    plan = StagePlan(100, 4, (0, 1, 2, 3), (50, 40, 20, 10))
    assert kv_ratio(plan, 0) == (50 + 50 + 40 + 20) / 400
    assert kv_ratio(plan, 100) == (150 + 150 + 140 + 120) / 800


def test_wrong_number_of_layers_is_refused():
    with pytest.raises(ValueError, match="expected 2 layers"):
        prefill_flops(SMALL, [1], [1])
