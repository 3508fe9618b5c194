"""The people and services outside the cluster: the portals' forms, Git, and the sign-on, in one process.

One ASGI application on a Unix socket; the router in front of it ends TLS, and the Host header tells the three apart:
`portal.localhost` (`forms`), `git.localhost` (`repositories`), `auth.localhost` (`signon`). Each module says what it
stands for and where it differs.
"""
