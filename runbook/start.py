"""Imported first by the command line: keeps invoke from importing what nothing here uses.

invoke needs `unittest.mock` for its test double and `importlib.metadata` for its own version number. With them come
asyncio and the e-mail parser: half of the time that a command needs to start.
"""

from runbook.unused import without

with without({"unittest.mock": {"Mock": object}, "importlib.metadata": {"version": lambda _name: ""}}):
    import invoke  # noqa: F401  it finds the empty modules
