"""A small CERN on one machine: real parts where they can run here, stand-ins that say what they stand for.

The stack knows no procedure and no page: it imports nothing of `runbook` or `procedures`.
"""
