"""The adapter without lmms-eval (instances are stand-ins), and against its own classes where it is installed."""

import math
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from pipeline.engine import Request, VideoLLM
from pipeline.evaluate import lmms_requests
from pipeline.evaluate.lmms import VideoLLMAdapter, cut_before, manifest
from pipeline.prompts import with_options
from pipeline.tiny.clips import write_video
from pipeline.tiny.world import make_clip
from pipeline.video.decode import decode_frames
from pipeline.video.sampling import Sampling
from pruning import PruningConfig

SMALLEST = (1_000_321, 1_000_133)  # among the validation clips: four seconds at 320 pixels
LETTERED = with_options("which object is in the video", ["green cross", "red square"])
GREEDY = {"max_new_tokens": 4, "do_sample": False, "until": ["\n\n"]}


@dataclass
class StandInInstance:
    """What the adapter reads of lmms-eval's Instance."""

    args: tuple[Any, ...]


def show(doc: dict[str, Any]) -> list[str]:
    return [doc["video"]]


def ask(doc_id: int, context: str, wanted: Any = GREEDY) -> StandInInstance:
    return StandInInstance((context, wanted, show, doc_id, "task", "test"))


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> list[Path]:
    folder = tmp_path_factory.mktemp("videos")
    for seed in SMALLEST:
        write_video(make_clip(seed), folder / f"{seed}.mp4")
    return [folder / f"{seed}.mp4" for seed in SMALLEST]


@pytest.fixture
def make(videos):
    def made(**arguments: Any) -> VideoLLMAdapter:
        adapter = VideoLLMAdapter(device="cpu", frames=8, **arguments)
        adapter.task_dict = {"task": {"test": [{"video": str(path)} for path in videos]}}
        return adapter

    return made


@pytest.fixture
def asked_of_the_engine(monkeypatch) -> list[list[Request]]:
    calls: list[list[Request]] = []
    answer = VideoLLM.answer

    def recorded(self, requests, pruning):
        calls.append(list(requests))
        return answer(self, calls[-1], pruning)

    monkeypatch.setattr(VideoLLM, "answer", recorded)
    return calls


@pytest.fixture
def decoded(monkeypatch) -> list[str]:
    paths: list[str] = []

    def recorded(path, sampling):
        paths.append(str(path))
        return decode_frames(path, sampling)

    monkeypatch.setattr(lmms_requests, "decode_frames", recorded)
    return paths


@pytest.mark.parametrize("batch_size", [1, 2])
def test_answers_are_those_of_the_engine_in_the_order_of_the_instances(make, videos, batch_size):
    questions = [(0, "how many scenes are in the video"), (1, "how many objects are in the video"), (0, LETTERED)]
    llm = VideoLLM.load("builtin:tiny", device="cpu")
    pruning = PruningConfig(method="uniform", retention=0.5)
    expected = [
        llm.answer(
            [Request(decode_frames(videos[place], Sampling(8, "uniform")).frames, text, max_new_tokens=4)], pruning
        )[0].text
        for place, text in questions
    ]
    adapter = make(method="uniform", retention=0.5, batch_size=batch_size)
    assert adapter.generate_until([ask(*question) for question in questions]) == expected
    assert len(set(expected)) > 1
    assert [round(stats.retention_achieved, 2) for stats in adapter.stats] == [0.5] * 3


def test_neighbours_that_ask_about_one_video_share_its_decoding_and_encoding(make, decoded, asked_of_the_engine):
    make(method="none", batch_size=2).generate_until([ask(0, "is it red"), ask(0, LETTERED), ask(1, LETTERED)])
    assert len(decoded) == 2
    (requests,) = asked_of_the_engine
    assert [request.video_key for request in requests] == [decoded[0], decoded[0], decoded[1]]


def test_the_tasks_generation_settings_reach_the_engine(make, asked_of_the_engine):
    sampled = {"max_new_tokens": 3, "do_sample": True, "temperature": 0.7, "top_p": 0.9}
    hot_but_greedy = {"do_sample": False, "temperature": 0.7, "top_p": None}
    make(method="none", max_new_tokens=2).generate_until([ask(0, "a", sampled), ask(0, "b", hot_but_greedy)])
    ((first, second),) = asked_of_the_engine
    assert (first.max_new_tokens, first.temperature, first.top_p) == (3, 0.7, 0.9)
    assert (second.max_new_tokens, second.temperature, second.top_p) == (2, 0.0, 1.0)


def test_beam_search_and_several_rounds_are_refused(make):
    adapter = make(method="none")
    with pytest.raises(ValueError, match="num_beams 3 is not supported"):
        adapter.generate_until([ask(0, "a", {"num_beams": 3})])
    with pytest.raises(NotImplementedError, match="several rounds"):
        adapter.generate_until_multi_round([ask(0, "a")])


