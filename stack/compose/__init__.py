"""The compose stack: PostgreSQL, Redis and MicroShift in containers, and the rest of the small CERN beside them.

Stands for the same as the embedded stack, with a container engine: the API server, node, DNS, router and Route are those
of MicroShift (`docker-compose.test.yml`); portal, Git, sign-on and the builder are the embedded stack's own, as processes
of the machine; HAProxy stands before the API and the router as it does there.

Differs: no test has run it with real images yet. Against an engine that answers, with real PostgreSQL, Redis and API
server processes behind it, the way from `stack.up` to steps of the guide is tested; MicroShift itself, its router, DNS
and image store, and what pods see, are not. There is one database server; it sees pods and this machine as one address,
so it tells them not apart. Users are known by their tokens at HAProxy, which asks MicroShift in their name. CERN's
defaults for Routes, EOS and the image trigger's pull address by policy are missing, because MicroShift cannot be told to
take mutating policies.
"""
