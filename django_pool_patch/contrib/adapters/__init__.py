"""
Other people's pools, for use as POOL's "pool_class":

* django_pool_patch.contrib.adapters.psycopg_pool.PsycopgPool
* django_pool_patch.contrib.adapters.sqlalchemy.QueuePool

What a pool can't do, its supports_* attributes say.
"""
