"""The adapter between the site generator and the pages: the only file that knows mkdocs-gen-files."""

from pathlib import Path

import mkdocs_gen_files

from procedures import RUNBOOK, environment
from runbook import pages
from runbook.markdown import table
from runbook.stamps import Verified
from stack import gives
from tasks import ns

DOCS = Path(__file__).parent
ROOT = DOCS.parent
VERIFIED = Verified.read(ROOT / "verified.json")
FENCES = pages.fences(RUNBOOK, pages.load(ROOT), ROOT / "stack", ns, VERIFIED)
FENCES["gives"] = lambda _, __: table(("", "what", "embedded stack", "compose stack"), gives.rows())
FENCES["variables"] = lambda _, __: pages.variable_table(environment.VARIABLES)
for path in sorted(DOCS.glob("*.md")):
    with mkdocs_gen_files.open(path.name, "w") as page:
        page.write(pages.page(path, FENCES))
