"""`./inv`: invoke's program with this project's manners: our version, exit code 2 and a suggestion for wrong use."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import runbook.start  # noqa: F401  it comes before invoke
from invoke import Collection, Exit, ParseError, Program

from runbook import errors
from runbook.cli import unknown_task
from runbook.instance import builds, folder_of_instances
from runbook.step import suggestion

ROOT = Path(__file__).parent.parent


class Guide(Program):  # type: ignore[misc]
    """Invoke's program, with tasks listed in the guide's order."""

    def parse_core(self, argv: list[str] | None) -> None:
        """Parse invoke's own options, and let Python keep the bytecode of our modules, which invoke forbids."""
        kept = sys.dont_write_bytecode
        super().parse_core(argv)
        sys.dont_write_bytecode = kept

    def parse_tasks(self) -> None:
        """Parse the tasks and their options. Raises Exit with code 2 and a suggestion for a wrong word."""
        try:
            super().parse_tasks()
        except ParseError as error:
            if "required positional arguments" in str(error) and "" not in self.core.unparsed:
                self.core.unparsed.append("")  # the task itself knows which words it could be given
                self.parse_tasks()
                return
            raise Exit(self._explained(error), code=errors.WRONG_USE) from None

    def no_tasks_given(self) -> None:
        """Print where to begin and the list of the tasks. Raises Exit, as invoke's own does."""
        print("Begin with `invoke guide.run --build=dev`, a site on this machine, or `invoke docs.serve`, the guide to read.\n")
        self.list_tasks()
        raise Exit

    def list_flat(self) -> None:
        """Print the tasks in the order of the guide instead of the alphabet."""
        self.display_with_columns(pairs=list(_in_order(self.scoped_collection, "")))

    def print_version(self) -> None:
        """Print our version, and invoke's."""
        from importlib.metadata import version

        print(f"certhelper guide {_version()} (invoke {version('invoke')})")

    def _explained(self, error: ParseError) -> str:
        contexts = getattr(self.parser, "contexts", {})
        context = error.context or contexts[None]
        command = context.name or "invoke"
        known_builds = builds(folder_of_instances())
        if wrong := re.match(r"No idea what '(.*)' is!", str(error)):
            word = wrong[1]
            if word.startswith("-"):
                options = sorted(flag for flag in context.flags if flag.startswith("--"))
                return f"error: {command} has no option {word!r}; {suggestion(word.partition('=')[0], options)}"
            if word in known_builds:
                return ("error: an instance is named by an option\n"
                        f"  next: `invoke {context.name or 'guide.status'} --build={word}`")
            return "error: " + unknown_task(word, [name for name in contexts if name])
        if lone := re.match(r"Flag <Argument: (\S+?)[ >].* needed value", str(error)):
            name = lone[1].replace("_", "-")
            value, known = ("NAME", f"; there are: {', '.join(known_builds)}") if name == "build" else ("VALUE", "")
            given = context.args["build"].value if "build" in context.args and name != "build" else None
            words = [command, *([f"--build={given}"] if given else []), f"--{name}={value}"]
            return f"error: --{name} needs a value\n  next: `invoke {' '.join(words)}`{known}"
        return f"error: {error}"


def _in_order(collection: Collection, prefix: str) -> list[tuple[str, str | None]]:
    pairs: list[tuple[str, str | None]] = []
    for name, task in collection.tasks.items():
        pairs.append((prefix + name, (task.__doc__ or "").strip().partition("\n")[0]))
    for name, inner in collection.collections.items():
        pairs += _in_order(inner, f"{prefix}{name}.")
    return pairs


def _version() -> str:
    text = (ROOT / "pyproject.toml").read_text()
    found = re.search(r'^version = "(.*)"', text, re.MULTILINE)
    return found[1] if found else "unknown"


def main() -> None:
    """Run the tasks that the arguments name, from any folder."""
    try:
        try:
            Guide(binary="invoke").run([sys.argv[0], "--search-root", str(ROOT), *sys.argv[1:]])
        finally:
            sys.stdout.flush()
    except BrokenPipeError:  # who read along has seen enough: `invoke --list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(errors.FAILED)
    except KeyboardInterrupt:
        sys.exit(errors.INTERRUPTED)
    except PermissionError as error:  # invoke reads its settings from the home folder before any task of ours
        sys.exit(f"error: {error.filename} cannot be read: {error.strerror}; is HOME yours? (after sudo or su it may not be)")


if __name__ == "__main__":
    main()
