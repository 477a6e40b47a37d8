"""Makes adapters, scores them, pushes them. Uses `adapters` and `polygraft.client` only."""
