"""How much accuracy pruning keeps, measured: `python -m jobs.evaluate compare|ablate|calibrate|lmms`."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from jobs.exits import exit_status
from pipeline.errors import UserError

if TYPE_CHECKING:
    from pipeline.engine import VideoLLM
    from pipeline.evaluate.workers import Step

_EXIT_STATUS = "Exit status: 0 done; 2 something of the call must be changed; 3 storage failed."
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, no_args_is_help=True, help=_EXIT_STATUS)

Split = Literal["validation", "test"]
Model = Annotated[str, typer.Option(help="builtin:tiny or a folder in the Hugging Face layout")]
Device = Annotated[Literal["auto", "cpu", "cuda"], typer.Option(help="auto takes a GPU where there is one")]
Dtype = Annotated[
    Literal["auto", "float32", "bfloat16", "float16"], typer.Option(help="auto: float32 on a CPU, bfloat16 on a GPU")
]
Quantization = Annotated[
    Literal["none", "int8", "fp8"], typer.Option(help="form of the language model's weights; fp8 on a GPU only")
]
First = Annotated[int, typer.Option(min=0, help="index of the first clip in the split")]
Questions = Annotated[int, typer.Option(min=1, max=5, help="questions a clip")]
Captions = Annotated[int, typer.Option(min=0, help="how many of the clips get a caption, too")]
Cache = Annotated[Path, typer.Option(help="folder of rendered and encoded clips to reuse and add to")]
Workers = Annotated[int, typer.Option(min=1, help="processes; more than one use a single thread each")]


@app.command(name="compare")
def compare_methods(
    method: Annotated[
        list[str] | None,
        typer.Option(help="name[:option=value,…][@clips]; again for more; default: every method, and no oracle"),
    ] = None,
    retention: Annotated[list[float] | None, typer.Option(help="again for more; default 0.5, 0.3, 0.2, 0.1")] = None,
    comparison: Annotated[
        Literal["both", "mean", "flops"], typer.Option(help="equal mean retention, equal FLOPs")
    ] = "both",
    split: Split = "validation",
    first: First = 0,
    clips: Annotated[int, typer.Option(min=1, help="how many clips")] = 200,
    questions: Questions = 5,
    captions: Captions = 0,
    model: Model = "builtin:tiny",
    device: Device = "auto",
    quantization: Quantization = "none",
    out: Annotated[Path, typer.Option(help="folder of the tables; finished cells in it are not run again")] = Path(
        "out/evaluate/compare"
    ),
    cache: Cache = Path("out/clips"),
    workers: Workers = 1,
) -> None:
    """Methods side by side on clips of the built-in world, at equal retention and at equal prefill FLOPs."""
    with exit_status("interrupted; finished cells stay"):
        from pipeline.evaluate.clips import ClipRange
        from pipeline.evaluate.compare import compare
        from pipeline.evaluate.origin import find_origin
        from pipeline.evaluate.outputs import write_comparison
        from pipeline.evaluate.variants import parse_variant
        from pipeline.evaluate.workers import Setting
        from pruning import method_names

        variants = [parse_variant(text) for text in method or method_names()]
        retentions = _checked(retention or [0.5, 0.3, 0.2, 0.1])
        llm = _load(model, device, quantization)
        entries = compare(
            Setting(model, device, cache, out / "cells", quantization),
            llm,
            variants,
            ["mean", "flops"] if comparison == "both" else [comparison],
            retentions,
            ClipRange(split, first, clips, questions),
            captions,
            workers,
            _report,
        )
        print(write_comparison(entries, out, find_origin(_command(), llm.info.device)))
        print(f"\ntables and figure in {out}")


@app.command(name="ablate")
def ablate_hieravid(
    group: Annotated[list[str] | None, typer.Option(help="a group of variants; again for more; default all")] = None,
    retention: Annotated[list[float] | None, typer.Option(help="again for more; default 0.3, 0.1")] = None,
    first: First = 0,
    clips: Annotated[int, typer.Option(min=1, help="how many clips of the validation split")] = 200,
    questions: Questions = 5,
    captions: Captions = 0,
    model: Model = "builtin:tiny",
    device: Device = "auto",
    out: Annotated[Path, typer.Option(help="folder of the table; finished cells in it are not run again")] = Path(
        "out/evaluate/ablate"
    ),
    cache: Cache = Path("out/clips"),
    workers: Workers = 1,
) -> None:
    """What each level and each free choice of HieraVid is worth, on validation clips."""
    with exit_status("interrupted; finished cells stay"):
        from pipeline.evaluate.ablations import ablate, group_names
        from pipeline.evaluate.clips import ClipRange
        from pipeline.evaluate.origin import find_origin
        from pipeline.evaluate.outputs import write_ablations
        from pipeline.evaluate.workers import Setting

        llm = _load(model, device)
        rows = ablate(
            Setting(model, device, cache, out / "cells"),
            llm,
            group or group_names(),
            _checked(retention or [0.3, 0.1]),
            ClipRange("validation", first, clips, questions),
            captions,
            workers,
            _report,
        )
        print(write_ablations(rows, out, find_origin(_command(), llm.info.device)))
        print(f"\ntable in {out}")


@app.command(name="calibrate")
def calibrate_model(
    out: Annotated[str, typer.Option(help="the file to write, local or s3://; a job names it as pruning.calibration")],
    manifest: Annotated[
        str | None, typer.Option(help="sample videos as a job takes them; default: the built-in world's clips")
    ] = None,
    prompt: Annotated[
        str | None, typer.Option(help="asked where the manifest has no prompt; default: a caption")
    ] = None,
    retention: Annotated[list[float] | None, typer.Option(help="again for more; default 0.3, 0.1")] = None,
    first: First = 300,
    clips: Annotated[
        int, typer.Option(min=1, help="how many videos of the manifest, or of the validation split")
    ] = 150,
    model: Model = "builtin:tiny",
    device: Device = "auto",
    dtype: Dtype = "auto",
    cache: Cache = Path("out/clips"),
    workers: Workers = 1,
) -> None:
    """Choose HieraVid's options for a model from its own unpruned answers, without labels."""
    with exit_status("interrupted; finished cells stay"):
        from pipeline.config import DEFAULT_CAPTION_PROMPT
        from pipeline.evaluate.calibrate import calibrate

        calibrate(
            model,
            out,
            manifest=manifest,
            prompt=prompt or DEFAULT_CAPTION_PROMPT,
            split="validation",
            first=first,
            clips=clips,
            retentions=_checked(retention or [0.3, 0.1]),
            cache=str(cache),
            workers=workers,
            device=device,
            dtype=dtype,
            report=lambda line: print(line, flush=True),
        )


