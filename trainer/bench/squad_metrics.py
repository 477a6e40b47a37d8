"""The two metrics of SQuAD (Rajpurkar et al. 2016, arXiv:1606.05250) that ReCoRD is scored by.

lm-eval's definition imports them from transformers, which dropped them in version 5. They are put
under the old name while a definition is read, unless transformers has them.
"""

from __future__ import annotations

import re
import string
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from types import ModuleType

_PACKAGE = "transformers.data.metrics"


def compute_exact(wanted: str, said: str) -> int:
    """1 if the texts have the same words in the same order, else 0."""
    return int(_words(wanted) == _words(said))


def compute_f1(wanted: str, said: str) -> float:
    """Harmonic mean of precision and recall over words; of two empty texts 1."""
    one, other = _words(wanted), _words(said)
    if not one or not other:
        return float(one == other)
    shared = (Counter(one) & Counter(other)).total()
    return 2.0 * shared / (len(one) + len(other))


@contextmanager
def available_to_definitions() -> Iterator[None]:
    """While a definition is imported. It keeps what it imported."""
    if find_spec(_PACKAGE) is not None:
        yield
        return
    package, module = ModuleType(_PACKAGE), sys.modules[__name__]
    package.squad_metrics = module  # type: ignore[attr-defined]
    names = {_PACKAGE: package, f"{_PACKAGE}.squad_metrics": module}
    sys.modules.update(names)
    try:
        yield
    finally:
        for name in names:
            sys.modules.pop(name, None)


def _words(text: str) -> list[str]:
    """Small letters, without punctuation and articles."""
    plain = text.lower().translate(str.maketrans("", "", string.punctuation))
    return re.sub(r"\b(a|an|the)\b", " ", plain).split()
