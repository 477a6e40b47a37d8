"""Commands of the `polygraft` program, one module each; heavy imports happen inside functions."""
