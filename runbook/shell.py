"""A step's plan as the `oc` and `psql` commands that do the same by hand.

Every command is one that kubectl has too, so that the tests can run what the page shows; what only the real `oc` has
stands in a comment marked *not run here*. A credential is a variable of the shell: read, looked up or made there,
handed on through standard input, and never an argument that a process list shows.
"""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import singledispatch
from typing import Any

from runbook.instance import Instance
from runbook.observed import Observed
from runbook.options import credentials, outline
from runbook.plan import (
    Accepts,
    Action,
    Admitted,
    Answers,
    Apply,
    Ask,
    Confirm,
    Credential,
    Dump,
    Execute,
    Inside,
    Log,
    LoggedIn,
    LogIn,
    Look,
    Manifest,
    Object,
    Patch,
    Require,
    Restore,
    Revision,
    Scale,
    Shell,
    Show,
    StartBuild,
    WaitFor,
    Write,
    exists,
    marked,
)
from runbook.step import Step

BUILDS = "/apis/build.openshift.io/v1/namespaces"

_REVISIONS = """\
revisions() { for each in "$@"; do
  oc get "$each" NAMESPACE --ignore-not-found -o jsonpath='{.metadata.name}={.metadata.resourceVersion}{"\\n"}'
done | paste -sd, -; }"""
_B64 = """b64() { printf %s "$1" | base64 | tr -d '\\n'; }"""
_VERIFIER = """\
verifier() { python3 -c '
import base64, hashlib, hmac, os, sys
salt, word = os.urandom(16), sys.stdin.buffer.read()
key = hashlib.pbkdf2_hmac("sha256", word, salt, 4096)
stored, server = (hmac.digest(key, text, "sha256") for text in (b"Client Key", b"Server Key"))
salt, stored, server = (base64.b64encode(part).decode() for part in (salt, hashlib.sha256(stored).digest(), server))
print(f"SCRAM-SHA-256$4096:{salt}${stored}:{server}")'; }"""
"""What `\\password` of psql computes: the server gets a verifier and never sees the password."""


@dataclass(frozen=True)
class Setting:
    """What the commands of one block share."""

    instance: Instance
    manager: str

    @property
    def namespace(self) -> str:
        """The option that names the project."""
        return f"-n {self.instance.project}"

    @property
    def psql(self) -> str:
        """The start of a psql command as the administrator."""
        return f'psql -U {quoted(self.instance.database.administrator)} "$server"'


def block(step: Step, instance: Instance, observed: Observed | None = None, *, undo: bool = False, **options: Any) -> str:
    """Return a step, or its undo, as a bash script that needs nothing but `oc` (or kubectl), `psql`, `curl` and a log-in."""
    plan = outline(step, instance, observed or Observed(), **options)
    setting = Setting(instance, (step.undoes or step).manager)
    return "\n".join(undone(plan, setting) if undo or step.undoes else script(plan, setting)) + "\n"


def undone(plan: Sequence[Action], setting: Setting) -> Iterator[str]:
    """Yield the lines that take a plan back, in reverse order."""
    for action in reversed(plan):
        match action:
            case Apply(part=True):
                # An apply with no field gives back all that this manager had, and nothing of others.
                bare = {key: action.manifest[key] for key in ("apiVersion", "kind")} | {"metadata": {"name": action.object.name}}
                yield from commands([Apply(bare, part=True)], setting)
            case Apply():
                kept = "# It holds data: only when nobody needs it any more." if action.data else ""
                where = f"-n {action.object.namespace}" if action.object.namespace else setting.namespace
                yield from filter(None, [kept, f"oc delete {_name(action.object)} {where} --ignore-not-found"])
            case Scale():
                yield from commands(Scale(action.deployment, 0), setting)
            case Patch() if action.undo is not None:
                yield from commands(dataclasses.replace(action, fields=action.undo), setting)


def script(plan: Sequence[Action], setting: Setting) -> Iterator[str]:
    """Yield the lines for a plan: a subshell that ends at the first failure and takes its passwords with it.

    Pasted into a terminal it is read as a whole before anything runs, so that a question does not eat the next line.
    """
    lines = list(_lines(plan, setting))
    if sum(not line.startswith("#") for line in lines) < 2:
        yield from lines
        return
    yield "( set -euo pipefail"
    yield from lines
    yield ")"


