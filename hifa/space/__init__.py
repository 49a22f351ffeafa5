"""Implementation of the app: a store of runs, a worker that advances runs in GPU leases, and the Gradio page.

    app.py -> ui/page.py -> jobs/worker.py -> jobs/gpu_lease.py (on the GPU, perhaps in another process)

The complete state of a run is in its folder. A run therefore survives a closed tab, a killed server and an aborted
lease.
"""
