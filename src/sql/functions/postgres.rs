//! PostgreSQL's own functions.

use super::Builtin;

/// What calling the built-in function `name` means; `None` if it is not one.
pub(super) fn builtin(name: &str) -> Option<Builtin> {
    special(name).or_else(|| READS.binary_search(&name).is_ok().then_some(Builtin::Pure))
}

/// Those that are more, or less, than a computation.
fn special(name: &str) -> Option<Builtin> {
    Some(match name {
        "nextval" | "setval" => Builtin::Draws,
        "currval" | "lastval" => Builtin::Previous,
        "set_config" | "setseed" => Builtin::SetConfig,
        "current_setting" => Builtin::CurrentSetting,
        "pg_advisory_lock"
        | "pg_advisory_lock_shared"
        | "pg_try_advisory_lock"
        | "pg_try_advisory_lock_shared" => Builtin::AdvisoryLock,
        "pg_advisory_unlock_all" => Builtin::AdvisoryUnlockAll,
        "pg_prepared_statement" | "pg_cursor" => Builtin::ShowsPrepared,
        "pg_listening_channels" | "pg_my_temp_schema" | "pg_is_other_temp_schema" => Builtin::State,
        "pg_advisory_unlock"
        | "pg_advisory_unlock_shared"
        | "pg_advisory_xact_lock"
        | "pg_advisory_xact_lock_shared"
        | "pg_try_advisory_xact_lock"
        | "pg_try_advisory_xact_lock_shared" => Builtin::State,
        "table_to_xml" | "table_to_xml_and_xmlschema" | "schema_to_xml" | "schema_to_xml_and_xmlschema" => {
            Builtin::ReadsAll
        }
        "database_to_xml" | "database_to_xml_and_xmlschema" => Builtin::ReadsAll,
        _ if SERVER.contains(&name) => Builtin::Server,
        _ if WRITES.contains(&name) => Builtin::Writes,
        _ => return by_prefix(name),
    })
}

/// Questions about the server itself.
#[rustfmt::skip]
static SERVER: &[&str] = &[
    "pg_blocking_pids", "pg_current_logfile", "pg_current_snapshot", "pg_current_xact_id_if_assigned",
    "pg_get_backend_memory_contexts", "pg_get_replication_slots", "pg_get_sequence_data",
    "pg_get_shmem_allocations", "pg_get_wal_replay_pause_state", "pg_get_wal_resource_managers",
    "pg_hba_file_rules", "pg_ident_file_mappings", "pg_is_in_recovery", "pg_is_wal_replay_paused",
    "pg_isolation_test_session_is_blocked", "pg_last_committed_xact", "pg_lock_status",
    "pg_notification_queue_usage", "pg_prepared_xact", "pg_safe_snapshot_blocking_pids",
    "pg_sequence_last_value", "pg_show_all_file_settings", "pg_show_all_settings",
    "pg_show_replication_origin_status", "pg_stat_file", "pg_stat_have_stats", "pg_walfile_name",
    "pg_walfile_name_offset", "pg_xact_commit_timestamp", "pg_xact_commit_timestamp_origin",
    "pg_xact_status", "txid_current_if_assigned", "txid_current_snapshot", "txid_status",
];

/// What changes data or the server, acts on other sessions, or runs SQL given as text.
#[rustfmt::skip]
static WRITES: &[&str] = &[
    "brin_desummarize_range", "brin_summarize_new_values", "brin_summarize_range", "cursor_to_xml",
    "cursor_to_xmlschema", "gin_clean_pending_list", "loread", "lowrite", "pg_backup_start",
    "pg_backup_stop", "pg_cancel_backend", "pg_create_restore_point", "pg_current_xact_id",
    "pg_export_snapshot", "pg_import_system_collations", "pg_log_backend_memory_contexts", "pg_nextoid",
    "pg_notify", "pg_promote", "pg_reload_conf", "pg_rotate_logfile", "pg_switch_wal",
    "pg_terminate_backend", "pg_wal_replay_pause", "pg_wal_replay_resume", "query_to_xml",
    "query_to_xml_and_xmlschema", "query_to_xmlschema", "ts_rewrite", "ts_stat", "txid_current",
];

fn by_prefix(name: &str) -> Option<Builtin> {
    let starts = |prefixes: &[&str]| prefixes.iter().any(|prefix| name.starts_with(prefix));
    if starts(&["pg_stat_reset", "pg_stat_force", "pg_stat_clear", "pg_logical_", "pg_replication_"])
        || starts(&[
            "lo_",
            "binary_upgrade_",
            "pg_create_",
            "pg_drop_",
            "pg_copy_",
            "pg_restore_",
            "pg_clear_",
        ])
    {
        Some(Builtin::Writes)
    } else if starts(&["pg_stat_get_", "pg_control_", "pg_current_wal_", "pg_last_wal_", "pg_last_xact_"])
        || starts(&["pg_ls_", "pg_read_"])
    {
        Some(Builtin::Server)
    } else {
        None
    }
}

