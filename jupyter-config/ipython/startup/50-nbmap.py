# ruff: noqa: D100, INP001 - a docstring would become the notebook's `__doc__`
#
# Makes %%remote and %nbmap known in every kernel of this environment. What they do is imported
# when they are used; NBMAP_AUTOLOAD=0 turns it off. `%nbmap doctor` tells whether it worked.


def _load_nbmap() -> None:
    import os

    if os.environ.get("NBMAP_AUTOLOAD") == "0":
        return
    try:
        from IPython import get_ipython

        shell = get_ipython()
        if shell is not None and "remote" not in shell.magics_manager.magics["cell"]:
            shell.extension_manager.load_extension("nbmap")
    except Exception:
        pass  # a kernel without nbmap's magics is still a kernel


_load_nbmap()
del _load_nbmap
