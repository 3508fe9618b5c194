"""Settings, all from the environment: the variables, defaults and shapes of certhelper.

A variable without a default is required: without it nothing starts, neither the server nor `manage.py`.
"""

from pathlib import Path

from decouple import config

BASE_DIR = Path(__file__).resolve().parent.parent

SECRET_KEY = config("DJANGO_SECRET_KEY")
DEBUG = config("DJANGO_DEBUG", default=False, cast=bool)

# One host. 127.0.0.1 is what probes send as their Host header.
ALLOWED_HOSTS = ["127.0.0.1", config("DJANGO_ALLOWED_HOSTS", default="localhost")]
CSRF_TRUSTED_ORIGINS = [config("CSRF_TRUSTED_ORIGINS", default="")]

# The router ends TLS and says so in this header; it removes one that a client sent.
SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https")
SESSION_COOKIE_SECURE = not DEBUG
CSRF_COOKIE_SECURE = not DEBUG

INSTALLED_APPS = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.messages",
    "django.contrib.sessions",
    "django.contrib.sites",
    "django.contrib.staticfiles",
    "channels",
    "allauth",
    "allauth.account",
    "allauth.socialaccount",
    "allauth.socialaccount.providers.openid_connect",
    "home",
]
SITE_ID = config("SITE_ID", default=2, cast=int)

MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "whitenoise.middleware.WhiteNoiseMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
    "allauth.account.middleware.AccountMiddleware",
]
ROOT_URLCONF = "shiftbook.urls"
ASGI_APPLICATION = "shiftbook.asgi.application"
TEMPLATES = [{
    "BACKEND": "django.template.backends.django.DjangoTemplates",
    "APP_DIRS": True,
    "OPTIONS": {"context_processors": [
        "django.template.context_processors.request",
        "django.contrib.auth.context_processors.auth",
        "django.contrib.messages.context_processors.messages",
    ]},
}]

# No OPTIONS: whether TLS is demanded is PGSSLMODE's to say, which libpq reads by itself.
DATABASES = {"default": {
    "ENGINE": config("DJANGO_DATABASE_ENGINE", default=""),
    "NAME": config("DJANGO_DATABASE_NAME", default=""),
    "USER": config("DJANGO_DATABASE_USER", default=""),
    "PASSWORD": config("DJANGO_DATABASE_PASSWORD", default=""),
    "HOST": config("DJANGO_DATABASE_HOST", default=""),
    "PORT": config("DJANGO_DATABASE_PORT", default=""),
}}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

# An address put together from parts, as in certhelper: a password with @ or # in it breaks it.
REDIS_HOST = config("REDIS_HOST", default="localhost")
REDIS_PASSWORD = config("REDIS_PASSWORD", default="")
CHANNEL_LAYERS = {"default": {
    "BACKEND": "channels_redis.core.RedisChannelLayer",
    "CONFIG": {"hosts": [f"redis://:{REDIS_PASSWORD}@{REDIS_HOST}:6379/0"]},
}}

# Sign-on at CERN only: nobody has a password here. The registration stands in the environment and not in the admin
# pages as well: two of them break every page that offers the sign-on.
AUTHENTICATION_BACKENDS = [
    "django.contrib.auth.backends.ModelBackend",
    "allauth.account.auth_backends.AuthenticationBackend",
]
SOCIALACCOUNT_ONLY = True
SOCIALACCOUNT_PROVIDERS = {"openid_connect": {"APPS": [{
    "provider_id": "cern",
    "name": "CERN",
    "client_id": config("CERN_SSO_REGISTRATION_CLIENT_ID"),
    "secret": config("CERN_SSO_REGISTRATION_CLIENT_SECRET"),
    "settings": {"server_url": config("CERN_SSO_SERVER_URL", default="https://auth.cern.ch/auth/realms/cern")},
}]}}
ACCOUNT_EMAIL_VERIFICATION = "none"
LOGIN_REDIRECT_URL = "/"
ACCOUNT_LOGOUT_REDIRECT_URL = "/"

STATIC_URL = "/static/"
STATIC_ROOT = BASE_DIR / "static"

EOS_PATH = Path(config("EOS_PATH", default="/eos"))

LANGUAGE_CODE = "en-gb"
TIME_ZONE = "Europe/Zurich"
USE_TZ = True

# To standard output, where the pod's log is; Django alone would keep errors for mails to administrators.
LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"line": {"format": "{asctime} {levelname} {name} {message}", "style": "{"}},
    "handlers": {"stdout": {"class": "logging.StreamHandler", "stream": "ext://sys.stdout", "formatter": "line"}},
    "root": {"handlers": ["stdout"], "level": "INFO"},
}

# Read, and without an effect on anything: certhelper reads them too, and a deployment may still set them.
EMAIL_HOST = config("DJANGO_EMAIL_HOST", default="localhost")
EMAIL_PORT = config("DJANGO_EMAIL_PORT", default=25, cast=int)
EMAIL_HOST_USER = config("DJANGO_EMAIL_HOST_USER", default="")
EMAIL_HOST_PASSWORD = config("DJANGO_EMAIL_HOST_PASSWORD", default="")
EMAIL_USE_TLS = config("DJANGO_EMAIL_USE_TLS", default=False, cast=bool)
SERVER_EMAIL = config("DJANGO_SERVER_EMAIL", default="root@localhost")
CERN_CERTIFICATE_PATH = config("CERN_CERTIFICATE_PATH", default="")
SECRET_ACC = config("DJANGO_SECRET_ACC", default="admin")
SECRET_PASS = config("DJANGO_SECRET_PASS", default="admin")
