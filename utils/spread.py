"""A few of many items."""
from collections.abc import Sequence


def spread(items: Sequence, count: int) -> Sequence:
    """At most `count` of the items, evenly spread, from the first on."""
    if len(items) <= count:
        return items
    return [items[i * len(items) // count] for i in range(count)]
