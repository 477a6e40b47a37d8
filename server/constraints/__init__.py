"""Structured output: from a constraint's text to the tokens that may come next, by llguidance."""
