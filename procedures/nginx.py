"""Put nginx before the app: a reverse proxy that hands on host, scheme, address and websockets."""

from procedures import app, deploy
from runbook.instance import Instance
from runbook.observed import Observed
from runbook.plan import Apply, Inside, Look, Manifest, Object, Patch, Plan, Require, Revision, WaitFor, rolled_out
from runbook.step import step

FOLDER = "/etc/guide"
"""Where the configuration stands in the pod: nginx's own folder differs between images."""
HEALTH = "/nginx-health"
CONFIGURATION = "guide/configuration"
"""The annotation that carries the ConfigMap's revision: nginx reads it once, at its start."""


@step(
    needs=(deploy.build,),
    wanted=lambda instance: instance.nginx.wanted,
    setting="`wanted = true` below [nginx]",
    see="The site answers as before; the Route leads to nginx, and nginx to the app.",
    otherwise=(
        ("`the image stream nginx has …`", "The cluster offers other versions: `version` below [nginx] names one."),
        ("`host not found in upstream`", "The app's Service is gone: run `app.create`."),
        ("`502 Bad Gateway`", "nginx runs and the app does not: `guide.status` says why."),
        ("`413 Request Entity Too Large`", "The file is larger than `upload` below [nginx]."),
        ("`CSRF verification failed`", "The scheme does not reach the app: somebody changed the ConfigMap. Run `nginx.add`."),
    ),
    unconfirmed="Which tags the image stream nginx has at CERN: `oc get is nginx -n openshift` tells, and the step lists them.",
)
def add(instance: Instance, observed: Observed) -> Plan:
    """Put nginx before the app."""
    name, wanted = app.proxy(instance), instance.nginx
    stream = observed.object("ImageStream", "nginx", "openshift")
    tags = {known["tag"]: known["items"][0]["dockerImageReference"]
            for known in (stream or {}).get("status", {}).get("tags", []) if known.get("items")}
    yield Require(f"the image nginx:{wanted.version} exists",
                  "" if wanted.version in tags or observed.empty
                  else f"the image stream nginx has {', '.join(sorted(tags)) or 'nothing'}",
                  "put one that exists into the instance file as `version` below [nginx]")
    yield Apply({"apiVersion": "v1", "kind": "ConfigMap", "metadata": _meta(instance),
                 "data": {"nginx.conf": configuration(instance)}})
    yield Apply(deployment(instance, tags.get(wanted.version, f"nginx:{wanted.version}")))
    yield Apply(service(instance))
    yield WaitFor(Object("Deployment", name), rolled_out, seconds=180)
    yield Inside(name, "nginx", ("nginx", "-t", "-q", "-e", "stderr", "-c", f"{FOLDER}/nginx.conf"),
                 what="nginx takes its configuration")
    # Only now, when somebody answers there; and back again before nginx goes.
    yield Patch(Object("Route", instance.app), {"spec": {"to": app.target(name)}}, owner=app.create.name,
                what="the Route leads to nginx", undo={"spec": {"to": app.target(instance.app)}})
    if not instance.deploy.replicas:
        return
    yield Look(instance.url, "/", what="the home page, through nginx")
    if instance.deploy.static:
        yield Look(instance.url, instance.deploy.static, what="a static file, through nginx")
    if instance.deploy.websocket:
        yield Look(instance.url, instance.deploy.websocket, websocket=True, what="the websocket, through nginx")


@step(
    undoes=add,
    see="The Route leads to the app again, and nginx is gone.",
    otherwise=(("The site answers `Application is not available`.",
                "The router has not heard of it yet; after a minute: `guide.status`."),),
)
def remove(instance: Instance, observed: Observed) -> Plan:
    """Let the Route lead to the app again, and remove nginx."""
    yield from add.plan(instance, observed)


def _meta(instance: Instance) -> Manifest:
    name = app.proxy(instance)
    return {"name": name, "labels": app.labels(instance) | {"app": name, "app.kubernetes.io/name": name}}


def service(instance: Instance) -> Manifest:
    """Return the Service before nginx; its port has the name that the Route asks for."""
    return {"apiVersion": "v1", "kind": "Service", "metadata": _meta(instance),
            "spec": {"selector": {"app": app.proxy(instance)},
                     "ports": [{"name": f"{app.PORT}-tcp", "port": app.PORT, "protocol": "TCP", "targetPort": app.PORT}]}}


def deployment(instance: Instance, image: str) -> Manifest:
    """Return nginx's Deployment; another revision of the configuration is another pod."""
    name = app.proxy(instance)
    health = {"httpGet": {"path": HEALTH, "port": app.PORT}, "periodSeconds": 5, "timeoutSeconds": 2}
    container = {
        "name": "nginx", "image": image, "imagePullPolicy": "IfNotPresent",
        "command": ["nginx", "-e", "stderr", "-c", f"{FOLDER}/nginx.conf", "-g", "daemon off;"],
        "ports": [{"containerPort": app.PORT, "protocol": "TCP"}],
        "readinessProbe": health,
        "livenessProbe": {**health, "initialDelaySeconds": 10, "failureThreshold": 3},
        # SIGTERM ends nginx at once; the router hears that a pod goes when the pod does.
        "lifecycle": {"preStop": {"exec": {"command": ["sleep", "3"]}}},
        "resources": {"limits": {"memory": "128Mi"}, "requests": {"cpu": "10m"}},
        "volumeMounts": [{"name": "configuration", "mountPath": FOLDER, "readOnly": True}],
    }
    return {
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": _meta(instance),
        "spec": {"replicas": 1, "selector": {"matchLabels": {"app": name}},
                 "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
                 "template": {"metadata": {"labels": _meta(instance)["labels"],
                                           "annotations": {CONFIGURATION: Revision((Object("ConfigMap", name),))}},
                              "spec": {"containers": [container], "terminationGracePeriodSeconds": 15,
                                       "volumes": [{"name": "configuration", "configMap": {"name": name}}]}}},
    }


def configuration(instance: Instance) -> str:
    """Return nginx.conf. What it writes lies below /tmp: the platform runs it as a user that owns nothing else."""
    temporary = "\n".join(f"  {kind}_temp_path /tmp/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
    return f"""\
worker_processes 1;
pid /tmp/nginx.pid;
events {{ worker_connections 1024; }}
http {{
{temporary}
  access_log off;  # the app logs its requests
  server_tokens off;
  client_max_body_size {instance.nginx.upload};
  proxy_cache_path /tmp/static keys_zone=static:1m max_size=64m;

  # A websocket asks for an upgrade, and only what asks for one gets it.
  map $http_upgrade $connection_upgrade {{
    default upgrade;
    ''      '';
  }}
  # TLS ended at the router, which says what the browser spoke.
  map $http_x_forwarded_proto $scheme_of_browser {{
    default $http_x_forwarded_proto;
    ''      $scheme;
  }}

  upstream app {{ server {instance.app}:{app.PORT}; }}

  server {{
    listen {app.PORT};
    proxy_http_version 1.1;
    proxy_set_header Host $http_host;
    proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
    proxy_set_header X-Forwarded-Proto $scheme_of_browser;
    proxy_set_header Upgrade $http_upgrade;
    proxy_set_header Connection $connection_upgrade;
    proxy_read_timeout {instance.deploy.timeout};

    location / {{ proxy_pass http://app; }}
    location /static/ {{
      proxy_cache static;
      proxy_cache_valid 200 5m;
      proxy_pass http://app;
    }}
    location = {HEALTH} {{ return 200 "ok\\n"; }}
  }}
}}
"""
