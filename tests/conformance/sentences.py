"""The contract, sentence by sentence, and the tests that show it: from each promise to its proof.

``SENTENCES`` is checked by ``test_sentences.py``: each test that is named here exists. Paths are relative to ``tests``.
"""

from typing import NamedTuple


class Sentence(NamedTuple):
    """One sentence of the contract, and where it is shown: ``file::test``, all in one string per test."""

    text: str
    tests: tuple[str, ...]


def _shown(text: str, *tests: str) -> Sentence:
    return Sentence(text, tests)


_BLOCKS = "conformance/test_blocks.py::test_"
_EVERYWHERE = "conformance/test_everywhere.py::test_what_a_block_does_ends_alike_wherever_the_block_is"
_HOOKS = "conformance/test_hooks.py::test_"
_MARKED = "conformance/test_rollback_only.py::test_"
_RULES = "conformance/test_propagation_rules.py::test_"
_SECOND = "conformance/test_second_connection.py::test_"
_COMMIT = "conformance/test_commit.py::test_"
_REQUEST = "conformance/test_request.py::test_"
_MARIADB = "conformance/test_traps_mariadb.py::test_"
_SQLITE = "conformance/test_sqlite.py::test_"
_TRAPS = "conformance/test_traps_sqlite.py::test_"
_RETRY = "conformance/test_retry.py::test_"
_ASKED = "conformance/test_retry_asked.py::test_"
_NEVER = "conformance/test_retry_never.py::test_"
_ATTEMPTS = "conformance/test_attempts.py::test_"
_AGAIN = "fastapi/test_request_retry.py::test_"
_REPLAYED = "fastapi/test_request_replay.py::test_"
_NOT_AGAIN = "fastapi/test_request_not_retried.py::test_"
_CONTENTION = "conformance/test_contention.py::test_"
_TASKS = "conformance/test_concurrent_use.py::test_"
_ENDED = "conformance/test_ended.py::test_"
_AFTER = "fastapi/test_after_the_response.py::test_"
_BEFORE = "fastapi/test_commit_before_the_response.py::test_"
_MANUAL = "fastapi/test_manual_and_connection.py::test_"
_ROLLS_BACK = "fastapi/test_what_rolls_back.py::test_"
_PROBLEMS = "fastapi/test_problem_documents.py::test_"
_COMPOSED = "fastapi/test_composition.py::test_"
_START = "fastapi/test_startup_checks.py::test_"
_PROGRAMS = "docs/test_code_blocks.py::test_a_program_of_the_documentation_runs_and_says_what_its_page_shows"
_TIMES = "conformance/test_timeouts.py::test_"
_JOINED = "conformance/test_timeouts_joined.py::test_"
_UNCHANGED = "conformance/test_timeouts_leave_nothing.py::test_"
_IDLE = "conformance/test_timeouts_idle.py::test_"
_LOCKS = "conformance/test_lock_timeouts.py::test_"
_TIME_OPTIONS = "conformance/test_timeout_options.py::test_"
_WHEN_OPEN = (
    "conformance/test_propagation.py::test_when_a_transaction_is_open_what_is_stored_and_raised_is_what_the_table_says"
)
_WHEN_NONE = "conformance/test_propagation.py::test_when_none_is_open_what_is_stored_and_raised_is_what_the_table_says"

