"""Write numbers as people read them; what is absent is a dash."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from ascendet.report.reading import number

DASH = "–"


def ap(value: Any) -> str:
    """Return an AP with three digits; -1 means that there is no object to measure it on.

    >>> ap(0.68241), ap(-1.0), ap(None)
    ('0.682', '–', '–')
    """
    found = number(value)
    return DASH if found is None or found < 0 else f"{found:.3f}"


def signed(value: Any, digits: int = 3) -> str:
    """Return a difference with its sign.

    >>> signed(0.0123), signed(-0.00004, 4), signed(None)
    ('+0.012', '0.0000', '–')
    """
    found = number(value)
    if found is None:
        return DASH
    text = f"{found:+.{digits}f}"
    return text[1:] if float(text) == 0 else text


def fixed(value: Any, digits: int = 1) -> str:
    """Return a number with so many digits behind the point, and separators of thousands.

    >>> fixed(1234.56), fixed(None), fixed(7, 0)
    ('1,234.6', '–', '7')
    """
    found = number(value)
    return DASH if found is None else f"{found:,.{digits}f}"


def brief(value: Any) -> str:
    """Return a number with three significant digits, for differences of any size.

    >>> brief(0.0000040531), brief(0.0), brief(0.01912)
    ('4.05e-06', '0', '0.0191')
    """
    found = number(value)
    return DASH if found is None else f"{found:.3g}"


def duration(seconds: Any) -> str:
    """Return a time with the units that both languages know; of hours without the seconds.

    >>> duration(15.6), duration(404.7), duration(3725), duration(None)
    ('16 s', '6 min 45 s', '1 h 2 min', '–')
    """
    found = number(seconds)
    if found is None:
        return DASH
    minutes, rest = divmod(round(found), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


def moment(text: Any) -> str:
    """Return a time of a manifest, in UTC, to the minute.

    >>> moment("2026-11-29T14:42:56+00:00"), moment("yesterday")
    ('2026-11-29 14:42 UTC', '–')
    """
    try:
        return datetime.fromisoformat(str(text)).strftime("%Y-%m-%d %H:%M UTC")
    except ValueError:
        return DASH


def mega(size: Any) -> str:
    """Return bytes as MB.

    >>> mega(2_510_000), mega(None)
    ('2.5', '–')
    """
    found = number(size)
    return DASH if found is None else f"{found / 1e6:,.1f}"
