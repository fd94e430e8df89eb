"""What gunicorn runs; `python wsgi.py COUNT` makes the table first."""

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
