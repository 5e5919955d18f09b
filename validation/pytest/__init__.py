"""pytest: golden cases as test items, and goldens of unit tests."""
