"""What an adapter is: formats, validation, manifest, versions, store, residency. No gRPC, no engine."""
