"""A pruner that asks for the prompt gets the embeddings of the user's words and of nothing else."""

import dataclasses

import pytest
import torch

from pipeline.engine import ModelError, Request, VideoLLM
from pruning import Needs
from tests.engine.pruners import EvenPruner
from tests.engine.videos import make_video


def prompts_seen(llm, prompts):
    pruner = EvenPruner(needs=Needs(prompt=True))
    frames = make_video(2)
    llm.answer([Request(frames, prompt, max_new_tokens=1, seed=n) for n, prompt in enumerate(prompts)], pruner)
    return {prompts[view.seed]: view.prompt for view in pruner.seen if view.prompt is not None}


@pytest.mark.parametrize("name", ["grouped", "builtin:tiny"])
def test_the_prompt_is_embedded_without_the_template(folders, name):
    llm = VideoLLM.load(folders.get(name, name), device="cpu")
    prompts = ["what color is the circle?", "user", "assistant", " two  spaces ", "naïve 表情 🙂", "a\nb"]
    seen = prompts_seen(llm, prompts)
    for prompt in prompts:
        ids = llm._family._chat.tokenizer(prompt, add_special_tokens=False).input_ids
        assert torch.equal(seen[prompt], llm._family.decoder.embed(ids)), prompt


def test_an_empty_prompt_has_no_embeddings(llm):
    assert prompts_seen(llm, [""])[""].shape == (0, 64)


def test_a_template_may_trim_and_surround_the_prompt(llm):
    template = "<|im_start|>user\nuser: <video>{{ messages[0]['content'][1]['text'] | trim }} user<|im_end|>"
    chat = dataclasses.replace(llm._family._chat, template=template)
    assert chat.tokenizer.decode(chat.prompt_ids("  user  ")) == "user"
    assert chat.prompt_ids("   ") == []


@pytest.mark.parametrize(("shown", "times"), [("", 0), ("{{ messages[0]['content'][1]['text'] }}" * 2, 2)])
def test_a_template_must_show_the_prompt_once(llm, shown, times):
    chat = dataclasses.replace(llm._family._chat, template="<video>" + shown)
    with pytest.raises(ModelError, match=f"shows the prompt {times} times"):
        chat.prompt_ids("what")
