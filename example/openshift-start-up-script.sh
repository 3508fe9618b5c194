#!/bin/bash
# Starts the app in its pod: static files, migrations, then daphne. A failed migration stops the pod instead of serving from
# a broken database.
set -euo pipefail

# exec: the server becomes process 1 and gets SIGTERM, so that a pod stops at once and not after its grace period.
exec python manage.py serve 0.0.0.0:8080
