"""The files that a build needs: judged by what they do, mended where they lie."""

import dataclasses
import subprocess

import pytest

from procedures import source
from runbook.observed import File, Source
from runbook.plan import Require, Write

CERTIFIER = """\
#!/bin/bash
python manage.py collectstatic --noinput
python manage.py migrate --run-syncdb
python manage.py clear_scripts_running_status

daphne -b 0.0.0.0 -p 8080 dqmhelper.asgi:application
"""
FORMER_ASSEMBLE = """\
#!/bin/bash
echo "Before assembling"
git config --global url."https://$CERN_GITLAB_USER:$CERN_GITLAB_TOKEN@gitlab.cern.ch".insteadOf https://gitlab.cern.ch
/usr/libexec/s2i/assemble
"""


def written(values):
    return {value.path: value for value in values if isinstance(value, Write)}


def test_a_branch_that_holds_all_is_left_alone(plan, instance, example, unmet):
    assert unmet(plan(source.check, instance, {"source": Source("a" * 40, example)})) == []


def test_a_checkout_that_holds_all_is_left_alone(plan, instance, example, unmet):
    values = plan(source.prepare, instance, {"checkout:.": Source("", example)})
    assert written(values) == {}
    assert unmet(values) == []


def test_prepare_writes_what_is_missing(plan, instance, changed):
    files = changed({source.ENVIRONMENT: None, source.ASSEMBLE: None, source.SCRIPT: None})
    values = written(plan(source.prepare, instance, {"checkout:there": Source("", files)}, checkout="there"))
    assert {path: value.executable for path, value in values.items()} == {
        "there/.s2i/environment": False, "there/.s2i/bin/assemble": True, "there/openshift-start-up-script.sh": True}
    assert "exec daphne -b 0.0.0.0 -p 8080 shiftbook.asgi:application" in values["there/openshift-start-up-script.sh"].text


def test_prepare_writes_below_the_apps_folder(plan, instance):
    instance = dataclasses.replace(instance, source=dataclasses.replace(instance.source, folder="web"))
    manage = File('os.environ.setdefault("DJANGO_SETTINGS_MODULE", "site.settings")')
    values = written(plan(source.prepare, instance, {"checkout:web": Source("", {"manage.py": manage})}))
    assert "web/.s2i/environment" in values


def test_what_prepare_writes_satisfies_check(plan, instance, changed, unmet):
    instance = dataclasses.replace(instance, source=dataclasses.replace(instance.source, private_packages="gitlab.cern.ch"))
    files = changed({source.ENVIRONMENT: "DJANGO_SECRET_KEY=x\n", source.ASSEMBLE: FORMER_ASSEMBLE, source.SCRIPT: CERTIFIER})
    before = Source("", files)
    for value in written(plan(source.prepare, instance, {"checkout:.": before})).values():
        files[value.path] = File(value.text, value.executable)
    assert unmet(plan(source.check, instance, {"source": Source("b" * 40, files)})) == []
    assert written(plan(source.prepare, instance, {"checkout:.": Source("", files)})) == {}


def test_a_lost_mode_is_given_back_and_the_text_kept(plan, instance, example, changed):
    text = example[source.SCRIPT].text
    values = written(plan(source.prepare, instance, {"checkout:.": Source("", changed({source.SCRIPT: File(text)}))}))
    assert values == {source.SCRIPT: Write(source.SCRIPT, text, executable=True)}


def test_an_existing_start_script_keeps_its_commands_and_module():
    text = source.start_text({source.SCRIPT: File(CERTIFIER)}, source.SCRIPT)
    assert source.judge_start(text) == []
    assert "clear_scripts_running_status" in text
    assert "migrate --run-syncdb" in text
    assert text.endswith("exec daphne -b 0.0.0.0 -p 8080 dqmhelper.asgi:application\n")


def test_a_start_script_beyond_mending_still_gives_the_module():
    text = source.start_text({source.SCRIPT: File("cd /tmp && daphne -p 80 my.web.asgi:app")}, source.SCRIPT)
    assert "exec daphne -b 0.0.0.0 -p 8080 my.web.asgi:app\n" in text


def test_without_a_module_a_person_writes_the_script(plan, instance, unmet):
    values = plan(source.prepare, instance, {"checkout:.": Source("", {source.LOCK: File("a==1\n")})})
    assert unmet(values) == ["manage.py names no settings module to start"]


def test_a_repository_that_cannot_be_read_is_one_finding(plan, instance, unmet):
    values = plan(source.check, instance, {"source": Source("", error="there is no branch 'develop'")})
    assert unmet(values) == ["there is no branch 'develop'"]
    assert len(values) == 1


def test_the_cure_names_the_command_and_the_branch(plan, instance, changed):
    values = plan(source.check, instance, {"source": Source("a" * 40, changed({source.ENVIRONMENT: None}))})
    (wrong,) = [value for value in values if isinstance(value, Require) and value.found]
    assert "invoke source.prepare --build=dev" in wrong.cure
    assert "push to develop" in wrong.cure


