#!/bin/bash
# Starts the app in its pod. Strict, so that a failed migration stops the pod instead of serving from a broken database.
set -euo pipefail

python manage.py prepare

# exec: daphne becomes process 1 and gets SIGTERM, so that a pod stops at once and not after its grace period.
exec daphne -b 0.0.0.0 -p 8080 --proxy-headers shiftbook.asgi:application
