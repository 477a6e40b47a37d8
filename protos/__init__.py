"""The wire contract: package polygraft.v1, with its generated stubs beside it."""
