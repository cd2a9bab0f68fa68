"""A little SVG: scales with round ticks, marks that differ in shape and colour, pictures with a text."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

SERIES = 8  # colours and shapes before they repeat (in other pairs)


@dataclass(frozen=True)
class Scale:
    """Maps values low…high to pixels start…end, linearly or by their logarithm."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high, value = (math.log(v) if self.log else v for v in (self.low, self.high, value))
        return self.start + (value - low) / (high - low) * (self.end - self.start)

    def ticks(self, count: int) -> list[float]:
        """About `count` round values between low and high."""
        if self.log and self.high / self.low > 4:
            powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            for steps in ((1, 1.5, 2, 3, 4, 6, 8), (1, 2, 5), (1, 3), (1,)):
                found = [s * 10.0**p for p in powers for s in steps if self.low <= s * 10.0**p <= self.high]
                if len(found) <= count + 1:
                    break
            return found
        rough = (self.high - self.low) / count
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(s * power for s in (1, 2, 5, 10) if s * power >= rough * 0.999)
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [n * step for n in range(first, last + 1)]


def scale_over(
    values: Iterable[float], start: float, end: float, *, pad: float = 0.05, zero: bool = False
) -> Scale:
    """A scale with room for all values; logarithmic where positive ones differ more than tenfold."""
    found = list(values)
    low, high = min(found), max(found)
    if low > 0 and high > 10 * low:
        room = (high / low) ** pad
        return Scale(low / room, high * room, start, end, log=True)
    if zero:
        return Scale(0, high * (1 + pad) or 1, start, end)
    room = pad * (high - low) or 0.05 * abs(high) or 1.0
    return Scale(low - room, high + room, start, end)


def tick_text(value: float) -> str:
    """A tick's value without noise digits."""
    if value and abs(value) < 0.01:
        return f"{value:.2g}"
    return f"{round(value, 6):,.10g}"


def line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return f'<path class="{kind}" d="M{x1:.1f} {y1:.1f}L{x2:.1f} {y2:.1f}"/>'


def polyline(points: Sequence[tuple[float, float]], kind: str) -> str:
    return f'<path class="{kind}" d="M{"L".join(f"{x:.1f} {y:.1f}" for x, y in points)}"/>'


def rectangle(x: float, y: float, width: float, height: float, kind: str, title: str = "") -> str:
    size = f'x="{x:.1f}" y="{y:.1f}" width="{max(width, 0):.1f}" height="{height:.1f}"'
    return (
        f'<rect class="{kind}" {size}>{_title(title)}</rect>' if title else f'<rect class="{kind}" {size}/>'
    )


def text(x: float, y: float, content: str, kind: str = "q", anchor: str = "start") -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(content)}</text>'


def dots(points: Iterable[tuple[float, float]], kind: str) -> str:
    """Many small round dots as one path."""
    return f'<path class="{kind}" d="{"".join(f"M{x:.1f} {y:.1f}h0" for x, y in points)}"/>'


def series_class(number: int) -> str:
    """The class that gives report `number` its colour."""
    return f"s{number % SERIES}"


def mark(number: int, x: float, y: float, title: str = "", size: float = 4.5) -> str:
    """The mark of report `number`: a shape of its own in its colour, with an outline that parts overlaps."""
    shape = _SHAPES[(number + number // SERIES) % SERIES]
    points = "L".join(f"{x + dx * size:.1f} {y + dy * size:.1f}" for dx, dy in shape)
    return f'<path class="m {series_class(number)}" d="M{points}Z">{_title(title)}</path>'


def _title(content: str) -> str:
    return f"<title>{escape(content)}</title>" if content else ""


def _polygon(corners: int, turn: float, radius: float) -> list[tuple[float, float]]:
    angles = [2 * math.pi * (n / corners + turn) for n in range(corners)]
    return [(radius * math.sin(a), -radius * math.cos(a)) for a in angles]


def _star(corners: int, turn: float, inner: float) -> list[tuple[float, float]]:
    outer, valleys = _polygon(corners, turn, 1.7), _polygon(corners, turn + 0.5 / corners, inner)
    return [point for pair in zip(outer, valleys, strict=True) for point in pair]


_ARM = 0.42
_PLUS = [(_ARM, -1.25), (_ARM, -_ARM), (1.25, -_ARM), (1.25, _ARM), (_ARM, _ARM), (_ARM, 1.25)]
_PLUS += [(-x, -y) for x, y in _PLUS]
_SHAPES = (
    _polygon(16, 0, 1.05),
    _polygon(4, 1 / 8, 1.3),
    _polygon(3, 0, 1.45),
    _polygon(4, 0, 1.4),
    _polygon(3, 1 / 2, 1.45),
    _PLUS,
    _star(5, 0, 0.75),
    _star(4, 1 / 8, 0.65),
)


def picture(key: str, width: float, height: float, title: str, description: str, parts: Iterable[str]) -> str:
    """An SVG element with a title and a description for those who can't see it.

    Args:
        key: makes its ids unique on the page; a word of our own.
    """
    return (
        f'<svg class="{key.rpartition("-")[2]}" viewBox="0 0 {width:.0f} {height:.0f}" role="img" '
        f'aria-labelledby="{key}-t {key}-d"><title id="{key}-t">{escape(title)}</title>'
        f'<desc id="{key}-d">{escape(description)}</desc>{"".join(parts)}</svg>'
    )
