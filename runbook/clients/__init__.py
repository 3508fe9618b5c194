"""Everything that talks to something else: the cluster, the database server, Git, and the web."""
