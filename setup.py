"""Two folders at the root of the checkout are installed inside the package: serving/ and experiments/.

All other settings are in pyproject.toml, which cannot add packages to the ones it finds. Data files: MANIFEST.in.
"""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages("src"), "videoblip2.serving", "videoblip2.experiments"],
    package_dir={"": "src", "videoblip2.serving": "serving", "videoblip2.experiments": "experiments"},
)
