from setuptools import find_packages, setup

nested = [f"latent_cot.{name}" for name in find_packages(include=["tasks*", "tools*"])]
setup(packages=sorted({*find_packages(include=["latent_cot*"]), *nested}))