REQUEST = (
    _shown(
        "The middleware opens nothing. The dependency hands out a session; the connection is taken, and BEGIN sent, at the"
        " first statement.",
        _REQUEST + "the_connection_is_taken_and_begin_sent_at_the_first_statement_of_a_request",
    ),
    _shown(
        "A route that never touches the database costs no connection and no statement.",
        _AFTER + "a_route_that_never_uses_its_session_sends_no_statement_and_takes_no_connection",
    ),
    _shown(
        "The route runs; FastAPI validates and serializes its result.",
        _BEFORE + "a_response_that_does_not_fit_its_model_rolls_back",
    ),
    _shown(
        "When the application sends http.response.start, before that message goes on: veto? → rollback. Otherwise flush,"
        " before_commit hooks, COMMIT, connection back to the pool, after_commit hooks. Then the message is sent.",
        _REQUEST + "flush_hooks_and_commit_come_before_the_response_and_each_hook_is_awaited",
        _BEFORE + "the_row_is_visible_to_another_connection_when_the_first_byte_arrives",
        _MANUAL + "a_veto_of_ones_own_decides_by_status_and_headers",
    ),
    _shown(
        "If that fails, the route's response is dropped whole, body included, and the error goes through the application's"
        " own exception handlers as if the route had raised it.",
        _BEFORE + "a_flush_that_fails_at_the_end_drops_the_response",
        _PROBLEMS + "an_error_of_a_hook_at_commit_reaches_the_handler_that_the_route_would_have_had",
        _COMPOSED + "a_mounted_application_answers_with_its_own_handlers_also_for_its_commit",
    ),
    _shown(
        "Never two bodies for one response, never a 2xx for a failed commit.",
        _BEFORE + "a_commit_that_fails_is_one_problem_document_and_nothing_is_stored",
        _BEFORE + "a_deferred_unique_constraint_that_fails_at_commit_is_one_problem_document",
        _COMPOSED + "a_dropped_response_stays_dropped_whatever_is_caught_inside",
    ),
    _shown(
        "An exception out of the route rolls back.",
        _ROLLS_BACK + "an_error_without_a_handler_is_a_500_and_rolls_back",
        _ROLLS_BACK + "a_base_exception_rolls_back",
    ),
    _shown(
        "A status the veto names rolls back, also when the route returned it.",
        _BEFORE + "an_error_status_rolls_back_raised_or_returned",
        _BEFORE + "a_status_below_400_commits",
    ),
    _shown(
        "An exception that a handler renders as a 2xx rolls back too when it came from the database or out of a managed"
        " block.",
        _ROLLS_BACK + "a_database_error_that_a_handler_renders_as_success_is_neither_stored_nor_sent",
        _REQUEST
        + "an_exception_out_of_a_managed_block_that_a_handler_renders_as_success_rolls_back_and_is_a_500_problem",
    ),
    _shown("For any other, the docs say to call set_rollback_only().", _PROGRAMS),
    _shown(
        "After that the request's session has ended: its use in a background task, a streaming body, a generator endpoint or"
        " a late child task raises TransactionEnded, which says what to use instead, and takes no connection.",
        _AFTER + "a_session_that_has_ended_is_refused_with_what_to_do_instead",
        _AFTER + "a_stream_body_goes_on_after_its_session_was_refused",
        _AFTER + "a_task_that_outlives_its_request_is_refused",
        _AFTER + "readers_that_stall_in_a_long_response_hold_no_connection",
    ),
    _shown(
        "At install/start-up, routes that can only fail this way (generator endpoints, websocket routes that ask for a"
        " session) are reported as errors, by route.",
        _START + "a_generator_endpoint_that_asks_for_a_session_is_reported_at_start_up",
        _START + "a_websocket_route_that_asks_for_a_session_is_reported_at_start_up",
        _START + "every_route_that_can_only_fail_is_in_the_one_error",
    ),
    _shown(
        "An ORM object that the route returns un-flushed …: where that cannot be had, the response error's log line says to"
        " await session.flush().",
        _BEFORE + "an_object_that_was_not_flushed_and_so_has_no_id_is_explained_in_the_log",
    ),
    _shown(
        "A client that disconnects does not undo a commit in flight; cancellation before COMMIT rolls back; no connection"
        " leaks.",
        _ROLLS_BACK + "a_commit_in_flight_survives_the_cancellation_of_its_request",
        _ROLLS_BACK + "a_client_that_leaves_before_the_commit_does_not_stop_its_request",
        _ROLLS_BACK + "a_request_that_is_cancelled_before_its_commit_rolls_back",
        _COMPOSED + "a_request_that_is_cancelled_while_it_ends_gives_every_connection_back",
        "fastapi/test_in_flight.py::test_a_statement_that_outlives_its_request_is_rolled_back_and_gives_its_connection_back",
    ),
    _shown(
        "Manual mode: the session is the route's own. begin, commit, rollback are the route's business.",
        _MANUAL + "what_a_route_committed_itself_stays_whatever_it_answers",
        _MANUAL + "begin_savepoints_and_two_transactions_in_one_route",
        _MANUAL + "an_error_that_a_manual_route_handles_is_its_own_business",
    ),
    _shown(
        "What is left uncommitted when the response starts is rolled back, and if that threw away changes on a 2xx, a warning"
        " names the route.",
        _MANUAL + "a_commit_that_was_forgotten_is_rolled_back_and_told_if_the_answer_claims_success",
        _MANUAL + "a_route_that_only_read_needs_no_commit_and_no_warning",
    ),
)