def _lines(plan: Sequence[Action], setting: Setting) -> Iterator[str]:
    db = setting.instance.database
    if any(isinstance(a, Apply) and a.manifest["kind"] == "Secret" for a in plan):
        yield _B64
    if any(isinstance(a, Apply) and any(_revisions(a.manifest)) for a in plan):
        yield _REVISIONS.replace("NAMESPACE", setting.namespace)
    if any(isinstance(a, Execute) and a.credential for a in plan):
        yield _VERIFIER
    if any(isinstance(a, Execute | Dump | Restore) or (isinstance(a, Ask) and isinstance(a.until, Answers)) for a in plan):
        # Not every resolver knows that names below .localhost are this machine.
        address = " hostaddr=127.0.0.1" if db.host.endswith(".localhost") else ""
        yield f'server="host={db.host}{address} port={db.port} dbname=postgres sslmode=require"'
    known: set[Credential] = set()
    for action in _joined(plan):
        if not isinstance(action, Ask):  # What a person learns is asked for where it is used.
            for credential in credentials(action):
                if credential not in known:
                    yield from _known(credential, setting)
                known.add(credential)
        yield from commands(action, setting)


def _joined(plan: Sequence[Action]) -> Iterator[Action | list[Apply]]:
    """Yield the plan with neighbouring manifests of one project together: one command applies them."""
    together: list[Apply] = []
    for action in plan:
        if isinstance(action, Apply):
            # What is before a revision must be there when it is asked for.
            if together and (together[-1].object.namespace != action.object.namespace or any(_revisions(action.manifest))):
                yield together
                together = []
            together.append(action)
            continue
        if together:
            yield together
            together = []
        yield action
    if together:
        yield together


@singledispatch
def commands(action: Any, _setting: Setting) -> Iterable[str]:
    """Return the lines of shell for one value of a plan."""
    raise TypeError(f"no commands for {type(action).__name__}")


@commands.register
def _(action: list, setting: Setting) -> Iterable[str]:  # type: ignore[type-arg]
    """Manifests, applied under the step's own manager, so that the guide finds them unchanged afterwards."""
    manifests = [marked(a, setting.manager) for a in action]
    secret = any(manifest["kind"] == "Secret" for manifest in manifests)
    expanded = secret or any(_revisions(manifests))
    text = "---\n".join(_in_heredoc(manifest) if expanded else yaml_text(manifest) for manifest in manifests)
    end = _end(text)
    mark = end if expanded else quote_end(end)
    elsewhere = action[0].object.namespace
    where = f"-n {elsewhere}" if elsewhere else setting.namespace
    yield f"oc apply --server-side --field-manager={setting.manager} {where} -f - <<{mark}"
    yield text + end


@commands.register
def _(action: Execute, setting: Setting) -> Iterable[str]:
    if action.after:
        yield from commands(action.after, setting)
    if isinstance(action.unless, LogIn):
        role = quoted(action.unless.role)
        done = (f'PGPASSWORD=${shell_name(action.unless.credential)} psql -w -U {role} "$server" -c \'SELECT 1\' '
                ">/dev/null 2>&1")
    else:
        done = f"{setting.psql} -tAc {quoted(action.unless)} | grep -q ."
    if not action.credential:
        yield f"{done} ||"
        yield f"  {setting.psql} -c {quoted(action.statement)}"
        return
    name = shell_name(action.credential)
    statement = _escaped(action.statement).replace("{verifier}", f'$(printf %s "${name}" | verifier)')
    db = setting.instance.database
    kept = action.keep == "administrator"
    yield f"if ! {done}; then"
    if kept:
        line = f"{db.host}:{db.port}:*:{db.administrator}:"
        yield '  passwords=${PGPASSFILE:-$HOME/.pgpass}'
        yield '  ( umask 077; touch "$passwords"'
        yield f"    {{ printf '%s' {quoted(line)}; printf '%s\\n' \"${name}\" | sed 's/[\\\\:]/\\\\&/g'"
        yield f"      grep -vF {quoted(line)} \"$passwords\" || true; }} > \"$passwords.new\" )"
    yield f"  {setting.psql} -v ON_ERROR_STOP=1 -1 -f - <<EOF"  # both or none, when there are two statements
    yield statement + ";"
    yield "EOF"
    if kept:
        yield '  mv "$passwords.new" "$passwords"'
    yield "fi"


