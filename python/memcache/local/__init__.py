"""The LocalService program: ``python -m memcache.local [--config conf/local.toml] [--set KEY=VALUE ...]``."""