BREAKS = [
    (source.ENVIRONMENT, None, "it is missing"),
    (source.ENVIRONMENT, "DISABLE_COLLECTSTATIC=true\n", "does not set APP_SCRIPT"),
    (source.ENVIRONMENT, "DISABLE_COLLECTSTATIC=true\nAPP_SCRIPT=openshift-start-up-script.sh\nDB_PASSWORD=x\n",
     "DB_PASSWORD looks like"),
    (source.ASSEMBLE, None, "it is missing"),
    (source.ASSEMBLE, "#!/bin/bash\n/usr/libexec/s2i/assemble\n", "set -euo pipefail"),
    (source.ASSEMBLE, "set -euo pipefail\n/usr/libexec/s2i/assemble\n", "#!/bin/bash"),
    (source.ASSEMBLE, "#!/bin/bash\nset -euo pipefail\n# /usr/libexec/s2i/assemble\npip install .\n", "does not call"),
    (source.ASSEMBLE, FORMER_ASSEMBLE, "leaves the token in the image"),
    (source.ASSEMBLE, FORMER_ASSEMBLE, "shows in the process list"),
    (source.SCRIPT, CERTIFIER, "set -euo pipefail"),
    (source.SCRIPT, CERTIFIER, "no `exec`"),
    (source.SCRIPT, "#!/bin/bash\nset -euo pipefail\nexec daphne -p 80 a:b\n", "port 8080"),
    (source.SCRIPT, File("#!/bin/bash\nset -euo pipefail\nexec daphne -p 8080 a:b\n"), "not executable"),
    (source.RUN, "#!/bin/bash\n", "hides the image's own run script"),
    (source.LOCK, None, "it is missing"),
    (source.LOCK, "Django<5.0.0\nchannels[daphne]\n", "not pinned: Django, channels"),
    (source.LOCK, "Django==5.*\n", "not pinned: Django"),
    (source.LOCK, "git+https://github.com/eea/odfpy.git\n", "not pinned"),
    (source.LOCK, "a==1 --hash=sha256:00\nb==2\n", "some lines have hashes"),
]


@pytest.mark.fault(34)
@pytest.mark.parametrize(("path", "to", "said"), BREAKS, ids=[f"{path}: {said}" for path, _, said in BREAKS])
def test_every_broken_file_is_seen(path, to, said, plan, instance, *, changed, unmet):
    found = unmet(plan(source.check, instance, {"source": Source("a" * 40, changed({path: to}))}))
    assert any(said in text for text in found), found


GOOD_LOCKS = ["Django==4.2.30\n",
              "# a comment\n--index-url https://pypi.org/simple\n-r other.txt\n\na==1 ; python_version < '3.12'\n",
              "a==1 \\\n    --hash=sha256:00 \\\n    --hash=sha256:11\n", "odf @ git+https://github.com/eea/odfpy.git@" + "0" * 40]


@pytest.mark.parametrize("text", GOOD_LOCKS)
def test_a_pinned_lock_is_left_alone(text):
    assert source.judge_lock(text) == []


@pytest.mark.fault(11)
@pytest.mark.parametrize("line", ["set -euo pipefail", "set -ueo pipefail", "set -eux -o pipefail", "set -Eeuo pipefail"])
def test_strictness_is_judged_by_its_flags(line):
    expected = [] if line != "set -eux -o pipefail" else ["it goes on after a failure: `set -euo pipefail` is missing"]
    assert source.judge_strict(f"#!/bin/bash\n{line}\n") == expected


def assemble(tmp_path, *, files):
    """Run the private assemble against a builder image of two lines, and return what happened."""
    stub = tmp_path / "assemble"
    stub.write_text("#!/bin/bash\ngit config --get-urlmatch http.extraHeader https://git.example.org/group/repository\n"
                    "ls -A \"$HOME\" > \"$HOME/../during\"\n")
    stub.chmod(0o755)
    home = tmp_path / "home"
    home.mkdir()
    for name, text in files.items():
        (home / name).write_text(text)
    script = source.assemble_text("git.example.org").replace("/usr/libexec/s2i/assemble", str(stub))
    done = subprocess.run(["bash", "-c", script], cwd=home, env={"HOME": str(home), "PATH": "/usr/bin:/bin"},
                          capture_output=True, text=True, check=False)
    return done, home


@pytest.mark.fault(10)
def test_git_is_authenticated_for_one_command_and_nothing_stays(tmp_path):
    done, home = assemble(tmp_path, files={"CERN_GITLAB_USER": "deploy", "CERN_GITLAB_TOKEN": "canary-token"})
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "Authorization: Basic ZGVwbG95OmNhbmFyeS10b2tlbg=="
    assert list(home.iterdir()) == []


@pytest.mark.fault(11)
@pytest.mark.parametrize("missing", source.TOKEN_KEYS)
def test_a_missing_token_stops_the_build_with_one_sentence(tmp_path, missing):
    files = {key: "x" for key in source.TOKEN_KEYS if key != missing}
    done, home = assemble(tmp_path, files=files)
    assert done.returncode == 1
    assert done.stderr == f"assemble: {missing} is missing: packages from git.example.org need it in the build secret\n"
    assert list(home.iterdir()) == []


def test_an_empty_token_is_a_missing_one(tmp_path):
    done, _ = assemble(tmp_path, files={"CERN_GITLAB_USER": "deploy", "CERN_GITLAB_TOKEN": ""})
    assert done.returncode == 1


@pytest.mark.parametrize("text", [source.ASSEMBLE_PLAIN, source.assemble_text("gitlab.cern.ch"), source.START])
def test_bash_can_read_what_is_written(text):
    subprocess.run(["bash", "-n"], input=text, text=True, check=True)
