"""What we do: one module a procedure, one function a step. Pure: a step looks at what is there and yields values."""

from procedures import app, database, deploy, environment, eos, project, redis, source, sso, volume
from procedures.symptoms import SYMPTOMS
from runbook.step import Runbook

RUNBOOK = Runbook((project, source, database, redis, sso, app, environment, eos, volume, deploy), SYMPTOMS)
"""The one order: of the site, of `invoke --list`, and of `guide.run` as far as the needs leave a choice."""
