"""The adapter between the site generator and the pages: the only file that knows mkdocs-gen-files."""

import os
import sys
from pathlib import Path

import mkdocs_gen_files
from pygments.token import STANDARD_TYPES, Whitespace

ROOT = Path(__file__).parent.parent
# A space has no colour: without a part of its own for each, the pages have a fifth fewer parts to load on a phone.
STANDARD_TYPES[Whitespace] = ""
# `docs.serve` runs this file again after a change, in the same process: changed code is then read anew.
SOURCES = ("procedures", "runbook", "stack", "tasks")
files = [ROOT / "tasks.py", *(path for name in SOURCES for path in (ROOT / name).rglob("*.py"))]
newest = max(path.stat().st_mtime for path in files)
if getattr(sys.modules.get("tasks"), "newest", newest) != newest:
    for name in [name for name in sys.modules if name.partition(".")[0] in SOURCES]:
        del sys.modules[name]

import tasks

tasks.newest = newest
KEPT = ROOT / ".pages"
KEPT.mkdir(exist_ok=True)
for name, text in tasks.site_pages(mkdocs_gen_files.config["edit_uri"] or "").items():
    kept = KEPT / name
    if not kept.exists() or kept.read_text(encoding="utf-8") != text:
        kept.write_text(text, encoding="utf-8")
    with mkdocs_gen_files.open(name, "w", encoding="utf-8") as page:
        page.write(text)
    # Only what has changed is built again by `docs.serve`, which goes by the time.
    os.utime(page.name, (kept.stat().st_mtime,) * 2)
for file in mkdocs_gen_files.FilesEditor.current().files.documentation_pages():
    file.edit_uri = f"docs/{file.src_uri}"  # set_edit_path has no effect without repo_url, which would ask GitHub for stars