PROPAGATION = (
    _shown("The table “a transaction is open”: every propagation, A to F.", _WHEN_OPEN),
    _shown("The table “none is open”: every propagation, A to F.", _WHEN_NONE),
    _shown(
        "REQUIRES_NEW: own session, own connection. NOT_SUPPORTED: own connection, autocommit.",
        _SECOND + "a_block_that_suspends_another_has_a_session_and_a_connection_of_its_own",
    ),
    _shown(
        "NEVER: TransactionExists before the body; the outer stays usable.",
        _RULES + "never_inside_a_transaction_raises_before_the_body_and_the_outer_stays_usable",
    ),
    _shown(
        "MANDATORY with none open: NoTransaction before the body.",
        _RULES + "mandatory_with_none_open_raises_before_the_body",
    ),
    _shown(
        "SUPPORTS, NOT_SUPPORTED, NEVER with none open are in autocommit: no transaction is open.",
        _RULES + "in_autocommit_no_transaction_is_open_and_none_can_be_marked",
    ),
    _shown(
        "The request's automatic transaction counts as open from the moment a route or dependency has asked for the session.",
        _REQUEST
        + "a_requests_transaction_counts_as_open_from_the_moment_a_route_or_dependency_has_asked_for_the_session",
        _WHEN_NONE,
    ),
    _shown(
        "Joining with an explicit isolation that differs, or with read_only=False asked explicitly inside a read-only one:"
        " raises OptionsConflict; never ignored.",
        _RULES + "joining_with_options_that_the_open_one_does_not_have_is_refused_and_the_outer_stays_usable",
        _RULES + "isolation_and_read_only_are_refused_where_no_transaction_can_have_them",
        _RULES + "a_block_that_names_no_level_joins_a_transaction_of_any_level",
        _EVERYWHERE,
    ),
    _shown(
        "A participant inside NESTED that fails and is swallowed there: UnexpectedRollback at the nested edge, the savepoint"
        " is rolled back, the outer may go on and commit.",
        _RULES + "a_participant_that_fails_and_is_swallowed_inside_nested_is_reported_at_the_nested_edge",
        _EVERYWHERE,
    ),
    _shown(
        "NESTED asked for when the transaction is already rollback-only: raises.",
        _RULES + "nested_in_a_rollback_only_transaction_raises",
        _EVERYWHERE,
    ),
    _shown(
        "REQUIRES_NEW whose BEGIN fails: the outer is untouched and usable.",
        _SECOND + "requires_new_whose_begin_fails_leaves_the_outer_untouched_and_usable",
    ),
    _shown(
        "REQUIRES_NEW and NOT_SUPPORTED need a second connection. If this task already holds so many that the pool can never"
        " serve it, raises PoolSelfDeadlock at once.",
        _SECOND + "a_task_that_holds_the_whole_pool_is_refused_another_connection_at_once_and_the_outer_still_commits",
        _SECOND + "as_many_transactions_may_suspend_each_other_as_the_pool_has_connections",
        _SECOND + "a_second_writer_on_sqlite_is_refused_at_once_and_the_outer_still_commits",
    ),
    _shown(
        "Otherwise the wait is bounded by the pool's timeout.",
        _SECOND + "a_wait_for_a_second_connection_is_bounded_by_the_pools_timeout_and_the_outer_still_commits",
        _SECOND + "of_twenty_requests_that_each_need_a_second_connection_from_a_pool_of_ten_all_finish_or_fail_fast",
        _SECOND + "requests_that_leave_one_connection_free_all_finish_whatever_they_wait_for",
    ),
    _shown(
        "Calling session.commit(), rollback() or close() inside a managed transaction raises UsageError and changes nothing.",
        _BLOCKS + "a_managed_session_cannot_be_ended_by_hand_and_the_attempt_changes_nothing",
        _BLOCKS + "a_managed_session_cannot_be_ended_by_its_plain_session_either",
        _BLOCKS + "a_managed_session_cannot_be_ended_by_its_session_transaction_either",
        _BLOCKS + "a_with_block_over_the_session_is_refused_before_its_body",
        _MANUAL + "a_managed_session_cannot_be_ended_by_hand",
        _MANUAL + "a_managed_connection_cannot_be_ended_by_hand",
        _EVERYWHERE,
    ),
    _shown(
        "session.begin_nested() stays allowed.",
        _MARKED + "a_savepoint_protects_the_transaction_around_it_from_a_statement_that_fails",
        _MARKED + "a_savepoint_inside_the_users_own_savepoint_protects_that_too",
        _WHEN_OPEN,
    ),
    _shown(
        "return, break and continue out of a block commit.",
        _BLOCKS + "return_break_and_continue_out_of_a_block_commit_and_so_does_its_end",
    ),
    _shown(
        "Every exception rolls back, cancellation and GeneratorExit included.",
        _BLOCKS + "every_exception_rolls_back_cancellation_and_generator_exit_included_and_goes_on_as_it_is",
        _BLOCKS + "closing_a_generator_in_the_middle_of_its_block_rolls_back",
        _COMMIT + "a_cancellation_between_statements_rolls_back",
        _COMMIT + "a_cancellation_inside_a_savepoint_rolls_back_the_whole",
        _EVERYWHERE,
    ),
    _shown(
        "rollback_for / no_rollback_for go by class; the nearest class in the exception's MRO wins; a tie rolls back.",
        _MARKED + "the_nearest_class_in_the_mro_decides_and_a_tie_rolls_back",
    ),
    _shown(
        "A no_rollback_for exception never saves a transaction that is broken or rollback-only.",
        _MARKED + "an_exception_that_does_not_roll_back_never_saves_a_broken_transaction",
    ),
)

