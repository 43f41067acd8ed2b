"""Other systems that move KV blocks between processes of one host, measured the same way as ours.

`shapes` says what is moved, `processes` starts and accounts for services, each `*_peer` module speaks one system's own
API, `measure` times one of them in a process of its own, and `bench_peers.py` above this folder drives them all.
"""
