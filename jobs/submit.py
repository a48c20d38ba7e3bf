"""Send a job to a Ray cluster and follow it: `python -m jobs.submit TASK --config FILE [key.path=value …]`."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from jobs.exits import INTERRUPTED, complain, exit_status
from jobs.options import Code, Overrides, Restart, RetryFailed

if TYPE_CHECKING:
    from pipeline.config import JobConfig
    from pipeline.submit_cluster import JobServer
    from pipeline.submit_package import Files

_HELP = "\n\n".join(
    (
        "Send a job to a Ray cluster, follow its log, and end with its exit status.",
        "The job file and the storage are checked here first. Then the working directory goes to the cluster, without "
        "large files, results, environments and all that begins with a dot, and with the job file as it was checked. "
        "Nothing of this machine's environment goes along: workers have their credentials from the cluster's own.",
        "Ctrl-C only ends the following; the job goes on.",
        "As in: submit caption --config configs/nightly-caption.yaml --address http://HEAD:8265 "
        "manifest=s3://archive/manifests/tonight.parquet budget.retention=0.3.",
        "Exit status, with --no-follow of the submission alone: 0 done; 1 more rows failed than the job allows; "
        "2 you must change something; 3 cluster or storage cannot be reached, or the cluster lost the job; "
        "130 the job was stopped.",
    )
)

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command(help=_HELP)
def submit(
    task: Annotated[Literal["caption", "qa"], typer.Argument(help="what the job does")],
    config: Annotated[str, typer.Option(help="the job file, YAML")],
    overrides: Overrides = None,
    address: Annotated[
        str,
        typer.Option(help="the cluster's job server", envvar=["RAY_API_SERVER_ADDRESS", "RAY_ADDRESS"]),
    ] = "http://127.0.0.1:8265",
    follow: Annotated[bool, typer.Option("--follow/--no-follow", help="show the log and wait for the end")] = True,
    working_dir: Annotated[Path, typer.Option(help="the folder to send")] = Path(),
    exclude: Annotated[
        list[str] | None, typer.Option(help="a name or path in it, * allowed, that stays here; may be repeated")
    ] = None,
    storage_check: Annotated[
        bool,
        typer.Option("--storage-check/--no-storage-check", help="try manifest and output from this machine first"),
    ] = True,
    retry_failed: RetryFailed = False,
    code: Code = None,
    restart: Restart = False,
) -> None:
    """Check, pack, send and follow."""
    with exit_status():
        from jobs.console import Again
        from pipeline.config_load import load_config
        from pipeline.submit import check_storage, entrypoint, job_text, place_job

        Again(retry_failed, frozenset(code or ()), restart).check()
        job = load_config(config, overrides or [], task)

        from pipeline.submit_cluster import MOST_BYTES, JobServer  # late: a mistake should not wait for Ray to load
        from pipeline.submit_package import describe_large, find_files

        files = find_files(working_dir.absolute(), exclude or [], MOST_BYTES)
        sent = place_job(job, files.folder, files.sizes)
        text = job_text(sent)
        if storage_check:
            check_storage(job, _note)
        if told := describe_large(files):
            _note(told)
        options = ["--retry-failed"] * retry_failed + ["--restart"] * restart
        options += [word for one in code or () for word in ("--code", one)]
        server = JobServer(address)
        job_id = _send(server, sent, text, files, entrypoint(task, options))
        _note(f"{job_id}: sent {len(files.sizes):,} files, {files.size / 2**20:,.1f} MiB, to {server.address}")
        if not follow:
            print(job_id)
            _say_how_to_go_on(server, job_id, sent.output)
            return
        raise typer.Exit(_follow(server, job_id, sent.output))


def _send(server: JobServer, job: JobConfig, text: str, files: Files, command: str) -> str:
    import tempfile

    from pipeline.submit import JOB_FILE, job_metadata
    from pipeline.submit_package import copy_files

    with tempfile.TemporaryDirectory(prefix="hieravid-submit-") as name:
        folder = Path(name, "package")
        folder.mkdir()
        copy_files(files, folder)
        (folder / JOB_FILE).write_text(text, encoding="utf-8")
        return server.submit(job.name, command, folder, job_metadata(job, text))


def _follow(server: JobServer, job_id: str, output: str) -> int:
    """The exit status of the job, or 130 where the user goes away before its end."""
    from pipeline.submit_cluster import exit_status_of, why_it_ended

    try:
        details = server.follow(job_id, lambda text: print(text, end="", flush=True))
    except KeyboardInterrupt:
        _note("")
        _note(f"the job {job_id} goes on")
        _say_how_to_go_on(server, job_id, output)
        return INTERRUPTED
    if told := why_it_ended(details):
        complain(told)
    return exit_status_of(details)


def _say_how_to_go_on(server: JobServer, job_id: str, output: str) -> None:
    at = ["--address", server.address]
    _note(f"follow   {shlex.join(['ray', 'job', 'logs', '--follow', *at, job_id])}")
    _note(f"stop     {shlex.join(['ray', 'job', 'stop', *at, job_id])}")
    _note(f"status   {shlex.join(['hieravid', 'status', output])}")


def _note(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    app()