ROLLBACK_ONLY = (
    _shown(
        "Set by a failing participant.",
        _MARKED + "a_joined_block_that_fails_tells_the_outer_who_and_where",
        _EVERYWHERE,
    ),
    _shown(
        "Set by set_rollback_only(reason).",
        _MARKED + "set_rollback_only_in_a_joined_block_tells_the_outer_who_where_and_why",
        _MARKED + "set_rollback_only_in_a_savepoint_undoes_the_savepoint_only",
        _MARKED + "an_ended_transaction_cannot_be_marked",
        _EVERYWHERE,
    ),
    _shown(
        "Set by any database error outside a savepoint, on every engine.",
        _MARKED + "a_database_error_that_is_swallowed_makes_the_end_of_the_block_raise",
        _MARKED + "a_failed_flush_that_is_swallowed_stores_nothing_and_says_so",
        _MARKED + "an_error_on_a_connection_that_was_taken_from_the_session_marks_the_transaction_too",
        _MANUAL + "a_swallowed_error_on_the_connection_is_an_unexpected_rollback_too",
        _EVERYWHERE,
    ),
    _shown(
        "PostgreSQL answers COMMIT with ROLLBACK in that state and no driver tells; so swallowing an IntegrityError and"
        " leaving the block normally must raise, everywhere alike.",
        _MARKED + "a_database_error_that_is_swallowed_makes_the_end_of_the_block_raise",
        _ROLLS_BACK + "a_swallowed_database_error_is_a_problem_and_nothing_is_stored",
        _EVERYWHERE,
    ),
    _shown(
        "Whoever expects a statement to fail wraps it in db.savepoint().",
        _MARKED + "a_savepoint_protects_the_transaction_around_it_from_a_statement_that_fails",
        _MARKED + "a_flush_that_fails_inside_a_savepoint_costs_the_savepoint_and_no_more",
        _EVERYWHERE,
    ),
    _shown(
        "Later SQL in a rollback-only transaction raises UnexpectedRollback at once, with the first cause.",
        _MARKED + "later_statements_of_a_broken_transaction_raise_at_once_with_the_first_cause",
        _MARKED + "marking_the_transaction_around_a_savepoint_refuses_statements_in_the_savepoint_too",
        _ENDED + "lazy_loading_in_a_rollback_only_transaction_is_refused",
    ),
    _shown(
        "At the outermost normal exit: UnexpectedRollback, whose __cause__ is the first error and whose notes say who marked"
        " it, file and line.",
        _MARKED + "the_first_of_several_causes_is_the_cause_and_every_mark_has_a_note",
        _MARKED + "set_rollback_only_in_a_joined_block_tells_the_outer_who_where_and_why",
        _MARKED + "a_joined_block_that_fails_tells_the_outer_who_and_where",
        _REQUEST + "an_unexpected_rollback_at_the_end_of_a_request_is_a_500_problem_and_nothing_is_stored",
    ),
    _shown(
        "If the outermost block itself marked it: a quiet rollback.",
        _MARKED + "if_the_outermost_block_itself_marked_it_the_rollback_is_quiet",
        _MARKED + "set_rollback_only_of_the_owner_ends_quietly_whatever_a_participant_did_before",
        _ROLLS_BACK + "a_route_that_sets_rollback_only_itself_is_rolled_back_quietly",
        _EVERYWHERE,
    ),
    _shown(
        "MySQL/MariaDB: 1213 (deadlock) has already rolled back the whole transaction, also inside a savepoint, where the"
        " driver then shows 1305 instead.",
        _MARIADB + "after_a_deadlock_in_a_savepoint_the_bare_driver_shows_1305_and_stores_the_half_that_came_after",
        _MARIADB + "a_deadlock_outside_of_savepoints_leaves_all_blocks_as_itself",
    ),
    _shown(
        "No ROLLBACK TO is sent; every enclosing block up to the real transaction raises TransactionLost from the 1213.",
        _MARIADB + "a_deadlock_inside_a_savepoint_makes_every_enclosing_block_raise_that_all_is_lost",
        _MARIADB + "a_deadlock_swallowed_inside_a_block_makes_the_end_of_every_enclosing_block_raise_that_it_is_lost",
        _MARIADB + "later_sql_in_a_lost_transaction_raises_that_it_is_lost_and_never_reaches_the_server",
        _MARIADB + "a_changed_record_under_innodb_snapshot_isolation_loses_the_transaction_too",
    ),
    _shown(
        "1205 (lock wait timeout) undoes one statement only: rollback-only.",
        _MARIADB + "a_lock_wait_timeout_that_is_swallowed_makes_the_transaction_rollback_only",
        _MARIADB + "a_lock_wait_timeout_in_a_savepoint_undoes_the_savepoint_and_the_transaction_goes_on",
    ),
    _shown(
        "DDL commits implicitly: raises or is documented, never silently half-done.",
        _MARIADB + "ddl_commits_what_came_before_on_the_bare_driver",
        _MARIADB + "a_statement_that_would_commit_by_itself_is_refused_and_changes_nothing",
    ),
    _shown(
        "SQLite: real transactions and savepoints (no legacy transaction control), BEGIN IMMEDIATE for writers, deferred for"
        " read-only ones, WAL, a busy timeout, foreign keys on.",
        _TRAPS + "a_released_savepoint_does_not_survive_a_rollback_though_the_bare_driver_lets_it",
        _TRAPS + "who_reads_and_then_writes_beside_another_writer_succeeds_and_the_other_waits",
        _SQLITE + "a_writer_begins_immediate_a_snapshot_deferred_and_a_reader_not_at_all",
        _SQLITE + "the_file_is_in_wal_mode_and_foreign_keys_are_kept",
        _SQLITE + "a_writer_waits_for_its_turn_as_long_as_for_a_connection_unless_the_url_says_otherwise",
    ),
)

