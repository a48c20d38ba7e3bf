"""Budgets follow the free memory, predictions the measured peaks, and what cannot fit is refused with its sizes."""

import os
import subprocess
import sys
import weakref
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from pipeline.engine import ModelError, VideoLLM, checkpoint, host_memory, memory, weight_sizes
from pipeline.engine.memory import MemoryPlan, PeakMemory, is_out_of_memory, release, weight_bytes
from pruning.cost import DecoderShape
from pruning.schedule import author_shape, plan_stages
from tests.engine.checkpoints import Shape, write_checkpoint

GIB = 2**30
CUDA, CPU = torch.device("cuda"), torch.device("cpu")

# LLaVA-OneVision-7B and LLaVA-Video-7B
SEVEN_B = DecoderShape(hidden=3584, heads=28, kv_heads=4, head_size=128, ffn=18_944, layers=28)
VOCABULARY = 152_064
VISION_WEIGHTS = 430 * 10**6


def seven_b_weights(itemsize):
    shape = SEVEN_B
    attention = 2 * shape.hidden * (shape.heads + shape.kv_heads) * shape.head_size
    layer = attention + 3 * shape.hidden * shape.ffn
    return itemsize * (shape.layers * layer + 2 * VOCABULARY * shape.hidden + VISION_WEIGHTS)


def seven_b(free):
    return MemoryPlan.make(SEVEN_B, VOCABULARY, torch.bfloat16, CUDA, free)


def stages(frames, retention):
    return plan_stages(frames * 196, SEVEN_B.layers, retention, author_shape(retention))


def test_budgets_shrink_with_the_free_memory_and_never_vanish():
    plans = [seven_b(free) for free in (60 * GIB, 8 * GIB, GIB, 0)]
    for roomy, tight in pairwise(plans):
        for budget in ("kv_bytes", "prefill_tokens", "patches", "mlp_rows"):
            assert getattr(roomy, budget) >= getattr(tight, budget)
    assert plans[0].kv_bytes > plans[2].kv_bytes > plans[3].kv_bytes == 0
    assert plans[0].prefill_tokens > plans[2].prefill_tokens > 0
    assert min(plans[3].prefill_tokens, plans[3].patches, plans[3].mlp_rows) >= 1


@pytest.mark.parametrize("free", [2 * GIB, 8 * GIB, 60 * GIB])
def test_all_budgets_together_leave_some_memory_free(free):
    plan = seven_b(free)
    activations = plan.prefill_tokens * memory._numbers_per_token(SEVEN_B)
    mlp = plan.mlp_rows * memory._numbers_per_mlp_row(SEVEN_B)
    vision = plan.patches * memory._NUMBERS_PER_PATCH
    assert plan.kv_bytes + 2 * (activations + mlp + vision) < free


def test_1024_frames_at_a_tenth_fit_one_gpu_of_80_gb_beside_the_weights_of_7b():
    free = 80 * 10**9 - seven_b_weights(itemsize=2)
    plan = seven_b(free)
    pruned, whole = stages(1024, 0.1), stages(1024, 1.0)
    assert pruned.num_tokens == 200_704
    plan.check_fits("request 0", pruned, 100, 128)
    assert plan.sequence_peak_bytes(pruned, 100, 128) < 0.25 * free
    assert plan.sequence_peak_bytes(whole, 100, 128) > 2 * plan.sequence_peak_bytes(pruned, 100, 128)


def test_a_request_that_does_not_fit_is_refused_with_its_sizes():
    with pytest.raises(torch.OutOfMemoryError, match=r"^request 3: 200704 video tokens need about \d+\.\d GiB beside"):
        seven_b(4 * GIB).check_fits("request 3", stages(1024, 0.1), 100, 128)


