"""The ledger measures; nothing in it is made up."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from paiton_runtime.ledger import STAGES, Ledger, process_start


def test_the_origin_is_when_the_process_started() -> None:
    """Compared with the parent's clock around a child's start; the kernel's value is exact to a tick."""
    program = "from paiton_runtime.ledger import process_start; print(process_start())"
    before = time.monotonic()
    out = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    after = time.monotonic()
    assert before - 0.02 <= float(out) <= after
    assert float(out) - before < 0.5 * (after - before) + 0.02
    assert process_start() < before


def test_stages_are_measured_from_start_to_end() -> None:
    ledger = Ledger(time.monotonic() - 5.0)
    with ledger.stage("open") as row:
        time.sleep(0.02)
        row.bytes, row.note = 7, "seven"
    ledger.mark("total")
    ledger.mark("first token")
    marked = ledger.rows["first token"].end
    ledger.mark("first token")
    first, total, token = ledger.in_order()
    assert first.start == pytest.approx(5.0, abs=0.5)
    assert 0.02 <= first.end - first.start < 0.5
    assert (first.bytes, first.note) == (7, "seven")
    assert total.start == 0.0
    assert token.end == marked >= total.end


def test_rows_have_the_order_of_the_stages() -> None:
    ledger = Ledger()
    for name in reversed(STAGES):
        with ledger.stage(name):
            pass
    assert [row["stage"] for row in ledger.as_list()] == list(STAGES)
    assert [line[:18].strip() for line in ledger.table().splitlines()[1:]] == list(STAGES)


def test_a_failed_stage_leaves_no_row() -> None:
    ledger = Ledger()
    with pytest.raises(KeyError), ledger.stage("open"):
        raise KeyError
    assert ledger.rows == {}