HOOKS = (
    _shown(
        "before_commit runs inside the transaction, may write and may add more; its error rolls back.",
        _HOOKS + "before_commit_may_write_and_may_add_more",
        _HOOKS + "an_error_in_before_commit_rolls_back_and_is_the_callers",
        _HOOKS + "a_database_error_swallowed_in_before_commit_is_not_a_commit",
        _HOOKS + "set_rollback_only_in_before_commit_rolls_back",
    ),
    _shown(
        "after_commit runs only after a COMMIT that is known to have succeeded.",
        _HOOKS + "hooks_run_first_in_first_out_and_are_awaited_before_the_block_goes_on",
        _COMMIT + "a_constraint_that_fails_at_commit_raises_its_own_error_and_stores_nothing",
        _COMMIT + "a_connection_that_is_lost_during_commit_leaves_an_outcome_that_is_said_to_be_unknown",
        _COMMIT + "a_cancellation_while_commit_is_under_way_lets_it_finish_and_then_goes_on",
        _EVERYWHERE,
    ),
    _shown(
        "after_rollback(f): f(exc).",
        _HOOKS + "a_rollback_runs_after_rollback_with_the_error_and_after_completion_with_the_outcome",
        _HOOKS + "a_quiet_rollback_runs_after_rollback_without_an_error",
    ),
    _shown(
        "after_completion(f): f(outcome) with committed, rolled back or unknown; always runs.",
        _HOOKS + "hooks_run_first_in_first_out_and_are_awaited_before_the_block_goes_on",
        _HOOKS + "a_rollback_runs_after_rollback_with_the_error_and_after_completion_with_the_outcome",
        _COMMIT + "a_connection_that_is_lost_during_commit_leaves_an_outcome_that_is_said_to_be_unknown",
        _HOOKS + "hooks_run_also_where_no_statement_was_sent",
        _EVERYWHERE,
    ),
    _shown(
        "First in, first out; after_rollback deepest first.",
        _HOOKS + "hooks_run_first_in_first_out_and_are_awaited_before_the_block_goes_on",
        _HOOKS + "a_rollback_of_the_whole_undoes_the_deepest_first",
    ),
    _shown(
        "Each is awaited before the block (or the response) goes on.",
        _HOOKS + "hooks_run_first_in_first_out_and_are_awaited_before_the_block_goes_on",
        _REQUEST + "flush_hooks_and_commit_come_before_the_response_and_each_hook_is_awaited",
    ),
    _shown(
        "A hook belongs to the scope it was registered in: releasing a savepoint hands it to the parent, rolling back to it"
        " drops its after_commit and runs its after_rollback.",
        _HOOKS + "a_released_savepoint_hands_its_hooks_to_what_is_around",
        _HOOKS + "a_savepoint_that_is_rolled_back_takes_its_hooks_with_it",
        _HOOKS + "a_nested_block_that_begins_runs_its_own_hooks",
    ),
    _shown(
        "Hooks run with no transaction open; using the database in one opens a new transaction that commits by itself.",
        _HOOKS + "no_transaction_is_open_while_after_hooks_run_and_the_database_opens_one_of_its_own",
        _HOOKS + "not_even_the_transaction_around_is_open_while_after_hooks_of_a_savepoint_run",
        _RULES + "hooks_of_a_suspending_transaction_see_no_open_transaction",
        _HOOKS + "the_session_of_the_ended_transaction_is_refused_in_after_hooks",
        _WHEN_NONE,
    ),
    _shown(
        "An after_commit that fails: the others still run, it is logged, and the caller still gets its success, since the"
        " data is stored.",
        _HOOKS + "an_after_commit_that_fails_is_logged_and_the_success_stands",
        _HOOKS + "hooks_that_fail_after_a_rollback_hide_nothing",
    ),
    _shown(
        "critical=True: all run, then one AfterCommitError (an ExceptionGroup, .committed is true) is raised.",
        _HOOKS + "critical_after_commit_hooks_that_fail_become_one_error_that_says_committed",
        _PROBLEMS + "a_critical_hook_that_fails_after_the_commit_does_not_pretend_that_nothing_is_stored",
    ),
    _shown(
        "Registering with no transaction open raises NoTransaction.",
        _HOOKS + "registering_a_hook_with_no_transaction_open_raises",
        _RULES + "in_autocommit_no_transaction_is_open_and_none_can_be_marked",
        _REQUEST + "before_asking_no_hook_can_be_registered_and_none_is_lost",
    ),
    _shown(
        "Cancellation waits until the running hooks are done.",
        _HOOKS + "cancellation_waits_until_the_running_hooks_are_done",
    ),
)

