"""Pure parts and single sections of the script."""
