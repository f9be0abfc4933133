"""Which problems are the same but for the names in them."""

from __future__ import annotations

from collections.abc import Sequence

ROUNDS = 3


def without_names(labels: Sequence[str], links: Sequence[tuple[int, str, tuple[int, ...]]]) -> str:
    """A text that is the same for every naming and order of the items, by refining colours (Weisfeiler and Leman).

    labels: of each item; links: (item, kind, the items it refers to, in any order). Twins always get the same text,
    now and then others do too: as a problem's key, which only has to keep twins on one side, that does no harm.
    """
    seen: list[str] = list(labels)
    for _ in range(ROUNDS):
        rank = {text: i for i, text in enumerate(sorted(set(seen)))}
        colours = [rank[text] for text in seen]
        views: list[list[str]] = [[] for _ in labels]
        for item, kind, others in links:
            views[item].append(f"{kind}{'+'.join(map(str, sorted(colours[o] for o in others)))}")
        rows = zip(colours, labels, views, strict=True)
        seen = [f"{colour}{label}({','.join(sorted(view))})" for colour, label, view in rows]
    return ";".join(sorted(seen))
