"""The compose stack: PostgreSQL, Redis and MicroShift in containers, and the rest of the small CERN beside them.

Stands for the same as the embedded stack, with a container engine: the API server, node, DNS, router and Route are those
of MicroShift (`docker-compose.test.yml`); portal, Git, sign-on and the builder are the embedded stack's own, as processes
of the machine; HAProxy stands before the API and the router as it does there. Images are the engine's (`images.py`).

Differs: no test has run it with real images yet. The whole guide is tested on a stand-in for the engine, with real
PostgreSQL, Redis, API server and pods behind it; MicroShift's own start, router, DNS and image store, and the engine's
builds, are not. There is one database server; it sees pods and this machine as one address, so it tells them not apart.
Users are known by their tokens at HAProxy, which asks MicroShift in their name, and which also listens at this machine's
address in the containers' network. CERN's defaults for Routes and EOS are missing, because MicroShift cannot be told to take
mutating policies; so is the storage class for EOS.
"""
