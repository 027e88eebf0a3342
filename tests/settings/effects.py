"""Where a setting's effect is shown, when not by a ``test_effect_of_<setting>`` in ``test_effects.py``."""

EFFECTS: dict[str, list[str]] = {
    "admin_api_key": ["server/test_route_table.py::test_routes_for_operators_open_for_admin_keys_only"],
    "additional_config": [
        "engine/core/test_engine_settings.py::test_a_scheduler_of_ones_own_is_used_and_is_told_the_additional_config",
        "engine/sampling/test_processors.py::test_a_processor_reads_the_additional_configuration",
    ],
    "allow_credentials": ["server/test_cors.py::test_credentials_are_taken_from_named_origins_only"],
    "allowed_headers": ["server/test_cors.py::test_only_named_methods_and_headers_may_be_used"],
    "allowed_methods": ["server/test_cors.py::test_only_named_methods_and_headers_may_be_used"],
    "allowed_origins": ["server/test_cors.py::test_only_named_origins_may_call"],
    "api_key": ["server/test_auth.py::test_without_a_right_key_nothing_reaches_the_engine"],
    "api_key_file": ["server/test_auth.py::test_keys_of_a_file_are_keys_beside_the_others"],
    "async_scheduling": [
        "engine/core/test_ahead.py::test_steps_are_scheduled_ahead_on_a_gpu_and_nowhere_else_unless_that_is_refused",
    ],
    "attention_backend": ["engine/test_model_settings.py::test_the_attention_backend_computes_attention"],
    "attention_config": ["engine/test_model_settings.py::test_the_attention_backend_computes_attention"],
    "chat_template": ["server/test_flags.py::test_a_chat_template_is_a_file_or_the_text_itself"],
    "chat_template_content_format": [
        "server/test_answer_options.py::test_content_reaches_the_template_in_the_form_that_is_set"
    ],
    "compilation_config": [
        "engine/test_graph_plan.py::test_keys_of_compilation_win_over_the_level",
        "engine/test_step_graphs.py::test_captured_steps_say_what_the_others_say",
    ],
    "cudagraph_capture_sizes": [
        "engine/test_graph_plan.py::test_sizes_can_be_chosen",
        "engine/test_step_graphs.py::test_after_readiness_they_are_captured_when_needed_or_one_at_a_time_while_nothing_is_to_do",
    ],
    "cudagraph_metrics": [
        "engine/test_step_graphs.py::test_the_log_says_how_steps_were_run_where_that_is_asked_for",
    ],
    "custom_histogram_buckets": ["server/test_metrics.py::test_buckets_can_be_chosen_by_family"],
    "default_chat_template_kwargs": [
        "server/test_answer_options.py::test_the_template_has_the_operators_variables_unless_a_request_has_others"
    ],
    "device": [
        "engine/test_device_detection.py::test_the_setting_wins_over_the_environment_and_that_over_what_is_there"
    ],
    "disable_fastapi_docs": ["server/test_routes.py::test_the_documentation_can_be_switched_off"],
    "disable_access_log_for_endpoints": [
        "server/test_request_log.py::test_lines_of_some_paths_and_secrets_of_queries_stay_out_of_the_log"
    ],
    "disable_frontend_multiprocessing": ["e2e/test_serve_demo.py::test_the_core_can_run_in_the_server_process"],
    "disable_hybrid_kv_cache_manager": [
        "engine/core/test_engine_settings.py::"
        "test_without_the_hybrid_cache_manager_windows_keep_all_tokens_and_nothing_else_changes"
    ],
    "disable_log_stats": [
        "server/test_log_settings.py::test_without_statistics_there_are_no_metrics_of_the_engine",
        "engine/test_log_stats.py::test_statistics_are_logged_unless_disabled",
    ],
    "disable_sliding_window": [
        "engine/test_model_settings.py::test_without_sliding_windows_every_layer_sees_all_of_one_window"
    ],
    "disable_uvicorn_access_log": ["server/test_log_settings.py::test_requests_are_logged_unless_that_is_too_little"],
    "download_dir": [
        "engine/loading/test_load_settings.py::test_everything_from_the_hub_comes_with_its_revision_cache_and_token"
    ],
    "enable_log_requests": ["engine/test_async_llm.py::test_requests_are_logged_without_their_text_when_asked"],
    "enable_force_include_usage": [
        "server/test_answer_options.py::test_every_stream_ends_with_usage_where_that_is_set"
    ],
    "enable_log_deltas": ["server/test_request_log.py::test_what_is_generated_is_logged_where_that_is_wanted"],
    "enable_log_outputs": ["server/test_request_log.py::test_what_is_generated_is_logged_where_that_is_wanted"],
    "enable_logging_iteration_details": [
        "engine/core/test_engine_settings.py::test_each_step_has_its_line_when_asked_for_and_none_else"
    ],
    "enable_prompt_embeds": [
        "engine/test_prompt_embeds.py::test_without_the_setting_they_are_refused",
        "engine/test_prompt_embeds.py::test_they_cross_to_the_engine_process_once_for_all_completions",
    ],
    "enable_prompt_tokens_details": ["server/test_answer_options.py::test_cached_tokens_are_told_when_that_is_enabled"],
    "enable_server_load_tracking": ["server/test_answer_options.py::test_the_load_is_the_number_of_requests_that_run"],
    "enable_sleep_mode": [
        "engine/core/test_sleep.py::test_memory_goes_back_and_requests_go_on_with_the_same_tokens",
    ],
    "enable_ssl_refresh": ["server/test_tls.py::test_the_process_speaks_tls_takes_up_files_and_stops_at_once"],
    "enable_tokenizer_info_endpoint": ["server/test_tokens.py::test_the_tokenizer_is_described_where_that_is_enabled"],
    "enforce_eager": ["engine/test_decode_graphs.py::test_what_is_eager_is_not_replayed"],
    "fail_on_environ_validation": [
        "engine/test_envs.py::test_what_does_not_do_what_it_says_is_a_warning_or_an_error_as_asked"
    ],
    "gpu_memory_utilization": [
        "engine/core/test_cache_budget.py::test_utilization_bounds_what_is_in_use_with_the_cache_full"
    ],
    "hf_config_path": ["engine/loading/test_load_settings.py::test_another_config_json_describes_the_model"],
    "hf_token": [
        "engine/loading/test_load_settings.py::test_everything_from_the_hub_comes_with_its_revision_cache_and_token"
    ],
    "host": ["server/test_front_end_options.py::test_the_process_listens_where_it_is_told"],
    "ignore_patterns": [
        "engine/loading/test_load_settings.py::test_weights_in_a_folder_that_fit_a_pattern_are_left_out"
    ],
    "ir_op_priority": ["engine/test_model_settings.py::test_the_first_implementation_of_a_priority_computes_the_norm"],
    "kv_cache_dtype": [
        "engine/test_model_settings.py::test_a_cache_of_another_data_type_holds_more_and_says_nearly_the_same",
        "engine/test_cache_formats.py::test_an_8_bit_cache_changes_logprobs_by_what_its_format_takes",
        "engine/test_cache_formats.py::test_the_same_memory_holds_more_tokens",
    ],
    "kv_cache_metrics": [
        "engine/core/test_kv_residency.py::test_an_engine_tells_of_its_blocks_where_that_is_asked_for"
    ],
    "kv_cache_metrics_sample": [
        "engine/core/test_kv_residency.py::test_an_engine_tells_of_its_blocks_where_that_is_asked_for"
    ],
    "kv_cache_dtype_skip_layers": [
        "engine/test_cache_formats.py::test_skipped_layers_keep_the_models_data_type",
        "engine/test_cache_formats.py::test_a_layer_that_is_not_there_cannot_be_skipped",
    ],
    "log_error_stack": ["server/test_request_log.py::test_the_stacks_of_errors_are_logged_where_that_is_wanted"],
    "log_format": ["server/test_request_log.py::test_a_process_logs_json_and_never_a_key"],
    "log_config_file": ["server/test_log_settings.py::test_a_file_tells_where_server_and_uvicorn_log"],
    "logits_processors": ["engine/sampling/test_processors.py::test_a_processor_steers_the_requests_that_ask_for_it"],
    "logprobs_mode": ["engine/sampling/test_logprobs_mode.py::test_an_engine_returns_what_its_setting_says"],
    "long_prefill_token_threshold": [
        "engine/core/test_partial_prefills.py::"
        "test_a_short_prompt_passes_the_long_ones_where_fewer_long_ones_may_be_part_way"
    ],
    "max_concurrency_per_key": [
        "server/test_key_limits.py::test_requests_beyond_a_keys_concurrency_are_refused_and_those_of_others_are_not"
    ],
    "max_cudagraph_capture_size": [
        "engine/test_graph_plan.py::test_sizes_can_be_chosen",
    ],
    "max_tokens_per_minute_per_key": [
        "server/test_key_limits.py::test_tokens_of_prompts_and_answers_use_up_a_keys_minute"
    ],
    "max_log_len": ["server/test_log_settings.py::test_the_engine_is_told_how_much_of_a_prompt_to_log"],
    "max_long_partial_prefills": [
        "engine/core/test_partial_prefills.py::"
        "test_a_short_prompt_passes_the_long_ones_where_fewer_long_ones_may_be_part_way"
    ],
    "max_num_queued_reqs": [
        "engine/test_async_llm.py::test_a_bounded_engine_takes_so_many_requests_and_refuses_the_others_at_once"
    ],
    "max_num_queued_tokens": [
        "engine/test_async_llm.py::test_a_bounded_engine_takes_no_prompts_behind_too_many_tokens"
    ],
    "max_num_partial_prefills": [
        "engine/core/test_partial_prefills.py::test_any_load_under_any_limits_ends_within_them_with_the_solo_outputs"
    ],
    "middleware": ["server/test_middleware.py::test_streams_pass_through_it_and_end_when_their_client_leaves"],
    "optimization_level": [
        "engine/test_graph_plan.py::test_the_optimization_level_decides_what_is_captured",
    ],
    "otlp_traces_endpoint": [
        "server/test_tracing.py::test_a_process_sends_what_its_receipts_say",
        "server/test_tracing.py::test_an_engine_without_a_server_refuses_to_send_traces",
    ],
    "performance_mode": [
        "engine/core/test_engine_settings.py::test_the_performance_mode_decides_what_unset_limits_are"
    ],
    "port": ["server/test_front_end_options.py::test_the_process_listens_where_it_is_told"],
    "prefix_caching_hash_algo": ["engine/core/test_engine_settings.py::test_no_limit_changes_a_result"],
    "profiler_config": ["server/test_profile.py::test_a_profile_holds_the_steps_between_start_and_stop"],
    "renderer_num_workers": ["engine/test_renderer_threads.py::test_so_many_long_prompts_are_tokenized_at_once"],
    "response_role": ["server/test_chat.py::test_the_role_in_the_answers_can_be_set"],
    "return_tokens_as_token_ids": [
        "server/test_answer_options.py::test_tokens_are_named_as_the_request_says_or_else_the_server"
    ],
    "revision": [
        "engine/loading/test_load_settings.py::test_everything_from_the_hub_comes_with_its_revision_cache_and_token"
    ],
    "enable_offline_docs": ["server/test_routes.py::test_offline_documentation_needs_nothing_from_elsewhere"],
    "h11_max_header_count": ["server/test_front_end_options.py::test_the_head_of_a_request_has_bounds"],
    "h11_max_incomplete_event_size": ["server/test_front_end_options.py::test_the_head_of_a_request_has_bounds"],
    "api_server_count": ["server/test_several_processes.py::test_answers_and_sums_are_those_of_one_process"],
    "uds": ["server/test_front_end_options.py::test_a_unix_socket_is_listened_on_and_gone_at_the_end"],
    "root_path": ["server/test_routes.py::test_a_root_path_is_taken_off"],
    "safetensors_load_strategy": ["engine/loading/test_load_settings.py::test_every_strategy_gives_the_same_model"],
    "safetensors_prefetch_block_size": [
        "engine/loading/test_load_settings.py::test_the_settings_reach_the_reader_ahead"
    ],
    "safetensors_prefetch_num_threads": [
        "engine/loading/test_load_settings.py::test_the_settings_reach_the_reader_ahead"
    ],
    "scheduler_cls": [
        "engine/core/test_engine_settings.py::test_a_scheduler_of_ones_own_is_used_and_is_told_the_additional_config"
    ],
    "scheduler_reserve_full_isl": [
        "engine/core/test_partial_prefills.py::"
        "test_a_prompt_starts_only_when_all_of_it_has_room_or_else_with_its_first_chunk"
    ],
    "scheduling_policy": [
        "engine/core/test_scheduler.py::test_the_priority_policy_runs_urgent_requests_first_and_preempts_the_others"
    ],
    "served_model_name": ["server/test_serve.py::test_ctrl_c_ends_with_zero_and_flags_are_followed"],
    "shutdown_timeout": [
        "server/test_serve.py::test_with_a_timeout_streams_finish_and_nothing_new_is_taken",
        "server/test_serve.py::test_when_the_timeout_is_over_streams_are_ended",
    ],
    "show_hidden_metrics_for_version": ["server/test_metrics.py::test_hidden_metrics_are_shown_for_one_version_more"],
    "ssl_ca_certs": ["server/test_tls.py::test_clients_are_asked_for_certificates"],
    "ssl_cert_reqs": ["server/test_tls.py::test_clients_are_asked_for_certificates"],
    "ssl_certfile": ["server/test_tls.py::test_the_process_speaks_tls_takes_up_files_and_stops_at_once"],
    "ssl_ciphers": ["server/test_tls.py::test_clients_choose_among_the_ciphers_that_are_listed"],
    "ssl_keyfile": ["server/test_tls.py::test_the_process_speaks_tls_takes_up_files_and_stops_at_once"],
    "tokenizer_revision": [
        "engine/loading/test_load_settings.py::test_a_tokenizer_of_the_models_repository_has_its_revision_or_its_own"
    ],
    "trust_request_chat_template": [
        "server/test_request_templates.py::test_where_it_is_allowed_it_is_used",
    ],
    "uvicorn_log_level": ["server/test_front_end_options.py::test_the_log_holds_what_its_level_says"],
    "worker_cls": ["engine/core/test_engine_settings.py::test_a_worker_of_ones_own_computes_the_steps"],
    "worker_extension_cls": [
        "engine/core/test_engine_settings.py::test_the_methods_of_an_extension_can_be_called_between_steps"
    ],
}
