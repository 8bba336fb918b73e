"""The faults still fit the product, so that none of them is passed over unnoticed."""

import ast
from pathlib import Path

import pytest

from tests.mutation.faults import FAULTS, Fault

ROOT = Path(__file__).parents[2]
AREAS = {
    *("losses", "relabel", "limiter", "insert", "sample", "supervision", "snapshots", "streams", "matrix", "report"),
    "configuration",
}


def test_there_are_faults_of_every_area() -> None:
    assert len(FAULTS) >= 40
    assert {fault.area for fault in FAULTS} >= AREAS
    assert len({fault.name for fault in FAULTS}) == len(FAULTS)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_fault_applies_and_is_python(fault: Fault) -> None:
    text = (ROOT / fault.file).read_text(encoding="utf-8")
    assert text.count(fault.old) == 1
    ast.parse(text.replace(fault.old, fault.new))
    for test in fault.tests:
        assert (ROOT / "tests" / test.partition("::")[0]).exists()
