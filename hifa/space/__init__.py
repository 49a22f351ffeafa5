"""The parts of the app: a store of runs, a worker that advances them on leases of a GPU, and the page around them.

    app.py -> page.py -> tabs -> worker.py -> lease.py (on the GPU, perhaps in another process) -> store.py (files)

Everything that a run is lies in its folder, so that a closed tab, a killed server and an aborted lease cost nothing.
"""
