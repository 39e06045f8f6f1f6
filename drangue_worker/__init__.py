"""drangue."""
