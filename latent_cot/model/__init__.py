"""One language model with its adapters, made fast."""
