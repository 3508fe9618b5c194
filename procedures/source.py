"""Setup the repository: the files that source-to-image reads in it, and a lock of its dependencies.

`prepare` works on your checkout, `check` on the remote branch; both judge a file by what it does and not by its
wording, so that a good file of your own stays as it is.
"""

import re
from collections.abc import Callable, Mapping
from pathlib import PurePosixPath
from typing import Annotated

from runbook.instance import Instance
from runbook.observed import File, Observed
from runbook.plan import Plan, Require, Write
from runbook.step import step

ENVIRONMENT, ASSEMBLE, RUN, SCRIPT, LOCK = (
    ".s2i/environment", ".s2i/bin/assemble", ".s2i/bin/run", "openshift-start-up-script.sh", "requirements.txt")

TOKEN_KEYS = ("CERN_GITLAB_USER", "CERN_GITLAB_TOKEN")
"""The files that the build secret puts beside `assemble` when private Git packages are wanted."""

LOCK_COMMAND = "uv pip compile --generate-hashes requirements.in -o requirements.txt"

WHAT = {
    ENVIRONMENT: "names the start-up script and leaves static files to it",
    ASSEMBLE: "is strict and leaves no token in the image",
    SCRIPT: "is strict and becomes the server itself",
    RUN: "is not there, because it would replace the image's own",
    LOCK: "pins every dependency",
}
"""What holds of each file, as the rest of a sentence that begins with its path."""

Files = Mapping[str, File]


@step(
    operation=True,
    see="`git status` in your checkout names the files that were written; the second run writes none.",
    otherwise=(
        ("`manage.py names no settings module`", ("Give the folder of the app: `--checkout` is the folder of the "
                                                 "repository, `folder` below [source] the app's place in it.")),
        ("The build ignores what was written.", "Commit and push to the instance's branch: builds clone it."),
    ),
)
def prepare(instance: Instance, observed: Observed, *,
            checkout: Annotated[str, "Folder of your checkout."] = ".") -> Plan:
    """Write what a build needs into your checkout of the app's repository."""
    folder = PurePosixPath(checkout) / instance.source.folder
    found = observed.checkout(str(folder))
    if found and found.error:
        yield Require(f"the checkout {folder} can be read", found.error, "give its folder with --checkout=FOLDER", given=True)
        return
    files: Files = found.files if found else {"manage.py": File(PAGE_MANAGE)}
    path = script_path(files)
    texts = {ENVIRONMENT: mended_environment(text_of(files, ENVIRONMENT)),
             ASSEMBLE: assemble_text(instance.source.private_packages),
             path: start_text(files, path)}
    faults = judged(files, instance)
    for name, text in texts.items():
        if faults[name] and text:
            kept = only_mode(faults[name])
            yield Write(str(folder / name), text_of(files, name) if kept else text, executable=name != ENVIRONMENT)
        elif faults[name]:
            yield Require(f"{name} {WHAT[SCRIPT]}", "manage.py names no settings module to start",
                          f"write {name} yourself; its last line is `exec daphne … PACKAGE.asgi:application`")
    yield Require(f"{RUN} {WHAT[RUN]}", "; ".join(faults[RUN]), f"git rm {RUN}")
    yield Require(f"{LOCK} {WHAT[LOCK]}", "" if found is None else "; ".join(faults[LOCK]), lock_cure(files))


