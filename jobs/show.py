"""What a model was allowed to see of one video: `python -m jobs.show VIDEO [key.path=value …] [--out FILE]`."""

from __future__ import annotations

import os
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated

import typer

from jobs.exits import exit_status
from jobs.options import Overrides
from pipeline.errors import RowError, UserError, one_line
from pipeline.storage import local_copy, write_atomic

if TYPE_CHECKING:
    from pipeline.config import JobConfig

_EXIT_STATUS = "Exit status: 0 done; 2 something of the call must be changed; 3 storage failed."
_KINDS = (".png", ".gif", ".webp")
_RETENTIONS = (0.5, 0.3, 0.1)
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command(help=f"Draw which tokens of a video are kept, unpruned and at each retention.\n\n{_EXIT_STATUS}")
def main(
    video: Annotated[str, typer.Argument(help="a video, local or s3://")],
    overrides: Overrides = None,
    config: Annotated[
        Path | None, typer.Option(help="a job file: its model, pruning and frames, and its prompt")
    ] = None,
    question: Annotated[
        str | None, typer.Option(help="what to ask; default: the job file's prompt, else a caption")
    ] = None,
    retention: Annotated[
        list[float] | None, typer.Option(help="again for more; default: the job file's, without one 0.5, 0.3, 0.1")
    ] = None,
    reference: Annotated[str, typer.Option(help="the right answer, printed beside the question")] = "",
    out: Annotated[Path, typer.Option(help="the file to write: .png, or .gif or .webp, which move")] = Path(
        "tokens.png"
    ),
) -> None:
    """Thin: settles what to ask, asks, writes."""
    with exit_status("interrupted; nothing was written"):
        if out.suffix.lower() not in _KINDS:
            raise UserError(f"--out {out}: a name that ends in {', '.join(_KINDS)} is needed")
        picture = _picture(video, _job(config, overrides or [], question), question, retention, reference, out)
        write_atomic(str(out), picture)
    print(f"picture  {out} ({len(picture) / 1e6:.2f} MB)")


def _job(config: Path | None, overrides: list[str], question: str | None) -> JobConfig:
    """The settings of a job; without a job file those that a job has by itself."""
    from pipeline.config_load import load_config

    if config is not None:
        return load_config(config, overrides)
    # A job needs a manifest and an output, which nothing here reads.
    return load_config(None, ["manifest=none", "output=none", *overrides], "qa" if question else "caption")


def _picture(
    video: str, job: JobConfig, question: str | None, retentions: list[float] | None, reference: str, out: Path
) -> bytes:
    from pipeline.config import DEFAULT_CAPTION_PROMPT
    from pipeline.engine import ModelError
    from pipeline.model_load import find_model, load_engine, model_error
    from pipeline.picture import ask_panels, draw_tokens
    from pipeline.picture_film import draw_film
    from pipeline.resolve import resolve_method
    from pipeline.video.decode import decode_frames
    from pipeline.video.sampling import Sampling

    given = job.budget.retention
    chosen = retentions or ([given] if given is not None and given < 1 else list(_RETENTIONS))
    if wrong := [retention for retention in chosen if not 0 < retention < 1]:
        raise UserError(f"--retention {wrong[0]:g} is not allowed: a number above 0 and below 1")
    asked = question or job.generation.prompt or DEFAULT_CAPTION_PROMPT
    with TemporaryDirectory(prefix="hieravid-show-") as scratch:
        path = local_copy(video, Path(scratch))
        model = find_model(job.model, lambda _: None)
        job = resolve_method(job, model.info)
        try:
            settings = job.video
            count = model.info.default_frames if settings.frames == "auto" else settings.frames
            sampling = Sampling(count, settings.policy, settings.fps)
            frames = decode_frames(path, sampling, backend=settings.backend).frames
            llm = load_engine(model, job.model.device, len(os.sched_getaffinity(0)))
            panels = ask_panels(llm, frames, asked, job.pruning, sorted(set(chosen), reverse=True))
            told = f"Question: {asked}" + (f"   Right answer: {reference}" if reference else "")
            tokens = panels[0].trace.grid.tokens
            name = video.rpartition("/")[2]
            title = f"{name}: what {job.pruning.method} keeps of {tokens} video tokens in {llm.info.name}"
            kind = out.suffix.lower()[1:]
            if kind == "png":
                return draw_tokens(frames, panels, title, told)
            return draw_film(frames, panels, "gif" if kind == "gif" else "webp", title, told)
        except RowError as error:
            raise UserError(f"{video}: {error.message}") from error
        except ModelError as error:
            raise model_error(str(error)) from error
        except ValueError as error:
            raise UserError(one_line(str(error))) from error


if __name__ == "__main__":
    app()