@commands.register
def _(action: WaitFor, setting: Setting) -> Iterable[str]:
    name = _name(action.object)
    where = f"-n {action.object.namespace}" if action.object.namespace else setting.namespace
    if action.condition is exists:
        yield from _until(f"oc get {name} {where} >/dev/null 2>&1")
    elif action.condition.flag.startswith("rollout"):
        yield f"oc {action.condition.flag} {name} {where} --timeout={action.seconds:.0f}s"
        if action.alone:
            going = "jsonpath={range .items[?(@.metadata.deletionTimestamp)]}{.metadata.name}{\"\\n\"}{end}"
            # In two commands: a question that is not answered must not count as "none".
            yield from _until(f"going=$(oc get pods {where} -o {quoted(going)}) && "
                              f"! grep -q {quoted(f'^{action.object.name}-')} <<< \"$going\"")
    else:
        yield f"oc wait --for={quoted(action.condition.flag)} {name} {where} --timeout={action.seconds:.0f}s"


@commands.register
def _(action: Ask, _setting: Setting) -> Iterable[str]:
    yield f"# A person: {action.deed}"
    yield f"#   at {action.where}, with:"
    yield from (f"#   {name}: {shown(value)}" for name, value in action.values.items() if value not in ("", []))
    match action.until:
        case Object():
            yield f"oc get {_name(action.until)}"
        case Answers():
            yield 'pg_isready -d "$server"'
        case Admitted():
            yield "# The guide tries it from a pod of the project; without the guide, the app's log tells."
        case LoggedIn():
            yield "oc auth whoami"
        case Accepts():
            yield f"# {action.until.what}"
            yield f"curl --fail --silent --show-error --output /dev/null {quoted(action.until.url)}"
        case Credential():
            pass


@commands.register
def _(action: StartBuild, setting: Setting) -> Iterable[str]:
    where, project = setting.namespace, setting.instance.project
    request = {"apiVersion": "build.openshift.io/v1", "kind": "BuildRequest", "metadata": {"name": action.config}}
    yield f"# With the real oc, not run here: oc start-build {action.config} {where} --follow --wait"
    yield f"build=$(oc create --raw {BUILDS}/{project}/buildconfigs/{action.config}/instantiate -f - <<'EOF' |"
    yield json.dumps(request)
    yield "EOF"
    yield """  python3 -c 'import json, sys; print(json.load(sys.stdin)["metadata"]["name"])')"""
    yield f'oc get --raw "{BUILDS}/{project}/builds/$build/log?follow=true"'
    yield f"oc wait --for=jsonpath='{{.status.phase}}'=Complete \"build/$build\" {where} --timeout=60s"
    yield f"digest=$(oc get \"build/$build\" {where} -o jsonpath='{{.status.output.to.imageDigest}}')"
    yield from _until(f"oc get deployment/{action.deployment} {where} -o jsonpath='{{.spec.template.spec.containers}}' "
                      '| grep -qF "$digest"')


@commands.register
def _(action: Scale, setting: Setting) -> Iterable[str]:
    yield f"oc scale deployment/{action.deployment} {setting.namespace} --replicas={action.replicas}"


@commands.register
def _(action: Patch, setting: Setting) -> Iterable[str]:
    yield f"# {action.what}"
    manager = f"guide/{action.owner}" if action.owner else setting.manager
    yield (f"oc patch {_name(action.object)} {setting.namespace} --type=merge --field-manager={manager} "
           f"-p {quoted(json.dumps(action.fields))}")


@commands.register
def _(action: Inside, setting: Setting) -> Iterable[str]:
    within = f"deployment/{action.deployment} {setting.namespace} -c {action.container} --"
    yield f"# {action.what}"
    if action.unless:
        yield f"oc exec {within} {shlex.join(action.unless)} >/dev/null 2>&1 ||"
    line = f"oc exec {within} {shlex.join(action.command)}"
    if action.input:
        line = f"printf '%s\\n' \"${shell_name(action.input)}\" | " + line.replace("oc exec", "oc exec -i", 1)
    yield ("  " if action.unless else "") + line + (f" | grep -F {quoted(action.contains)}" if action.contains else "")


@commands.register
def _(action: Show, _setting: Setting) -> Iterable[str]:
    yield f"# The guide puts this table together ({', '.join(action.head)}); no single command of oc shows it."


@commands.register
def _(action: Log, setting: Setting) -> Iterable[str]:
    flags = " --follow" * action.follow + " --previous" * action.previous
    yield f"oc logs deployment/{action.deployment} {setting.namespace} -c {action.container} --tail={action.lines}{flags}"


