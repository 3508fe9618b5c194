"""Imports a library without what it imports in turn and nothing here uses: most of a command's start is imports."""

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType
from typing import Any


class Unused:
    """Stands for whatever a library asks of a module that is left out."""

    def __init__(self, *_given: object, **_named: object) -> None:
        pass


@contextmanager
def without(unused: Mapping[str, Mapping[str, Any]]) -> Iterator[None]:
    """Let modules be found as these few names while something is imported; whoever asks afterwards gets the real ones.

    One that is loaded already stays: there is nothing left to save.
    """
    empty = {name: ModuleType(name) for name in unused if name not in sys.modules}
    for name, module in empty.items():
        vars(module).update(unused[name])
    sys.modules.update(empty)
    try:
        yield
    finally:
        for name in empty:
            del sys.modules[name]
