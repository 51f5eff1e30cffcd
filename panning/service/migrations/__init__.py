"""Migrations of the service's database, by alembic; each schema has a file in ``versions``, which stays as it is."""
