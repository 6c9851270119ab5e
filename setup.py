"What pyproject.toml calls dynamic: settings.ini -> setuptools."
from configparser import ConfigParser
from pathlib import Path

from setuptools import setup

cfg = ConfigParser(delimiters=["="], interpolation=None)
cfg.read_string((Path(__file__).parent / "settings.ini").read_text(encoding="utf-8"))


def items(section, key):
    return cfg[section][key].strip().splitlines()


setup(
    version=cfg["metadata"]["version"],
    keywords=items("metadata", "keywords"),
    classifiers=items("metadata", "classifiers"),
    install_requires=items("dependencies", "runtime"),
    extras_require={"dev": items("dependencies", "dev")},
    packages=["knowloc", "knowloc.assets"],
    package_data={"knowloc.assets": ["*"]},
    entry_points={
        "console_scripts": [f"{name} = {target}" for name, target in cfg["scripts"].items()],
        "nbdev": ["knowloc = knowloc._modidx:d"],  # the index behind nbdev's links from `names` to their pages
    },
)
