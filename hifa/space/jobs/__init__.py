"""Execution of runs: storage, queue, GPU leases and exports."""
