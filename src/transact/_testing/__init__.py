"""The test kit without pytest: one connection that a test's whole application shares, and what a test asks of it."""
