"""How is a large number written in a plan?"""


def number(value: float) -> str:
    """
    >>> number(1234.5), number(12.345)
    ('1,234', '12.3')
    """
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def count(value: float) -> str:
    """
    >>> count(6.74e9), count(1500), count(12)
    ('6.7B', '1.5k', '12')
    """
    for limit, unit in ((1e15, "P"), (1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= limit:
            return f"{value / limit:.1f}{unit}"
    return f"{value:.0f}"


def size(value: float) -> str:
    """Of so many bytes.

    >>> size(3 * 2**30), size(1536), size(12)
    ('3.0 GiB', '1.5 KiB', '12 B')
    """
    for limit, unit in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if value >= limit:
            return f"{value / limit:.1f} {unit}"
    return f"{value:.0f} B"
