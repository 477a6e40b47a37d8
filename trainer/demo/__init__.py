"""The demonstration: serve, train, upload, answer, swap under load, score. All numbers measured."""
