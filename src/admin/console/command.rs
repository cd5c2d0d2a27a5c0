//! What may be typed.

use crate::operator::Order;

/// A command, with its arguments as typed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    Show(Show),
    /// A cluster's name; `None`: all.
    Pause(Option<String>),
    Resume(Option<String>),
    Reload,
    Node(Order, String),
    Kill(u32),
    /// Ends everything at once, or when the clients are done.
    Shutdown {
        wait: bool,
    },
    /// What drivers say without meaning it; the answer's tag.
    Ignored(&'static str),
    /// What drivers ask at login: columns and their values.
    Constants(Vec<(String, String)>),
    Empty,
}

macro_rules! shows {
    ($($name:ident $word:literal $about:literal;)+) => {
        /// What can be shown.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Show { $($name),+ }

        impl Show {
            pub const ALL: &[(Show, &str, &str)] = &[$((Show::$name, $word, $about)),+];
        }
    };
}

shows! {
    Nodes "NODES" "role, state, lag, weight and connections of every node";
    Pools "POOLS" "clients and server connections by database and user, as PgBouncer's";
    Clients "CLIENTS" "every client; KILL takes its id";
    Servers "SERVERS" "every server connection";
    Stats "STATS" "statements and times by cluster since the start";
    StatsTotals "STATS_TOTALS" "the same, in the columns that exporters made for PgBouncer read";
    Routes "ROUTES" "how many statements went where, and why";
    Statements "STATEMENTS" "the last routed statements, without literals, while admin.recent_statements is set";
    Config "CONFIG" "every key of the configuration in force; no secrets";
    Databases "DATABASES" "where each database's clients go";
    Lists "LISTS" "how many there are of what";
    Events "EVENTS" "elections and changes of state, newest last";
    Version "VERSION" "this program's version";
    Help "HELP" "this list";
}

/// Commands that are no SHOW, for HELP.
pub const OTHERS: &[(&str, &str)] = &[
    ("PAUSE [cluster]", "wait until running transactions are done, then hold new statements"),
    ("RESUME [cluster]", "let them go, in order"),
    ("RELOAD", "read the configuration file again"),
    ("DRAIN node", "begin nothing new there; open transactions may end"),
    ("UNDRAIN node", "take that back"),
    ("BAN node", "use it for nothing, and end what is open there"),
    ("UNBAN node", "take that back"),
    ("KILL id", "end a client's connection"),
    ("SHUTDOWN [WAIT_FOR_CLIENTS]", "end the proxy, at once or when transactions are done"),
];

/// Longest command that is looked at, in bytes.
const MAX_LENGTH: usize = 1024;

/// Reads a command.
///
/// # Errors
/// What is wrong with it.
pub fn parse(text: &str) -> Result<Command, String> {
    if text.len() > MAX_LENGTH {
        return Err(format!("a command has at most {MAX_LENGTH} bytes"));
    }
    let text = without_comments(text).trim_end_matches(';').trim();
    if text.contains(';') {
        let tag = of_a_pool(text).ok_or_else(|| "one command at a time".to_owned())?;
        return Ok(Command::Ignored(tag));
    }
    let mut words = text.split_whitespace();
    let Some(first) = words.next() else { return Ok(Command::Empty) };
    let rest: Vec<&str> = words.collect();
    let verb = first.to_ascii_uppercase();
    match verb.as_str() {
        "SHOW" => show(&rest),
        "HELP" => Ok(Command::Show(Show::Help)),
        "PAUSE" => at_most_one(&verb, &rest).map(Command::Pause),
        "RESUME" => at_most_one(&verb, &rest).map(Command::Resume),
        "RELOAD" => none(&verb, &rest).map(|()| Command::Reload),
        "DRAIN" => one(&verb, &rest).map(|node| Command::Node(Order::Drain, node)),
        "UNDRAIN" => one(&verb, &rest).map(|node| Command::Node(Order::Undrain, node)),
        "BAN" => one(&verb, &rest).map(|node| Command::Node(Order::Ban, node)),
        "UNBAN" => one(&verb, &rest).map(|node| Command::Node(Order::Unban, node)),
        "KILL" | "KILL_CLIENT" => kill(&verb, &rest),
        "SHUTDOWN" => shutdown(&rest),
        "SET" => Ok(Command::Ignored("SET")),
        "RESET" => Ok(Command::Ignored("RESET")),
        "CLOSE" => Ok(Command::Ignored("CLOSE CURSOR ALL")),
        "UNLISTEN" => Ok(Command::Ignored("UNLISTEN")),
        "DEALLOCATE" => Ok(Command::Ignored("DEALLOCATE ALL")),
        "DISCARD" => Ok(Command::Ignored("DISCARD ALL")),
        "BEGIN" | "START" => Ok(Command::Ignored("BEGIN")),
        "COMMIT" | "END" => Ok(Command::Ignored("COMMIT")),
        "ROLLBACK" => Ok(Command::Ignored("ROLLBACK")),
        "SELECT" => constants(text),
        _ => Err(format!("unknown command {first:?}; SHOW HELP lists them")),
    }
}

