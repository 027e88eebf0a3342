"""The results of a sweep in their folder: a file for each run, so that a sweep that was killed can go on."""

import contextlib
import csv
import io
from pathlib import Path
from typing import Any

from vllm_bench.result.read import RUNS_OF_A_SWEEP, read
from vllm_bench.result.save import check_place, save, save_text
from vllm_bench.sweep.plan import Run
from vllm_cli.command import CommandError

DONE, PARTIAL, FAILED = "done", "partial", "failed"
"""How a run ended: with all its requests, with some of them, with none."""

_TABLE = "summary.csv"
_UNFINISHED = ".unfinished.json"
_NOT_OF_THE_TABLE = ("date", "status", "trusted", "error")


class Store:
    """The folder of one sweep."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def used(self) -> bool:
        """It holds results of this or of another sweep."""
        return any(self.folder.glob(RUNS_OF_A_SWEEP))

    @property
    def table_path(self) -> Path:
        """The table of all runs."""
        return self.folder / _TABLE

    @property
    def unfinished(self) -> Path:
        """Where a run that is under way puts its result."""
        return self.folder / _UNFINISHED

    def begin(self) -> None:
        """Make the folder, and forget what was under way when a sweep was killed."""
        check_place(self.table_path)
        try:
            self.unfinished.unlink(missing_ok=True)
        except OSError as error:
            raise CommandError(f"the results cannot be saved: {error}") from error

    def get(self, run: Run) -> dict[str, Any] | None:
        """What is known of ``run``; None: it never came to an end."""
        path = self._path(run)
        return read(path)[-1] if path.is_file() else None

    def is_done(self, run: Run) -> bool:
        """Whether it need not be repeated."""
        result = self.get(run)
        return result is not None and status(result) == DONE

    def take(self, run: Run, *, prefix_cache_reset: bool) -> dict[str, Any] | None:
        """The result that was put into ``unfinished`` for ``run``, if there is one; it is kept under the run's name.

        Args:
            prefix_cache_reset: whether the server had forgotten the prompts of the run before.
        """
        if not self.unfinished.is_file():
            return None
        result = read(self.unfinished)[-1]
        ended = FAILED if not result.get("completed") else PARTIAL if result.get("partial") else DONE
        result["sweep"] = {**run.about, "status": ended, "error": result.get("partial_reason")}
        result["sweep"]["prefix_cache_reset"] = prefix_cache_reset
        save(result, self._path(run))
        with contextlib.suppress(OSError):
            self.unfinished.unlink()
        return result

    def fail(self, run: Run, error: str) -> dict[str, Any]:
        """Keep that ``run`` gave no result, and why."""
        result = {"sweep": {**run.about, "status": FAILED, "error": error}}
        save(result, self._path(run))
        return result

    def write_table(self, results: list[dict[str, Any]]) -> None:
        """A CSV file with a line for each run: its settings, and every key of its result that is one value."""
        rows = [_row(result) for result in results]
        text = io.StringIO()
        writer = csv.DictWriter(text, list(dict.fromkeys(key for row in rows for key in row)), restval="")
        writer.writeheader()
        writer.writerows(rows)
        save_text(text.getvalue(), self.table_path)

    def _path(self, run: Run) -> Path:
        return self.folder / f"{run.name}.json"


def status(result: dict[str, Any]) -> str:
    """How the run of ``result`` ended."""
    return str(result.get("sweep", {}).get("status", FAILED))


def _row(result: dict[str, Any]) -> dict[str, Any]:
    about = result["sweep"]
    row: dict[str, Any] = {"name": about["name"]}
    row |= {f"serve.{name}": value for name, value in about["serve"].items()}
    row |= {f"bench.{name}": value for name, value in about["bench"].items()}
    row |= {"run": about["run"], "status": about["status"], "trusted": result.get("trusted"), "error": about["error"]}
    figures = {key: value for key, value in result.items() if key not in _NOT_OF_THE_TABLE}
    return row | {key: value for key, value in figures.items() if isinstance(value, (str, int, float))}
