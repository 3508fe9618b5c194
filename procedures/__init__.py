"""What we do: one module a procedure, one function a step. Pure: a step looks at what is there and yields values."""

from procedures import (
    adopt,
    app,
    database,
    deploy,
    environment,
    eos,
    expose,
    nginx,
    prerequisites,
    project,
    redis,
    source,
    sso,
    volume,
)
from procedures.symptoms import SYMPTOMS
from runbook.step import Runbook

RUNBOOK = Runbook((prerequisites, project, source, database, redis, sso, app, environment, eos, volume, adopt, deploy, nginx,
                   expose), SYMPTOMS)
"""The one order: of the site, of `invoke --list`, and of `guide.run` as far as the needs leave a choice."""
