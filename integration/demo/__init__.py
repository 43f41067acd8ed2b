"""The demonstration: two real vLLM engines share KV blocks through a MemCache pool. Run it with `make demo`."""
