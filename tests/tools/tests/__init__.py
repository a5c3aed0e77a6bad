"""The runner, the fork server and the machinery of faults."""
