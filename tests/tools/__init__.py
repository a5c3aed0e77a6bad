"""What runs the tests, and what they share."""
