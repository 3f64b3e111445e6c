"""Hands version and dependencies from settings.ini to setuptools; the rest is in pyproject.toml."""

from configparser import ConfigParser
from pathlib import Path

from setuptools import setup

config = ConfigParser(delimiters=["="])
config.read(Path(__file__).parent / "settings.ini", encoding="utf-8")
settings = config["DEFAULT"]
setup(
    version=settings["version"],
    install_requires=settings["requirements"].split(),
    extras_require={
        extra: settings[f"{extra}_requirements"].split()
        for extra in ("notebooks", "dev", "onnx", "scale")
    },
    entry_points={"console_scripts": [settings["console_scripts"]]},
)
