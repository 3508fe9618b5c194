#!/usr/bin/env python3
"""Opens one issue when the nightly run has failed, and never the same twice; for GitHub and GitLab, by their REST APIs.

Needs nothing but Python: the run that failed may have failed to install anything. `ISSUES_TOKEN` may read and write
issues; where they are is in the variables that both services set in every job. Exit code 0: an issue is open; 1: it
could not be looked for or opened.
"""

from __future__ import annotations

import json
import os
import sys
import urllib.error
import urllib.parse
import urllib.request
from typing import Any

TITLE = "The nightly run failed"
LABEL = "nightly"


def request(method: str, address: str, headers: dict[str, str], body: object = None) -> Any:
    """Send one request and return the JSON it answered."""
    if not address.startswith(("https://", "http://")):
        sys.exit(f"report: {address} is no web address")
    data = None if body is None else json.dumps(body).encode()
    asked = urllib.request.Request(address, data, {"Content-Type": "application/json", **headers}, method=method)  # noqa: S310
    with urllib.request.urlopen(asked, timeout=30) as answer:  # noqa: S310
        return json.load(answer)


def place() -> tuple[str, dict[str, str], str, str, str]:
    """Return the issues' address, the headers, the words for open and for the text, and the address of this run."""
    token = os.environ.get("ISSUES_TOKEN", "")
    if not token:
        sys.exit("report: ISSUES_TOKEN is empty; set it to a token that may read and write issues (docs/contributing.md)")
    if repository := os.environ.get("GITHUB_REPOSITORY"):
        run = f"{os.environ['GITHUB_SERVER_URL']}/{repository}/actions/runs/{os.environ['GITHUB_RUN_ID']}"
        return (f"{os.environ['GITHUB_API_URL']}/repos/{repository}/issues",
                {"Authorization": f"Bearer {token}", "Accept": "application/vnd.github+json"}, "open", "body", run)
    if project := os.environ.get("CI_PROJECT_ID"):
        return (f"{os.environ['CI_API_V4_URL']}/projects/{project}/issues", {"PRIVATE-TOKEN": token}, "opened", "description",
                os.environ["CI_PIPELINE_URL"])
    sys.exit("report: this is neither a GitHub nor a GitLab job")


def main() -> None:
    """Look for an open issue of that label and title; open one when there is none."""
    issues, headers, opened, text, run = place()
    try:
        query = urllib.parse.urlencode({"state": opened, "labels": LABEL, "per_page": 100})
        there = [each for each in request("GET", f"{issues}?{query}", headers) if each["title"] == TITLE]
        if there:
            print(f"report: {there[0].get('html_url') or there[0].get('web_url')} is open already; {run} failed too")
            return
        # GitHub wants a list, GitLab words between commas.
        labels = LABEL if "CI_PROJECT_ID" in os.environ else [LABEL]
        said = f"The nightly run failed: {run}\n\nThe job's JUnit report names the step, and the page and line that it stands on."
        made = request("POST", issues, headers, {"title": TITLE, text: said, "labels": labels})
        print(f"report: opened {made.get('html_url') or made.get('web_url')}")
    except (OSError, ValueError, LookupError) as error:
        sys.exit(f"report: the issues of {issues} cannot be used: {error}")


if __name__ == "__main__":
    main()
