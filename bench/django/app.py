"""The same task in Django, as it is commonly written: one row per key, a random free key by ORDER BY RANDOM().

Written for this comparison after the Django API of docs/api.md: GET acquires a key, PUT releases it. The setup favours
Django: WAL, one transaction per call, persistent connections, and no expiry of leases.
"""

import random
import string

from django.apps import AppConfig
from django.db import models, transaction
from django.urls import path
from django.utils import timezone
from rest_framework.response import Response
from rest_framework.views import APIView

ALPHABET = string.ascii_letters + string.digits


class Keys(AppConfig):
    name = "app"
    label = "keys"
    path = "."

    def import_models(self):
        global Key

        class Key(models.Model):
            api_key = models.CharField(max_length=20, unique=True)
            is_blocked = models.BooleanField(default=False, db_index=True)
            blocked_at = models.DateTimeField(null=True)
            expires_at = models.DateTimeField(null=True)

            class Meta:
                app_label = "keys"

        super().import_models()


def fill(count):
    """Creates the table and its rows."""
    from django.db import connection

    with connection.schema_editor() as editor:
        editor.create_model(Key)
    value = lambda: "".join(random.choices(ALPHABET, k=20))
    Key.objects.bulk_create([Key(api_key=value()) for _ in range(count)], batch_size=5000)


class RandomKey(APIView):
    def get(self, request):
        with transaction.atomic():
            key = Key.objects.filter(is_blocked=False).order_by("?").first()
            if key is None:
                return Response({"message": "No available key found"}, status=404)
            key.is_blocked = True
            key.blocked_at = timezone.now()
            key.save()
        return Response({"api_key": key.api_key})

    def put(self, request):
        with transaction.atomic():
            key = Key.objects.filter(api_key=request.query_params.get("api_key")).first()
            if key is None:
                message = "Kindly send key to be updated, given key does not exist"
                return Response({"message": message}, status=400)
            key.is_blocked = False
            key.blocked_at = None
            key.save()
        return Response({"api_key": key.api_key})


urlpatterns = [path("api/v1/random_api_key/", RandomKey.as_view())]