@app.command(name="lmms")
def lmms_benchmarks(
    task: Annotated[
        list[str] | None, typer.Option(help="of lmms-eval, again for more; default: the benchmarks of the paper")
    ] = None,
    method: Annotated[
        list[str] | None, typer.Option(help="name[:option=value,…]; again for more; default hieravid")
    ] = None,
    retention: Annotated[list[float] | None, typer.Option(help="again for more; default 0.3, 0.1")] = None,
    frames: Annotated[int | None, typer.Option(min=1, help="of a video; default: what the model was made for")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="questions a task; default all")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="videos answered together")] = 1,
    clips: Annotated[int, typer.Option(min=1, help="validation clips in the tasks of the built-in world")] = 24,
    model: Model = "builtin:tiny",
    device: Device = "auto",
    dtype: Dtype = "auto",
    out: Annotated[Path, typer.Option(help="folder of the table; finished cells in it are not run again")] = Path(
        "out/evaluate/lmms"
    ),
    cache: Cache = Path("out/clips"),
) -> None:
    """Public benchmarks through lmms-eval, in the environment that `make lmms` makes."""
    with exit_status("interrupted; finished cells stay"):
        from pipeline.evaluate.lmms_run import PAPER_TASKS, BenchmarkJob, run_benchmarks
        from pipeline.evaluate.lmms_table import write_benchmarks
        from pipeline.evaluate.origin import find_origin
        from pipeline.evaluate.variants import parse_variant

        job = BenchmarkJob(
            model=model,
            tasks=tuple(task or PAPER_TASKS),
            variants=tuple(parse_variant(text) for text in method or ["hieravid"]),
            retentions=tuple(_checked(retention or [0.3, 0.1])),
            out=out,
            frames=frames,
            device=device,
            dtype=dtype,
            batch_size=batch_size,
            limit=limit,
            clips=clips,
            cache=cache,
        )
        scores = run_benchmarks(job, lambda line: print(line, file=sys.stderr, flush=True))
        print(write_benchmarks(scores, out, find_origin(_command(), _device(device))))
        print(f"\ntable in {out}")


def _load(
    model: str, device: Literal["auto", "cpu", "cuda"], quantization: Literal["none", "int8", "fp8"] = "none"
) -> VideoLLM:
    from pipeline.engine import ModelError, VideoLLM

    try:
        return VideoLLM.load(model, device=device, quantization=quantization)
    except ModelError as error:
        raise UserError(f"--model {model}: {error}") from error


def _device(name: Literal["auto", "cpu", "cuda"]) -> str:
    from pipeline.engine.info import choose_device

    return choose_device(name).type


def _checked(retentions: list[float]) -> list[float]:
    for retention in retentions:
        if not 0 < retention < 1:
            raise UserError(f"--retention {retention:g} is not allowed: a number above 0 and below 1")
    return sorted(set(retentions), reverse=True)


def _command() -> str:
    return f"hieravid evaluate {shlex.join(sys.argv[2:] if sys.argv[1:2] == ['evaluate'] else sys.argv[1:])}"


def _report(step: Step) -> None:
    """A line for each piece of work."""
    left = f"{step.eta_s / 60:.1f} min left" if step.done < step.total else "done"
    print(f"{step.done}/{step.total} {step.name}, {step.seconds:.1f} s; {left}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    app()
