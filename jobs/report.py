"""A run as one HTML file: `python -m jobs.report OUTPUT_OR_RUN [RUN_B] [--out FILE]`."""

from __future__ import annotations

from typing import Annotated

import typer

from jobs.exits import exit_status

_EXIT_STATUS = "Exit status: 0 done; 2 something of the call must be changed; 3 storage failed."
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command(help=f"Write a report of a run, or of two side by side, that opens anywhere.\n\n{_EXIT_STATUS}")
def main(
    run: Annotated[str, typer.Argument(help="the output of a job (its latest run) or a folder <output>/runs/<run>")],
    run_b: Annotated[
        str | None, typer.Argument(help="another one, or the id of another run in the same output, to set beside it")
    ] = None,
    out: Annotated[str, typer.Option(help="the HTML file to write, local or s3://")] = "report.html",
    usd_per_gpu_hour: Annotated[
        float | None, typer.Option(min=0, help="tell also what the GPUs cost, at this price")
    ] = None,
) -> None:
    """Thin: finds, makes, writes."""
    with exit_status("interrupted; nothing was written"):
        from pipeline.report.found import find_run  # late: the help should not wait for what draws charts
        from pipeline.report.page import make_report
        from pipeline.storage import write_atomic

        found = [find_run(run)]
        if run_b is not None:
            found.append(find_run(run_b, found[0]))
        page = make_report(found, usd_per_gpu_hour).encode("utf-8", "replace")
        write_atomic(out, page)
    print(f"report  {out} ({len(page) / 1e6:.2f} MB)")


if __name__ == "__main__":
    app()
