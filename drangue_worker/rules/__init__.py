"""What happens next, as pure functions of a folded run: no clock, no randomness, no environment, no I/O."""
