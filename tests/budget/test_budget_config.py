import pytest

from pipeline.config_load import dump_config, load_config
from pipeline.errors import UserError
from pipeline.fingerprint import fingerprint

BASE = ("task=caption", "manifest=clips.jsonl", "output=out/x")


def load(*overrides):
    return load_config(None, [*BASE, *overrides])


def refusal(*overrides):
    with pytest.raises(UserError) as caught:
        load(*overrides)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def of(*overrides):
    return fingerprint(load(*overrides), "abc")


def test_a_job_without_a_budget_keeps_everything():
    config = load()
    assert (config.budget.retention, config.pruning.retention, config.budget.is_derived) == (1.0, 1.0, False)
    assert config.budget.model_dump() == {"retention": 1.0}


@pytest.mark.parametrize(
    ("override", "key", "amount"),
    [
        ("budget.tokens_per_video=200", "tokens_per_video", 200),
        ("budget.flops_share=0.3", "flops_share", 0.3),
        ("budget.gpu_hours=12.5", "gpu_hours", 12.5),
        ("budget.deadline=6h", "deadline", 21_600),
        ("budget.deadline=1h30m", "deadline", 5400),
        ("budget.deadline=90m", "deadline", 5400),
        ("budget.deadline=45", "deadline", 45),
    ],
)
def test_a_budget_is_said_in_one_of_six_ways(override, key, amount):
    budget = load(override).budget
    assert (budget.key, getattr(budget, key), budget.retention, budget.is_derived) == (key, amount, None, True)


def test_a_derived_budget_is_a_job_file_again_and_a_settled_one_still_says_what_was_asked(tmp_path):
    config = load("budget.usd=30", "budget.usd_per_gpu_hour=2.5", "budget.min_retention=0.1")
    settled = config.settled(0.37)
    assert (settled.budget, settled.pruning.retention) == (config.budget, 0.37)
    assert fingerprint(settled, "abc") == fingerprint(config, "abc")
    path = tmp_path / "config.yaml"
    path.write_text(dump_config(settled, "0" * 12))
    assert "0.37" not in path.read_text()
    assert load_config(path) == config


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (("budget.gpu_hours=3", "budget.retention=0.3"), ("budget.gpu_hours = 3", "budget.retention is a budget")),
        (("budget.usd=30",), ("budget.usd = 30", "budget.usd_per_gpu_hour is missing")),
        (("budget.deadline=soon",), ("budget.deadline = 'soon'", "6h, 90m")),
        (("budget.deadline=0s",), ("budget.deadline = 0.0", "6h, 90m")),
        (("budget.deadline=yes",), ("budget.deadline = True", "not a number")),
        (("budget.gpu_hours=0",), ("budget.gpu_hours = 0", "above 0")),
        (("budget.flops_share=1.1",), ("budget.flops_share = 1.1", "at most 1")),
        (("budget.gpu_hour=1",), ("budget.gpu_hour = 1", "did you mean budget.gpu_hours?")),
        (("budget.min_retention=0.5", "budget.max_retention=0.2"), ("budget.max_retention = 0.2", "is 0.5")),
    ],
)
def test_mistakes_are_told_in_one_line(overrides, told):
    message = refusal(*overrides)
    for part in told:
        assert part in message


def test_null_takes_a_job_file_s_budget_back():
    assert load("budget.retention=null", "budget.gpu_hours=3").budget.key == "gpu_hours"


def test_the_fingerprint_follows_what_was_asked_and_no_price_that_buys_nothing():
    assert of("budget.retention=0.3") == of("budget.retention=0.3", "budget.usd_per_gpu_hour=2")
    assert of("budget.retention=0.3") == of("budget.retention=0.3", "budget.min_retention=0.2")
    assert of("budget.deadline=90m") == of("budget.deadline=5400") != of("budget.deadline=91m")
    assert of("budget.gpu_hours=3") != of("budget.gpu_hours=3", "budget.min_retention=0.2")
    paid = ("budget.usd=10", "budget.usd_per_gpu_hour=2")
    assert of(*paid) != of("budget.usd=10", "budget.usd_per_gpu_hour=3")