def test_a_smaller_cache_and_fewer_tokens_are_predicted_to_need_less():
    plan = seven_b(60 * GIB)
    peaks = [plan.sequence_peak_bytes(stages(1024, retention), 100, 128) for retention in (0.1, 0.3, 1.0)]
    assert peaks == sorted(peaks)
    whole = stages(1024, 1.0)
    assert plan.sequence_peak_bytes(whole, 100, 128, kv_retention=0.25) < peaks[-1] - 4 * GIB
    assert plan.sequence_peak_bytes(stages(64, 0.3), 100, 128) < plan.sequence_peak_bytes(stages(256, 0.3), 100, 128)


def test_predicted_peaks_lie_between_three_quarters_and_five_thirds_of_measured_ones(tmp_path):
    shape = Shape(hidden=768, layers=3, heads=12, kv_heads=4, ffn=2048, image_size=112, max_positions=10**5)
    write_checkpoint(tmp_path, shape)
    # Freed memory goes back to the system at once, so that a case does not find that of the one before.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"}
    script = Path(__file__).with_name("peaks.py")
    cases = ["6:0.3", "8:1.0", "24:0.3"]
    command = [sys.executable, "-m", f"tests.engine.{script.stem}", str(tmp_path), *cases]
    result = subprocess.run(
        command, cwd=script.parents[2], env=environment, capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stderr
    peaks = {}
    for line, case in zip(result.stdout.splitlines(), cases, strict=True):
        measured, predicted = (int(number) for number in line.split()[2:])
        assert 3 / 4 * measured < predicted < 5 / 3 * measured, line
        peaks[case] = measured
    assert peaks["24:0.3"] <= 4.5 * peaks["6:0.3"]


def meminfo(root, available_kib):
    (root / "proc" / "self").mkdir(parents=True)
    (root / "proc" / "meminfo").write_text(
        f"MemTotal:  99999999 kB\nMemAvailable:   {available_kib} kB\nHugePages: 0\n"
    )


@pytest.fixture
def system(tmp_path, monkeypatch):
    """A machine with 8 GiB available; returns a function that writes a control group's files."""
    meminfo(tmp_path, 8 * 2**20)
    monkeypatch.setattr(host_memory, "_PROC", tmp_path / "proc")
    monkeypatch.setattr(host_memory, "_CGROUPS", tmp_path / "cgroup")

    def group(line, folder="", **files):
        (tmp_path / "proc" / "self" / "cgroup").write_text(line)
        (tmp_path / "cgroup" / folder).mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            (tmp_path / "cgroup" / folder / name.replace("__", ".")).write_text(f"{content}\n")

    return group


def test_without_control_groups_the_machine_s_available_memory_is_free(system):
    assert host_memory.free_host_bytes() == 8 * GIB


def test_the_limit_of_a_version_2_group_counts(system):
    system("0::/job/task\n", "job/task", memory__max=3 * GIB, memory__current=GIB)
    assert host_memory.free_host_bytes() == 2 * GIB


def test_the_limit_of_a_group_around_it_counts_too(system):
    system("0::/job/task\n", "job/task", memory__max="max", memory__current=GIB)
    system("0::/job/task\n", "job", memory__max=4 * GIB, memory__current=3 * GIB)
    assert host_memory.free_host_bytes() == GIB


def test_a_container_that_cannot_see_its_group_s_folder_uses_its_root(system):
    system("0::/pods/unseen\n", memory__max=2 * GIB, memory__current=GIB)
    assert host_memory.free_host_bytes() == GIB


def test_the_limit_of_a_version_1_group_counts(system):
    line = "5:cpu,cpuacct:/\n4:memory:/job\n0::/\n"
    system(line, "memory/job", memory__limit_in_bytes=6 * GIB, memory__usage_in_bytes=GIB)
    assert host_memory.free_host_bytes() == 5 * GIB


def test_a_version_1_group_without_a_limit_does_not_count(system):
    line = "4:memory:/job\n"
    system(line, "memory/job", memory__limit_in_bytes=9223372036854771712, memory__usage_in_bytes=GIB)
    assert host_memory.free_host_bytes() == 8 * GIB


def test_page_cache_that_can_be_given_up_is_free(system):
    stat = f"anon 1\ninactive_file {GIB}\nactive_file 7"
    system("0::/\n", memory__max=3 * GIB, memory__current=2 * GIB, memory__stat=stat)
    assert host_memory.free_host_bytes() == 2 * GIB


def test_more_used_than_allowed_is_nothing_free(system):
    system("0::/\n", memory__max=GIB, memory__current=2 * GIB)
    assert host_memory.free_host_bytes() == 0


def test_the_peak_is_that_since_the_measurement_began():
    if not host_memory.reset_peak_resident():
        pytest.skip("the system does not let a process reset its high-water mark")
    peak = PeakMemory(CPU)
    before = peak.peak_bytes()
    tensor = torch.ones(200 * 2**20, dtype=torch.uint8)
    del tensor
    highest = peak.peak_bytes()
    assert 195 * 2**20 < highest - before < 260 * 2**20
    assert PeakMemory(CPU).peak_bytes() < highest - 150 * 2**20


def test_where_the_mark_cannot_be_reset_only_what_is_in_use_or_a_new_record_counts(monkeypatch):
    readings = {"now": 5, "mark": 100}
    monkeypatch.setattr(memory, "reset_peak_resident", lambda: False)
    monkeypatch.setattr(memory, "resident_bytes", lambda: readings["now"])
    monkeypatch.setattr(memory, "peak_resident_bytes", lambda: readings["mark"])
    peak = PeakMemory(CPU)
    assert peak.peak_bytes() == 5
    readings["now"] = 8
    assert peak.peak_bytes() == 8
    readings["now"] = 6
    assert peak.peak_bytes() == 8
    readings["mark"] = 120
    assert peak.peak_bytes() == 120


def test_a_system_that_does_not_say_gives_no_peak(monkeypatch):
    monkeypatch.setattr(memory, "peak_resident_bytes", lambda: None)
    assert PeakMemory(CPU).peak_bytes() is None


def test_a_failed_allocation_is_out_of_memory_and_other_errors_are_not():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"))
    assert is_out_of_memory(MemoryError())
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not is_out_of_memory(ValueError("out of memory"))


def test_release_lets_go_of_what_only_cycles_hold():
    loop = [torch.zeros(1)]
    loop.append(loop)
    tensor = weakref.ref(loop[0])
    del loop
    release(CPU)
    assert tensor() is None


def test_an_mlp_in_pieces_is_the_same_mlp(llm):
    decoder = llm._family.decoder
    hidden = torch.randn(50, decoder.shape.hidden, generator=torch.Generator().manual_seed(0))
    whole_rows = decoder.mlp_rows
    together = decoder.add_mlp(2, hidden)
    before = hidden.clone()
    try:
        for rows in (1, 7, 49):
            decoder.mlp_rows = rows
            torch.testing.assert_close(decoder.add_mlp(2, hidden), together, rtol=1e-5, atol=1e-5)
    finally:
        decoder.mlp_rows = whole_rows
    assert torch.equal(hidden, before)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_size_of_the_weights_is_known_from_the_headers(grouped_folder, dtype):
    model = VideoLLM.load(grouped_folder, device="cpu", dtype=dtype)._family._model
    loaded = weight_bytes(model) - sum(buffer.nbytes for buffer in model.buffers())
    assert weight_sizes.weight_file_bytes(checkpoint.Checkpoint.open(grouped_folder), getattr(torch, dtype)) == loaded


def test_weights_that_do_not_fit_are_refused_before_they_are_read(grouped_folder, monkeypatch):
    monkeypatch.setattr(weight_sizes, "free_bytes", lambda device: 2**20)
    monkeypatch.setattr(checkpoint.Checkpoint, "load_weights", None)
    with pytest.raises(ModelError, match=r"needs 0\.\d GiB for its weights in float32, .* has 0\.0 GiB free$"):
        VideoLLM.load(grouped_folder, device="cpu")
