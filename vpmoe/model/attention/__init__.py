"""Core attention: one module, several backends."""
