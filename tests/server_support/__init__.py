"""What the tests of the service share: an engine that is not one, and servers around it."""
