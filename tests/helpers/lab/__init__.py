"""JupyterLab as people use it: a server, a browser, and notebooks in it.

server.py     the server and its kernels, apart from what the user has
traffic.py    what the browser and the kernel say to each other
tab.py        a page of the browser, and what it complains about
notebook.py   a notebook in such a page: run, read, interrupt, save
session.py    what a test has in hand: opens notebooks, cleans up after them
"""
