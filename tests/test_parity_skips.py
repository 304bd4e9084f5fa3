"""A comparison that skips passes on a laptop and fails in CI."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CONFTEST = Path(__file__).parent / "parity" / "conftest.py"
TESTS = """
import pytest

def test_that_runs():
    pass

def test_that_skips():
    pytest.importorskip("a_library_that_nobody_has")

@pytest.mark.skip(reason="no time")
def test_that_is_marked():
    pass

@pytest.mark.xfail(strict=True)
def test_that_fails_as_expected():
    assert False
"""
MODULE = """
import pytest

pytest.importorskip("a_library_that_nobody_has")
"""


def run_pytest(folder: Path, required: str) -> str:
    environment = {
        **os.environ,
        "TRANSFORMER_JAX_REQUIRE_COMPARE": required,
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
    }
    options = ["-q", "-c", os.devnull, "--rootdir", str(folder), "--no-header"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, "-p", "no:cacheprovider"],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
    )
    return done.stdout.strip()


@pytest.mark.parametrize(
    ("required", "tests", "outcome"),
    [
        ("", TESTS, "1 passed, 2 skipped, 1 xfailed"),
        ("0", MODULE, "1 skipped"),
        ("1", TESTS, "1 failed, 1 passed, 1 xfailed, 1 error"),
        ("1", MODULE, "1 error"),
    ],
)
def test_skips_fail_where_comparisons_are_required(tmp_path, required, tests, outcome):
    shutil.copy(CONFTEST, tmp_path)
    (tmp_path / "test_it.py").write_text(tests)
    output = run_pytest(tmp_path, required)
    assert output.splitlines()[-1].startswith(outcome)
    assert ("pip install '.[compare]'" in output) == (required == "1")
