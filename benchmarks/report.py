"""The report: one HTML page, with plots, of what the benchmarks wrote to benchmarks/results/. It fetches nothing."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from benchmarks.charts import STYLE, Bar, bars, lines, timeline
from benchmarks.common import RESULTS, parser
from benchmarks.comparison import OURS
from benchmarks.serve_report import serving_table
from benchmarks.serve_scenarios import PERCENTILES

Result = Mapping[str, Any]
ALONE = "generate, no server"

PAGE_STYLE = """
body { margin: 0 auto; max-width: 780px; padding: 1.5rem; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, sans-serif; }
section { background: var(--card); border-radius: 8px; padding: 1rem 1.25rem; margin: 1.25rem 0; overflow-x: auto; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin: 0 0 .5rem; } h3 { font-size: 1rem; margin: 1rem 0 .25rem; }
p.note, footer { color: var(--soft); font-size: .9rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9rem; margin: .5rem 0; }
th, td { padding: .2rem .7rem; text-align: right; border-bottom: 1px solid var(--grid); }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
.legend span { margin-right: 1rem; white-space: nowrap; }
.legend i { display: inline-block; width: .75rem; height: .75rem; border-radius: 2px; margin-right: .35rem; }
"""


def number(value: float) -> str:
    """Returns a value with three or four digits that count."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}" if abs(value) < 100 else f"{value:.4g}"


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Returns an HTML table; numbers are rounded."""
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(number(c) if isinstance(c, float) else str(c))}</td>" for c in row) + "</tr>"
        for row in rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def note(text: str) -> str:
    """Returns a paragraph of small print."""
    return f'<p class="note">{escape(text)}</p>'


def absent(reasons: Mapping[str, str]) -> str:
    """Returns who is missing, and why."""
    return "".join(note(f"{name} is absent: {reason}") for name, reason in reasons.items())


def released(result: Result) -> str:
    """Returns the versions of the peers."""
    versions = ", ".join(f"{package} {release}" for package, release in result.get("versions", {}).items())
    return note(versions) if versions else ""


def medians(compared: Result, figure: str) -> dict[str, float]:
    """Returns each contender's median of a figure, of what `Comparison.as_json` wrote."""
    return {name: numbers[figure]["median"] for name, numbers in compared["contenders"].items() if figure in numbers}


def rates(compared: Result, figures: Mapping[str, str], unit: str) -> str:
    """Returns a table of medians by contender, with our ratio to each.

    Args:
        compared: what `Comparison.as_json` wrote.
        figures: heading of each figure.
        unit: of them.
    """
    rows: list[list[object]] = []
    for name in compared["contenders"]:
        row: list[object] = [name]
        for figure in figures:
            ratio = compared["ratios"].get(name, {}).get(figure)
            middle = number(medians(compared, figure)[name])
            row.append(f"{middle} ({number(ratio['median'])}x)" if ratio else middle)
        rows.append(row)
    text = f"medians, {unit}; in brackets ours over theirs, the median over rounds"
    return table(["", *figures.values()], rows) + note(text)


def startup(result: Result) -> str:
    """Returns the boot's stages, and starts beside peers."""
    stages = [(row["stage"], row["start"], row["end"]) for row in result["ledger"]]
    serving = [(row["stage"], row["start"], row["end"]) for row in result["http_ledger"]]
    rows = [(name, 1e3 * start, 1e3 * end, 1e3 * (end - start)) for name, start, end in stages]
    figure = "first_token_seconds"
    starts = {ALONE: result["generate"]["contenders"][OURS][figure]["median"]}
    starts |= medians(result["http"], figure)
    drawn = [
        Bar(name, seconds, f"{number(seconds)} s", OURS if name in (OURS, ALONE) else name)
        for name, seconds in starts.items()
    ]
    return "".join(
        (
            timeline(stages, "stages of a boot"),
            table(["stage", "start ms", "end ms", "ms"], rows),
            "<h3>Stages of the server's boot</h3>",
            timeline(serving, "stages of the server's boot"),
            "<h3>Process start to first token</h3>",
            bars(drawn, "seconds from process start to first token"),
            rates(result["http"], {figure: "over HTTP"}, "seconds"),
            absent(result["http"]["absent"]),
        )
    )