/// What stands behind the comments that a command begins with: drivers and tools sign with those.
fn without_comments(text: &str) -> &str {
    let mut text = text.trim();
    loop {
        let end = match () {
            () if text.starts_with("/*") => text.find("*/").map(|at| at + 2),
            () if text.starts_with("--") => text.find('\n'),
            () => None,
        };
        match end {
            Some(end) => text = text[end..].trim_start(),
            None => return text,
        }
    }
}

/// The last tag of a string of several statements by which a driver's pool resets a connection, such as
/// `SELECT pg_advisory_unlock_all(); CLOSE ALL; UNLISTEN *; RESET ALL;`.
fn of_a_pool(text: &str) -> Option<&'static str> {
    let mut last = None;
    for part in text.split(';').map(str::trim) {
        last = match part.eq_ignore_ascii_case("select pg_advisory_unlock_all()") {
            true => Some("SELECT 1"),
            false => match parse(part) {
                Ok(Command::Ignored(tag)) => Some(tag),
                _ => return None,
            },
        };
    }
    last
}

fn show(words: &[&str]) -> Result<Command, String> {
    let [what] = words else { return Err("SHOW takes one word; SHOW HELP lists them".to_owned()) };
    let what = unquoted(what).to_ascii_uppercase();
    Show::ALL
        .iter()
        .find(|(_, word, _)| *word == what)
        .map(|(show, _, _)| Command::Show(*show))
        .ok_or_else(|| format!("there is no SHOW {what}; SHOW HELP lists what there is"))
}

fn kill(verb: &str, words: &[&str]) -> Result<Command, String> {
    let words = match words {
        // As MySQL has it.
        [what, id] if ["CONNECTION", "CLIENT"].contains(&what.to_ascii_uppercase().as_str()) => {
            std::slice::from_ref(id)
        }
        _ => words,
    };
    let id = one(verb, words)?;
    id.parse().map(Command::Kill).map_err(|_| format!("{id:?} is no id; SHOW CLIENTS has them"))
}

fn shutdown(words: &[&str]) -> Result<Command, String> {
    match words {
        [] => Ok(Command::Shutdown { wait: false }),
        [word]
            if ["WAIT_FOR_CLIENTS", "WAIT_FOR_SERVERS", "WAIT"]
                .contains(&word.to_ascii_uppercase().as_str()) =>
        {
            Ok(Command::Shutdown { wait: true })
        }
        _ => Err("SHUTDOWN takes WAIT_FOR_CLIENTS or nothing".to_owned()),
    }
}

/// Drivers look whether somebody is there, who, and how a server of MySQL is set.
fn constants(text: &str) -> Result<Command, String> {
    let asked = text.get("SELECT".len()..).unwrap_or_default();
    let limit = asked.to_ascii_lowercase().find(" limit ").unwrap_or(asked.len());
    let columns: Option<Vec<_>> = asked[..limit].split(',').map(constant).collect();
    let refused = || "the console has no data: SELECT is not for here; SHOW HELP lists what is".to_owned();
    columns.map(Command::Constants).ok_or_else(refused)
}

/// One expression: the name of its column and its value.
fn constant(asked: &str) -> Option<(String, String)> {
    let mut words = asked.split_whitespace();
    let expression = words.next()?.to_ascii_lowercase();
    let alias = match (words.next(), words.next(), words.next()) {
        (None, ..) => None,
        (Some(word), Some(alias), None) if word.eq_ignore_ascii_case("as") => Some(alias),
        (Some(alias), None, None) => Some(alias),
        _ => return None,
    };
    let is_number = expression.bytes().all(|byte| byte.is_ascii_digit());
    let value = match expression.as_str() {
        "version()" | "@@version" => concat!("pointsman ", env!("CARGO_PKG_VERSION")).to_owned(),
        "user()" | "current_user" | "current_user()" | "database()" | "current_database()" => String::new(),
        _ if is_number => expression.clone(),
        _ => variable(&expression)?.to_owned(),
    };
    let unnamed = if is_number { "?column?".to_owned() } else { expression };
    Some((alias.map_or(unnamed, |alias| unquoted(alias).to_owned()), value))
}

