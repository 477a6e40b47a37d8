"""Choosing tokens: penalties, masks, draws and log-probabilities. Knows logits, not the model."""