@commands.register
def _(action: Shell, setting: Setting) -> Iterable[str]:
    yield (f"oc exec -it deployment/{action.deployment} {setting.namespace} -c {action.container} -- "
           f"{shlex.join(action.command)}")


@commands.register
def _(action: Confirm, _setting: Setting) -> Iterable[str]:
    yield f"# First answer for yourself: {action.question}"


@commands.register
def _(action: Look, _setting: Setting) -> Iterable[str]:
    if action.what:
        yield f"# {action.what}"
    if action.outside:
        yield "# From outside CERN, with a phone that is not in its Wi-Fi: it must " + ("not " * action.refused) + "answer."
        return
    # Rolled out is not yet known to the router: it answers 503 for a moment, which curl tries again.
    url = quoted(re.sub("^wss", "https", action.url).rstrip("/") + "/" + action.path.lstrip("/"))
    if action.websocket:
        yield "# 101 means that the websocket opens; curl then waits for nothing and is ended."
        yield f"{{ curl --silent --max-time 3 --http1.1 --output /dev/null --write-out '%{{http_code}}' {url} \\"
        yield "    --header 'Connection: Upgrade' --header 'Upgrade: websocket' --header 'Sec-WebSocket-Version: 13' \\"
        yield "    --header 'Sec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==' || true; } | grep -qx 101"
    elif action.status != (200,):
        codes = "|".join(map(str, action.status))
        yield f"curl --retry 5 --silent --show-error --output /dev/null --write-out '%{{http_code}}' {url} | grep -qxE '{codes}'"
    elif action.contains:
        yield f"curl --fail --retry 5 --silent --show-error {url} | grep -F {quoted(action.contains)}"
    else:
        yield f"curl --fail --retry 5 --silent --show-error --output /dev/null {url}"


@commands.register
def _(action: Dump, _setting: Setting) -> Iterable[str]:
    yield f"file={quoted(action.database)}-$(date -u +%Y%m%d-%H%M%SZ).dump"
    yield (f'( umask 077; PGPASSWORD=${shell_name(action.credential)} pg_dump -w -Fc '
           f'-d "${{server/dbname=postgres/dbname={action.database}}} user={action.role}" > "$file.part" ) '
           '&& mv "$file.part" "$file"')


@commands.register
def _(action: Restore, setting: Setting) -> Iterable[str]:
    """The dump becomes a script first: one that is broken is then seen before anything is dropped."""
    name = f"deployment/{action.deployment} {setting.namespace}"
    yield f"oc scale {name} --replicas=0"
    yield f"oc rollout status {name} --timeout=300s"
    yield "script=$(mktemp)"
    yield """trap 'rm -f "$script"' EXIT"""
    yield f'pg_restore --no-owner --exit-on-error -f "$script" {quoted(action.file)}'
    yield (f'PGPASSWORD=${shell_name(action.credential)} psql -w -X -q -1 -v ON_ERROR_STOP=1 '
           f'-d "${{server/dbname=postgres/dbname={action.database}}} user={action.role}" '
           "-c 'DROP OWNED BY CURRENT_USER' -f \"$script\" >/dev/null")
    yield f"oc scale {name} --replicas={setting.instance.deploy.replicas}"


@commands.register
def _(action: Write, _setting: Setting) -> Iterable[str]:
    path, end = quoted(action.path), _end(action.text)
    if "/" in action.path:
        yield f"mkdir -p {quoted(action.path.rpartition('/')[0])}"
    yield f"cat > {path} <<{quote_end(end)}"
    yield action.text.removesuffix("\n")
    yield end
    if action.executable:
        yield f"chmod +x {path}"


@commands.register
def _(action: Require, _setting: Setting) -> Iterable[str]:
    yield f"# It must hold that {action.what}."
    if action.cure:
        yield f"#   If not: {action.cure}"


def shell_name(credential: Credential) -> str:
    """Return the shell variable that holds a credential."""
    return credential.variable.removeprefix("RUNBOOK_")


def _known(credential: Credential, setting: Setting) -> Iterator[str]:
    """Yield the lines that give a credential: from the environment, the project's Secret, the maker or the reader."""
    name = shell_name(credential)
    found = ""
    if credential.secret:
        key = credential.key.replace(".", "\\.")
        found = (f"$(oc get secret/{credential.secret} {setting.namespace} --ignore-not-found "
                 f"-o jsonpath='{{.data.{key}}}' | base64 -d)")
    yield f"# {name}: {credential.label}."
    yield f"{name}=${{{credential.variable}:-{found}}}"
    if credential.optional:
        return
    if credential.generated:
        yield f"[ -n \"${name}\" ] || {name}=$(python3 -c 'import secrets; print(secrets.token_hex(16))')"
    else:
        yield f"[ -n \"${name}\" ] || {{ printf '%s: ' {quoted(credential.label)} >&2; read -rs {name}; echo >&2; }}"


