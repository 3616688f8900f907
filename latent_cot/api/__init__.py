"""The Python interface: what `import latent_cot` offers, in a notebook or a script.

It adds nothing to the algorithm: it loads runs, calls what the command line calls, and shows what comes of it.
`docs/python.md` is its guide.
"""
