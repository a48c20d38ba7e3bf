"""Sample pictures as they stand in the page."""

from __future__ import annotations

import base64
from collections import Counter

from pipeline.report import forms
from pipeline.report.outcome import LETTERS
from pipeline.report.parts import Section, Shot
from pipeline.report.rows import Rows
from pipeline.report.samples import Picture, read_samples

_MOST = 6  # of a run
_MOST_BYTES = 2_400_000  # of all together: a third more as text, and the whole page is to stay below 5 MB


def samples(rows: Rows) -> Section:
    """Frames with kept and pruned tokens, and what the model answered."""
    found = [(number, picture) for number, run in enumerate(rows.runs) for picture in read_samples(run.samples, _MOST)]
    asked = Counter(_question(picture) for _, picture in found)
    # Those that both runs answered come first, beside each other.
    found.sort(key=lambda one: (-asked[_question(one[1])], *_question(one[1]), one[0]))
    shots, size, left_out = [], 0, 0
    for number, picture in found:
        if size + len(picture.image) > _MOST_BYTES:
            left_out += 1
            continue
        size += len(picture.image)
        shots.append(_shot(picture, "" if len(rows.runs) == 1 else f"{LETTERS[number]} · "))
    section = {"name": "samples", "title": "What the model saw"}
    if not shots:
        return Section(**section, sentences=("No sample pictures lie in the folder of the run.",))
    legend = (
        "Frames in order, each above itself under its token grid. Bright with a rim: kept to the last layer. Dark and "
        "pale: gone, the earlier the darker. Hatched: merged into a token of an earlier frame, which is outlined."
    )
    more = (f"{left_out} samples are left out, as the page would grow too large.",) if left_out else ()
    return Section(**section, sentences=(legend, *more), shots=tuple(shots))


def _question(picture: Picture) -> tuple[str, str]:
    return picture.sample.video_id, picture.sample.prompt


def _shot(picture: Picture, run: str) -> Shot:
    sample = picture.sample
    frames = ", ".join(str(number + 1) for number in sample.shown)
    stages = " → ".join(forms.count(tokens) for tokens in sample.stage_tokens)
    layers = ", ".join(str(layer) for layer in sample.stage_layers)
    facts = [f"{forms.count(sample.video_tokens)} video tokens, retention {forms.number(sample.retention, 3)}"]
    if stages:
        facts.append(f"{stages} tokens by stage (layers {layers})")
    facts.append(f"{forms.count(sample.kept)} reach the last layer, {forms.count(sample.merged)} merged")
    return Shot(
        image=f"data:image/{picture.kind};base64,{base64.b64encode(picture.image).decode()}",
        alt=f"Frames {frames} of {sample.frames}, with {sample.kept} of {sample.video_tokens} tokens bright",
        heading=run + forms.printable(sample.video_id, 80),
        question=forms.printable(sample.prompt, 400),
        answer=forms.printable(sample.answer, 1200),
        facts=tuple(facts),
    )
