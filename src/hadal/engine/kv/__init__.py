"""The KV cache of an engine: `buckets` hold it, `pool` allocates, `prefix` keeps what was computed before."""
