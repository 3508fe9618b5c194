"""The pages of the shift book; each shows that one part of a deployment works."""

from allauth.socialaccount.models import SocialAccount
from django.conf import settings
from django.db import connection
from django.http import FileResponse, Http404, JsonResponse
from django.shortcuts import redirect, render
from django.views.decorators.http import require_http_methods, require_safe

from home.models import Visit


def roles(user):
    """Return the roles that the sign-on gave a user (claim `cern_roles`)."""
    account = SocialAccount.objects.filter(user=user, provider="cern").first()
    data = account.extra_data if account else {}
    return data.get("userinfo", data).get("cern_roles", [])


RIGHTS = ("shifter", "shiftleader", "expert", "admin")


def rights(user):
    """Return what a user may do: as in certhelper, each right whose word contains one of the user's roles."""
    given = roles(user)
    return [right for right in RIGHTS if any(role in right for role in given)]


@require_safe
def home(request):
    """Greet: anyone, and by name whoever is signed on."""
    known = {"roles": roles(request.user), "rights": rights(request.user)} if request.user.is_authenticated else {}
    return render(request, "home/home.html", known | {"needed": RIGHTS})


@require_http_methods(["GET", "HEAD", "POST"])
def visits(request):
    """Show the newest notes; add one."""
    if request.method == "POST":
        note = request.POST.get("note", "").strip()[:200]
        if note:
            Visit.objects.create(who=request.user.get_username() or "somebody", note=note)
        return redirect("visits")
    return render(request, "home/visits.html", {"visits": Visit.objects.all()[:50]})


@require_safe
def database(request):
    """Say what the database connection is."""
    answer = {"engine": connection.vendor, "name": str(connection.settings_dict["NAME"]), "visits": Visit.objects.count()}
    if connection.vendor == "postgresql":
        with connection.cursor() as cursor:
            cursor.execute("SELECT current_user, current_database(), current_setting('server_version')")
            answer |= dict(zip(("role", "name", "server"), cursor.fetchone(), strict=True))
        # Not pg_stat_ssl: a log-in that acts as the database's owner is not shown its own session.
        driver = connection.connection.info
        answer |= {"tls": driver.ssl_in_use, "tls_version": driver.ssl_attribute("protocol")}
    return JsonResponse(answer)


@require_safe
def echo(request):
    """Show the page whose websocket answers through Redis."""
    return render(request, "home/echo.html")


@require_safe
def eos(request, name):
    """Send a file from EOS."""
    root = settings.EOS_PATH.resolve()
    path = (root / name).resolve()
    if not path.is_relative_to(root) or not path.is_file():
        raise Http404(f"There is no file {name} in EOS.")
    return FileResponse(path.open("rb"))
