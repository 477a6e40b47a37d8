"""What an adapter is: formats, validation, manifest, versions, store, residency.

Knows no gRPC and no engine.
"""
