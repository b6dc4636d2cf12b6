from django.apps import AppConfig


class PoolPatchConfig(AppConfig):
    name = "django_pool_patch"
    verbose_name = "Database connection pool"