/// Functions that read nothing but their arguments, the catalog and the tables of the statement.
///
/// From PostgreSQL 15's `pg_proc`: all names in `pg_catalog` without a VOLATILE overload, less
/// what only the server itself calls (`internal`, `cstring`, `_send`, operator support); the
/// volatile ones that do not write (`random`, `clock_timestamp`, `pg_sleep`, `gen_random_uuid`,
/// sizes …); the grammar's own (`coalesce`, `current_user` …); and what the release notes of 16,
/// 17 and 18 added. Sorted by bytes. The first part comes from
///
/// ```sql
/// SELECT proname FROM pg_proc WHERE pronamespace = 'pg_catalog'::regnamespace
/// GROUP BY proname HAVING NOT bool_or(provolatile = 'v') ORDER BY proname COLLATE "C"
/// ```
#[rustfmt::skip]
static READS: &[&str] = &[
    "abbrev", "abs", "acldefault", "aclexplode", "acos", "acosd", "acosh", "age", "any_value", "area",
    "array", "array_agg", "array_dims", "array_fill", "array_length", "array_lower", "array_ndims",
    "array_position", "array_positions", "array_remove", "array_replace", "array_reverse", "array_sample",
    "array_shuffle", "array_sort", "array_to_json", "array_to_string", "array_to_tsvector", "array_upper",
    "ascii", "asin", "asind", "asinh", "atan", "atan2", "atan2d", "atand", "atanh", "avg", "bigint", "bit",
    "bit_and", "bit_count", "bit_length", "bit_or", "bit_xor", "bool", "bool_and", "bool_or", "bound_box",
    "box", "bpchar", "broadcast", "btrim", "cardinality", "casefold", "cash_words", "cast", "cbrt", "ceil",
    "ceiling", "center", "char", "char_length", "character", "character_length", "chr", "cidr", "circle",
    "clock_timestamp", "coalesce", "col_description", "collation", "concat", "concat_ws", "convert",
    "convert_from", "convert_to", "corr", "cos", "cosd", "cosh", "cot", "cotd", "count", "covar_pop",
    "covar_samp", "crc32", "crc32c", "cume_dist", "current_catalog", "current_database", "current_date",
    "current_query", "current_role", "current_schema", "current_schemas", "current_time",
    "current_timestamp", "current_user", "database_to_xmlschema", "date", "date_add", "date_bin",
    "date_cmp_timestamp", "date_cmp_timestamptz", "date_part", "date_subtract", "date_trunc",
    "datemultirange", "daterange", "dec", "decimal", "decode", "degrees", "dense_rank", "diagonal",
    "diameter", "div", "encode", "enum_first", "enum_last", "enum_range", "erf", "erfc", "every", "exists",
    "exp", "extract", "factorial", "family", "first_value", "float4", "float8", "floor", "format",
    "format_type", "gamma", "gcd", "gen_random_uuid", "generate_series", "generate_subscripts", "get_bit",
    "get_byte", "get_current_ts_config", "getdatabaseencoding", "greatest", "grouping",
    "has_any_column_privilege", "has_column_privilege", "has_database_privilege",
    "has_foreign_data_wrapper_privilege", "has_function_privilege", "has_language_privilege",
    "has_largeobject_privilege", "has_parameter_privilege", "has_schema_privilege", "has_sequence_privilege",
    "has_server_privilege", "has_table_privilege", "has_tablespace_privilege", "has_type_privilege",
    "hashtext", "hashtextextended", "height", "host", "hostmask", "icu_unicode_version", "in_range",
    "inet_client_addr", "inet_client_port", "inet_merge", "inet_same_family", "inet_server_addr",
    "inet_server_port", "initcap", "int2", "int4", "int4multirange", "int4range", "int8", "int8multirange",
    "int8range", "integer", "interval", "is_normalized", "isclosed", "isempty", "isfinite", "ishorizontal",
    "isopen", "isparallel", "isperp", "isvertical", "json", "json_agg", "json_agg_strict", "json_array",
    "json_array_elements", "json_array_elements_text", "json_array_length", "json_arrayagg",
    "json_build_array", "json_build_object", "json_each", "json_each_text", "json_exists", "json_object",
    "json_object_agg", "json_object_agg_strict", "json_object_agg_unique", "json_object_agg_unique_strict",
    "json_object_keys", "json_objectagg", "json_populate_record", "json_populate_recordset", "json_query",
    "json_scalar", "json_serialize", "json_strip_nulls", "json_table", "json_to_record", "json_to_recordset",
    "json_to_tsvector", "json_typeof", "json_value", "jsonb", "jsonb_agg", "jsonb_agg_strict",
    "jsonb_array_elements", "jsonb_array_elements_text", "jsonb_array_length", "jsonb_build_array",
    "jsonb_build_object", "jsonb_delete", "jsonb_each", "jsonb_each_text", "jsonb_insert", "jsonb_object",
    "jsonb_object_agg", "jsonb_object_agg_strict", "jsonb_object_agg_unique",
    "jsonb_object_agg_unique_strict", "jsonb_object_keys", "jsonb_path_exists", "jsonb_path_exists_tz",
    "jsonb_path_match", "jsonb_path_match_tz", "jsonb_path_query", "jsonb_path_query_array",
    "jsonb_path_query_array_tz", "jsonb_path_query_first", "jsonb_path_query_first_tz",
    "jsonb_path_query_tz", "jsonb_populate_record", "jsonb_populate_recordset", "jsonb_pretty", "jsonb_set",
    "jsonb_set_lax", "jsonb_strip_nulls", "jsonb_to_record", "jsonb_to_recordset", "jsonb_to_tsvector",
    "jsonb_typeof", "justify_days", "justify_hours", "justify_interval", "lag", "last_value", "lcm", "lead",
    "least", "left", "length", "lgamma", "like", "line", "ln", "localtime", "localtimestamp", "log", "log10",
    "lower", "lower_inc", "lower_inf", "lpad", "lseg", "ltrim", "macaddr", "macaddr8", "macaddr8_set7bit",
    "make_date", "make_interval", "make_time", "make_timestamp", "make_timestamptz", "makeaclitem",
    "masklen", "max", "md5", "merge_action", "min", "min_scale", "mod", "mode", "money", "multirange",
    "mxid_age", "name", "nameconcatoid", "nchar", "netmask", "network", "normalize", "now", "npoints",
    "nth_value", "ntile", "nullif", "num_nonnulls", "num_nulls", "numeric", "nummultirange", "numnode",
    "numrange", "obj_description", "octet_length", "oid", "oidvectortypes", "overlaps", "overlay",
    "parse_ident", "path", "pclose", "percent_rank", "percentile_cont", "percentile_disc",
    "pg_available_extension_versions", "pg_available_extensions", "pg_backend_pid", "pg_basetype",
    "pg_char_to_encoding", "pg_client_encoding", "pg_collation_actual_version", "pg_collation_for",
    "pg_collation_is_visible", "pg_column_compression", "pg_column_is_updatable", "pg_column_size",
    "pg_column_toast_chunk_id", "pg_conf_load_time", "pg_config", "pg_conversion_is_visible",
    "pg_database_collation_actual_version", "pg_database_size", "pg_describe_object",
    "pg_encoding_max_length", "pg_encoding_to_char", "pg_extension_update_paths", "pg_filenode_relation",
    "pg_function_is_visible", "pg_get_acl", "pg_get_catalog_foreign_keys", "pg_get_constraintdef",
    "pg_get_expr", "pg_get_function_arg_default", "pg_get_function_arguments",
    "pg_get_function_identity_arguments", "pg_get_function_result", "pg_get_function_sqlbody",
    "pg_get_functiondef", "pg_get_indexdef", "pg_get_keywords", "pg_get_object_address",
    "pg_get_partition_constraintdef", "pg_get_partkeydef", "pg_get_publication_tables",
    "pg_get_replica_identity_index", "pg_get_ruledef", "pg_get_serial_sequence", "pg_get_statisticsobjdef",
    "pg_get_statisticsobjdef_columns", "pg_get_statisticsobjdef_expressions", "pg_get_triggerdef",
    "pg_get_userbyid", "pg_get_viewdef", "pg_has_role", "pg_identify_object",
    "pg_identify_object_as_address", "pg_index_column_has_property", "pg_index_has_property",
    "pg_indexam_has_property", "pg_indexam_progress_phasename", "pg_indexes_size", "pg_input_error_info",
    "pg_input_is_valid", "pg_jit_available", "pg_lsn", "pg_opclass_is_visible", "pg_operator_is_visible",
    "pg_opfamily_is_visible", "pg_options_to_table", "pg_partition_ancestors", "pg_partition_root",
    "pg_partition_tree", "pg_postmaster_start_time", "pg_relation_filenode", "pg_relation_filepath",
    "pg_relation_is_publishable", "pg_relation_is_updatable", "pg_relation_size", "pg_sequence_parameters",
    "pg_settings_get_flags", "pg_size_bytes", "pg_size_pretty", "pg_sleep", "pg_sleep_for", "pg_sleep_until",
    "pg_snapshot_xip", "pg_snapshot_xmax", "pg_snapshot_xmin", "pg_split_walfile_name",
    "pg_statistics_obj_is_visible", "pg_table_is_visible", "pg_table_size", "pg_tablespace_databases",
    "pg_tablespace_location", "pg_tablespace_size", "pg_timezone_abbrevs", "pg_timezone_names",
    "pg_total_relation_size", "pg_trigger_depth", "pg_ts_config_is_visible", "pg_ts_dict_is_visible",
    "pg_ts_parser_is_visible", "pg_ts_template_is_visible", "pg_type_is_visible", "pg_typeof",
    "pg_visible_in_snapshot", "pg_wal_lsn_diff", "phraseto_tsquery", "pi", "plainto_tsquery", "point",
    "polygon", "popen", "position", "pow", "power", "querytree", "quote_ident", "quote_literal",
    "quote_nullable", "radians", "radius", "random", "random_normal", "range_agg", "range_intersect_agg",
    "range_merge", "rank", "real", "regclass", "regexp_count", "regexp_instr", "regexp_like", "regexp_match",
    "regexp_matches", "regexp_replace", "regexp_split_to_array", "regexp_split_to_table", "regexp_substr",
    "regr_avgx", "regr_avgy", "regr_count", "regr_intercept", "regr_r2", "regr_slope", "regr_sxx",
    "regr_sxy", "regr_syy", "repeat", "replace", "reverse", "right", "round", "row", "row_number",
    "row_security_active", "row_to_json", "rpad", "rtrim", "satisfies_hash_partition", "scale",
    "schema_to_xmlschema", "session_user", "set_bit", "set_byte", "set_masklen", "setweight", "sha224",
    "sha256", "sha384", "sha512", "shobj_description", "sign", "sin", "sind", "sinh", "slope", "smallint",
    "split_part", "sqrt", "statement_timestamp", "stddev", "stddev_pop", "stddev_samp", "string_agg",
    "string_to_array", "string_to_table", "strip", "strpos", "substr", "substring", "sum", "system_user",
    "table_to_xmlschema", "tan", "tand", "tanh", "text", "textlen", "time", "timeofday", "timestamp",
    "timestamp_cmp_date", "timestamp_cmp_timestamptz", "timestamptz", "timestamptz_cmp_date",
    "timestamptz_cmp_timestamp", "timetz", "timezone", "to_ascii", "to_bin", "to_char", "to_date", "to_hex",
    "to_json", "to_jsonb", "to_number", "to_oct", "to_regclass", "to_regcollation", "to_regnamespace",
    "to_regoper", "to_regoperator", "to_regproc", "to_regprocedure", "to_regrole", "to_regtype",
    "to_regtypemod", "to_timestamp", "to_tsquery", "to_tsvector", "transaction_timestamp", "translate",
    "treat", "trim", "trim_array", "trim_scale", "trunc", "ts_debug", "ts_delete", "ts_filter",
    "ts_headline", "ts_lexize", "ts_parse", "ts_rank", "ts_rank_cd", "ts_token_type", "tsmultirange",
    "tsquery_phrase", "tsrange", "tstzmultirange", "tstzrange", "tsvector_to_array", "txid_snapshot_xip",
    "txid_snapshot_xmax", "txid_snapshot_xmin", "txid_visible_in_snapshot", "unicode_assigned",
    "unicode_version", "unistr", "unnest", "upper", "upper_inc", "upper_inf", "user",
    "uuid_extract_timestamp", "uuid_extract_version", "uuidv4", "uuidv7", "var_pop", "var_samp", "varbit",
    "varchar", "variance", "version", "websearch_to_tsquery", "width", "width_bucket", "xid", "xml",
    "xml_is_well_formed", "xml_is_well_formed_content", "xml_is_well_formed_document", "xmlagg",
    "xmlcomment", "xmlconcat", "xmlconcat2", "xmlelement", "xmlexists", "xmlforest", "xmlparse", "xmlpi",
    "xmlroot", "xmlserialize", "xmltable", "xmltext", "xmlvalidate", "xpath", "xpath_exists",
];

#[cfg(test)]
mod tests {
    use super::READS;

    #[test]
    fn names_are_sorted_for_the_search() {
        assert!(READS.is_sorted());
    }
}
