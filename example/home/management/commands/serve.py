"""Prepare a pod and serve in it: static files, migrations, then daphne, by one Django that is loaded and checked once."""

from daphne.cli import CommandLineInterface
from django.core.management import call_command
from django.core.management.base import BaseCommand
from django.db import connections


class Command(BaseCommand):
    """`python manage.py serve 0.0.0.0:8080`."""

    help = __doc__

    def add_arguments(self, parser):
        parser.add_argument("address", help="where daphne listens, such as 0.0.0.0:8080")

    def handle(self, *, address, **_options):
        """Collect the static files, migrate, serve until SIGTERM; whatever fails ends it with an error."""
        call_command("collectstatic", interactive=False)
        call_command("migrate", interactive=False)
        connections.close_all()
        host, _, port = address.rpartition(":")
        CommandLineInterface().run(["--bind", host, "--port", port, "--proxy-headers", "shiftbook.asgi:application"])
