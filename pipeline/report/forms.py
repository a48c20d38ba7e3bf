"""Numbers as a reader wants them: few digits, a unit, an en dash where nothing was measured."""

from __future__ import annotations

from datetime import UTC, datetime

NONE = "–"


def count(value: float | None) -> str:
    """A whole number with separators: 13,824."""
    return NONE if value is None else f"{value:,.0f}"


def share(value: float | None, digits: int = 1) -> str:
    """A share as percent: 29.4 %. Only all is 100 %, and only none is 0 %."""
    if value is None:
        return NONE
    rounded = round(value * 100, digits)
    least = 10.0**-digits
    if value > 0 and rounded == 0:
        return f"< {least:g} %"
    if value < 1 and rounded == 100:
        return f"> {100 - least:g} %"
    return f"{rounded:.{digits}f} %" if value not in (0, 1) else f"{value:.0%}".replace("%", " %")


def number(value: float | None, digits: int = 2) -> str:
    """A number with separators: 362.27."""
    return NONE if value is None else f"{value:,.{digits}f}"


def rate(value: float | None) -> str:
    """A rate in three digits or more: 0.52, 36.2, 1,204."""
    if value is None:
        return NONE
    return f"{value:,.{0 if value >= 100 else 1 if value >= 10 else 2}f}"


def seconds(value: float | None) -> str:
    """A duration: 19 µs, 4 ms, 1.24 s, 17.1 s, 3 min 20 s, 2 h 05 min, 11.2 d."""
    if value is None:
        return NONE
    if value < 0.9995:
        if 0 < value < 0.000995:
            return f"{value * 1e6:.0f} µs" if value >= 0.0000095 else f"{value * 1e6:.2g} µs"
        return f"{value * 1e3:.0f} ms" if value >= 0.0095 or value == 0 else f"{value * 1e3:.1f} ms"
    if value < 9.995:
        return f"{value:.2f} s"
    if value < 99.95:
        return f"{value:.1f} s"
    whole = round(value)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    minutes = round(value / 60)
    return f"{minutes // 60:,} h {minutes % 60:02} min"


def milliseconds(value: float | None) -> str:
    """A duration given in milliseconds, as `seconds` writes it."""
    return seconds(None if value is None else value / 1e3)


def hours(value: float | None) -> str:
    """Seconds as hours: 0.0012 h, 3.41 h, 1,204 h."""
    if value is None:
        return NONE
    told = value / 3600
    return f"{told:.2g} h" if 0 < told < 0.1 else f"{told:,.{0 if told >= 100 else 2}f} h"


def size(value: float | None) -> str:
    """Bytes: 512 B, 14.1 MB, 2.06 GB."""
    if value is None:
        return NONE
    for unit in ("B", "kB", "MB", "GB"):
        if value < 999.5:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:,.3g} TB"


def dollars(value: float | None) -> str:
    """An amount: $0.0031, $12.40, $1,204."""
    if value is None:
        return NONE
    if 0 < value < 0.1:
        return f"${value:.2g}"
    return f"${value:,.{0 if value >= 1000 else 2}f}"


def moment(microseconds: int | None) -> str:
    """A time in UTC: 2026-11-22 21:26:00."""
    if microseconds is None:
        return NONE
    try:
        return f"{datetime.fromtimestamp(microseconds / 1e6, UTC):%Y-%m-%d %H:%M:%S}"
    except (OverflowError, ValueError, OSError):
        return NONE


def change(first: float | None, second: float | None) -> str:
    """What became of a number: +12.5 %, −3.0 %, ×2.4; an en dash where there is nothing to compare."""
    if first is None or second is None or first == 0:
        return "0 %" if first == second == 0 else NONE
    ratio = second / first
    if ratio >= 2:
        return f"×{ratio:,.3g}"
    percent = round((ratio - 1) * 100, 1)
    return "0 %" if percent == 0 else f"{percent:+.1f} %".replace("-", "−")


def printable(text: str | None, limit: int = 400) -> str:
    """A foreign text as one that can be shown: control characters become U+FFFD, its end an ellipsis if it is long."""
    if text is None:
        return NONE
    shown = text if len(text) <= limit else f"{text[: limit - 1]}…"
    return "".join(letter if letter in "\n\t" or not _is_control(letter) else "\ufffd" for letter in shown)


def tail(text: str | None, limit: int = 56) -> str:
    """The end of a long uri, where its name stands."""
    shown = printable(text, 4000)
    return shown if len(shown) <= limit else f"…{shown[1 - limit :]}"


def _is_control(letter: str) -> bool:
    code = ord(letter)
    return code < 32 or 127 <= code < 160 or 0xD800 <= code < 0xE000 or code & 0xFFFE == 0xFFFE


def axis_seconds(value: float) -> str:
    """A time at an axis, without digits that say nothing: 20 ms, 1.5 s, 10 min, 2 h, 3 d."""
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if value >= size * (1.5 if unit == "d" else 1):
            return f"{value / size:.3g} {unit}"
    if value == 0:
        return "0"
    return f"{value:.3g} s" if value >= 1 else f"{value * 1e3:.3g} ms"


def axis_number(value: float) -> str:
    """A number at an axis: 0.5, 20, 12,000."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
