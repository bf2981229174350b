"""`test_rollback_only` over the sync face."""

from tests.conformance.test_rollback_only import *  # noqa: F403
