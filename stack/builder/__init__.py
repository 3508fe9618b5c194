"""The builder: turns a Git repository into an image when a build is asked for, and moves image stream tags.

Stands for OpenShift's build and image controllers and its source-to-image builder pods: `instantiate`, webhooks and
`builds/NAME/log` behind the API's address, run policies, source secrets and build secrets, image stream tags with their
history, and the image trigger of Deployments.

Differs: builds run in the machine's own network, not in pods; no resource limits or quotas apply; the system they see
is the machine's. Only the source strategy with a Git source, and only an image stream tag as output; binary, Docker and
custom builds and post-commit hooks are refused, ImageChange and ConfigChange triggers do nothing. An image stream tag
keeps its last five images; older ones are removed. Tags are imported at once, an image of another project needs no
`system:image-puller`, and only Deployments have an image trigger. A build that runs when the builder stops is Failed,
it is not taken up again; at most two run at a time.
"""
