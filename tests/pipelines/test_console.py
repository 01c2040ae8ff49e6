"""Plain lines where there is no terminal, and tables people can read."""

import io
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout

from pipelines.console import Console, bytes_text
from pipelines.progress import Listeners, ProgressListener
from recsys.evaluation.report import cell_text


def test_without_a_terminal_there_are_no_control_codes() -> None:
    out = io.StringIO()
    with redirect_stdout(out):
        console = Console()
        with console.progress("working", 10) as task:
            task.update(5)
        console.table("title", [{"name": "a", "rows": 1234, "share": None}])
        console.note("a [b] c")
    assert "\x1b" not in out.getvalue()
    assert "1,234" in out.getvalue()
    assert "a [b] c" in out.getvalue()


def test_standard_output_stays_free_for_json() -> None:
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        Console(to_stderr=True).note("hello")
    assert (out.getvalue(), err.getvalue()) == ("", "hello\n")


def test_training_is_told_in_plain_lines() -> None:
    out = io.StringIO()
    with redirect_stdout(out):
        listener = Listeners([ProgressListener(Console())])
        listener.on_start(20, 2, 10)
        listener.on_step(15, {"train/loss": 0.5, "train/learning_rate": 0.1, "train/skipped_steps": 3})
        listener.on_epoch(2, 20, {"valid/auc": 0.75})
    assert "resuming at step 10 of 20" in out.getvalue()
    assert "epoch 2: valid/auc 0.75000" in out.getvalue()


def test_numbers_as_text() -> None:
    assert [cell_text(0.0), cell_text(12345.6), cell_text(-0.00012)] == ["0", "12,346", "-0.00012"]
    assert [bytes_text(999), bytes_text(1000), bytes_text(2.5e9)] == ["999 B", "1.0 kB", "2.5 GB"]


def test_the_console_waits_for_no_library_of_numbers() -> None:
    """Every verb speaks through it, and begins with it."""
    heavy = ("torch", "pandas", "numba", "scipy", "polars")
    code = f"import sys, pipelines.console; print([name for name in {heavy!r} if name in sys.modules])"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "[]"