CONCURRENCY = (
    _shown(
        "Two tasks in one session at once: raises ConcurrentUse, which names both statements or places and says what to do,"
        " before the driver's “another operation is in progress” and with the session still usable.",
        _TASKS + "a_use_beside_a_statement_that_is_running_is_refused_whatever_it_is_and_the_transaction_commits",
        _TASKS + "gather_lets_exactly_one_proceed",
        _TASKS + "both_statements_are_named_without_their_values",
        _AFTER + "two_tasks_in_one_session_are_refused_with_the_same_plain_message",
        _AFTER + "the_refusal_of_two_tasks_names_both_uses",
        _EVERYWHERE,
    ),
    _shown("Two requests never share a session.", _COMPOSED + "two_requests_never_share_a_session"),
    _shown(
        "A session used after its end raises TransactionEnded.",
        _ENDED + "every_method_of_an_ended_session_says_so_and_takes_no_connection",
        _ENDED + "lazy_loading_works_inside_and_is_refused_after_the_end",
        _MANUAL + "a_connection_has_ended_when_the_response_has_begun",
        _EVERYWHERE,
    ),
)

TIMEOUTS = (
    _shown(
        "Acquire (pool_timeout), transaction (timeout), lock (lock_timeout).",
        _TIMES + "the_wait_for_a_connection_ends_with_the_deadline",
        _TIMES + "a_pool_timeout_that_comes_before_the_deadline_is_the_one_that_is_told",
        _LOCKS + "a_wait_for_a_lock_ends_with_lock_timeout_and_nothing_is_stored",
        _LOCKS + "a_deadline_that_comes_before_the_lock_timeout_is_the_one_that_is_told",
        _TIME_OPTIONS + "the_databases_timeout_is_that_of_its_transactions",
    ),
    _shown(
        "The deadline is checked before every statement and before COMMIT.",
        _TIMES + "the_deadline_is_checked_before_every_statement",
        _TIMES + "a_statement_after_the_deadline_is_not_sent",
        _TIMES + "a_transaction_that_is_ready_only_after_its_deadline_is_not_committed",
        _TIMES + "hooks_before_commit_have_the_transactions_time",
    ),
    _shown(
        "It is enforced by the server with what each engine has.",
        _TIMES + "a_statement_that_runs_beyond_the_deadline_is_ended_by_the_server",
        "faults/test_ends.py::test_a_transaction_with_a_deadline_does_not_wait_for_ever_for_a_network_that_swallows_everything",
        _IDLE + "locks_of_a_program_that_hangs_are_free_a_second_after_its_deadline",
        _IDLE + "the_server_is_never_told_more_than_a_twentieth_beyond_the_deadline",
        _UNCHANGED + "a_timeout_does_not_lift_a_tighter_limit_that_the_connection_came_with",
    ),
    _shown(
        "It is always scoped to the transaction so that nothing leaks to the next user of the connection, PgBouncer included.",
        _UNCHANGED + "the_next_user_of_the_connection_finds_the_limits_that_the_connection_came_with",
        _UNCHANGED + "cancelling_a_statement_with_a_deadline_leaves_nothing",
        "faults/test_pgbouncer.py::test_nothing_that_a_transaction_sets_is_there_for_the_next_client_of_the_same_session",
    ),
    _shown(
        "On expiry: TransactionTimeout.",
        _TIMES + "a_statement_that_runs_beyond_the_deadline_is_ended_by_the_server",
        "faults/test_ends.py::test_a_transaction_with_a_deadline_does_not_wait_for_ever_for_a_network_that_swallows_everything",
        "fastapi/test_request_timeouts.py::test_a_request_that_takes_too_long_answers_504_and_stores_nothing",
    ),
    _shown(
        "The connection cannot be reused in a way that lets a later statement run outside a transaction.",
        _TIMES + "who_swallows_the_timeout_can_neither_go_on_nor_commit",
        _TIMES + "a_savepoint_does_not_save_a_transaction_whose_time_is_over",
        _IDLE + "a_session_that_stands_idle_beyond_its_deadline_is_ended_and_its_program_told",
    ),
    _shown(
        "A timeout on joining can only shorten.",
        _JOINED + "a_block_that_joins_with_a_shorter_timeout_is_bounded_by_it",
        _JOINED + "a_longer_timeout_on_joining_has_no_effect",
        _JOINED + "after_the_block_the_outer_limits_are_back_on_the_server_too",
    ),
)

