"""The log's stream: what nobody reads holds nobody up."""

from __future__ import annotations

import io
import os
import re
from concurrent.futures import ThreadPoolExecutor

from paiton_runtime.server.log_stream import MAX_WAITING, LogStream

LINES = 3 * MAX_WAITING


def test_nobody_waits_for_a_reader_who_stands_still() -> None:
    reader, writer = os.pipe()
    with (
        open(reader, encoding="ascii") as taken,
        open(writer, "w", encoding="ascii") as pipe,
        ThreadPoolExecutor(1) as pool,
    ):
        stream = LogStream(pipe)
        for number in range(LINES):
            stream.write(f"{number:099}\n")  # some 1.2 MB, and a pipe holds 64 KiB
        stream.close(timeout=0.01)
        lines = pool.submit(taken.readlines)
        stream.close(timeout=60)
        pipe.close()
    written, dropped = [], 0
    for line in lines.result():
        if note := re.fullmatch(r"(\d+) lines of the log were dropped: nobody read it\n", line):
            dropped += int(note[1])
        else:
            written.append(int(line))
    assert dropped > 0
    assert len(written) + dropped == LINES
    assert written == sorted(set(written))


def test_all_is_written_in_order_before_it_closes() -> None:
    taken = io.StringIO()
    stream = LogStream(taken)
    for number in range(1000):
        stream.write(f"{number}\n")
    stream.close()
    assert [int(line) for line in taken.getvalue().splitlines()] == list(range(1000))


def test_a_closed_stream_is_no_error() -> None:
    taken = io.StringIO()
    taken.close()
    stream = LogStream(taken)
    stream.write("lost\n")
    stream.close()