/// A variable that drivers of MySQL ask for when they log in.
fn variable(asked: &str) -> Option<&'static str> {
    let name = asked.strip_prefix("@@")?;
    let name = ["session.", "global."].iter().find_map(|scope| name.strip_prefix(scope)).unwrap_or(name);
    Some(match name {
        "version_comment" => "pointsman console",
        "character_set_client"
        | "character_set_connection"
        | "character_set_results"
        | "character_set_server" => "utf8mb4",
        "collation_connection" | "collation_server" => "utf8mb4_general_ci",
        "init_connect" | "license" | "sql_mode" => "",
        "auto_increment_increment" | "autocommit" => "1",
        "lower_case_table_names"
        | "performance_schema"
        | "query_cache_size"
        | "read_only"
        | "transaction_read_only"
        | "tx_read_only" => "0",
        "query_cache_type" => "OFF",
        // What a packet may have here.
        "max_allowed_packet" => "65536",
        "interactive_timeout" | "wait_timeout" => "28800",
        "net_write_timeout" => "60",
        "system_time_zone" => "UTC",
        "time_zone" => "SYSTEM",
        "transaction_isolation" | "tx_isolation" => "REPEATABLE-READ",
        _ => return None,
    })
}

/// `'a'`, `"a"` and `` `a` `` are a.
fn unquoted(word: &str) -> &str {
    ['\'', '"', '`']
        .into_iter()
        .find_map(|quote| word.strip_prefix(quote)?.strip_suffix(quote))
        .unwrap_or(word)
}

fn none(verb: &str, words: &[&str]) -> Result<(), String> {
    if words.is_empty() { Ok(()) } else { Err(format!("{verb} takes no argument")) }
}

fn one(verb: &str, words: &[&str]) -> Result<String, String> {
    match words {
        [word] => Ok(unquoted(word).to_owned()),
        _ => Err(format!("{verb} takes one argument")),
    }
}

fn at_most_one(verb: &str, words: &[&str]) -> Result<Option<String>, String> {
    if words.is_empty() { Ok(None) } else { one(verb, words).map(Some) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_read_in_any_case_with_or_without_quotes_and_semicolon() {
        let constants = |columns: &[(&str, &str)]| {
            let columns = columns.iter().map(|(name, value)| (name.to_string(), value.to_string()));
            Command::Constants(columns.collect())
        };
        let cases = [
            ("SHOW NODES", Command::Show(Show::Nodes)),
            (" show pools ; ", Command::Show(Show::Pools)),
            ("help", Command::Show(Show::Help)),
            ("PAUSE", Command::Pause(None)),
            ("pause \"shop\";", Command::Pause(Some("shop".to_owned()))),
            ("RESUME shop", Command::Resume(Some("shop".to_owned()))),
            ("reload", Command::Reload),
            ("DRAIN 10.0.0.2:5432", Command::Node(Order::Drain, "10.0.0.2:5432".to_owned())),
            ("UNBAN '[::1]:5432'", Command::Node(Order::Unban, "[::1]:5432".to_owned())),
            ("KILL 7", Command::Kill(7)),
            ("KILL CONNECTION 7", Command::Kill(7)),
            ("shutdown wait_for_clients", Command::Shutdown { wait: true }),
            ("SET autocommit=0", Command::Ignored("SET")),
            ("select 1", constants(&[("?column?", "1")])),
            ("SELECT @@version_comment LIMIT 1", constants(&[("@@version_comment", "pointsman console")])),
            // MariaDB's driver for Java, MySQL's.
            (
                "SELECT @@max_allowed_packet,@@system_time_zone,@@time_zone",
                constants(&[
                    ("@@max_allowed_packet", "65536"),
                    ("@@system_time_zone", "UTC"),
                    ("@@time_zone", "SYSTEM"),
                ]),
            ),
            (
                "/* driver */SELECT  @@session.auto_increment_increment AS auto_increment_increment, @@license AS license",
                constants(&[("auto_increment_increment", "1"), ("license", "")]),
            ),
            (";", Command::Empty),
            ("/* a tool, 1.0 */ -- and more\n SHOW NODES", Command::Show(Show::Nodes)),
            // asyncpg's pool, Npgsql's.
            (
                "SELECT pg_advisory_unlock_all();\nCLOSE ALL;\nUNLISTEN *;\nRESET ALL;",
                Command::Ignored("RESET"),
            ),
            ("DISCARD ALL", Command::Ignored("DISCARD ALL")),
        ];
        for (text, command) in cases {
            assert_eq!(parse(text), Ok(command), "{text}");
        }
    }

    #[test]
    fn what_is_no_command_is_refused() {
        let long = "x".repeat(2000);
        let cases = [
            "SHOW",
            "SHOW SECRETS",
            "SHOW NODES POOLS",
            "DRAIN",
            "DRAIN a b",
            "KILL",
            "KILL me",
            "KILL -1",
            "RELOAD now",
            "SELECT * FROM users",
            "SELECT @@version, secret FROM users",
            "SELECT @@secret",
            "DROP TABLE t",
            "PAUSE a b",
            "RESET ALL; SHUTDOWN",
            "/* a comment without end",
            &long,
        ];
        for text in cases {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
