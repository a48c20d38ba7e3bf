"""Caption every video of a manifest: `python -m jobs.caption --config FILE [key.path=value …]`."""

from jobs.console import job_command

app = job_command("caption", "Caption every video of a manifest.")

if __name__ == "__main__":
    app()
