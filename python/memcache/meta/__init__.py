"""The MetaService program: ``python -m memcache.meta [--config conf/meta.toml] [--set KEY=VALUE ...]``."""
