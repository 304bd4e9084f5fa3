"""Comparisons with other libraries: skipped without them, unless they are required.

`pytest.importorskip` in a test here skips on a machine that lacks the library. With
TRANSFORMER_JAX_REQUIRE_COMPARE=1, as in `.ci/run`, a skip is a failure: a comparison
that is never made would look like one that passes.
"""

import os
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
collect_ignore = ["seq2seq.py"]  # has no tests, and needs torch
ADVICE = (
    "Comparisons must run here (TRANSFORMER_JAX_REQUIRE_COMPARE=1), but this one was "
    "skipped. Install what is missing: pip install '.[compare]'."
)


def required() -> bool:
    """Whether a skipped comparison counts as a failure."""
    return os.environ.get("TRANSFORMER_JAX_REQUIRE_COMPARE", "") not in ("", "0")


def fail_if_skipped(report: Any) -> None:
    """Turn a report of a skip into one of a failure, with the reason kept."""
    expected_failure = hasattr(report, "wasxfail")
    if report.skipped and required() and not expected_failure:
        reason = (
            report.longrepr[-1] if isinstance(report.longrepr, tuple) else "Skipped"
        )
        report.outcome = "failed"
        report.longrepr = f"{ADVICE}\n{reason}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Any:
    """A test that skips, in its set-up or its body."""
    report = yield
    if HERE in item.path.parents:
        fail_if_skipped(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Any:
    """A file that skips as a whole when it is imported."""
    report = yield
    if HERE in collector.path.parents:
        fail_if_skipped(report)
    return report
