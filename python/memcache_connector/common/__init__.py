"""What a connector needs whatever the engine: object keys, the circuit breaker, how much memory to lend."""
