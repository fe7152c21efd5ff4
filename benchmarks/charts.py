"""Plots as inline SVG: bars, timelines and lines, in colours that a page's style defines (see `STYLE`).

Every mark has a title, which browsers show on hover; every plot names what it shows to screen readers. Nothing of a
plot is fetched or computed in the browser.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

WIDTH = 720
BAR, GAP, LABEL, VALUE = 18, 8, 190, 110
PLOT_HEIGHT, LEFT, BOTTOM, TOP = 270, 56, 40, 26
CAP = 8.0
"""A bar longer than so many times the shortest is cut, and shows it: the others would be too short to compare."""

NAMED = {"paiton": 0, "load": 0, "llama.cpp": 1, "transformers": 2, "vllm": 3}
"""Colours of contenders that several plots have in common; others get the free ones in order."""

COLOURS = 7
STYLE = """
:root { color-scheme: light dark; --ink: #1c2430; --soft: #5c6675; --grid: #d9dee6; --page: #ffffff; --card: #f6f8fa;
  --c0: #1f6fd1; --c1: #c45a00; --c2: #00806b; --c3: #7a49c9; --c4: #b3285f; --c5: #7d6b00; --c6: #6b7480; }
@media (prefers-color-scheme: dark) { :root { --ink: #e7ebf0; --soft: #a3adba; --grid: #38414d; --page: #12161c;
  --card: #1b2129; --c0: #5aa2f5; --c1: #f08c3a; --c2: #2bb89c; --c3: #b18cf0; --c4: #ea6a9c; --c5: #d0b62f;
  --c6: #98a2af; } }
svg { width: 100%; max-width: 720px; height: auto; font: 12px system-ui, sans-serif; }
svg text { fill: var(--ink); } svg .soft { fill: var(--soft); } svg .grid { stroke: var(--grid); }
svg .line { fill: none; stroke-width: 2; }
""" + "\n".join(
    f".f{i} {{ fill: var(--c{i}); background: var(--c{i}); }} .s{i} {{ stroke: var(--c{i}); }}" for i in range(COLOURS)
)


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar: a label, a value from 0 on, what is written behind it, and whose colour it has."""

    label: str
    value: float
    text: str
    series: str = ""


def colours(names: Sequence[str]) -> dict[str, int]:
    """Returns a colour for each name; a name keeps its colour from plot to plot where `NAMED` has it."""
    found: dict[str, int] = {}
    for name in names:
        free = [i for i in range(COLOURS) if i not in NAMED.values() and i not in found.values()]
        found.setdefault(name, NAMED[name] if name in NAMED else free[0] if free else COLOURS - 1)
    return found


def bars(rows: Sequence[Bar], title: str) -> str:
    """Returns horizontal bars, one a row, cut at `CAP` times the shortest."""
    chosen = colours([row.series or row.label for row in rows])
    shortest = min((row.value for row in rows if row.value > 0), default=1.0)
    longest = min(max(row.value for row in rows), CAP * shortest) or 1.0
    room = WIDTH - LABEL - VALUE
    parts = []
    for index, row in enumerate(rows):
        top = GAP + index * (BAR + GAP)
        cut = row.value > longest
        width = room * min(row.value / longest, 1.0)
        colour = chosen[row.series or row.label]
        parts.append(_text(LABEL - 8, top + 13, row.label, "end"))
        parts.append(
            f'<rect class="f{colour}" x="{LABEL}" y="{top}" width="{width:.1f}" height="{BAR}" rx="2">'
            f"<title>{escape(row.label)}: {escape(row.text)}</title></rect>"
        )
        if cut:
            x = LABEL + room * 0.93
            parts.append(f'<path d="M{x} {top + BAR} l6 -{BAR} h6 l-6 {BAR} z" style="fill: var(--card)"/>')
        parts.append(_text(LABEL + width + 6, top + 13, row.text))
    return _svg(GAP + len(rows) * (BAR + GAP), parts, title)


def timeline(rows: Sequence[tuple[str, float, float]], title: str) -> str:
    """Returns stages (name, start, end in seconds) one below the other on one axis of time in milliseconds."""
    end = max(stop for _, _, stop in rows) or 1.0
    room = WIDTH - LABEL - VALUE
    height = GAP + len(rows) * (BAR + GAP)
    parts = []
    for tick in ticks(end * 1e3):
        x = LABEL + room * tick / 1e3 / end
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="0" y2="{height}"/>')
        parts.append(_text(x, height + 14, f"{tick:g}", "middle", "soft"))
    parts.append(_text(LABEL + room + 8, height + 14, "ms since exec", "start", "soft"))
    for index, (name, start, stop) in enumerate(rows):
        top = GAP + index * (BAR + GAP)
        x, width = LABEL + room * start / end, max(room * (stop - start) / end, 1.5)
        text = f"{(stop - start) * 1e3:.1f} ms"
        parts.append(_text(LABEL - 8, top + 13, name, "end"))
        parts.append(
            f'<rect class="f0" x="{x:.1f}" y="{top}" width="{width:.1f}" height="{BAR}" rx="2">'
            f"<title>{escape(name)}: {start * 1e3:.1f} to {stop * 1e3:.1f} ms</title></rect>"
        )
        parts.append(_text(x + width + 6, top + 13, text))
    return _svg(height + 20, parts, title)


def lines(
    series: Mapping[str, Sequence[tuple[float, float]]],
    title: str,
    *,
    x_label: str,
    y_label: str,
    x_ticks: Sequence[float] = (),
    log_x: bool = False,
) -> str:
    """Returns one line with a mark at each point for each series, and a legend above.

    Args:
        series: points by name.
        title: what the plot shows.
        x_label: below the axis.
        y_label: above the axis.
        x_ticks: where the axis has numbers; by default round ones from 0 on.
        log_x: equal factors of x are equally far apart.
    """
    points = [point for line in series.values() for point in line]
    right, top = max(x for x, _ in points), max(y for _, y in points) or 1.0
    place = _scale([x for x, _ in points], right, log=log_x)
    room, height = WIDTH - LEFT - 20, PLOT_HEIGHT - TOP - BOTTOM
    parts = [_text(LEFT - 6, 10, y_label, "start", "soft"), _text(WIDTH - 20, PLOT_HEIGHT - 4, x_label, "end", "soft")]
    for tick in ticks(top):
        y = TOP + height * (1 - tick / top)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - 20}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(_text(LEFT - 6, y + 4, f"{tick:g}", "end", "soft"))
    below = PLOT_HEIGHT - BOTTOM + 18
    parts += [
        _text(LEFT + room * place(tick), below, f"{tick:g}", "middle", "soft") for tick in x_ticks or ticks(right)
    ]
    chosen = colours(list(series))
    for name, line in series.items():
        at = [(LEFT + room * place(x), TOP + height * (1 - y / top)) for x, y in line]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in at)
        parts.append(f'<polyline class="line s{chosen[name]}" points="{path}"/>')
        parts += [
            f'<circle class="f{chosen[name]}" cx="{px:.1f}" cy="{py:.1f}" r="3.5">'
            f"<title>{escape(name)}: {x:.4g}, {y:.4g}</title></circle>"
            for (x, y), (px, py) in zip(line, at, strict=True)
        ]
    return legend(chosen) + _svg(PLOT_HEIGHT, parts, title)


def legend(chosen: Mapping[str, int]) -> str:
    """Returns names beside their colours."""
    items = "".join(f'<span><i class="f{colour}"></i>{escape(name)}</span>' for name, colour in chosen.items())
    return f'<p class="legend">{items}</p>'


def ticks(end: float) -> list[float]:
    """Returns three to seven round numbers from 0 to at most `end`."""
    if end <= 0:
        return [0.0]
    power = 10.0 ** math.floor(math.log10(end))
    step = next(factor * power for factor in (0.2, 0.5, 1.0, 2.0) if end / (factor * power) < 6.5)
    return [round(i * step, 12) for i in range(int(end / step + 1e-9) + 1)]


def _scale(values: Sequence[float], right: float, *, log: bool) -> Callable[[float], float]:
    """Returns what maps x to 0 .. 1 of the axis."""
    if not log:
        return lambda x: x / right if right else 0.0
    first, last = math.log(min(values)), math.log(right)
    span = last - first or 1.0
    return lambda x: 0.03 + 0.94 * (math.log(x) - first) / span


def _text(x: float, y: float, text: str, anchor: str = "start", kind: str = "") -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _svg(height: float, parts: Sequence[str], title: str) -> str:
    inner = "".join(parts)
    label = escape(title, quote=True)
    return f'<svg viewBox="0 0 {WIDTH} {height:.0f}" role="img" aria-label="{label}">{inner}</svg>'