def decode(result: Result) -> str:
    """Returns tokens per second against batch, and one stream's share of the read bandwidth."""
    compared, sizes = result["tokens_per_second"], result["tokens"]
    batches = {name: int(name.removeprefix("batch_")) for name in sizes}
    series = {
        name: [(float(batch), numbers[figure]["median"]) for figure, batch in batches.items()]
        for name, numbers in compared["contenders"].items()
    }
    plot = lines(
        series,
        "tokens per second against batch",
        x_label="requests in the batch",
        y_label="tokens/s",
        x_ticks=[float(batch) for batch in batches.values()],
        log_x=True,
    )
    limit = result["read_limit"]
    shares = [
        (name, 100 * share["median"], limit["bytes_per_step"][name] / 1e6) for name, share in limit["share"].items()
    ]
    reading = number(limit["gigabytes_per_second"]["median"])
    return "".join(
        (
            plot,
            rates(compared, {name: f"batch {batch}" for name, batch in batches.items()}, "tokens per second"),
            note(f"our head: {result['lm_head']}; {result['threads']} threads"),
            "<h3>One stream against reading memory</h3>",
            table(["", "% of the read bandwidth", "MB of weights a step"], shares),
            note(f"plain reading of as many bytes, in the same rounds: {reading} GB/s"),
            absent(compared["absent"]),
        )
    )


def prefill(result: Result) -> str:
    """Returns tokens per second of prompts, and what the GEMMs reach of the machine's peak."""
    compared = result["tokens_per_second"]
    figures = {name: f"{name.removeprefix('prompt_')} tokens" for name in next(iter(compared["contenders"].values()))}
    plots = "".join(
        f"<h3>{title}</h3>"
        + bars(
            [Bar(name, rate, f"{number(rate)} tok/s", name) for name, rate in medians(compared, figure).items()],
            f"prefill of {title}",
        )
        for figure, title in figures.items()
    )
    gemms = result["gemms"]
    rows = [(name, cell["GFLOPS"], 100 * cell["of peak"]) for name, cell in gemms["each"].items()]
    rows.append(("together", gemms["together_gflops"], 100 * gemms["share_of_peak"]))
    peak = number(result["peak_gflops"]["median"])
    return "".join(
        (
            plots,
            rates(compared, figures, "tokens per second"),
            "<h3>GEMMs alone, 512 tokens</h3>",
            table(["", "GFLOPS", "% of peak"], rows),
            note(f"measured peak of multiply-adds in registers: {peak} GFLOPS, level {result['level']}"),
            absent(compared["absent"]),
        )
    )


def serve(result: Result) -> str:
    """Returns the published table, and distributions of latencies under load."""
    header, rows = serving_table(result["means"])
    plots = ""
    for figure, title in (("ttft_steady", "Time to first token"), ("itl", "Inter-token latency")):
        series = {
            server: [
                (scenarios["load"][f"{figure}_p{p}"], float(p))
                for p in PERCENTILES
                if p < 100 and f"{figure}_p{p}" in scenarios["load"]
            ]
            for server, scenarios in result["medians"].items()
            if "load" in scenarios
        }
        plot = lines(series, title, x_label="seconds", y_label="% of samples below") if series else ""
        plots += f"<h3>{title}, under load</h3>{plot}"
    what = ", ".join(f"{name}: {text}" for name, text in result["servers"].items())
    return table(header, rows) + note(f"means of {result['runs']} runs; {what}") + plots + absent(result["absent"])


