"""The stack alone, without the guide: `python -m stack up|down|status|logs|env`."""

from __future__ import annotations

import json
import sys

from stack import commands
from stack.state import State, default_root


def main(verb: str = "status", *arguments: str) -> None:
    """Run one command on the stack of the default state folder; a StackError becomes one line."""
    state = State(default_root())
    try:
        if verb == "up":
            commands.up(state)
        elif verb == "down":
            commands.down(state, wipe="--wipe" in arguments)
        elif verb == "logs":
            for line in commands.logs(state, arguments[0]):
                print(line)
        elif verb == "env":
            print(commands.env(state), end="")
        else:
            print(json.dumps(commands.status(state), indent=1))
    except commands.StackError as error:
        sys.exit(f"stack: {error}")


if __name__ == "__main__":
    main(*sys.argv[1:])
