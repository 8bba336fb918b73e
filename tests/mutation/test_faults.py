"""Faults against the product: each replaces a text that occurs once, and leaves valid Python."""

import ast
from pathlib import Path

import pytest

from tests.mutation.faults import FAULTS, Fault

ROOT = Path(__file__).parents[2]
AREAS = {
    *("losses", "relabel", "limiter", "insert", "sample", "supervision", "snapshots", "streams", "matrix", "report"),
    "configuration",
}


def test_every_area_has_faults() -> None:
    assert len(FAULTS) >= 40
    assert {fault.area for fault in FAULTS} >= AREAS
    assert len({fault.name for fault in FAULTS}) == len(FAULTS)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_fault_applies_and_leaves_valid_python(fault: Fault) -> None:
    text = (ROOT / fault.file).read_text(encoding="utf-8")
    assert text.count(fault.old) == 1
    ast.parse(text.replace(fault.old, fault.new))
    for test in fault.tests:
        assert (ROOT / "tests" / test.partition("::")[0]).exists()
