"""The result rows of one or two runs in a DuckDB table, read once and asked often."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import duckdb

from pipeline.errors import UserError, one_line
from pipeline.report.found import FoundRun
from pipeline.storage import local_copy

_READERS = 8
_LONGEST = {"answer": 1200, "prompt": 400, "error_message": 300, "uri": 400, "video_id": 200}
_TEXTS = ("item_id", "video_id", "uri", "prompt", "answer", "answer_option", "finish_reason", "status", "error_stage")
_TEXTS += ("error_code", "error_message", "codec", "model", "dtype", "quantization", "pruning_method")
_TEXTS += ("code_version", "host", "device")
_COUNTS = ("attempts", "width", "height", "frames", "bytes_fetched", "video_tokens", "prompt_tokens", "output_tokens")
_COUNTS += ("segments",)
_NUMBERS = ("duration_s", "retention_requested", "retention_achieved", "flops_ratio", "kv_ratio", "fetch_ms")
_NUMBERS += ("decode_ms", "decode_cpu_ms", "wait_ms", "vision_ms", "prune_ms", "prefill_ms", "generate_ms", "total_ms")
_NUMBERS += ("peak_memory_mb",)
_LISTS = ("stage_layers", "stage_tokens")
_TIMES = ("started_at", "finished_at")


class Rows:
    """All rows of `runs` in the table `rows`, whose column `run` is 0 or 1.

    Long texts are cut; `answer_letters` and `answer_hash` tell of whole answers. Times are whole
    microseconds since 1970. A column that a file does not have, NaN and infinities are null.
    """

    def __init__(self, runs: Sequence[FoundRun], scratch: Path) -> None:
        """Read every result file. `scratch` is an empty folder, for files of an object store and for what spills.

        Raises UserError for a file that is not one of ours, ClusterError where the storage cannot be reached.
        """
        self.runs = tuple(runs)
        self._connection = duckdb.connect(str(scratch / "rows.duckdb"))
        self._connection.execute(_table([]))
        for number, run in enumerate(runs):
            if run.files:
                with ThreadPoolExecutor(_READERS) as readers:
                    files = list(readers.map(lambda uri: str(local_copy(uri, scratch)), run.files))
                self._read(number, files)

    def ask(self, sql: str, *values: Any) -> list[dict[str, Any]]:
        """The rows that a query finds, each as a dictionary."""
        found = self._connection.execute(sql, list(values))
        names = [column[0] for column in found.description]
        return [dict(zip(names, row, strict=True)) for row in found.fetchall()]

    def one(self, sql: str, *values: Any) -> dict[str, Any]:
        """The only row that a query finds."""
        [row] = self.ask(sql, *values)
        return row

    def close(self) -> None:
        """Let go of the table."""
        self._connection.close()

    def _read(self, number: int, files: list[str]) -> None:
        source = "read_parquet(?, union_by_name=true, hive_partitioning=false)"
        try:
            found = self._connection.execute(f"select column_name from (describe select * from {source})", [files])  # noqa: S608  # no value is in the text
            columns = [name for (name,) in found.fetchall()]
            self._connection.execute(f"insert into rows {_select(columns, number)} from {source}", [files])
        except duckdb.Error as error:
            raise UserError(
                f"the results of {self.runs[number].run_id} cannot be read: {one_line(str(error))}"
            ) from error


def _table(columns: Sequence[str]) -> str:
    return f"create table rows as {_select(columns, 0)} limit 0"


def _select(columns: Sequence[str], number: int) -> str:
    """A select of every column of `rows`, those that are not among `columns` as nulls."""
    chosen = [f"{number}::tinyint as run"]
    for name in _TEXTS:
        text = _column(name, columns, "varchar")
        chosen.append(f"left({text}, {_LONGEST[name]}) as {name}" if name in _LONGEST else f"{text} as {name}")
    answer = _column("answer", columns, "varchar")
    chosen += [f"length({answer}) as answer_letters", f"md5({answer}) as answer_hash"]
    chosen += [f"{_column(name, columns, 'bigint')} as {name}" for name in _COUNTS]
    for name in _NUMBERS:
        number_text = _column(name, columns, "double")
        chosen.append(f"case when isfinite({number_text}) then {number_text} end as {name}")
    chosen += [f"{_column(name, columns, 'bigint[]')} as {name}" for name in _LISTS]
    chosen += [f"epoch_us({_column(name, columns, 'timestamptz')}) as {name}" for name in _TIMES]
    return f"select {', '.join(chosen)}"


def _column(name: str, columns: Sequence[str], kind: str) -> str:
    return f'try_cast("{name}" as {kind})' if name in columns else f"null::{kind}"
