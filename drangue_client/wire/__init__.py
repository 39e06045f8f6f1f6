"""What travels through Redis: hints to workers, and rings for whoever waits. Nothing here is ever the only copy."""
