"""Imported first by the command line: keeps invoke from importing what nothing here uses.

invoke needs `unittest.mock` for its test double and `importlib.metadata` for its own version number. With them come
asyncio and the e-mail parser: half of the time that a command needs to start. Whoever wants the real modules afterwards
gets them.
"""

import sys
from types import ModuleType
from typing import Any

UNUSED: dict[str, dict[str, Any]] = {"unittest.mock": {"Mock": object}, "importlib.metadata": {"version": lambda _name: ""}}

for _name, _content in UNUSED.items():
    sys.modules[_name] = ModuleType(_name)
    vars(sys.modules[_name]).update(_content)

import invoke  # noqa: E402, F401  it finds the empty modules

for _name in UNUSED:
    del sys.modules[_name]
