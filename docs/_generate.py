"""The adapter between the site generator and the pages: the only file that knows mkdocs-gen-files."""

import sys
from pathlib import Path

import mkdocs_gen_files

# `docs.serve` runs this file again after a change, in the same process: what it imports is then read anew.
for name in [name for name in sys.modules if name.partition(".")[0] in {"procedures", "runbook", "stack", "tasks"}]:
    del sys.modules[name]

from procedures import RUNBOOK, environment
from runbook import pages
from runbook.markdown import table
from runbook.stamps import Verified
from stack import gives
from tasks import ns

DOCS = Path(__file__).parent
ROOT = DOCS.parent
VERIFIED = Verified.read(ROOT / "verified.json")
SECTIONS = pages.Sections(RUNBOOK, pages.load(ROOT), VERIFIED, mkdocs_gen_files.config["edit_uri"] or "")
FENCES = pages.fences(SECTIONS, ROOT, ns)
FENCES["gives"] = lambda _, __: table(("", "what", "embedded stack", "compose stack"), gives.rows())
FENCES["variables"] = lambda _, __: pages.variable_table(environment.VARIABLES)
PROVED = SECTIONS.states(DOCS)
for path in sorted(DOCS.glob("*.md")):
    with mkdocs_gen_files.open(path.name, "w") as page:
        page.write(pages.stamped(path, pages.page(path, FENCES), PROVED, VERIFIED))
for file in mkdocs_gen_files.FilesEditor.current().files.documentation_pages():
    file.edit_uri = f"docs/{file.src_uri}"  # set_edit_path has no effect without repo_url, which would ask GitHub for stars
