"""Times and sizes for people. Pure."""

from __future__ import annotations


def age(seconds: float) -> str:
    """In the largest unit of which there are at least two."""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"


def duration(seconds: float) -> str:
    """Of something short: milliseconds below a second."""
    if seconds >= 10:
        return age(seconds)
    if seconds >= 1:
        return f"{seconds:.1f} s"
    millis = seconds * 1000
    return f"{millis:.0f} ms" if millis >= 10 else f"{millis:.1f} ms" if millis >= 1 else f"{millis:.2f} ms"


def size(count: float) -> str:
    """Bytes in a unit that is easy to read."""
    for unit, length in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if count >= length:
            return f"{count / length:.1f} {unit}" if count < 10 * length else f"{count / length:.0f} {unit}"
    return f"{count:.0f} B"
