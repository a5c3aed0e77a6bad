"""VmBackup's tests, its simulated pool and its demo: python3 -m tests."""
