"""A comparison: which runs it consists of (`plan`), what is recorded of each (`records`), and what they add up to
(`table`). `latent-cot compare` carries it out.

A *variant* is a method with some settings of its own; a run is a variant with a seed. Importing this loads no torch.
"""
