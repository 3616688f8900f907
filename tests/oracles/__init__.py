"""Slow, plain references that the fast paths are compared with. They import none of them."""
