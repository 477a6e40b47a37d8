"""Engine: scheduler, KV blocks, model runner, sampler. Knows no gRPC."""
