"""Instance files: read key by key; what is wrong is refused with file and line."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from runbook.errors import WrongUse
from runbook.instance import find, load

ROOT = Path(__file__).parents[2]
FACTS = {"https_port": 8443, "git": "https://git.localhost:8443", "issuer": "https://auth.localhost:8443",
         "database_port_1": 5501, "database_port_2": 5502, "database_port_3": 5503, "pod_network": "10.244.0.0/24"}
GOOD = """\
project = "p"
app = "a"
host = "p.web.cern.ch"

[site]
owner = "somebody"

[source]
repository = "https://example.org/app.git"

[database]
instance = "db"
host = "dbod-db.cern.ch"
port = 6601

[sso]
identifier = "app-dev"

[local]
host = "p.localhost"

[local.source]
repository = "{git}/app.git"

[local.database]
host = "dbod-db.localhost"
port = "{database_port_1}"

[local.environment]
PORT = "{https_port}"
"""


@pytest.fixture
def file(tmp_path):
    """Write an instance file and return its path."""
    def write(text=GOOD, name="dev"):
        path = tmp_path / f"{name}.toml"
        path.write_text(text)
        return path
    return write


def test_settings_and_defaults(file):
    instance = load(file())
    assert (instance.name, instance.at, instance.database.port) == ("dev", "cern", 6601)
    assert (instance.source.branch, instance.redis.version, instance.deploy.replicas) == ("master", "7-el9", 1)
    assert instance.url == "https://p.web.cern.ch"


def test_the_local_table_overrides_and_facts_fill_the_braces(file):
    instance = load(file(), "local", FACTS)
    assert instance.source.repository == "https://git.localhost:8443/app.git"
    assert instance.source.branch == "master"
    assert instance.database.port == 5501, "a text that is one fact is that fact, a number here"
    assert instance.database.instance == "db"
    assert instance.environment == {"PORT": "8443"}, "and a variable is always a text"
    assert instance.url == "https://p.localhost:8443"


def test_cern_sees_nothing_of_the_local_table(file):
    assert load(file(), "cern", FACTS).host == "p.web.cern.ch"


@pytest.mark.parametrize("path", sorted((ROOT / "instances").glob("*.toml")), ids=lambda path: path.stem)
@pytest.mark.parametrize("target", ["cern", "local"])
def test_every_instance_of_the_project_can_be_read(path, target):
    assert load(path, target, FACTS).name == path.stem


def test_only_dev_goes_to_the_local_stack_by_itself():
    targets = {path.stem: load(path).target for path in (ROOT / "instances").glob("*.toml")}
    assert {name for name, target in targets.items() if target} == {"dev"}


def line_of(text, part):
    return next(number for number, line in enumerate(text.splitlines(), 1) if part in line)


@pytest.mark.parametrize(("old", "new", "said", "at"), [
    ('app = "a"', 'app = "a"\nrepo = "x"', "repo is not a setting", "repo ="),
    ("port = 6601", "port = 6601\nprot = 1", "database.prot is not a setting", "prot ="),
    ("port = 6601", 'port = "6601"', "database.port must be a whole number, found '6601'", 'port = "6601"'),
    ("port = 6601", "port = true", "database.port must be a whole number, found True", "port = true"),
    ('app = "a"', "app = 1", "app must be a text in quotes, found 1", "app = 1"),
    ('[sso]\nidentifier = "app-dev"', "[sso]", "sso.identifier is missing", "[sso]"),
    ('[sso]\nidentifier = "app-dev"', "", "sso is missing", "project"),
    ('owner = "somebody"', 'owner = "somebody"\ncategory = "Other"', "site.category must be one of", "category"),
    ('app = "a"', 'app = "a"\nredis = "x"', "redis must be a table", "redis ="),
    ("[local]", "[environment]\nDJANGO_DEBUG = false\n\n[local]", "environment must be a table of texts", "[environment]"),
    ('repository = "{git}/app.git"', 'repository = "{git}/app.git"\nfoldre = "x"', "source.foldre is not a setting", "foldre"),
    ('PORT = "{https_port}"', 'PORT = "{nothing}"', "names 'nothing', which the stack does not give", "{nothing}"),
    ('PORT = "{https_port}"', 'PORT = "{"', "cannot be filled in: Single '{'", 'PORT = "{"'),
], ids=lambda value: None)
def test_what_is_wrong_is_refused_with_file_and_line(old, new, said, at, file):
    text = GOOD.replace(old, new, 1)
    assert text != GOOD
    path = file(text)
    with pytest.raises(WrongUse) as error:
        load(path, "local", FACTS)
    assert said in error.value.found
    assert error.value.found.startswith(f"{path}:{line_of(text, at)}:"), error.value.found
    assert error.value.code == 2


def test_what_is_wrong_in_the_local_table_has_its_own_line(file):
    text = GOOD.replace('"{database_port_1}"', '"five"')
    with pytest.raises(WrongUse) as error:
        load(file(text), "local", FACTS)
    assert f"dev.toml:{line_of(text, 'five')}: database.port must be a whole number" in error.value.found


def test_a_mistyped_key_gets_a_suggestion(file):
    with pytest.raises(WrongUse) as error:
        load(file(GOOD.replace("host = \"p.web", "hots = \"p.web")))
    assert error.value.cure.startswith("did you mean host")


def test_broken_toml_is_refused_with_its_line(file):
    path = file(GOOD.replace("port = 6601", "port = = 6601"))
    with pytest.raises(WrongUse, match=r"not valid TOML") as error:
        load(path)
    assert error.value.found.startswith(f"{path}:{line_of(GOOD, 'port = 6601')}:")


def test_a_file_that_cannot_be_read_is_said(tmp_path):
    with pytest.raises(WrongUse, match="No such file"):
        load(tmp_path / "none.toml")


def test_a_file_that_is_no_text_is_said(tmp_path):
    path = tmp_path / "dev.toml"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(WrongUse, match="not valid TOML"):
        load(path)


def test_an_unknown_build_is_refused_with_those_there_are(file):
    folder = file().parent
    assert find(folder, "dev") == folder / "dev.toml"
    with pytest.raises(WrongUse, match="there is no build 'def'") as error:
        find(folder, "def")
    assert error.value.cure == "did you mean dev?"
    with pytest.raises(WrongUse) as error:
        find(folder, "zzz")
    assert error.value.cure == "there are: dev"


@pytest.mark.parametrize(("words", "says"), [(("eos.mount", "--build"), "there are: mars"), (("eos.mount", "mars"), "`invoke eos.mount --build=mars`"),
                                             (("eos.mount", "dev"), "there is no task 'dev'"), (("eos.mount",), "there are: mars")])
def test_wrong_words_are_answered_with_the_builds_of_the_folder_in_use(tmp_path, words, says):
    (tmp_path / "mars.toml").write_text(GOOD)
    done = subprocess.run([sys.executable, "-m", "runbook", *words], cwd=ROOT, text=True, capture_output=True, timeout=60, check=False,
                          env=os.environ | {"RUNBOOK_INSTANCES": str(tmp_path)})
    assert done.returncode == 2 and says in done.stderr
