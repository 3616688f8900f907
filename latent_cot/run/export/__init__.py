"""A trained reasoner as files that others can use without this package: `folder.build`."""
