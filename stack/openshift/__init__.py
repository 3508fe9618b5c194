"""OpenShift's kinds and the content of its namespace `openshift`, as generated JSON; `make.py` beside it makes them."""
