"""Words that look back on what was thought, as the R1 paper counts them."""

import re

REFLECTION = ("wait", "mistake", "however", "but", "retry", "error", "verify", "wrong", "evaluate", "check")
"""The words that the R1 paper counts (arXiv 2501.12948v2, appendix C.2)."""


def reflections(text: str) -> int:
    """How many words of a text look back on what was thought."""
    return sum(word in REFLECTION for word in re.findall(r"[a-z]+", text.lower()))