@step(
    see="Every file on the branch holds what a build needs.",
    otherwise=(
        ("`… has no branch …` or `Remote branch … not found`",
         "Push the branch, or name another one as `branch` below [source]."),
        ("`repository '…' not found`, `… can be read: …` of the branch, or `does not answer within a minute`",
         "Compare `repository` and `branch` below [source] with what is there, and see whether you may read it."),
        ("The repository asks for a password: `could not read Username` or `Authentication failed for`",
         "It is private: set `private = true` below [source]; the guide asks for a user and a token that may only read."),
        ("`it is missing`, `not pinned`, `leaves the token in the image`, or another fault of a file",
         "`source.prepare` writes what a build needs; the message names the file. Commit and push it."),
        ("`… is not executable`", ("A copy over a share or a zip file lost the mode: "
                                   "`git update-index --chmod=+x FILE`, then commit and push.")),
    ),
)
def check(instance: Instance, observed: Observed) -> Plan:
    """Check that the branch holds what a build needs."""
    wanted, found = instance.source, observed.source()
    what = f"the branch {wanted.branch} of {wanted.repository} can be read"
    if found and found.error:
        yield Require(what, found.error, "compare repository and branch below [source] in the instance file" + (
            "; RUNBOOK_SOURCE_USER_FILE and RUNBOOK_SOURCE_TOKEN_FILE name files with the user and the token that may read it"
            if wanted.private else ""))
        return
    yield Require(what, "", "")
    files: Files = found.files if found else {}
    faults = judged(files, instance) if found else {name: [] for name in WHAT}
    prepare_first = (f"invoke source.prepare --build={instance.name} --checkout=FOLDER, "
                     f"then commit and push to {wanted.branch}")
    cures = {RUN: f"git rm {RUN}, then commit and push to {wanted.branch}",
             LOCK: f"{lock_cure(files)}, then commit and push to {wanted.branch}"}
    for name, wrong in faults.items():
        yield Require(f"{name} {WHAT.get(name, WHAT[SCRIPT])}", "; ".join(wrong), cures.get(name, prepare_first))


def judged(files: Files, instance: Instance) -> dict[str, list[str]]:
    """Return what is wrong with each file that a build reads; an empty list when it is right."""
    script = script_path(files)
    private = instance.source.private_packages
    return {
        ENVIRONMENT: judge(files.get(ENVIRONMENT), judge_environment),
        ASSEMBLE: judge(files.get(ASSEMBLE), lambda text: judge_assemble(text, private), executable=True),
        script: judge(files.get(script), judge_start, executable=True),
        RUN: ["it hides the image's own run script, which the EOS mount cannot do without"] if RUN in files else [],
        LOCK: judge(files.get(LOCK), judge_lock),
    }


def judge(file: File | None, rules: Callable[[str], list[str]], *, executable: bool = False) -> list[str]:
    """Return what is wrong with a file: that it is missing, breaks a rule, or cannot be executed."""
    if file is None:
        return ["it is missing"]
    return rules(file.text) + ([NOT_EXECUTABLE] if executable and not file.executable else [])


NOT_EXECUTABLE = "it is not executable"


def only_mode(wrong: list[str]) -> bool:
    """Whether nothing but the mode is wrong."""
    return wrong == [NOT_EXECUTABLE]


def judge_environment(text: str) -> list[str]:
    """Return what is wrong with `.s2i/environment`: lines of KEY=VALUE that become part of the image."""
    known = settings(text)
    wrong = [f"it does not set {key}" for key in ("DISABLE_COLLECTSTATIC", "APP_SCRIPT") if not known.get(key)]
    return wrong + [f"{key} looks like a secret, and this file is in Git and in the image"
                    for key in known if re.search(r"PASSWORD|TOKEN|SECRET", key)]


def judge_assemble(text: str, private_packages: str = "") -> list[str]:
    """Return what is wrong with `.s2i/bin/assemble`; `private_packages` is the host of private Git packages."""
    code = "\n".join(commands(text))
    wrong = judge_strict(text)
    if "libexec/s2i/assemble" not in code:
        wrong.append("it does not call /usr/libexec/s2i/assemble, which installs the app")
    if re.search(r"git config --(global|system)", code):
        wrong.append("`git config --global` leaves the token in the image")
    if re.search(r"\$\{?\w*(TOKEN|PASSWORD)\w*\}?@", code):
        wrong.append("a token inside an address shows in the process list and in messages")
    if private_packages and not ("GIT_CONFIG_COUNT" in code and "GIT_CONFIG_VALUE_0" in code):
        wrong.append(f"it does not authenticate to {private_packages} by GIT_CONFIG_COUNT for one command")
    if private_packages and TOKEN_KEYS[1] not in code:
        wrong.append(f"it does not read {TOKEN_KEYS[1]} of the build secret")
    return wrong


