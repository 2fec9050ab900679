"""One sentence for every name that does not exist."""

from collections.abc import Iterable
from difflib import get_close_matches

# More names than these are no help in a sentence.
_MOST_LISTED = 20


def unknown(kind: str, name: str, valid: Iterable[str]) -> str:
    """Say that `name` is no `kind`, what was probably meant, and what there is."""
    names = sorted(valid)
    near = get_close_matches(name, names, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    known = f" Known: {', '.join(names)}." if len(names) <= _MOST_LISTED else ""
    return f"There is no {kind} {name!r}.{hint}{known}"
