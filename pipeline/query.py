"""SQL over result files, local or on S3, that can read nothing else and write nothing at all.

DuckDB reads the files itself, column by column, and spills to disk: what is asked may be larger than memory.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any, Self

import duckdb
import pyarrow as pa

from pipeline.errors import ClusterError, UserError, one_line
from pipeline.queries import PAIRS
from pipeline.query_files import Place, find_results, find_shards
from pipeline.storage import filesystem_for, scheme_of

_BATCH_ROWS = 4096
_UNREADABLE = (duckdb.IOException, duckdb.HTTPException)
_SETTINGS: dict[str, Any] = {
    "python_enable_replacements": False,  # a table's name must not find a variable of this program
    "autoinstall_known_extensions": False,
    "autoload_known_extensions": False,
}
_PLANNED = "SELECT run_id, item_id, start_s, end_s, row FROM"
_NOTHING_PLANNED = (
    "SELECT ''::VARCHAR run_id, ''::VARCHAR item_id, 0::DOUBLE start_s, 0::DOUBLE end_s, 0::BIGINT AS row WHERE false"
)


class Results(AbstractContextManager["Results"]):
    """The result files of some places as the view `results`; for a comparison `a`, `b` and `pairs` besides."""

    def __init__(self, places: Sequence[Place], sides: tuple[Place, Place] | None = None) -> None:
        """Open the results of `places`, or of both `sides`.

        Raises UserError where a place has none or a file is not Parquet, ClusterError where storage is away.
        """
        self._scratch = tempfile.TemporaryDirectory(prefix="hieravid-query-")
        self._connection = duckdb.connect(":memory:", config={**_SETTINGS, "temp_directory": self._scratch.name})
        self._connection.execute("SET enable_progress_bar = false")  # it would go to stdout, among the answer
        self._schemes: set[str] = set()
        try:
            self._open(places if sides is None else sides, sides)
        except BaseException:
            self._close()
            raise

    def _open(self, places: Sequence[Place], sides: tuple[Place, Place] | None) -> None:
        found = {place: find_results(place) for place in places}
        files = sorted({uri for runs in found.values() for uris in runs.values() for uri in uris})
        allowed = list(files)
        self._reach(files)
        self._view("results", f"SELECT * FROM {_read(files, 'hive_partitioning')}")  # noqa: S608  # quoted by _list
        if sides is not None:
            for name, place in zip("ab", sides, strict=True):
                self._view(name, f"SELECT * FROM results WHERE run_id IN {_list(found[place])}")  # noqa: S608
            runs = sorted({(place.output, run_id) for place in sides for run_id in found[place]})
            shards = [uri for output, run_id in runs for uri in find_shards(output, run_id)]
            self._reach(shards)
            allowed += shards
            self._view("planned", _planned(shards))
            self._view("pairs", PAIRS)
        # From here on nothing but these files can be opened, and that cannot be undone.
        self._connection.execute(f"SET allowed_paths = {_list([*allowed, *map(_no_glob, allowed)], is_glob=False)}")
        self._connection.execute("SET enable_external_access = false")
        self._connection.execute("SET lock_configuration = true")

    def _reach(self, files: Iterable[str]) -> None:
        """Let DuckDB read remote files through the one client that knows our endpoint and credentials."""
        for uri in files:
            scheme = scheme_of(uri)
            if scheme and scheme not in self._schemes:
                self._schemes.add(scheme)
                self._connection.register_filesystem(filesystem_for(uri)[0])

    def _view(self, name: str, sql: str) -> None:
        try:
            self._connection.execute(f"CREATE VIEW {name} AS {sql}")
        except duckdb.Error as error:
            raise self._told(error) from error

    def ask(self, sql: str, parameters: Mapping[str, Any] | None = None) -> pa.RecordBatchReader:
        """The answer to one SELECT, in batches as they come. Read it with `batches`.

        Raises UserError for anything that is not one SELECT, and for what DuckDB finds wrong with it.
        """
        try:
            statements = self._connection.extract_statements(sql)
            if [one.type for one in statements] != [duckdb.StatementType.SELECT]:
                raise UserError("only one SELECT at a time can be asked: results are never changed, or written by SQL")
            return self._connection.sql(sql, params=dict(parameters or {})).to_arrow_reader(_BATCH_ROWS)
        except duckdb.Error as error:
            raise self._told(error) from error

    def batches(self, reader: pa.RecordBatchReader) -> Iterable[pa.RecordBatch]:
        """The batches of an answer. Raises as `ask`, ClusterError where storage goes away meanwhile."""
        try:
            yield from reader
        except (duckdb.Error, pa.ArrowException, OSError) as error:
            raise self._told(error) from error

    def row(self, sql: str) -> dict[str, Any]:
        """The only row of an answer, by column."""
        [row] = pa.Table.from_batches(self.batches(reader := self.ask(sql)), reader.schema).to_pylist()
        return row

    def _told(self, error: Exception) -> UserError | ClusterError:
        """What DuckDB raised, in one line. What comes from a remote file system has no kind of its own there."""
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        is_remote = bool(self._schemes) and (type(error) is duckdb.Error or isinstance(error, _UNREADABLE | OSError))
        if is_remote:
            return ClusterError(f"cannot read the results: {one_line(lines[-1] if lines else type(error).__name__)}")
        # The place in the SQL that DuckDB marks below its message means nothing in one line.
        told = next((place for place, line in enumerate(lines) if line.startswith("LINE ")), len(lines))
        return UserError(one_line(" ".join(lines[:told]) or type(error).__name__))

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Forget the files."""
        self._close()

    def _close(self) -> None:
        self._connection.close()
        self._scratch.cleanup()

    def __enter__(self) -> Self:
        """Open for questions."""
        return self


def _planned(shards: Sequence[str]) -> str:
    if not shards:
        return _NOTHING_PLANNED
    run_id = r"regexp_extract(filename, '/runs/([^/]+)/manifest/', 1) AS run_id"
    return f"{_PLANNED} (SELECT *, {run_id} FROM {_read(shards, 'filename')})"  # noqa: S608  # quoted by _list


def _read(files: Sequence[str], option: str) -> str:
    return f"read_parquet({_list(files)}, union_by_name=true, {option}=true)"


def _list(texts: Iterable[str], is_glob: bool = True) -> str:
    """Texts as an SQL list of literals; DuckDB takes a file's name for a glob."""
    quoted = ("'" + (_no_glob(text) if is_glob else text).replace("'", "''") + "'" for text in texts)
    return f"[{', '.join(quoted)}]"


def _no_glob(path: str) -> str:
    return re.sub(r"([*?\[])", r"[\1]", path)