def judge_start(text: str) -> list[str]:
    """Return what is wrong with the start-up script."""
    wrong = judge_strict(text)
    last = (commands(text) or [""])[-1]
    if not last.startswith("exec "):
        wrong.append("its last command has no `exec`: the shell ignores SIGTERM and every stop takes the whole grace")
    if "8080" not in last:
        wrong.append("the server does not listen on port 8080")
    return wrong


def judge_strict(text: str) -> list[str]:
    """Return what keeps a script from stopping at its first failure."""
    wrong = [] if text.startswith("#!") else ["its first line does not name an interpreter (#!/bin/bash)"]
    if not re.search(r"^set -(?=\w*e)(?=\w*u)\w*o pipefail\b", text, re.MULTILINE):
        wrong.append("it goes on after a failure: `set -euo pipefail` is missing")
    return wrong


def judge_lock(text: str) -> list[str]:
    """Return what is wrong with `requirements.txt` as a lock."""
    lines = [line for line in commands(text) if not line.startswith("--") and not re.match(r"-[rcif]\b", line)]
    loose = [requirement_name(line) for line in lines if not pinned(line)]
    hashed = [line for line in lines if "--hash=" in line]
    wrong = [f"not pinned: {', '.join(loose[:8])}{' and more' if len(loose) > 8 else ''}"] if loose else []
    if hashed and len(hashed) < len(lines):
        wrong.append("some lines have hashes and others have none, which pip refuses")
    return wrong


def pinned(requirement: str) -> bool:
    """Whether a requirement can mean one version only: `==` without a wildcard, a hash, or a full Git commit."""
    exact = re.search(r"===?\s*[^\s;,*]+(?=\s|;|$|\\)", requirement)
    return bool(exact) or "--hash=" in requirement or bool(re.search(r"@\s*\S+@[0-9a-f]{40}\b", requirement))


def requirement_name(requirement: str) -> str:
    """Return the package of a requirement line."""
    return re.split(r"[\s=<>!~;@\[]", requirement.removeprefix("-e").strip(), maxsplit=1)[0]


def requirements(files: Files) -> frozenset[str]:
    """Return the names of the packages that the app installs, in lower case."""
    return frozenset(requirement_name(line).lower() for line in commands(text_of(files, LOCK)))


def commands(text: str) -> list[str]:
    """Return the lines that mean something: continued lines joined, comments and blank lines left out."""
    joined = re.sub(r"\\\n\s*", " ", text)
    return [line for raw in joined.splitlines() if (line := raw.strip()) and not line.startswith("#")]


def settings(text: str) -> dict[str, str]:
    """Return the KEY=VALUE lines of `.s2i/environment`."""
    return {key.strip(): value.strip() for key, sign, value in (line.partition("=") for line in commands(text)) if sign}


def text_of(files: Files, path: str) -> str:
    """Return a file's text, "" when there is none."""
    return files[path].text if path in files else ""


def script_path(files: Files) -> str:
    """Return the path of the start-up script: what APP_SCRIPT says, else the guide's name for it."""
    return settings(text_of(files, ENVIRONMENT)).get("APP_SCRIPT") or SCRIPT


def lock_cure(files: Files) -> str:
    """Return the command that makes the lock."""
    first = "" if "requirements.in" in files or LOCK not in files else f"git mv {LOCK} requirements.in, then "
    return first + LOCK_COMMAND


