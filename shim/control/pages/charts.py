"""Charts as SVG. Pure: counts in, markup out.

A chart is one row of bars, stretched to the width of its container. It has no text, so that it works at every
width; the template adds the words and a table with the same numbers. Colours come from the style sheet.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from markupsafe import Markup

HEIGHT: Final = 44
_SLOT: Final = 10  # the width of a bar with its gap, in units of the view box
_BAR: Final = 8
_MIN_HEIGHT: Final = 3  # a count above zero stays visible beside a large one


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar. `label` is its text as a tooltip, `link` where a click leads, if anywhere."""

    count: int
    label: str
    link: str = ""


def bar_chart(bars: Sequence[Bar], kind: str) -> Markup:
    """Return the bars as one SVG element of the class `kind`, which decides the colour.

    The element is hidden from screen readers and from the keyboard, because a table has the same numbers. A
    bar that leads somewhere is a link, as wide and as high as its slot.
    """
    width = max(1, len(bars)) * _SLOT
    highest = max((bar.count for bar in bars), default=0)
    path = "".join(_outline(position, bar.count, highest) for position, bar in enumerate(bars))
    slots = Markup("").join(_slot(position, bar) for position, bar in enumerate(bars))
    return Markup(
        '<svg class="chart {kind}" viewBox="0 0 {width} {height}" preserveAspectRatio="none" '
        'aria-hidden="true" focusable="false">'
        '<path class="baseline" d="M0 {base}H{width}"/><path class="bars" d="{path}"/>{slots}</svg>'
    ).format(kind=kind, width=width, height=HEIGHT, base=HEIGHT - 0.5, path=path, slots=slots)


def _outline(position: int, count: int, highest: int) -> str:
    if count <= 0:
        return ""
    height = max(_MIN_HEIGHT, round(count / highest * (HEIGHT - 2), 1))
    x = position * _SLOT + (_SLOT - _BAR) // 2
    return f"M{x} {HEIGHT - height:g}h{_BAR}V{HEIGHT}h-{_BAR}z"


def _slot(position: int, bar: Bar) -> Markup:
    rectangle = Markup(
        '<rect x="{x}" width="{w}" height="{h}"><title>{label}</title></rect>'
    ).format(x=position * _SLOT, w=_SLOT, h=HEIGHT, label=bar.label)
    if not bar.link:
        return rectangle
    return Markup('<a href="{link}" tabindex="-1">{inner}</a>').format(
        link=bar.link, inner=rectangle
    )
