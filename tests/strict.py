"""A pytest plugin: what was not tested has failed.

``make test`` loads it with ``-p tests.strict``. A skip, an xfail and a run without any test count as failures, so that
a missing server or package cannot pass for success.
"""

from __future__ import annotations

from collections.abc import Generator

import pytest


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, object, object]:
    """Turn the report of a skipped or xfailed test into that of a failed one."""
    report = yield
    assert isinstance(report, pytest.TestReport)
    _fail_if_skipped(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Generator[None, object, object]:
    """Turn the report of a module that skips itself into that of a failed one."""
    report = yield
    assert isinstance(report, pytest.CollectReport)
    _fail_if_skipped(report)
    return report


def _fail_if_skipped(report: pytest.TestReport | pytest.CollectReport) -> None:
    if report.skipped:
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        report.outcome = "failed"
        report.longrepr = f"{report.nodeid}: not tested, which counts as failed: {reason}"
        if hasattr(report, "wasxfail"):
            del report.wasxfail