def mended_environment(text: str) -> str:
    """Return `.s2i/environment` with what is missing added and what looks like a secret taken out."""
    kept = [line for line in text.splitlines() if not re.match(r"\s*\w*(PASSWORD|TOKEN|SECRET)\w*\s*=", line)]
    known = settings("\n".join(kept))
    kept += [f"{key}={value}" for key, value in (("DISABLE_COLLECTSTATIC", "true"), ("APP_SCRIPT", SCRIPT))
             if not known.get(key)]
    return "\n".join(kept) + "\n"


def assemble_text(private_packages: str = "") -> str:
    """Return `.s2i/bin/assemble`; `private_packages` is the host of private Git packages, "" when there are none."""
    return ASSEMBLE_PRIVATE.replace("HOST", private_packages) if private_packages else ASSEMBLE_PLAIN


def start_text(files: Files, path: str) -> str:
    """Return the start-up script: the present one made strict, else a new one; "" when the app's module is unknown."""
    present = text_of(files, path)
    if present and not judge_start(mended := mended_start(present)):
        return mended
    known = re.search(r"([\w.]+):(\w+)\s*$", (commands(present) or [""])[-1])
    if known:
        return START.replace("MODULE", known[0].strip())
    package = re.search(r"DJANGO_SETTINGS_MODULE\W+([\w.]+)\.settings", text_of(files, "manage.py"))
    return START.replace("MODULE", f"{package[1]}.asgi:application") if package else ""


def mended_start(text: str) -> str:
    """Return a start-up script with its own commands, strict, and with `exec` before the server."""
    lines = text.splitlines()
    if lines and not lines[0].startswith("#!"):
        lines.insert(0, "#!/bin/bash")
    if any("pipefail" in fault for fault in judge_strict(text)):
        lines.insert(1, "set -euo pipefail")
    for place in reversed(range(len(lines))):
        if re.match(r"(daphne|gunicorn|uvicorn|python3?)\s", lines[place]):
            lines[place] = "exec " + lines[place]
            break
        if lines[place].strip() and not lines[place].startswith((" ", "\t", "#")):
            break
    return "\n".join(lines) + "\n"


ASSEMBLE_PLAIN = """\
#!/bin/bash
# Runs in the builder image. Strict, so that whatever fails here fails the build.
set -euo pipefail

/usr/libexec/s2i/assemble
"""

ASSEMBLE_PRIVATE = """\
#!/bin/bash
# Runs in the builder image. Strict, so that whatever fails here fails the build.
set -euo pipefail

# The files of the build secret are here while the build runs. They must not stay in the image.
trap 'rm -f "$HOME/CERN_GITLAB_USER" "$HOME/CERN_GITLAB_TOKEN"' EXIT
for file in CERN_GITLAB_USER CERN_GITLAB_TOKEN; do
  if [ ! -s "$HOME/$file" ]; then
    echo "assemble: $file is missing: packages from HOST need it in the build secret" >&2
    exit 1
  fi
done

# For this one command, in its environment only: nothing is written to .gitconfig, no address carries the token.
header=$(printf '%s:%s' "$(cat "$HOME/CERN_GITLAB_USER")" "$(cat "$HOME/CERN_GITLAB_TOKEN")" | base64 -w0)
GIT_CONFIG_COUNT=1 \\
GIT_CONFIG_KEY_0=http.https://HOST/.extraHeader \\
GIT_CONFIG_VALUE_0="Authorization: Basic $header" \\
  /usr/libexec/s2i/assemble
"""

START = """\
#!/bin/bash
# Starts the app in its pod. Strict, so that a failed migration stops the pod.
set -euo pipefail

python manage.py collectstatic --noinput
python manage.py migrate --noinput

# exec: the server becomes process 1 and gets SIGTERM, so that a pod stops at once.
exec daphne -b 0.0.0.0 -p 8080 MODULE
"""

PAGE_MANAGE = 'os.environ.setdefault("DJANGO_SETTINGS_MODULE", "dqmhelper.settings")'
"""certhelper's own, for the page, where no checkout is known."""
