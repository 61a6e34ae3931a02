"""Durations in words."""

MINUTE, HOUR, DAY = 60.0, 3600.0, 86400.0


def spoken(seconds: float) -> str:
    """`less than a minute`, `about 3 minutes`, `about 1.7 hours`, `about 68 hours`, ..."""
    if seconds < 50:
        return "less than a minute"
    if seconds < 90:
        return "about a minute"
    for unit, name in ((MINUTE, "minutes"), (HOUR, "hours")):
        if seconds < 99.5 * unit:
            count = seconds / unit
            short = name == "minutes" or count >= 9.95
            return f"about {count:.0f} {name}" if short else f"about {count:.1f} {name}"
    return f"about {seconds / DAY:,.0f} days"
