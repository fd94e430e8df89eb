"""Starts the store of a run."""

from . import postgres, s3


def start(kind, place, directory, standbys=1, endpoint=None, bucket="keypeg", restart=None):
    """PostgreSQL with synchronous standbys, the S3 double moto, or the bucket of a store at `endpoint` that runs already."""
    if kind == "postgres":
        return postgres.Postgres(place, directory, standbys=standbys)
    if endpoint:
        return s3.External(endpoint, bucket, restart)
    return s3.Moto(place, directory)
