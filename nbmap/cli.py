"""The command `nbmap`."""

from __future__ import annotations

import sys

import click

from . import doctor

__all__ = ["main"]


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="nbmap", message="%(package)s %(version)s")
def main() -> None:
    """Run Python functions over many inputs on a Dask cluster."""


@main.command("doctor")
def _doctor() -> None:
    """Tell what is installed, reachable and wrong."""
    report = doctor.examine()
    click.echo(repr(report))
    sys.exit(1 if report.problems else 0)
