"""What to say to a name that does not exist: the one that was meant, and all that there are."""

from __future__ import annotations

import os
from collections.abc import Collection
from difflib import SequenceMatcher, get_close_matches


def suggestion(name: str, known: Collection[str]) -> str:
    """End a sentence about an unknown name with the nearest known one, if one is near, and all.

    >>> "no model 'resnet21'" + suggestion("resnet21", ["mlp", "resnet20", "resnet32"])
    "no model 'resnet21'; did you mean 'resnet20'? There are: mlp, resnet20, resnet32"
    >>> "no model 'vgg'" + suggestion("vgg", ["mlp"])
    "no model 'vgg'. There are: mlp"
    """

    def likeness(candidate: str) -> tuple[float, int]:
        beginning = len(os.path.commonprefix([candidate, name]))  # decides between equals
        return SequenceMatcher(None, candidate, name).ratio(), beginning

    near = get_close_matches(name, known, n=max(1, len(known)))
    hint = f"; did you mean {max(near, key=likeness)!r}?" if near else "."
    return f"{hint} There are: {', '.join(known)}"
