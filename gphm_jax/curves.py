"""Line charts as SVG text, for reports that are one self-contained file."""

from __future__ import annotations

import dataclasses
import html
import math
from collections.abc import Mapping, Sequence

WIDTH, HEIGHT = 330, 196  # of the drawing's own units; the page scales it
_LEFT, _RIGHT, _TOP, _BOTTOM = 50, 12, 28, 40  # margins
_COLORS = ("#2f6690", "#c8553d", "#588157", "#7d5ba6", "#b08900", "#4a4e69")
_MOST_POINTS = 400  # a chart has no more pixels than that to show


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chart:
    """Curves over one pair of axes. Points that are not finite, or not positive on a log axis, leave gaps."""

    title: str
    curves: Mapping[str, tuple[Sequence[float], Sequence[float | None]]]  # name -> x, y
    x_label: str
    y_label: str = ""
    log_y: bool = False


def chart_svg(chart: Chart) -> str:
    """The chart as an `<svg>` element with labelled axes, a light grid, and a legend where curves are several."""
    curves = {name: _points(x, y, chart.log_y) for name, (x, y) in chart.curves.items()}
    seen = [point for points in curves.values() for point in points if point is not None]
    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{html.escape(chart.title)}">',
        f'<text class="chart-title" x="{_LEFT}" y="15">{html.escape(chart.title)}</text>',
    ]
    if not seen:
        parts.append(
            f'<text class="tick" x="{WIDTH / 2}" y="{HEIGHT / 2}" text-anchor="middle">no values</text></svg>'
        )
        return "".join(parts)
    x_ticks = _ticks(min(x for x, _ in seen), max(x for x, _ in seen))
    y_ticks = (_log_ticks if chart.log_y else _ticks)(min(y for _, y in seen), max(y for _, y in seen))
    place = _Place(x_ticks, y_ticks, chart.log_y)
    parts += _axes(place, x_ticks, y_ticks, chart)
    for index, (name, points) in enumerate(curves.items()):
        color = _COLORS[index % len(_COLORS)]
        parts.append(f'<path class="curve" stroke="{color}" d="{_path(place, points)}"/>')
        if len(curves) > 1:
            right = WIDTH - _RIGHT - 70 * (len(curves) - 1 - index)
            parts.append(
                f'<text class="tick" x="{right}" y="15" text-anchor="end" fill="{color}">{html.escape(name)}</text>'
            )
    return "".join(parts) + "</svg>"


class _Place:
    """Values to drawing units; the axes end at their outer ticks."""

    def __init__(self, x_ticks: Sequence[float], y_ticks: Sequence[float], log_y: bool):
        self._scale = math.log10 if log_y else float
        self._x0, self._x1 = x_ticks[0], x_ticks[-1]
        self._y0, self._y1 = self._scale(y_ticks[0]), self._scale(y_ticks[-1])

    def x(self, value: float) -> float:
        return _LEFT + (value - self._x0) / (self._x1 - self._x0) * (WIDTH - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        part = (self._scale(value) - self._y0) / (self._y1 - self._y0)
        return HEIGHT - _BOTTOM - part * (HEIGHT - _TOP - _BOTTOM)


def _axes(place: _Place, x_ticks: Sequence[float], y_ticks: Sequence[float], chart: Chart) -> list[str]:
    bottom, right = HEIGHT - _BOTTOM, WIDTH - _RIGHT
    parts = []
    for tick in y_ticks:
        y = place.y(tick)
        parts.append(f'<path class="grid" d="M{_LEFT} {y:.1f}H{right}"/>')
        parts.append(
            f'<text class="tick" x="{_LEFT - 6}" y="{y + 3.5:.1f}" text-anchor="end">{_number(tick)}</text>'
        )
    for tick in x_ticks:
        x = place.x(tick)
        parts.append(f'<path class="axis" d="M{x:.1f} {bottom}v4"/>')
        parts.append(
            f'<text class="tick" x="{x:.1f}" y="{bottom + 16}" text-anchor="middle">{_number(tick)}</text>'
        )
    parts.append(f'<path class="axis" d="M{_LEFT} {bottom}H{right}"/>')
    middle = (_LEFT + right) / 2
    parts.append(
        f'<text class="label" x="{middle}" y="{HEIGHT - 6}" text-anchor="middle">{html.escape(chart.x_label)}</text>'
    )
    if chart.y_label:
        middle = (_TOP + bottom) / 2
        parts.append(
            f'<text class="label" transform="translate(11 {middle}) rotate(-90)" text-anchor="middle">'
            f"{html.escape(chart.y_label)}</text>"
        )
    return parts


def _points(x: Sequence[float], y: Sequence[float | None], log_y: bool) -> list[tuple[float, float] | None]:
    """Pairs, with None for a gap; long curves are thinned, their last point kept."""
    pairs = list(zip(x, y, strict=True))
    stride = max(1, math.ceil(len(pairs) / _MOST_POINTS))
    pairs = pairs[::-stride][::-1]
    return [
        (float(a), float(b)) if b is not None and math.isfinite(b) and (b > 0 or not log_y) else None
        for a, b in pairs
    ]


def _path(place: _Place, points: Sequence[tuple[float, float] | None]) -> str:
    command, parts = "M", []
    for point in points:
        if point is None:
            command = "M"
            continue
        parts.append(f"{command}{place.x(point[0]):.1f} {place.y(point[1]):.1f}")
        command = "L"
    return "".join(parts)


def _ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Round numbers that enclose [low, high], at most about `most` intervals."""
    if high - low < 1e-12 * max(1.0, abs(low), abs(high)):
        pad = 0.5 * abs(low) or 0.5  # a constant curve lies in the middle
        low, high = low - pad, high + pad
    raw = (high - low) / most
    magnitude = 10.0 ** math.floor(math.log10(raw))
    step = next(m * magnitude for m in (1.0, 2.0, 2.5, 5.0, 10.0) if m * magnitude >= raw * (1.0 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten that enclose [low, high], with 2 and 5 between them where few."""
    first, last = math.floor(math.log10(low) + 1e-9), math.ceil(math.log10(high) - 1e-9)
    last = max(last, first + 1)
    factors = (1.0, 2.0, 5.0) if last - first <= 2 else (1.0,)
    ticks = [f * 10.0**e for e in range(first, last) for f in factors] + [10.0**last]
    below = max((t for t in ticks if t <= low * (1 + 1e-9)), default=ticks[0])
    above = min((t for t in ticks if t >= high * (1 - 1e-9)), default=ticks[-1])
    kept = [t for t in ticks if below <= t <= above]
    return kept if len(kept) > 1 else ticks


def _number(value: float) -> str:
    """A tick's text: 1,500 or 0.02 or 1e-5."""
    if value == 0:
        return "0"
    if abs(value) >= 1e6 or abs(value) < 1e-3:
        mantissa, exponent = f"{value:.2e}".split("e")
        return f"{float(mantissa):g}e{int(exponent)}"
    return f"{value:,.10g}"
