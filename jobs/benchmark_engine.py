"""The `engine` command of `python -m jobs.benchmark`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

import torch
import typer
from rich.console import Console

from jobs.tables import print_wide

ShapeName = Literal["tiny", "small", "llava-onevision-7b", "llava-video-7b", "qwen2-vl-7b"]

_RETENTIONS = (1.0, 0.3, 0.2, 0.1)
_SEGMENTS = (1, 4, 16)
_NEW_TOKENS = (16, 128)
_WIDTH = 150  # of the table where there is no terminal


def engine(
    shape: Annotated[ShapeName, typer.Option(help="sizes of the model")] = "tiny",
    random_weights: Annotated[
        bool, typer.Option("--random-weights", help="for tiny, in place of its own; the others have no other ones")
    ] = False,
    model: Annotated[Path | None, typer.Option(help="a folder with a model, shown the shape's video")] = None,
    device: Annotated[Literal["auto", "cpu", "cuda"], typer.Option(help="where to run")] = "auto",
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"], typer.Option(help="type of weights and activations")
    ] = "auto",
    json_file: Annotated[Path | None, typer.Option("--json", help="write header, rows and aims to this file")] = None,
    frames: Annotated[int | None, typer.Option(min=1, help="frames of a video (the shape's own number)")] = None,
    repeats: Annotated[int, typer.Option(min=1, help="timed rounds over all cases; medians are reported")] = 3,
    retention: Annotated[list[float] | None, typer.Option(help="may be repeated (1.0, 0.3, 0.2, 0.1)")] = None,
    segments: Annotated[list[int] | None, typer.Option(help="scenes of a video; may be repeated (1, 4, 16)")] = None,
    new_tokens: Annotated[list[int] | None, typer.Option(help="may be repeated (16, 128)")] = None,
    batch: Annotated[int, typer.Option(min=1, help="requests that the engine also answers together")] = 8,
    dense_batch: Annotated[
        int | None, typer.Option(min=1, help="transformers' best batch (it is searched for)")
    ] = None,
    preset: Annotated[
        Literal["author", "default"] | None, typer.Option(help="of pruning (the model's calibration, else author)")
    ] = None,
    memory: Annotated[bool, typer.Option("--memory", help="also compare the peaks of 64 and of 256 frames")] = False,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads (torch's own number)")] = None,
) -> None:
    """The engine beside transformers' dense generate: same weights, same frames, turn by turn, by phase."""
    # late: the other command needs no transformers
    from pipeline.benchmark.engine.ceilings import measure_ceilings
    from pipeline.benchmark.engine.checks import check_growth, check_rows
    from pipeline.benchmark.engine.growth import FRAMES, peaks_beside_weights
    from pipeline.benchmark.engine.report import as_table, describe, notes, write_json
    from pipeline.benchmark.engine.run import Bench, Options, OptionsError
    from pipeline.benchmark.engine.shapes import SHAPES
    from pipeline.benchmark.engine.subject import Subject
    from pipeline.engine import ModelError, PromptTooLongError
    from pipeline.engine.info import choose_device, choose_dtype

    if threads is not None:
        torch.set_num_threads(threads)
    sizes = SHAPES[shape]
    source = str(model) if model else None if random_weights else sizes.source
    try:
        with Console(stderr=True).status("building the model") as status:
            on = choose_device(device)
            subject = Subject.load(sizes, source, choose_dtype(dtype, on), on)
            options = Options.for_subject(
                subject,
                frames=frames,
                repeats=repeats,
                retentions=tuple(retention or _RETENTIONS),
                segments=tuple(segments) if segments else None,
                new_tokens=tuple(new_tokens or _NEW_TOKENS),
                batch=batch,
                dense_batch=dense_batch,
                preset=preset,
            )
            status.update("measuring the device")
            ceilings = measure_ceilings(on, subject.family.decoder.dtype)
            rows = Bench(subject, options, status.update).rows()
            checks = check_rows(rows, ceilings, on.type == "cuda")
            if memory:
                status.update(f"measuring peak memory at {' and '.join(map(str, FRAMES))} frames")
                peaks = peaks_beside_weights(shape, source, on.type, dtype, preset, torch.get_num_threads())
                checks += check_growth(peaks)
    except (ModelError, PromptTooLongError, OptionsError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(2) from error
    header = describe(subject, options, ceilings)
    title = f"{shape}, {subject.weights} weights, {options.frames} frames of {header['video_tokens']:,} tokens together"
    print_wide(as_table(rows, title), _WIDTH)
    for line in notes(subject, rows, options):
        print(line)
    print(f"matmul ceiling {ceilings.matmul_tflops:.3g} TFLOP/s · copy ceiling {ceilings.copy_gbs:.3g} GB/s")
    print(" · ".join(f"{name} {value}" for name, value in header.items() if not isinstance(value, dict | list | float)))
    print("aims, set for small on two cores of a CPU and for the 7B shapes on a GPU:")
    for check in checks:
        print(f"  {check}")
    if json_file is not None:
        write_json(json_file, header, rows, checks)
        print(f"rows  {json_file}")
