"""`test_hooks` over the sync face."""

from tests.conformance.test_hooks import *  # noqa: F403
