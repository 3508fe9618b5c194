"""The engine of the guide: steps yield plans, interpreters carry them out, show them, compare them and undo them.

It knows no procedure by name; `procedures` imports `runbook.plan`, `step`, `instance` and `observed` only.
"""
