"""`test_commit` over the sync face."""

from tests.conformance.test_commit import *  # noqa: F403
