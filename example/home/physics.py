"""Accounts at the experiment's services, checked when this module is imported, as certhelper's libraries do.

Nothing is asked of those services here; a missing or wrong variable stops the app at its start, with its name.
"""

import os

from decouple import config

# Online monitoring (OMS)
OMS_CLIENT_ID = config("OMS_CLIENT_ID")
OMS_CLIENT_SECRET = config("OMS_CLIENT_SECRET")
OMS_API_URL = config("OMS_API_URL", default="https://cmsoms.cern.ch/agg/api")
OMS_API_AUDIENCE = config("OMS_API_AUDIENCE", default="cmsoms-prod")

# Run registry: its library reads the process environment itself, so a value in a file `.env` does not reach it.
ENVIRONMENT = os.environ.get("ENVIRONMENT", "production")
if ENVIRONMENT not in ("local", "development", "production"):
    raise ValueError(f"Invalid setup target: ENVIRONMENT is {ENVIRONMENT!r}; unset it, or say local, development or"
                     " production")
SSO_CLIENT_ID = os.environ.get("SSO_CLIENT_ID")
SSO_CLIENT_SECRET = os.environ.get("SSO_CLIENT_SECRET")
