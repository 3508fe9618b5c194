"""What the stack says when it cannot go on: one sentence with what, where and what to do next."""

from __future__ import annotations


class StackError(Exception):
    """The stack cannot do what was asked; the text is a whole message for the reader of the command line."""
