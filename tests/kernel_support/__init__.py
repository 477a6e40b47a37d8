"""What kernel tests share: random mixed batches with an independent float64 answer."""
