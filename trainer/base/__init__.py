"""The bundled base model: made corpus, tokenizer, pre-training."""
