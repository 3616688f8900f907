"""Teach a language model to reason by treating its chain of thought as a latent variable."""

__version__ = "0.1.0"
