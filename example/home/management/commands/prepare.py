"""Prepare a pod for its server: static files and migrations, by one Django that is loaded and checked once for both."""

from django.core.management import call_command
from django.core.management.base import BaseCommand


class Command(BaseCommand):
    """`python manage.py prepare`."""

    help = __doc__

    def handle(self, **_options):
        """Collect the static files, then migrate; whatever fails ends it with an error."""
        call_command("collectstatic", interactive=False)
        call_command("migrate", interactive=False)
