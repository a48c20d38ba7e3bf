"""Answer the questions that a manifest asks about its videos: `python -m jobs.qa --config FILE [key.path=value …]`."""

from jobs.console import job_command

app = job_command("qa", "Answer the questions that a manifest asks about its videos.")

if __name__ == "__main__":
    app()
