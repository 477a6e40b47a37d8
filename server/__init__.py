"""The running service: engine, gRPC services, metrics, configuration."""
