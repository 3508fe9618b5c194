"""One ASGI application for pages and websockets, served by daphne."""

import os

from django.core.asgi import get_asgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "shiftbook.settings")
pages = get_asgi_application()

# Only now: consumers and URLs may use models, which need the settings loaded.
from channels.routing import ProtocolTypeRouter, URLRouter  # noqa: E402

from home.consumers import websocket_urlpatterns  # noqa: E402

application = ProtocolTypeRouter({"http": pages, "websocket": URLRouter(websocket_urlpatterns)})
