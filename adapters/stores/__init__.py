"""Stores: the protocol, and its implementations on a disk, in memory and in a cloud's buckets."""