@pytest.mark.parametrize(
    ("text", "until", "cut"),
    [("a\n\nb", ["\n\n"], "a"), ("a. b; c", [";", "."], "a"), ("ab", "b", "a"), ("ab", None, "ab"), ("ab", [""], "ab")],
)
def test_an_answer_ends_before_the_first_stop_text(text, until, cut):
    assert cut_before(text, until) == cut


def test_the_choice_of_least_loss_is_the_letter_that_greedy_decoding_says(make):
    adapter = make(method="none", batch_size=2)
    (said,) = adapter.generate_until([ask(1, LETTERED, {"max_new_tokens": 1})])
    pairs = adapter.losses([ask(1, LETTERED, f" {letter}") for letter in "ABC"])
    assert said in "ABC"
    best = min(range(3), key=lambda place: pairs[place][0])
    assert "ABC"[best] == said
    assert [is_greedy for _, is_greedy in pairs] == [letter == said for letter in "ABC"]
    assert 0.5 < sum(math.exp(-loss) for loss, _ in pairs) <= 1.0 + 1e-5


def test_a_loss_is_a_mean_over_the_continuations_tokens_and_may_come_from_the_document(make, videos):
    adapter = make(method="none")
    context = "describe the video"
    (whole, _), (first, _) = adapter.losses([ask(0, context, "a red"), ask(0, context, lambda doc: "a")])
    red = adapter._tokenize("a red")
    assert len(red) == 2
    frames = decode_frames(videos[0], Sampling(8, "uniform")).frames
    (answer,) = adapter._answer([Request(frames, context, forced_token_ids=red)])
    assert whole == pytest.approx(-sum(answer.logprobs) / 2, abs=1e-4)
    assert first == pytest.approx(-answer.logprobs[0], abs=1e-4)


def test_a_video_that_cannot_be_decoded_is_a_failure_and_the_others_are_answered(make, tmp_path, caplog):
    adapter = make(method="none", batch_size=2)
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"")
    adapter.task_dict["task"]["test"].append({"video": str(broken)})
    texts = adapter.generate_until([ask(2, "a"), ask(0, LETTERED), ask(2, "b")])
    assert texts[0] == texts[2] == ""
    assert texts[1]
    assert len(adapter.videos.failures) == 2
    assert "the file has no bytes" in adapter.videos.failures[0]
    assert "broken.mp4" in caplog.text
    assert adapter.losses([ask(2, LETTERED, "A")]) == [(math.inf, False)]


def test_only_tasks_that_show_one_video_file_are_answered(make):
    adapter = make(method="none")
    for shown, kinds in ([], "nothing"), (["a.mp4", "b.mp4"], "str, str"), ([b"pixels"], "bytes"), (None, "nothing"):
        instance = StandInInstance(("a", GREEDY, lambda doc, shown=shown: shown, 1, "task", "test"))
        with pytest.raises(ValueError, match=f"task, document 1: .* this one shows {kinds}"):
            adapter.generate_until([instance])
    with pytest.raises(ValueError, match="2 arguments instead of 6"):
        adapter.losses([StandInInstance(("", "A"))])


def test_model_arguments_choose_method_options_and_calibration(make):
    adapter = make(retention=0.3, max_block="null", preset="default", max_batch_size=64)
    assert (adapter.pruning.retention, adapter.pruning.max_block) == (0.3, None)
    assert adapter.describe()["pruning"]["method"] == "hieravid"
    assert adapter.describe()["frames"] == 8
    with pytest.raises(ValueError, match="betta"):
        make(betta=0.5)
    with pytest.raises(ValueError, match="unknown pruning method 'hieravit'"):
        make(method="hieravit")


def test_adapters_of_one_model_share_its_weights(make):
    assert make(method="none")._llm is make(method="uniform", retention=0.3)._llm


def test_several_processes_are_refused(make, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="one process on one device"):
        make()


@pytest.mark.skipif(not find_spec("lmms_eval"), reason="lmms-eval has an environment of its own: make lmms")
def test_lmms_eval_takes_the_class_and_its_results(make):
    from lmms_eval.api.instance import Instance, unwrap_generation_output
    from lmms_eval.models.registry_v2 import ModelRegistryV2

    registry = ModelRegistryV2()
    registry.register_manifest(manifest())
    assert registry.get_model_class("hieravid") is VideoLLMAdapter
    made = VideoLLMAdapter.create_from_arg_string(
        "model=builtin:tiny,method=uniform,retention=0.3,frames=4", {"batch_size": "2", "device": "cpu"}
    )
    assert made.describe()["frames"] == 4

    adapter = make(method="none")
    metadata = {"task": "task", "doc_id": 0, "repeats": 1}
    generated = Instance("generate_until", ask(0, LETTERED).args, 0, dict(metadata))
    scored = Instance("loglikelihood", ask(0, LETTERED, " A").args, 0, dict(metadata))
    assert unwrap_generation_output(adapter.generate_until([generated])[0])[0] in "ABC"
    assert unwrap_generation_output(adapter.loglikelihood([scored])[0])[0] == adapter.losses([scored])[0]
