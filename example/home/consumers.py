"""The websocket: what it hears goes to Redis and comes back from there."""

from channels.generic.websocket import AsyncWebsocketConsumer
from django.urls import path


class Echo(AsyncWebsocketConsumer):
    """Sends back each text by way of the channel layer, so that an answer proves that Redis works."""

    async def receive(self, text_data=None, bytes_data=None):
        """Put a text that the browser sent into the channel layer."""
        await self.channel_layer.send(self.channel_name, {"type": "heard", "text": text_data or ""})

    async def heard(self, event):
        """Send a text that came out of the channel layer to the browser."""
        await self.send(text_data=event["text"])


websocket_urlpatterns = [path("ws/echo/", Echo.as_asgi())]
