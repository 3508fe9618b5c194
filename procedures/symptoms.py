"""What a reader may see that belongs to no single step: the symptom, its cause, and the command that helps."""

from runbook.step import Symptom

SYMPTOMS = (
    Symptom("`the server doesn't have a resource type \"dc\"`",
            "The instructions are of the time of deployment configs. "
            "The app is a Deployment: say `deployment/…` instead of `dc/…`.",
            "invoke guide.status --build={build}"),
    Symptom("`did not accept your secret` or `401` when a webhook is called",
            "The secret in the address is wrong, or the platform refuses webhooks without a log-in, as it does since "
            "OpenShift 4.16. The guide's schedule uses a service account instead.",
            "invoke deploy.build --build={build}"),
    Symptom("`failed to patch volume update to pod template` or `volume mount '…' already exists`",
            "`oc set volume` was run a second time: it cannot be. The guide's steps can.",
            "invoke guide.run --build={build}"),
    Symptom("`exceeded quota`, or the console shows `0 pods scaling to 1`",
            "The project's quota is used up, so no pod is made. Lower `memory` below [deploy], remove what nobody needs, or ask "
            "for more in a ticket.",
            "oc describe quota -n {project}"),
    Symptom("`Insufficient cpu` or `Insufficient memory`",
            "No node has room for what the pod requests. Wait, or request less.",
            "invoke guide.doctor --build={build}"),
    Symptom("`No space left on device`",
            "A disk is full. On your machine: the message names the folder. In a pod: restart it, which empties what it wrote.",
            "df -h"),
    Symptom("`fields that somebody else manages`, or `conflict with …` when something is applied by hand",
            "Somebody set these fields by hand or with `oc`. Look at both values; `--force` takes the fields over.",
            "invoke guide.plan --build={build}"),
    Symptom("`the log-in is not valid any more` or `You must be logged in to the server`",
            "The token of your log-in has run out: it lives for a day. (The command is *not run here*.)",
            "oc login --web --server={api}"),
    Symptom("`does not answer` for the API server",
            "The API server can be reached from inside CERN or through a tunnel only.",
            "invoke guide.status --build={build}"),
    Symptom("`is not known and nobody is at a terminal to ask`",
            "A value is needed that only you have. Put it into a file that only you can read, and name the file in the variable "
            "that the message gives.",
            "invoke guide.run --build={build}"),
    Symptom("`failed to create typed patch object`",
            "The cluster does not know a field that the guide sets: it runs another version of OpenShift.",
            "invoke guide.plan --build={build}"),
)
"""Beside the symptoms that every step knows for itself."""
