"""Plain SVG charts that take their colours from the page, so they fit light and dark.

No plotting library: four chart kinds are little code, and text in `currentColor` follows the
reader's theme, which rendered images cannot do.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 720, 260
LEFT, RIGHT, TOP, BOTTOM = 64, 12, 12, 40


@dataclass(frozen=True)
class Axis:
    """A linear axis over [0, high]; `label` names the quantity and its unit."""

    high: float
    label: str

    def ticks(self) -> list[float]:
        step = 10 ** math.floor(math.log10(self.high))
        step *= next(f for f in (0.1, 0.2, 0.5, 1, 2) if self.high / (step * f) <= 6)
        return [step * i for i in range(math.floor(self.high / step + 1e-9) + 1)]


def axis(values: Sequence[float], label: str) -> Axis:
    high = max(values, default=0.0)
    return Axis(high * 1.05 if high > 0 else 1.0, label)


class Plot:
    """One chart: axes at once, marks added in data coordinates."""

    def __init__(self, x: Axis, y: Axis, height: int = HEIGHT) -> None:
        self._x, self._y, self._height = x, y, height
        self._parts: list[str] = []
        self._grid()

    def px(self, x: float) -> float:
        return round(LEFT + (WIDTH - LEFT - RIGHT) * x / self._x.high, 2)

    def py(self, y: float) -> float:
        return round(self._height - BOTTOM - (self._height - TOP - BOTTOM) * y / self._y.high, 2)

    def dot(self, x: float, y: float, kind: str, title: str) -> None:
        self._parts.append(
            f'<circle class="{kind}" cx="{self.px(x)}" cy="{self.py(y)}" r="2.5" '
            f'fill-opacity=".6">{_title(title)}</circle>'
        )

    def line(self, points: Sequence[tuple[float, float]], kind: str) -> None:
        path = " ".join(f"{self.px(x)},{self.py(y)}" for x, y in points)
        self._parts.append(f'<polyline class="line {kind}" points="{path}"/>')

    def box(self, x0: float, x1: float, y0: float, y1: float, kind: str, title: str) -> None:
        left, top = self.px(x0), self.py(y1)
        width, height = max(0.5, self.px(x1) - left), max(0.0, self.py(y0) - top)
        self._parts.append(
            f'<rect class="{kind}" x="{left}" y="{top}" width="{width:.2f}" '
            f'height="{height:.2f}">{_title(title)}</rect>'
        )

    def svg(self, name: str) -> str:
        return (
            f'<svg role="img" aria-label="{escape(name)}" viewBox="0 0 {WIDTH} {self._height}">'
            + "".join(self._parts)
            + "</svg>"
        )

    def _grid(self) -> None:
        base = self._height - BOTTOM
        for value in self._y.ticks():
            y = self.py(value)
            self._parts.append(
                f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}"/>'
            )
            self._text(LEFT - 6, y + 4, f"{value:,.6g}", "end")
        for value in self._x.ticks():
            self._text(self.px(value), base + 16, f"{value:,.6g}", "middle")
        self._text((LEFT + WIDTH) / 2, self._height - 6, self._x.label, "middle")
        turn = f' transform="rotate(-90 14 {base / 2})"'
        self._text(14, base / 2, self._y.label, "middle", turn)

    def _text(self, x: float, y: float, text: str, anchor: str, extra: str = "") -> None:
        self._parts.append(
            f'<text x="{x}" y="{y}" text-anchor="{anchor}"{extra}>{escape(text)}</text>'
        )


def _title(text: str) -> str:
    return f"<title>{escape(text)}</title>"


def stacked_bars(
    totals: Sequence[dict[str, float]], kinds: Sequence[str], x: str, y: str, name: str
) -> str:
    """One bar per entry, the kinds on top of each other; class of a box = its kind."""
    heights = [sum(total.get(kind, 0) for kind in kinds) for total in totals]
    plot = Plot(Axis(max(1, len(totals)), x), axis(heights, y))
    for index, total in enumerate(totals):
        base = 0.0
        for kind in kinds:
            value = total.get(kind, 0)
            title = f"{x} {index}: {kind} {value:,.0f}"
            plot.box(index + 0.1, index + 0.9, base, base + value, kind, title)
            base += value
    return plot.svg(name)


def cumulative(values: Sequence[float], x: str, name: str) -> str:
    """The share of values that are at most x, as a staircase."""
    ordered = sorted(values)
    plot = Plot(axis(ordered, x), Axis(1.0, "share of sessions"))
    points = [(0.0, 0.0)]
    for index, value in enumerate(ordered):
        points += [(value, index / len(ordered)), (value, (index + 1) / len(ordered))]
    plot.line(points, "main")
    return plot.svg(name)


def lanes(
    spans: Sequence[tuple[int, float, float, str, str]], count: int, x: str, name: str
) -> str:
    """Boxes (lane, start, end, class, title), one horizontal lane per session."""
    height = min(900, TOP + BOTTOM + 14 * max(8, count))
    end = axis([span[2] for span in spans], x)
    plot = Plot(end, Axis(max(1, count), "session"), height)
    for lane, start, stop, kind, title in spans:
        plot.box(start, stop, lane + 0.15, lane + 0.85, kind, title)
    return plot.svg(name)
