"""The simulated pool, compared with recordings of a real one."""