def load(result: Result) -> str:
    """Returns the loader's rate in each state beside plain loops and other loaders."""
    parts = []
    for state in ("cold", "cached", "tmpfs"):
        if not (found := result.get(state)):
            continue
        rates_by_name = medians(found, "gigabytes_per_second")
        kinds = {name: "load" if name.startswith("load") else "plain" for name in rates_by_name}
        kinds |= dict.fromkeys(found["peers"], "peers")
        drawn = [Bar(name, rate, f"{number(rate)} GB/s", kinds[name]) for name, rate in rates_by_name.items()]
        rows = [(found["bar"], "given", found["ratio_of_medians"], "")]
        rows += [
            (name, peer["destination"], peer["ratio_of_medians"], peer["mapped_ratio_of_medians"])
            for name, peer in found["peers"].items()
        ]
        parts.append(f"<h3>{state}</h3>" + bars(drawn, f"loaders, {state}"))
        parts.append(table(["", "memory", "ours over it", "ours mapped over it"], rows) + absent(found["absent"]))
    size = result["bytes"] / 1e9
    text = (
        "memory given: it was there and touched before; own: the loader allocates it, and so does ours in its ratio; "
        "mapped: a boot on the cpu maps the file and faults every page in"
    )
    return "".join(parts) + note(f"{number(size)} GB of tensors; {text}")


def build(result: Result) -> str:
    """Returns the stages of a cold build, and sharding beside reading."""
    smollm2, shards = result["smollm2"], result["sharding"]
    stages = [Bar(name, seconds, f"{number(seconds)} s", "load") for name, seconds in smollm2["cold_stages"].items()]
    rows = [
        ("cold build, seconds", smollm2["cold_seconds"]),
        ("nothing changed, seconds", smollm2["unchanged_seconds"]["median"]),
        ("reading a checkpoint, GB/s", shards["read_gigabytes_per_second"]["median"]),
        ("sharding it, GB/s", shards["convert_gigabytes_per_second"]["median"]),
        ("sharding over reading", shards["share_of_reading"]),
    ]
    what = f"SmolLM2 for {', '.join(smollm2['targets'])}: {smollm2['kernels']} kernels, {smollm2['plans']} plans"
    return bars(stages, "stages of a cold build") + note(what) + table(["", "median"], rows)


SECTIONS: dict[str, tuple[str, Callable[[Result], str]]] = {
    "startup": ("Boot", startup),
    "decode": ("Decode", decode),
    "prefill": ("Prefill", prefill),
    "serve": ("Serving, 32 streams at once", serve),
    "load": ("Loading weights", load),
    "build": ("Building", build),
}


def section(name: str, result: Result) -> str:
    """Returns the part of the page that shows one benchmark."""
    title, show = SECTIONS[name]
    try:
        return f"<section><h2>{escape(title)}</h2>{show(result)}{released(result)}</section>"
    except KeyError as error:
        hint = f"run `python -m benchmarks {name}` again"
        raise SystemExit(f"{name}.json has no {error}: an older version wrote it\nhint: {hint}") from error


def render(results: Mapping[str, Result]) -> str:
    """Returns the page of the results that are there, by name of their benchmark."""
    machines = {json.dumps(result["machine"]): result["machine"] for result in results.values()}
    where = "; ".join(f"{m['cpu']}, {m['cpus']} processors, {' '.join(m['flags'])}" for m in machines.values())
    sections = "".join(section(name, results[name]) for name in SECTIONS if name in results)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><title>paiton-aot, measured</title>'
        f"<style>{STYLE}{PAGE_STYLE}</style></head><body><h1>paiton-aot, measured</h1><p>SmolLM2-135M-Instruct on "
        f"{escape(where)}. Contenders of one plot ran alternately in one run.</p>{sections}"
        "<footer>Made by python -m benchmarks report.</footer></body></html>\n"
    )


def main() -> None:
    """Reads results and writes the page."""
    args = parser(__doc__ or "")
    args.add_argument("--results", type=Path, default=RESULTS, help="folder of the benchmarks' JSON files")
    args.add_argument("--output", type=Path, help="the page (default: report.html in that folder)")
    options = args.parse_args()
    paths = {name: options.results / f"{name}.json" for name in SECTIONS}
    results = {name: json.loads(path.read_text()) for name, path in paths.items() if path.exists()}
    if not results:
        raise SystemExit(f"no results in {options.results}\nhint: run `python -m benchmarks startup` first")
    output = options.output or options.results / "report.html"
    output.write_text(render(results))
    print(f"{output}: {', '.join(results)}")


if __name__ == "__main__":
    main()