def yaml_text(manifest: Any) -> str:
    """Return a manifest as YAML that every parser reads the same way; credentials stand as `<label>`."""
    import yaml

    class Dumper(getattr(yaml, "CSafeDumper", yaml.SafeDumper)):  # type: ignore[misc]  # in C where the wheel has it
        """PyYAML's rules leave texts bare that the parsers written in Go take for numbers or booleans."""

        def ignore_aliases(self, _data: Any) -> bool:
            return True

    def text(dumper: yaml.SafeDumper, value: str) -> yaml.Node:
        doubtful = re.fullmatch(r"[yYnN]|0[xXoO]\w+|[-+]?[.\d][\d_.]*(?:[eE][-+]?\d+)?", value)
        style = "|" if "\n" in value and not re.search(r"[ \t]\n", value) else "'" if doubtful else None
        return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)

    Dumper.add_representer(str, text)
    Dumper.add_representer(Revision, lambda dumper, value: text(dumper, _placeholder(value)))
    Dumper.add_representer(Credential, lambda dumper, value: text(dumper, f"<{value.label}>"))
    return str(yaml.dump(manifest, Dumper=Dumper, sort_keys=False, allow_unicode=True, width=10_000))


def _in_heredoc(manifest: Manifest) -> str:
    """Return YAML for an unquoted here-document; a Secret's values are encoded in the shell, without an argument."""
    if manifest["kind"] != "Secret":
        if any(True for _ in credentials(manifest)):
            raise ValueError(f"a credential belongs into a Secret, not into {manifest['kind']}")
        text = _escaped(yaml_text(manifest))
        for revision in _revisions(manifest):
            names = " ".join(_name(each) for each in revision.objects)
            text = text.replace(_placeholder(revision), f"'$(revisions {names})'")
        return text
    bare = {key: value for key, value in manifest.items() if key not in ("stringData", "data")}
    lines = [_secret_line(key, value) for key, value in manifest.get("stringData", {}).items()]
    lines += [f"  {key}: {value}" for key, value in manifest.get("data", {}).items()]
    return _escaped(yaml_text(bare)) + "\n".join(["data:", *lines, ""])


def _revisions(node: Any) -> Iterator[Revision]:
    """Yield every revision that a manifest names."""
    if isinstance(node, Revision):
        yield node
    elif isinstance(node, dict | list):
        for inner in node.values() if isinstance(node, dict) else node:
            yield from _revisions(inner)


def _placeholder(revision: Revision) -> str:
    return f"<revisions of {', '.join(each.name for each in revision.objects)}>"


def _secret_line(key: str, value: str | Credential) -> str:
    if not isinstance(value, Credential):
        return f"  {key}: '$(b64 {quoted(value)})'"
    line = f"  {key}: '$(b64 \"${shell_name(value)}\")'"
    # An empty key would set what reads it to nothing; a missing one leaves its default.
    return f"${{{shell_name(value)}:+{line}}}" if value.optional else line


def _escaped(text: str) -> str:
    """Keep an unquoted here-document from expanding what is meant literally."""
    return re.sub(r"([\\$`])", r"\\\1", text)


def _end(text: str) -> str:
    """Return a here-document's end mark that the text does not hold."""
    end = "EOF"
    while re.search(rf"^{end}$", text, re.MULTILINE):
        end += "F"
    return end


def quote_end(end: str) -> str:
    """Return the end mark so that nothing in the here-document is expanded."""
    return f"'{end}'"


def quoted(text: str) -> str:
    """Return a text as one word of the shell, as readable as possible."""
    if "'" not in text:
        return shlex.quote(text)
    return '"' + re.sub(r'(["\\$`])', r"\\\1", text) + '"'


def shown(value: Any) -> str:
    """Return a form's value as a reader types it."""
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _name(named: Object) -> str:
    return f"{named.kind.lower()}/{named.name}"


def _until(command: str) -> Iterator[str]:
    """Wait with a deadline; `oc wait` would fail at once on what is not there yet."""
    yield f"for try in $(seq 60); do {command} && break; sleep 2; done; [ \"$try\" -lt 60 ]"
