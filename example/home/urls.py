"""The pages of the shift book."""

from django.urls import path

from home import physics, views  # noqa: F401 - physics is imported so that what it checks is checked at the start

urlpatterns = [
    path("", views.home, name="home"),
    path("visits/", views.visits, name="visits"),
    path("database/", views.database, name="database"),
    path("echo/", views.echo, name="echo"),
    path("eos/<path:name>", views.eos, name="eos"),
]
