"""What one training step of each method costs, in plain steps on the same work."""
