"""What to say to a name that does not exist: the one that was meant, and all that there are."""

from __future__ import annotations

from collections.abc import Collection
from difflib import SequenceMatcher

NEAR = 0.6  # difflib's own


def suggestion(name: str, known: Collection[str]) -> str:
    """End a sentence about an unknown name with the nearest known one, if one is near, and all.

    >>> "no model 'resnet21'" + suggestion("resnet21", ["mlp", "resnet20", "resnet32"])
    "no model 'resnet21'; did you mean 'resnet20'? There are: mlp, resnet20, resnet32"
    >>> "no model 'vgg'" + suggestion("vgg", ["mlp"])
    "no model 'vgg'. There are: mlp"
    """

    def likeness(candidate: str) -> float:
        return SequenceMatcher(None, candidate, name).ratio()

    nearest = max(known, key=likeness, default="")  # of equals the first
    hint = f"; did you mean {nearest!r}?" if likeness(nearest) >= NEAR else "."
    return f"{hint} There are: {', '.join(known)}"