RETRY = (
    _shown(
        "On a transient failure anywhere, the failed COMMIT included, and before anything was sent, the response is dropped,"
        " the transaction rolled back, the hooks discarded, and the application is called again with the same request.",
        _AGAIN + "after_a_transient_failure_anywhere_the_application_is_called_again_with_the_same_request",
        _AGAIN + "a_serialization_failure_is_tried_again_at_commit_too_and_by_the_databases_own_retry",
        _AGAIN + "hooks_of_a_failed_attempt_run_with_that_attempt_and_never_again",
        _NOT_AGAIN + "once_the_response_has_begun_nothing_is_tried_again",
    ),
    _shown(
        "Its body is replayed, up to 1 MiB.",
        _REPLAYED + "the_body_is_replayed_byte_for_byte",
        _REPLAYED + "a_body_of_one_mebibyte_is_replayed_and_one_byte_more_is_not",
    ),
    _shown(
        "Background tasks of a failed attempt do not run.",
        _AGAIN + "background_tasks_of_a_failed_attempt_do_not_run_and_those_of_the_last_one_run_once",
    ),
    _shown(
        "The unit is the outermost transaction (decorator, run, attempts) or the whole request.",
        _ASKED + "the_unit_is_the_outermost_transaction_whatever_began_it",
        _ATTEMPTS + "a_loop_inside_an_attempt_joins_it_and_is_tried_again_with_it",
    ),
    _shown(
        "retry= on a plain db.transaction() block raises: a block cannot be run twice.",
        _ASKED + "retry_on_a_plain_block_raises_because_a_block_cannot_be_run_twice",
    ),
    _shown(
        "An explicit retry= inside an open transaction raises.",
        _ASKED + "an_explicit_retry_inside_an_open_transaction_raises_before_anything_has_happened",
        _NOT_AGAIN + "a_function_that_asks_for_retry_inside_the_requests_transaction_raises",
    ),
    _shown(
        "Retried: serialization failures, deadlocks, lock timeouts as a whole transaction, SQLite BUSY, BUSY_SNAPSHOT and"
        " LOCKED, connection failures before COMMIT was sent, server shutdown before COMMIT, stale cached plans; plus the"
        " classes in on.",
        _RETRY + "a_transient_failure_of_postgresql_is_tried_again",
        _RETRY + "a_transient_failure_of_mariadb_is_tried_again",
        _RETRY + "a_transient_failure_of_sqlite_is_tried_again",
        _NEVER + "an_integrity_error_is_tried_again_only_if_on_names_it",
    ),
    _shown(
        "Never: an error of unknown outcome, a cancelled statement, an integrity error unless named in on.",
        _NEVER + "a_commit_whose_outcome_is_unknown_is_never_tried_again",
        _NEVER + "an_unknown_outcome_of_a_transaction_inside_is_not_tried_again_with_the_outer_one",
        _NEVER + "a_cancelled_statement_is_not_tried_again",
        _NEVER + "a_cancelled_task_is_not_tried_again",
    ),
    _shown(
        "A serialization failure at COMMIT is not ambiguous: retried.",
        _RETRY + "a_transient_failure_of_postgresql_is_tried_again",
        _CONTENTION + "of_two_doctors_who_both_go_off_call_at_once_one_always_stays",
    ),
    _shown(
        "Each attempt has a new session.",
        _RETRY + "a_transient_failure_of_postgresql_is_tried_again",
        _ASKED + "options_hold_for_each_attempt",
    ),
    _shown(
        "Twenty tasks with fifty serializable transfers each between ten accounts: all succeed, the sum is constant.",
        _CONTENTION + "twenty_tasks_with_fifty_serializable_transfers_each_all_succeed_and_the_sum_is_constant",
    ),
    _shown(
        "Full jitter, bounded by attempts and by deadline.",
        _ASKED + "pauses_are_random_between_zero_and_a_bound_that_doubles_up_to_max_delay",
        _ASKED + "no_attempt_begins_after_the_deadline",
    ),
    _shown(
        "Exhausted: RetriesExhausted from the last error, with the number of attempts.",
        _ASKED + "the_last_attempts_error_is_the_cause_of_what_is_raised_with_the_number_of_attempts",
        _AGAIN + "when_every_attempt_fails_the_client_reads_that_it_may_try_again_later",
    ),
    _shown(
        "Classification goes by SQLSTATE or error number found along orig, driver_exception, __cause__, __context__; never by"
        " message text or by SQLAlchemy's class.",
        _NEVER + "a_transient_error_that_doomed_the_transaction_is_tried_again_whatever_the_program_made_of_it",
        _NEVER + "a_transient_error_in_a_savepoint_counts_as_context_and_not_if_the_program_says_from_none",
    ),
)

SENTENCES = {
    "Request": REQUEST,
    "Propagation": PROPAGATION,
    "Rollback-only, and transactions that are already broken": ROLLBACK_ONLY,
    "Hooks": HOOKS,
    "Concurrency": CONCURRENCY,
    "Timeouts": TIMEOUTS,
    "Retry": RETRY,
}
