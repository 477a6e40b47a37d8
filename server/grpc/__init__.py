"""gRPC services: the only part of the server that knows the wire types."""
