"""What all tests share: a floor under the number of tests, so that an empty run is not green."""

from __future__ import annotations

import pytest
from hypothesis import settings

# A busy machine makes no test fail: speed is judged in benchmarks.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--floor",
        type=int,
        default=0,
        metavar="N",
        help="fail unless at least N tests passed",
    )


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    floor = session.config.getoption("--floor")
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    passed = len(reporter.stats.get("passed", [])) if reporter else 0
    if exitstatus in (0, 5) and passed < floor:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
        if reporter:
            reporter.write_line(f"only {passed} tests passed, the floor is {floor}", red=True)
