"""WSGI application for gunicorn. `python wsgi.py COUNT` creates the table with COUNT keys first."""

import os
import sys

import django

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "settings")
django.setup()

if __name__ == "__main__":
    import app

    app.fill(int(sys.argv[1]))
else:
    from django.core.wsgi import get_wsgi_application

    application = get_wsgi_application()
